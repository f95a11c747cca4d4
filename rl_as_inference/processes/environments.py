"""Batches of Gymnasium environments as learners step them: true successors, agent units, runs that replay."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.processes.to_gymnasium import ProcessVectorEnv, to_gymnasium_vector

__all__ = ["Environments", "NonFiniteError", "Step"]

Array = np.ndarray[Any, Any]

_FIRST_LOG = 256
"""Actions of an episode that a log holds before it grows."""

_SUMMED = 64
"""States up to this size are summed in Python, which is quicker than the calls into NumPy."""


class NonFiniteError(ValueError):
    """An environment gave NaN or an infinity.

    Attributes:
        environment: its name.
        step: environment steps taken until then, this one included.
        env_index: which of the batch.
        field: ``"observation"`` or ``"reward"``.
        value: what it gave.
    """

    def __init__(self, environment: str, step: int, env_index: int, field: str, value: Any, where: str) -> None:
        super().__init__(f"{environment} gave a non-finite {field} {where}: {value}; check the environment")
        self.environment, self.step, self.env_index = environment, step, env_index
        self.field, self.value = field, value


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
        action_space: ``Box(-1, 1, (d,), float32)`` or ``Discrete`` from 0.
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
            mode = self._vector.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
            self._autoreset = AutoresetMode(getattr(mode, "value", mode))
        else:
            first, self.num_envs = self._envs[0], len(self._envs)
            states, actions = first.observation_space, first.action_space
        self.name = _name_of(first)
        self.max_episode_steps: int | None = _time_limit_of(first)
        for other in self._envs[1:]:
            if (other.observation_space, other.action_space) != (states, actions):
                raise ValueError(f"env: the environments made for {self.name} have different spaces; make them alike")
        self.state_space, self._state_start = _check_states(states, self.name)
        self._is_box = isinstance(self.state_space, Box)
        self._state_shape: tuple[int, ...] = tuple(self.state_space.shape or ())
        self._state_dtype: Any = np.float32 if self._is_box else np.int64
        self._states_shape = (self.num_envs, *self._state_shape)
        self._finite = _finiteness(states)
        self.action_space, self._to_environment = _check_actions(actions, self.name)
        self._action_shape, self._action_dtype = tuple(actions.shape or ()), actions.dtype
        self._actions_shape = (self.num_envs, *(self.action_space.shape or ()))
        self._none, self._all = np.zeros(self.num_envs, bool), np.ones(self.num_envs, bool)
        for shared in (self._none, self._all):
            shared.flags.writeable = False
        self.state: Array | None = None
        self.num_steps = 0
        self._episodes = [-1] * self.num_envs
        self._starts = [0] * self.num_envs  # the batch's step at which the running episode began
        self._rewards = np.zeros(self.num_envs)
        self._ended = self._none
        self._logs = [np.empty((_FIRST_LOG, *self._action_shape), self._action_dtype) for _ in self._envs]

    @classmethod
    def make(cls, env: Any, *, num_envs: int = 1, seed: int = 0, **make_kwargs: Any) -> Environments:
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
        if hasattr(env, "environments") and not isinstance(env, gymnasium.Env | VectorEnv):  # a GymnasiumProcess
            made: Environments = env.environments(num_envs=num_envs, seed=seed, **make_kwargs)
            return made
        if isinstance(env, str | EnvSpec):
            return cls([_make(env, make_kwargs) for _ in range(num_envs)], seed=seed)
        if make_kwargs:
            raise ValueError(
                f"{', '.join(make_kwargs)}: options of gymnasium.make() go with an environment's id, and env is "
                f"{type(env).__name__}; give them where it is made"
            )
        if isinstance(env, MarkovDecisionProcess):
            return cls(to_gymnasium_vector(env, num_envs), seed=seed)
        if isinstance(env, VectorEnv):
            if num_envs not in (1, env.num_envs):
                raise ValueError(f"num_envs is {num_envs}, but env is a vector of {env.num_envs}; leave num_envs out")
            return cls(env, seed=seed)
        if isinstance(env, gymnasium.Env):
            if num_envs != 1:
                raise ValueError(
                    f"num_envs is {num_envs}, but env is one environment; pass its id, or a factory such as "
                    f"lambda: make_my_environment()"
                )
            return cls([env], seed=seed)
        if not callable(env):
            raise ValueError(
                f"env must be a Gymnasium id, an environment, a factory of environments, a vector environment or a "
                f"process in parts, got {type(env).__name__}"
            )
        made_here = [env() for _ in range(num_envs)]
        for each in made_here:
            if not isinstance(each, gymnasium.Env):
                raise ValueError(
                    f"env is a factory that returns {type(each).__name__}; it must return one gymnasium.Env (a vector "
                    f"environment is passed itself, and a Pyro program must be given in parts to be stepped)"
                )
        if len({id(each) for each in made_here}) < num_envs:
            raise ValueError("env is a factory that returns the same environment twice; it must make a new one")
        return cls(made_here, seed=seed)

    def reset(self) -> Array:
        """Returns the first states of new episodes, ``(num_envs, *state)``."""
        if self._vector is not None:
            self._ended = self._none
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
            observation, reward, terminates, truncates, _ = env.step(action)
            if self._is_box:
                next_state[index] = observation
                if not self._finite(next_state[index]):
                    self._raise("observation", index, observation, self.num_steps + index + 1)
            else:
                next_state[index] = observation - self._state_start
            if not isfinite(reward):
                self._raise("reward", index, reward, self.num_steps + index + 1)
            rewards[index] = reward
            if terminates or truncates:
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
        state = np.asarray(observation)
        return state if self._is_box else state - self._state_start

    def environment_action(self, action: Any) -> Any:
        """Returns an action, or a batch of them, in the environment's own units, dtype and shape."""
        action = np.asarray(action)
        event = self.action_space.shape or ()
        lead = action.shape[: action.ndim - len(event)]
        if action.shape != (*lead, *event):
            raise ValueError(f"action must have shape {event}, or a batch of it, got {action.shape}")
        return self._to_environment(action)

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
        return {"json": json, "arrays": arrays}

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Brings the environments back to where :meth:`snapshot` was taken; returns whether that is exact.

        A running episode is played again from its seed with the actions taken. Where that does not
        lead to the same observation bit for bit (an environment that is not deterministic), and in
        vector environments of the user's, a new episode begins.

        Raises:
            ValueError: if the snapshot is of another environment or batch.
        """
        json, arrays = _check_snapshot(snapshot)
        if (json["name"], json["num_envs"]) != (self.name, self.num_envs):
            raise ValueError(
                f"snapshot is of {json['num_envs']} x {json['name']}, and these are {self.num_envs} x {self.name}; "
                f"make the same environments"
            )
        self.seed, self.num_steps = int(json["seed"]), int(json["num_steps"])
        self._rewards = np.array(arrays["reward"])
        self._episodes = [int(episode) for episode in json["episodes"]]
        self._ended = self._none
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
            if not self._replay(index, arrays[f"actions_{index}"]):
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
        self._logs[index] = np.concatenate([actions, self._logs[index]]).astype(self._action_dtype)
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
        observation, _ = self._envs[index].reset(seed=self._seed_of(index))
        self._fill(states, index, observation)

    def _seed_of(self, index: int) -> int:
        sequence = np.random.SeedSequence(self.seed, spawn_key=(index, self._episodes[index]))
        return int(sequence.generate_state(1)[0] >> 1)  # environments may hold it in a signed 32-bit integer

    def _fill(self, states: Array, index: int, observation: Any, step: int | None = None) -> None:
        """Writes an observation into a batch of states."""
        if np.shape(observation) != self._state_shape:
            raise ValueError(
                f"{self.name} gave an observation of shape {np.shape(observation)}, and its observation_space has "
                f"{self._state_shape}; mend the environment's observation_space"
            )
        states[index] = observation if self._is_box else observation - self._state_start
        if not self._finite(states[index]):
            self._raise("observation", index, observation, step)

    def _raise(self, field: str, index: int, value: Any, step: int | None = None) -> None:
        """Raises NonFiniteError; without a step it happened at a reset."""
        where = f"at a reset after {self.num_steps} steps" if step is None else f"at step {step}"
        if self.num_envs > 1:
            where += f" in environment {index} of {self.num_envs}"
        raise NonFiniteError(self.name, self.num_steps if step is None else step, index, field, value, where)

    def _batch(self, observations: Any, step: int | None = None) -> Array:
        """Returns a vector environment's observations as states; it may write over its own later."""
        states = np.array(observations, self._state_dtype)
        if states.shape != self._states_shape:
            raise ValueError(
                f"{self.name} gave observations of shape {states.shape}, and its spaces say {self._states_shape}; "
                f"mend the environment's observation_space"
            )
        if not self._is_box:
            states -= self._state_start
        elif not np.isfinite(states).all():
            index = int(np.flatnonzero(~np.isfinite(states.reshape(self.num_envs, -1)).all(1))[0])
            self._raise("observation", index, observations[index], step)
        return states

    def _step_vector(self, actions: Array) -> Step:
        vector: Any = self._vector
        observations, rewards, terminated, truncated, info = vector.step(self._to_environment(actions))
        count = self.num_steps + self.num_envs
        state = next_state = self._batch(observations, count)
        rewards = np.array(rewards, np.float64)
        if not isfinite(rewards.sum()) and not np.isfinite(rewards).all():
            index = int(np.flatnonzero(~np.isfinite(rewards))[0])
            self._raise("reward", index, rewards[index], count)
        terminated, truncated, valid = np.array(terminated, bool), np.array(truncated, bool), self._all
        ended = terminated | truncated
        if self._autoreset is AutoresetMode.NEXT_STEP:
            # The step after an end ignores its action and gives the first state of the next episode.
            valid = ~self._ended
        elif ended.any() and self._autoreset is AutoresetMode.SAME_STEP:
            if "final_obs" not in info:
                raise ValueError(
                    f"{self.name} resets in the same step, and its info lacks 'final_obs', so the last observation of "
                    f"an episode is lost; use AutoresetMode.NEXT_STEP"
                )
            next_state = state.copy()
            for index in np.flatnonzero(ended).tolist():
                self._fill(next_state, index, info["final_obs"][index], count)
        elif ended.any():
            observations, _ = vector.reset(options={"reset_mask": ended.copy()})
            state = next_state.copy()
            state[ended] = self._batch(observations)[ended]
        self.num_steps += int(valid.sum())
        self._ended, self.state = ended, state
        return Step(next_state, rewards, terminated, truncated, valid, state)


def _make(env: Any, make_kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    try:
        return gymnasium.make(env, disable_env_checker=True, **make_kwargs)
    except Exception as error:  # Gymnasium raises its own errors, and the environment's constructor any
        raise ValueError(f"env: gymnasium.make({env!r}) failed: {type(error).__name__}: {error}") from error


def _name_of(env: Any) -> str:
    return type(env.unwrapped).__name__ if env.spec is None else str(env.spec.id)


def _time_limit_of(env: Any) -> int | None:
    limit = None if env.spec is None else env.spec.max_episode_steps
    if limit is None and isinstance(env, gymnasium.Env) and env.has_wrapper_attr("_max_episode_steps"):
        limit = env.get_wrapper_attr("_max_episode_steps")  # TimeLimit around an environment without a spec
    if limit is None:
        limit = getattr(env.unwrapped, "max_episode_steps", None)
    return limit if isinstance(limit, int) else None


def _check_states(space: Any, name: str) -> tuple[gymnasium.Space[Any], int]:
    """Returns the agent's state space and where the environment's integers start."""
    if isinstance(space, Discrete):
        return Discrete(int(space.n)), int(space.start)
    if isinstance(space, Box):
        if space.dtype == np.float32:
            return space, 0
        with np.errstate(over="ignore"):
            return Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32), 0
    raise ValueError(
        f"observation_space of {name} is {type(space).__name__}, and Box or Discrete are supported; wrap it with "
        f"gymnasium.wrappers.FlattenObservation"
    )


def _finiteness(space: gymnasium.Space[Any]) -> Callable[[Array], bool]:
    """Returns the quickest test of whether a state is finite."""
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):  # integers (pixels) always are
        return lambda row: True
    size = math.prod(space.shape)
    if size > _SUMMED:
        zeros = np.zeros(size, np.float32)
        return lambda row: bool(row.reshape(-1).dot(zeros) == 0.0)  # ∞ · 0 is NaN
    if len(space.shape) == 1:
        return lambda row: isfinite(sum(row.tolist()))  # in float64, in which float32 does not overflow
    return lambda row: isfinite(sum(row.reshape(-1).tolist()))


def _check_actions(space: Any, name: str) -> tuple[gymnasium.Space[Any], Callable[[Array], Any]]:
    """Returns the agent's action space, and the map from it to the environment's, for single actions and batches."""
    if isinstance(space, Discrete):
        start, kind = int(space.start), space.dtype
        return Discrete(int(space.n)), lambda action: (action + start).astype(kind)
    if not isinstance(space, Box):
        raise ValueError(
            f"action_space of {name} is {type(space).__name__}, and Box or Discrete are supported; make it one of "
            f"them with gymnasium.wrappers.TransformAction"
        )
    size = math.prod(space.shape)
    if size == 0:
        raise ValueError(f"action_space of {name} is Box of shape {space.shape}, which holds no action")
    if not space.is_bounded("both"):
        raise ValueError(
            f"action_space of {name} is Box with unbounded sides, {space}; wrap it with gymnasium.wrappers."
            f"TransformAction(env, lambda action: action, gymnasium.spaces.Box(low, high)) to bound it"
        )
    convert, shape = _from_unit_box(space), tuple(space.shape)
    agent = Box(-1.0, 1.0, (size,), np.float32)
    if shape == agent.shape:
        return agent, convert
    return agent, lambda action: convert(action).reshape((*action.shape[:-1], *shape))


def _from_unit_box(space: Box) -> Callable[[Array], Array]:
    """Returns the map from ``[-1, 1]^d`` to a box, exact at its ends; it makes new arrays."""
    low, high, kind = space.low.reshape(-1), space.high.reshape(-1), space.dtype

    def between(action: Array) -> Array:
        value = low.astype(np.float64) * (0.5 - 0.5 * action) + high.astype(np.float64) * (0.5 + 0.5 * action)
        return (value if np.issubdtype(kind, np.floating) else np.rint(value)).astype(kind)

    if not np.issubdtype(kind, np.floating):
        return between
    if (low == -1).all() and (high == 1).all():
        return lambda action: np.array(action, kind)
    if (low == -high).all():
        return lambda action: np.multiply(action, high, dtype=kind, casting="same_kind")
    middle, half = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
    if not ((middle - half == low).all() and (middle + half == high).all()):
        return between  # rounding would miss the ends

    def scaled(action: Array) -> Array:
        value = np.multiply(action, half, dtype=kind, casting="same_kind")
        value += middle
        return value

    return scaled


def _check_snapshot(snapshot: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        json, arrays = dict(snapshot["json"]), dict(snapshot["arrays"])
        missing = {"name", "num_envs", "seed", "num_steps", "episodes"} - json.keys()
    except (TypeError, KeyError, ValueError):
        missing = {"json or arrays"}
    if missing:
        raise ValueError(f"snapshot lacks {', '.join(sorted(missing))}; pass what Environments.snapshot() returned")
    return json, arrays
