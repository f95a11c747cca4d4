"""Where runs of environments begin and go on from: seeds of episodes, and snapshots."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from rl_as_inference.processes.asynchronous import EnvironmentsInProcesses
from rl_as_inference.processes.autoreset import Autoreset
from rl_as_inference.processes.running_statistics import RunningStatistics
from rl_as_inference.processes.to_gymnasium import ProcessVectorEnv

__all__ = ["Replayed", "episode_seed"]

Array = np.ndarray[Any, Any]


def episode_seed(seed: int, index: int, episode: int) -> int:
    """Returns the seed that an environment's episode is reset with."""
    sequence = np.random.SeedSequence(seed, spawn_key=(index, episode))
    return int(sequence.generate_state(1)[0] >> 1)  # environments may hold it in a signed 32-bit integer


class Replayed(ABC):
    """What lets a run of environments go on from where it was: snapshots, and episodes that are played again."""

    name: str
    num_envs: int
    seed: int
    num_steps: int
    state: Array | None
    _vector: VectorEnv[Any, Any, Any] | None
    _envs: list[Any]
    _episodes: list[int]
    _starts: list[int]
    _logs: list[Array]
    _rewards: Array
    _none: Array
    _first: Any
    _running: RunningStatistics
    _autoreset: Autoreset
    _state_dtype: Any

    @abstractmethod
    def reset(self) -> Array:
        """Returns the first states of new episodes."""

    @abstractmethod
    def _start(self, index: int, states: Array) -> None: ...

    @abstractmethod
    def _fill(self, states: Array, index: int, observation: Any, step: int | None = None) -> None: ...

    def _seed_of(self, index: int) -> int:
        return episode_seed(self.seed, index, self._episodes[index])

    @contextmanager
    def episodes_of(self, seed: int, *, goes_on: bool = False) -> Iterator[None]:
        """Within it episodes are those of another seed; afterwards they are its own again.

        Args:
            seed: of these episodes.
            goes_on: count them with its own, so that none comes again the next time; else begin with the second one of
                the seed each time, and go on with its own where these stood.
        """
        own = self.seed, self._episodes
        self.seed = seed
        if not goes_on:
            self._episodes = [0] * self.num_envs  # the first of its own may have begun when it was made
        try:
            yield
        finally:
            self.seed = own[0]
            if not goes_on:
                self._episodes = own[1]

    def snapshot(self) -> dict[str, Any]:
        """Returns what :meth:`restore` needs: ``"json"``, plain data, and ``"arrays"``, NumPy arrays by name."""
        json: dict[str, Any] = {
            "name": self.name,
            "num_envs": self.num_envs,
            "seed": self.seed,
            "num_steps": self.num_steps,
            "episodes": list(self._episodes),
        }
        arrays: dict[str, Array] = {} if self.state is None else {"state": self.state.copy()}
        arrays["reward"] = self._rewards.copy()
        for index, log in enumerate(self._logs):
            arrays[f"actions_{index}"] = log[: self.num_steps // self.num_envs - self._starts[index]].copy()
        if isinstance(self._vector, ProcessVectorEnv):
            arrays.update(self._vector.snapshot())
        arrays |= self._running.snapshot()
        return {"json": json, "arrays": arrays}

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Brings the environments back to where :meth:`snapshot` was taken; returns whether that is exact.

        A running episode is played again from its seed with the actions taken. Where that does not
        lead to the same observation bit for bit (an environment that is not deterministic), and in
        vector environments of the user's, a new episode begins. Running statistics (see :meth:`statistics`)
        are those of the snapshot in either case; an episode is played again under those it started with.

        Raises:
            ValueError: if the snapshot is of another environment or batch.
        """
        json, arrays = _checked(snapshot)
        self._first = None
        if (json["name"], json["num_envs"]) != (self.name, self.num_envs):
            of, here = f"{json['num_envs']} x {json['name']}", f"{self.num_envs} x {self.name}"
            raise ValueError(f"snapshot is of {of}, and these are {here}; make the same environments")
        self.seed, self.num_steps = int(json["seed"]), int(json["num_steps"])
        self._rewards = np.array(arrays["reward"])
        self._episodes = [int(episode) for episode in json["episodes"]]
        self._autoreset.ended = self._none
        self._running.remember("now", arrays)
        if "state" not in arrays:  # taken before the first reset
            self.state = None
            return True
        if isinstance(self._vector, ProcessVectorEnv):
            self._vector.restore(arrays)
            self.state = np.array(arrays["state"], self._state_dtype)
            return True
        if self._vector is not None:
            if isinstance(self._vector, EnvironmentsInProcesses):
                warnings.warn(
                    "asynchronous environments cannot be brought back to where a checkpoint was written: new episodes "
                    "begin",
                    stacklevel=2,
                )
            self.reset()
            return False
        self.state, exact = np.array(arrays["state"], self._state_dtype), True
        for index in range(self.num_envs):
            self._running.remember("start", arrays, index)
            replayed = self._replay(index, arrays[f"actions_{index}"])
            self._running.remember("now", arrays, index)
            if not replayed:
                exact = False
                self._start(index, self.state)
        return exact

    def _replay(self, index: int, actions: Array) -> bool:
        """Plays a running episode again; returns whether it leads to the same state, by the same last reward."""
        wanted: Any = self.state
        reached, reward, env = np.empty_like(wanted), self._rewards[index], self._envs[index]
        self._episodes[index] -= 1
        self._start(index, reached)
        self._starts[index] -= len(actions)
        self._logs[index] = np.concatenate([actions, self._logs[index]]).astype(self._logs[index].dtype)
        for action in self._logs[index][: len(actions)].copy():
            observation, reward, terminates, truncates, _ = env.step(action)
            if terminates or truncates:
                return False
            self._fill(reached, index, observation)
        return bool(reached[index].tobytes() == wanted[index].tobytes() and reward == self._rewards[index])


def _checked(snapshot: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """Returns the two parts of a snapshot of :class:`~rl_as_inference.processes.environments.Environments`.

    Raises:
        ValueError: if it is none.
    """
    try:
        json, arrays = dict(snapshot["json"]), dict(snapshot["arrays"])
        missing = {"name", "num_envs", "seed", "num_steps", "episodes"} - json.keys()
    except (TypeError, KeyError, ValueError):
        missing = {"json or arrays"}
    if missing:
        raise ValueError(f"snapshot lacks {', '.join(sorted(missing))}; pass what Environments.snapshot() returned")
    return json, arrays
