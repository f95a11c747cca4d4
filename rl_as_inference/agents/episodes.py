"""Episodes of replay, in the order in which they were lived, and as Minari keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from rl_as_inference.turns import silenced

if TYPE_CHECKING:
    from minari import MinariDataset

__all__ = ["Episode", "Origin", "chained", "import_minari", "written_to_minari"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Episode:
    """One episode of ``T`` steps, or the part of one that is known.

    Attributes:
        states: ``(T+1, *state)``.
        actions: ``(T, *action)``.
        rewards: ``(T,)``, reward units.
        terminated: whether it ended in a terminal state (or at the model's horizon).
        truncated: whether a time limit cut it off. Where neither is, it was still running.
        log_policy: log probabilities by which the actions were drawn, ``(T,)`` in nats; None where they are not known.
        start: the time of the first state, where that is not the beginning.
    """

    states: Array
    actions: Array
    rewards: Array
    terminated: bool
    truncated: bool
    log_policy: Array | None = None
    start: int = 0

    def __len__(self) -> int:
        return len(self.rewards)


class Origin(NamedTuple):
    """Where transitions come from: how their actions are those of an environment, and which one."""

    action_space: gymnasium.Space[Any]
    """The environment's own."""
    to_environment: Callable[[Array], Any]
    """From the agent's units."""
    env_spec: EnvSpec | None
    """None of an environment that no id makes."""


def chained(
    state: Array,
    action: Array,
    reward: Array,
    next_state: Array,
    terminated: Array,
    truncated: Array,
    time: Array | None,
    *,
    num_envs: int,
) -> list[Episode]:
    """Returns the episodes that transitions, oldest first, are of; each goes on where its last successor is acted in.

    Rows of several environments take turns. Where that leads to a row that goes on with nothing (some were left out),
    a row goes on with any episode that is where it acts. What goes on nowhere begins an episode: no step is lost.
    """
    here, there, ended = [row.tobytes() for row in state], [row.tobytes() for row in next_state], terminated | truncated
    count = len(reward)
    in_turn = all(ended[row] or there[row] == here[row + num_envs] for row in range(count - num_envs))
    chains: list[list[int]] = []
    running: dict[bytes | int, list[int]] = {}
    for row in range(count):
        key: bytes | int = row % num_envs if in_turn else here[row]
        chain = running.pop(key, None)
        if chain is None:
            chain = []
            chains.append(chain)
        chain.append(row)
        if not ended[row]:
            running[key if in_turn else there[row]] = chain
    return [
        Episode(
            states=np.concatenate([state[rows], next_state[rows[-1:]]]),
            actions=action[rows],
            rewards=reward[rows],
            terminated=bool(terminated[rows[-1]]),
            truncated=bool(truncated[rows[-1]]),
            start=0 if time is None else int(time[rows[0]]),
        )
        for rows in chains
    ]


def import_minari() -> Any:
    """Returns the module ``minari``.

    Raises:
        ImportError: if it is not installed, with how to.
    """
    try:
        import minari
    except ImportError as error:
        raise ImportError(
            "Minari is not installed; pip install 'rl-as-inference[offline]' brings it (or pip install 'minari[hdf5]')"
        ) from error
    return minari


def written_to_minari(
    episodes: Sequence[Episode],
    dataset_id: str,
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    *,
    origin: Origin | None = None,
    **about: Any,
) -> MinariDataset:
    """Returns the Minari dataset that episodes were written to.

    Args:
        episodes: at least one.
        dataset_id: such as ``"pendulum/mixed-v0"``.
        observation_space, action_space: whose members they hold.
        origin: whose actions are written instead, where it is known.
        **about: for :func:`minari.create_dataset_from_buffers`, such as ``algorithm_name`` and ``author``.

    Raises:
        ImportError: without Minari.
        ValueError: for an id that Minari does not take or that is taken, or without episodes.
    """
    minari = import_minari()
    if not episodes:
        raise ValueError("replay is empty: there is nothing to write; learn() first")
    try:
        minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"dataset_id must be a name and a version, such as 'pendulum/mixed-v0'; got {dataset_id!r}"
        ) from error
    if dataset_id in minari.list_local_datasets():
        raise ValueError(
            f"dataset_id {dataset_id!r} is taken; choose a later version, or first minari.delete_dataset(dataset_id)"
        )
    if origin is not None:
        action_space = origin.action_space
        about.setdefault("env", origin.env_spec)
    buffers = []
    for number, episode in enumerate(episodes):
        ends = np.zeros((2, len(episode)), bool)
        ends[:, -1] = episode.terminated, episode.truncated
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                id=number,
                observations=episode.states,
                actions=episode.actions if origin is None else origin.to_environment(episode.actions),
                rewards=episode.rewards,
                terminations=ends[0],
                truncations=ends[1],
                infos={},
            )
        )
    with silenced(category=UserWarning):  # Minari warns of every field that is left out of what is said of a data set
        return minari.create_dataset_from_buffers(
            dataset_id, buffers, observation_space=observation_space, action_space=action_space, **about
        )
