"""Data that others acted, in any form: read into episodes in the agent's units, and from there into replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

from rl_as_inference.agents.episodes import Episode, import_minari
from rl_as_inference.agents.replay import Replay
from rl_as_inference.processes.units import agent_actions, agent_states, as_agent_actions, as_states
from rl_as_inference.trajectories import Trajectories

__all__ = ["OfflineData", "read_dataset"]

Array = np.ndarray[Any, Any]

_NEEDED = ("observations", "actions", "rewards")
_EPISODE = (
    "an episode is a mapping with observations (T+1, ...), actions (T, ...), rewards (T,), terminations (T,) and "
    "truncations (T,)"
)
_FORMS = f"Trajectories, a list of episodes, a replay, a Minari dataset, or the id of one; {_EPISODE}"


@dataclass(frozen=True)
class OfflineData:
    """Episodes in the agent's units, and what these are of.

    Attributes:
        name: what messages call it.
        episodes: at least one, of at least one step each.
        state_space, action_space: the agent's.
        state_start: where the environment's integers start that are observed.
        to_environment: from the agent's actions to the environment's.
        env_spec: of the environment that the data name, if it is one that can be made.
        horizon: of the model that the data are of; None where there is none, or it is not known.
    """

    name: str
    episodes: list[Episode]
    state_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    state_start: int
    to_environment: Callable[[Array], Any]
    env_spec: EnvSpec | None = None
    horizon: int | None = None

    @property
    def num_steps(self) -> int:
        """The number of transitions."""
        return sum(len(episode) for episode in self.episodes)

    def returns(self) -> Array:
        """Returns the undiscounted returns of the episodes that are whole, in reward units; of all if none is."""
        whole = [
            episode for episode in self.episodes if episode.start == 0 and (episode.terminated or episode.truncated)
        ]
        return np.array([float(episode.rewards.sum(dtype=np.float64)) for episode in whole or self.episodes])

    def has_log_policy(self) -> bool:
        """Whether it is known by which probabilities all actions were drawn."""
        return all(episode.log_policy is not None for episode in self.episodes)

    def replay(self, *, device: torch.device, dtype: torch.dtype) -> Replay:
        """Returns the transitions, episode after episode.

        An episode whose end is not known is cut off there: its last state is bootstrapped from.
        """
        replay = Replay(
            self.state_space,
            self.action_space,
            capacity=self.num_steps,
            horizon=self.horizon,
            device=device,
            dtype=dtype,
        )
        for episode in self.episodes:
            length = len(episode)
            ends = np.zeros((2, length), bool)
            ends[:, -1] = episode.terminated, not episode.terminated
            columns = [
                episode.states[:-1].reshape(length, -1),
                episode.actions.reshape(length, -1),
                episode.rewards[:, None],
                episode.states[1:].reshape(length, -1),
                ends.T,
            ]
            if self.horizon is not None:
                columns.append(episode.start + np.arange(length)[:, None])
            rows = np.concatenate(columns, 1)[None]
            replay.add_rows(rows.astype(np.dtype(str(dtype).removeprefix("torch."))))
        return replay


def read_dataset(
    dataset: Any,
    *,
    observation_space: gymnasium.Space[Any] | None = None,
    action_space: gymnasium.Space[Any] | None = None,
    horizon: int | None = None,
) -> OfflineData:
    """Returns the episodes of a dataset in any form, checked.

    Args:
        dataset: ``Trajectories``, a list of episodes, a replay, a Minari dataset or the id of a local one.
        observation_space, action_space: the environment's; by default what the data say, or are seen to need.
        horizon: of the model; by default a replay's own.

    Raises:
        TypeError: for another kind of data.
        ValueError: for data that are empty, lack a field, have another shape, are not finite, or leave their spaces.
        ImportError: for a Minari dataset without Minari.
    """
    if isinstance(dataset, str):
        dataset = _local(dataset)
    env_spec, name = None, "dataset"
    if isinstance(dataset, Replay):
        return _of_replay(dataset)
    if isinstance(dataset, Trajectories):
        raw = _of_trajectories(dataset, horizon)
    elif _is_minari(dataset):
        name = str(dataset.spec.dataset_id)
        observation_space = dataset.observation_space if observation_space is None else observation_space
        action_space = dataset.action_space if action_space is None else action_space
        spec = dataset.spec.env_spec
        env_spec = spec if spec is not None and spec.id in gymnasium.registry else None
        raw = [
            {
                "observations": episode.observations,
                "actions": episode.actions,
                "rewards": episode.rewards,
                "terminations": episode.terminations,
                "truncations": episode.truncations,
            }
            for episode in dataset.iterate_episodes()
        ]
    elif isinstance(dataset, Sequence) and not isinstance(dataset, bytes):
        raw = list(dataset)
    else:
        raise TypeError(f"dataset must be {_FORMS}; got {type(dataset).__name__}")
    if not raw:
        raise ValueError(f"{name} is empty: it has no episodes; give one that has")
    given = [_arrays(episode, f"{name}[{number}]") for number, episode in enumerate(raw)]
    if observation_space is None:
        observation_space = _seen_space([each["observations"] for each in given], "observation")
    if action_space is None:
        action_space = _seen_space([each["actions"] for each in given], "action")
    if not isinstance(observation_space, gymnasium.spaces.Box | gymnasium.spaces.Discrete):
        raise ValueError(
            f"observation_space of {name} is {type(observation_space).__name__}, and Box or Discrete are supported in "
            f"data sets; write it with gymnasium.wrappers.FlattenObservation"
        )
    state_space, start = agent_states(observation_space, name)
    unit_space, to_environment = agent_actions(action_space, name)
    episodes = [
        _episode(each, f"{name}[{number}]", state_space, start, action_space, horizon)
        for number, each in enumerate(given)
    ]
    return OfflineData(name, episodes, state_space, unit_space, start, to_environment, env_spec, horizon)


def _of_replay(replay: Replay) -> OfflineData:
    if len(replay) == 0:
        raise ValueError("dataset is an empty replay: learn() first")
    origin = replay.origin

    def as_they_are(action: Array) -> Any:
        return action

    return OfflineData(
        "replay",
        replay.episodes(),
        replay.state_space,
        replay.action_space,
        0,
        as_they_are if origin is None else origin.to_environment,
        None if origin is None else origin.env_spec,
        replay.horizon,
    )


def _of_trajectories(dataset: Trajectories, horizon: int | None) -> list[Any]:
    """Returns the episodes of a batch of trajectories: one that ends before the last step ends in a terminal state."""
    raw = []
    states = dataset.states if dataset.observations is None else dataset.observations
    if len(states) != dataset.horizon + 1:
        raise ValueError(
            f"dataset has {len(states)} states of {dataset.horizon} steps, and a state is needed before and after each"
        )
    for index, length in enumerate(dataset.lengths().tolist()):
        if length == 0:
            continue
        ended = length < dataset.horizon or dataset.horizon == horizon
        flags = np.zeros((2, length), bool)
        flags[:, -1] = ended, not ended
        raw.append(
            {
                "observations": states[: length + 1, index].detach().cpu().numpy(),
                "actions": dataset.actions[:length, index].detach().cpu().numpy(),
                "rewards": dataset.rewards[:length, index].detach().cpu().numpy(),
                "terminations": flags[0],
                "truncations": flags[1],
                "log_policy": dataset.log_policy[:length, index].detach().cpu().numpy(),
            }
        )
    return raw


def _local(dataset_id: str) -> Any:
    """Returns a Minari dataset that is on this machine."""
    minari = import_minari()
    local = sorted(minari.list_local_datasets())
    if dataset_id not in local:
        has = f"there are {', '.join(local)}" if local else "there is none"
        raise ValueError(
            f"dataset {dataset_id!r} is not among the Minari datasets on this machine ({has}); download it first: "
            f"minari download {dataset_id}"
        )
    return minari.load_dataset(dataset_id)


def _is_minari(dataset: Any) -> bool:
    if not type(dataset).__module__.startswith("minari"):
        return False
    return isinstance(dataset, import_minari().MinariDataset)


def _arrays(episode: Any, where: str) -> dict[str, Array]:
    """Returns the fields of an episode as arrays, each as long as it must be."""
    if isinstance(episode, Episode):
        ends = np.zeros((2, len(episode)), bool)
        ends[:, -1] = episode.terminated, episode.truncated
        fields: Mapping[str, Any] = {
            "observations": episode.states,
            "actions": episode.actions,
            "rewards": episode.rewards,
            "terminations": ends[0],
            "truncations": ends[1],
            **({} if episode.log_policy is None else {"log_policy": episode.log_policy}),
        }
    elif isinstance(episode, Mapping):
        fields = episode
    else:
        raise TypeError(f"{where} is {type(episode).__name__}; dataset must be {_FORMS}")
    for name in _NEEDED:
        if name not in fields:
            has = ", ".join(map(str, fields)) or "nothing"
            raise ValueError(f"{where} lacks {name}: it has {has}; {_EPISODE}")
    if not {"terminations", "truncations"} & fields.keys():
        raise ValueError(
            f"{where} lacks terminations and truncations, so that nobody knows whether anything follows its last "
            f"state; give one of them"
        )
    found = {name: _array(fields[name], f"{where}: {name}") for name in _NEEDED}
    length = len(found["rewards"])
    if length == 0:
        raise ValueError(f"{where} is empty: it has no steps; leave it out")
    for name, wanted in (("observations", length + 1), ("actions", length)):
        if found[name].ndim == 0 or len(found[name]) != wanted:
            raise ValueError(
                f"{where}: {name} must be of {wanted} rows for {length} rewards (an observation before and after every "
                f"action), got shape {found[name].shape}"
            )
    if found["rewards"].shape != (length,):
        raise ValueError(f"{where}: rewards must have shape (T,), got {found['rewards'].shape}")
    for name in ("terminations", "truncations"):
        flags = np.asarray(fields.get(name, False)).astype(bool)
        if flags.shape not in ((), (length,)):
            raise ValueError(f"{where}: {name} must have shape ({length},), got {flags.shape}")
        if flags.shape and flags[:-1].any():
            at = int(np.flatnonzero(flags)[0])
            raise ValueError(
                f"{where}: {name} says that it ended at step {at} of {length}; give each episode by itself"
            )
        found[name] = flags if not flags.shape else flags[-1]
    if "log_policy" in fields:
        found["log_policy"] = _array(fields["log_policy"], f"{where}: log_policy")
        if found["log_policy"].shape != (length,):
            raise ValueError(f"{where}: log_policy must have shape ({length},), got {found['log_policy'].shape}")
    return found


def _array(values: Any, where: str) -> Array:
    """Returns finite numbers."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, Mapping):
        raise ValueError(f"{where} is a mapping of several arrays, and one is needed; flatten it first")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{where} is no array: {error}") from error
    if array.dtype == object or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise ValueError(f"{where} holds {array.dtype}, and numbers are needed")
    if not np.isfinite(array).all():
        first = [int(index[0]) for index in np.nonzero(~np.isfinite(array))]
        raise ValueError(f"{where} is {array[tuple(first)]} at {first}; leave such episodes out, or mend them")
    return array


def _seen_space(arrays: list[Array], what: str) -> gymnasium.Space[Any]:
    """Returns the space that the data are seen to need: integers from 0 to the largest, or a box."""
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"dataset has {what}s of different shapes: {', '.join(map(str, sorted(shapes)))}")
    shape = shapes.pop()
    if shape == () and all(np.issubdtype(array.dtype, np.integer) for array in arrays):
        return gymnasium.spaces.Discrete(max(int(array.max()) for array in arrays) + 1)
    if what == "observation":
        return gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)
    if max(float(np.abs(array).max()) for array in arrays) > 1 + 1e-5:
        raise ValueError("dataset has actions outside [-1, 1]; say action_space, whose bounds they are in")
    return gymnasium.spaces.Box(-1.0, 1.0, shape, np.float32)


def _episode(
    fields: dict[str, Array],
    where: str,
    state_space: gymnasium.Space[Any],
    start: int,
    action_space: gymnasium.Space[Any],
    horizon: int | None,
) -> Episode:
    """Returns an episode in the agent's units."""
    for name, space in (("observations", state_space), ("actions", action_space)):
        if fields[name].shape[1:] != (space.shape or ()):
            raise ValueError(
                f"{where}: {name} have shape {fields[name].shape[1:]} each, and the space {space} says {space.shape}"
            )
    states = fields["observations"]
    try:
        states = as_states(states, state_space, start)
    except ValueError as error:
        raise ValueError(f"{where}: an {error}") from error
    try:
        actions = as_agent_actions(fields["actions"], action_space)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; say the action_space that they are of") from error
    discrete = isinstance(state_space, gymnasium.spaces.Discrete)
    if horizon is not None and len(actions) > horizon:
        raise ValueError(f"{where} has {len(actions)} steps, and the horizon is {horizon}")
    return Episode(
        states=states.astype(np.int64 if discrete else np.float32),
        actions=actions,
        rewards=fields["rewards"].astype(np.float32),
        terminated=bool(fields["terminations"]) or len(actions) == horizon,
        truncated=bool(fields["truncations"]),
        log_policy=fields.get("log_policy"),
    )
