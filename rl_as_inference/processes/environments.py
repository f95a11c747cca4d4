"""Batches of Gymnasium environments as learners step them: true successors, agent units, runs that replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import VectorEnv
from numpy import ndarray

from rl_as_inference.nouns import EnvironmentLike
from rl_as_inference.processes.autoreset import Autoreset
from rl_as_inference.processes.faults import FIVE, FLAGS, NUMBERS, Checks, NonFiniteError, StepError, wrong_reward
from rl_as_inference.processes.running_statistics import RunningStatistics
from rl_as_inference.processes.sources import made_of
from rl_as_inference.processes.to_gymnasium import ProcessVectorEnv
from rl_as_inference.processes.units import agent_actions, agent_states, as_states, finiteness, name_of, time_limit_of

__all__ = ["Environments", "NonFiniteError", "Step", "StepError"]

Array = np.ndarray[Any, Any]

_FIRST_LOG = 256
"""Actions of an episode that a log holds before it grows."""

_FLOAT32 = np.dtype(np.float32)

_INTEGERS = frozenset({int, np.int64, np.int32})
"""Types of an observation in a Discrete space that need no second look."""


@runtime_checkable
class _MakesEnvironments(Protocol):
    """A simulator as a process, which knows how its environments are made."""

    def environments(self, *, num_envs: int = 1, seed: int = 0, **make_kwargs: Any) -> Environments: ...


class Step(NamedTuple):
    """What one step of every environment gave; the first dimension of each array is the environment."""

    next_state: Array
    """The true successor, ``(num_envs, *state)``: the final one where an episode ended."""
    reward: Array
    """``(num_envs,)`` float64, in reward units."""
    terminated: Array
    """``(num_envs,)`` bool: nothing more can be earned."""
    truncated: Array
    """``(num_envs,)`` bool: the episode was cut off, and values bootstrap through it."""
    valid: Array
    """``(num_envs,)`` bool; false where a vector environment only started an episode: never store such a row."""
    state: Array
    """The states to act from next, ``(num_envs, *state)``: the new episode's first where one ended."""


class Environments:
    """A batch of environments in the agent's units.

    Continuous actions are in the unit box ``[-1, 1]^d`` and reach the environment in its own bounds;
    actions and states that are integers count from 0. Every episode of environments that are made
    here is reset with a seed of its own, derived from ``(seed, environment, episode)``, so that a run
    can be replayed; see :meth:`snapshot`. Make one by :meth:`make`.

    Attributes:
        name: the environment's id or class, for messages.
        num_envs: the size of the batch.
        state_space: ``Box`` (its states are float32 arrays) or ``Discrete`` from 0 (int64).
        action_space: ``Box(-1, 1, (d,), float32)`` or ``Discrete`` from 0; ``own_action_space`` is the environment's.
        state: the states to act from next, ``(num_envs, *state)``; None before the first reset.
        num_steps: how many transitions the environments have made, all of them together.
        max_episode_steps: the time limit that the environment comes with, or None.

    Example:
        >>> envs = Environments.make("Pendulum-v1", num_envs=2, seed=0)
        >>> envs.reset().shape, envs.action_space
        ((2, 3), Box(-1.0, 1.0, (1,), float32))
        >>> step = envs.step(np.array([[-1.0], [1.0]], dtype=np.float32))
        >>> step.next_state.dtype, step.reward.shape, step.valid
        (dtype('float32'), (2,), array([ True,  True]))
        >>> envs.environment_action(np.array([1.0]))
        array([2.], dtype=float32)
    """

    def __init__(self, environments: list[gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any], *, seed: int = 0):
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
        self.seed = int(seed)
        self._vector = environments if isinstance(environments, VectorEnv) else None
        self._envs: list[Any] = [] if isinstance(environments, VectorEnv) else environments
        first: Any
        if self._vector is not None:
            first, self.num_envs = self._vector, int(self._vector.num_envs)
            states, actions = self._vector.single_observation_space, self._vector.single_action_space
        else:
            first, self.num_envs = self._envs[0], len(self._envs)
            states, actions = first.observation_space, first.action_space
        self.name, self.own_action_space = name_of(first), actions
        self._autoreset = Autoreset(None if self._vector is None else self._vector.metadata, self.name)
        self.max_episode_steps: int | None = time_limit_of(first)
        for other in self._envs[1:]:
            if (other.observation_space, other.action_space) != (states, actions):
                raise ValueError(f"env: the environments made for {self.name} have different spaces; make them alike")
        self.state_space, self._state_start = agent_states(states, self.name)
        self._is_box = isinstance(self.state_space, Box)
        self._state_shape: tuple[int, ...] = tuple(self.state_space.shape or ())
        self._state_dtype: Any = np.float32 if self._is_box else np.int64
        self._states_shape = (self.num_envs, *self._state_shape)
        self._finite = finiteness(states)
        self._checks, self._given_dtype = Checks(self.name, self.num_envs, states), states.dtype
        self._num_states = int(states.n) if isinstance(states, Discrete) else 0
        self.action_space, self._to_environment = agent_actions(actions, self.name)
        self._actions_shape = (self.num_envs, *(self.action_space.shape or ()))
        self._none, self._all = np.zeros(self.num_envs, bool), np.ones(self.num_envs, bool)
        self._none.flags.writeable = self._all.flags.writeable = False
        self.state: Array | None = None
        self.num_steps = 0
        self._episodes = [-1] * self.num_envs
        self._starts = [0] * self.num_envs  # the batch's step at which the running episode began
        self._rewards = np.zeros(self.num_envs)
        self._running = RunningStatistics(environments)
        self._logs = [np.empty((_FIRST_LOG, *(actions.shape or ())), actions.dtype) for _ in self._envs]

    @classmethod
    def make(cls, env: EnvironmentLike, *, num_envs: int = 1, seed: int = 0, **make_kwargs: Any) -> Environments:
        """Returns ``num_envs`` environments.

        Args:
            env: a Gymnasium id (or spec); an environment; a factory of environments, called
                ``num_envs`` times; a vector environment, which has its own number; or a process in parts.
            num_envs: the size of the batch.
            seed: of all episodes, ≥ 0.
            **make_kwargs: for :func:`gymnasium.make`, with an id.

        Raises:
            ValueError: if there is no such environment, an argument is out of range, or a space is
                not supported; the message names a wrapper that mends it.
        """
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer >= 1, got {num_envs!r}")
        if isinstance(env, _MakesEnvironments) and not isinstance(env, gymnasium.Env | VectorEnv):
            return env.environments(num_envs=num_envs, seed=seed, **make_kwargs)
        return cls(made_of(env, num_envs, make_kwargs), seed=seed)

    def reset(self) -> Array:
        """Returns the first states of new episodes, ``(num_envs, *state)``."""
        if self._vector is not None:
            self._autoreset.ended = self._none
            self._episodes = [episode + 1 for episode in self._episodes]
            observations, _ = self._vector.reset(seed=self._seed_of(0))
            self.state = self._batch(observations)
            return self.state
        self.state = np.empty(self._states_shape, self._state_dtype)
        for index in range(self.num_envs):
            self._start(index, self.state)
        return self.state

    def step(self, actions: Array) -> Step:
        """Returns what the actions led to; episodes that end are followed by new ones.

        Args:
            actions: in the agent's units: ``(num_envs, d)`` numbers in [-1, 1], or ``(num_envs,)``
                integers from 0.

        Raises:
            NonFiniteError: if an observation or a reward is NaN or infinite.
            StepError: if the environment gives what its spaces or Gymnasium's rules do not allow.
            ValueError: if the actions have another shape, or there was no reset.
        """
        if actions.shape != self._actions_shape:
            raise ValueError(f"actions must have shape {self._actions_shape}, got {actions.shape}")
        if self.state is None:
            raise ValueError("step() before reset(): reset() the environments first")
        if self._vector is not None:
            return self._step_vector(actions)
        # This loop is the price of every step of a learner: what it calls is written out in it.
        next_state, rewards = np.empty(self._states_shape, self._state_dtype), np.empty(self.num_envs)
        terminated = truncated = self._none
        clock = self.num_steps // self.num_envs
        for index, env in enumerate(self._envs):
            action = self._to_environment(actions[index])
            elapsed = clock - self._starts[index]
            try:
                self._logs[index][elapsed] = action  # as it is before the environment may write into it
            except IndexError:
                self._logs[index] = np.concatenate([self._logs[index], np.empty_like(self._logs[index])])
                self._logs[index][elapsed] = action
            answer = env.step(action)
            try:
                observation, reward, terminates, truncates, _ = answer
            except (TypeError, ValueError):
                self._checks.blame("step", index, answer, self.num_steps + index + 1, FIVE)
            if self._is_box:
                if type(observation) is not ndarray or observation.dtype is not self._given_dtype:
                    observation = self._checks.observation(observation, index, self.num_steps + index + 1)
                    self._given_dtype = observation.dtype  # the next of this type need no look
                elif observation.shape != self._state_shape:
                    self._checks.observation(observation, index, self.num_steps + index + 1)
                next_state[index] = observation
                if not self._finite(observation if observation.dtype is _FLOAT32 else next_state[index]):
                    self._checks.not_finite("observation", index, observation, self.num_steps + index + 1)
            else:
                if type(observation) not in _INTEGERS:
                    observation = self._checks.observation(observation, index, self.num_steps + index + 1)
                state = observation - self._state_start
                if not 0 <= state < self._num_states:
                    self._checks.observation(observation, index, self.num_steps + index + 1)
                next_state[index] = state
            if type(reward) not in NUMBERS and (fault := wrong_reward(reward)):
                self._checks.blame("reward", index, reward, self.num_steps + index + 1, fault)
            if not isfinite(reward):
                self._checks.not_finite("reward", index, reward, self.num_steps + index + 1)
            rewards[index] = reward
            if terminates is not False or truncates is not False:
                if type(terminates) not in FLAGS or type(truncates) not in FLAGS:
                    self._checks.flag_pair(terminates, truncates, index, self.num_steps + index + 1)
                if not (terminates or truncates):
                    continue
                if terminated is self._none:
                    terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
                terminated[index], truncated[index] = terminates, truncates
        # Counted when all have stepped: after an error, a snapshot is of the step before.
        self.num_steps += self.num_envs
        self._rewards = rewards
        state = next_state
        if terminated is not self._none:
            state = next_state.copy()
            for index in (terminated | truncated).nonzero()[0].tolist():
                self._start(index, state)
        self.state = state
        return Step(next_state, rewards, terminated, truncated, self._all, state)

    def agent_state(self, observation: Any) -> Array:
        """Returns an observation of the environment's, or a batch of them, as states: integers count from 0."""
        return as_states(np.asarray(observation), self.state_space, self._state_start)

    def environment_action(self, action: Any) -> Any:
        """Returns an action, or a batch of them, in the environment's own units, dtype and shape."""
        action = np.asarray(action)
        event = self.action_space.shape or ()
        lead = action.shape[: action.ndim - len(event)]
        if action.shape != (*lead, *event):
            raise ValueError(f"action must have shape {event}, or a batch of it, got {action.shape}")
        return self._to_environment(action)

    @property
    def outermost(self) -> Any:
        """The first environment in all its wrappers, or the vector environment."""
        return self._envs[0] if self._vector is None else self._vector

    @property
    def skips_steps(self) -> bool:
        """Whether the step after an end only starts the next episode; true too while nothing has shown the contrary."""
        return self._vector is not None and self._autoreset.skips_steps

    def statistics(self) -> dict[str, Array]:
        """Returns the running statistics that wrappers hold, copies by name; empty if none hold any.

        A layer counts (``NormalizeObservation``, ``NormalizeReward``, a wrapper of the user's) if one of its
        attributes is a ``gymnasium.wrappers.utils.RunningMeanStd``. Names are
        ``"<environment>/<class>.<attribute>.<mean, var or count>"``, with ``"batch"`` for the environment where a
        vector environment's own wrapper holds them for all. Environments in other processes are not looked into.

        Example:
            >>> make = lambda: gymnasium.wrappers.NormalizeObservation(gymnasium.make("CartPole-v1"))
            >>> learned, evaluated = Environments.make(make), Environments.make(make)
            >>> _ = learned.reset()
            >>> sorted(learned.statistics())[0]
            '0/NormalizeObservation.obs_rms.count'
            >>> evaluated.load_statistics(learned.statistics(), frozen=True)
            >>> _ = evaluated.reset()
            >>> evaluated.statistics()["0/NormalizeObservation.obs_rms.count"]
            array(1.0001)
        """
        return self._running.statistics()

    def load_statistics(
        self, statistics: Mapping[str, Array], frozen: bool, sources: Sequence[int] | None = None
    ) -> None:
        """Puts what :meth:`statistics` returned elsewhere into these environments.

        Environment ``i`` takes those of one environment, ``sources[i % len(sources)]``, and not of all pooled: each
        is a map of observations that the policy has learned under, and the pooled one is none of them. What a
        vector environment held for all of its environments goes to each.

        Rewards under frozen ``NormalizeReward`` are in the units that the policy was learned in, those of its
        temperature: raw ones divided by ``sqrt(var + epsilon)``, one constant.

        Args:
            statistics: by name; empty where no wrapper holds any.
            frozen: whether they then stay as they are, for evaluation; else they go on running.
            sources: environments of the learner, for a policy that saw some of them only; None for all.

        Raises:
            ValueError: if a wrapper's are lacking, or there are some that no wrapper here holds.
        """
        self._running.put(statistics, frozen=frozen, sources=sources)

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
        json, arrays = _check_snapshot(snapshot)
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

    def close(self) -> None:
        """Closes the environments."""
        for env in self._envs if self._vector is None else [self._vector]:
            env.close()

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

    def _start(self, index: int, states: Array) -> None:
        """Starts environment ``index``'s next episode and writes its first state into the batch."""
        self._episodes[index] += 1
        self._starts[index] = self.num_steps // self.num_envs
        self._running.begin(index)
        observation, _ = self._envs[index].reset(seed=self._seed_of(index))
        self._fill(states, index, observation)

    def _seed_of(self, index: int) -> int:
        sequence = np.random.SeedSequence(self.seed, spawn_key=(index, self._episodes[index]))
        return int(sequence.generate_state(1)[0] >> 1)  # environments may hold it in a signed 32-bit integer

    def _fill(self, states: Array, index: int, observation: Any, step: int | None = None) -> None:
        """Writes an observation into a batch of states; without a step it came at a reset."""
        taken, at_reset = (self.num_steps, True) if step is None else (step, False)
        if (  # else it needs no look
            not self._is_box
            or type(observation) is not ndarray
            or observation.dtype is not self._given_dtype
            or observation.shape != self._state_shape
        ):
            observation = self._checks.observation(observation, index, taken, at_reset=at_reset)
        states[index] = observation if self._is_box else observation - self._state_start
        if not self._finite(states[index]):
            self._checks.not_finite("observation", index, observation, taken, at_reset=at_reset)

    def _batch(self, observations: Any, step: int | None = None) -> Array:
        """Returns a vector environment's observations as states; it may write over its own later."""
        taken, at_reset = (self.num_steps, True) if step is None else (step, False)
        given = self._checks.observations(observations, taken, at_reset=at_reset)
        if not self._is_box:
            return np.array(given - self._state_start, self._state_dtype)
        with np.errstate(over="ignore"):
            states = np.array(given, self._state_dtype)
        if not np.isfinite(states).all():
            index = int(np.flatnonzero(~np.isfinite(states.reshape(self.num_envs, -1)).all(1))[0])
            self._checks.not_finite("observation", index, given[index], taken, at_reset=at_reset)
        return states

    def _step_vector(self, actions: Array) -> Step:
        vector: Any = self._vector
        observations, rewards, terminated, truncated, info = vector.step(self._to_environment(actions))
        count = self.num_steps + self.num_envs
        state = next_state = self._batch(observations, count)
        rewards = self._checks.rewards(rewards, count)
        terminated = self._checks.flags("terminated", terminated, count)
        truncated, valid = self._checks.flags("truncated", truncated, count), self._all
        ended = terminated | truncated
        final = self._autoreset.final_observations(info) if ended.any() else None
        if self._autoreset.skips_steps:
            # The step after an end ignores its action and gives the first state of the next episode.
            self._autoreset.check_starts(rewards, ended)
            valid = ~self._autoreset.ended
        elif final is not None:
            next_state = state.copy()
            for index in np.flatnonzero(ended).tolist():
                self._fill(next_state, index, final[index], count)
        elif ended.any():
            observations, _ = vector.reset(options={"reset_mask": ended.copy()})
            state = next_state.copy()
            state[ended] = self._batch(observations)[ended]
        self.num_steps += int(valid.sum())
        self._autoreset.ended, self.state = ended, state
        return Step(next_state, rewards, terminated, truncated, valid, state)


def _check_snapshot(snapshot: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        json, arrays = dict(snapshot["json"]), dict(snapshot["arrays"])
        missing = {"name", "num_envs", "seed", "num_steps", "episodes"} - json.keys()
    except (TypeError, KeyError, ValueError):
        missing = {"json or arrays"}
    if missing:
        raise ValueError(f"snapshot lacks {', '.join(sorted(missing))}; pass what Environments.snapshot() returned")
    return json, arrays
