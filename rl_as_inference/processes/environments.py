"""Batches of Gymnasium environments as learners step them: true successors, agent units, runs that replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import VectorEnv
from numpy import ndarray

from rl_as_inference.nouns import EnvironmentLike
from rl_as_inference.processes.action_masks import MASK, flat_mask, masks_in, put_beside, with_masks
from rl_as_inference.processes.asynchronous import EnvironmentsInProcesses
from rl_as_inference.processes.autoreset import Autoreset
from rl_as_inference.processes.faults import FIVE, FLAGS, NUMBERS, NonFiniteError, StepError, wrong_reward
from rl_as_inference.processes.normalization import Normalization, as_normalized, own_rewards
from rl_as_inference.processes.observations import Observations
from rl_as_inference.processes.running_statistics import RunningStatistics
from rl_as_inference.processes.snapshots import Replayed, episode_seed
from rl_as_inference.processes.sources import made_of
from rl_as_inference.processes.step import Step
from rl_as_inference.processes.units import agent_actions, dimension_names, layout_of_cells, name_of, time_limit_of

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


class Environments(Replayed):
    """A batch of environments in the agent's units.

    Continuous actions are in the unit box ``[-1, 1]^d`` and reach the environment in its own bounds;
    actions and states that are integers count from 0. Every episode of environments that are made
    here is reset with a seed of its own, derived from ``(seed, environment, episode)``, so that a run
    can be replayed; see :meth:`snapshot`. Make one by :meth:`make`.

    Attributes:
        name: the environment's id or class, for messages.
        num_envs: the size of the batch.
        state_space: ``Box`` (its states are float32 arrays; of images bytes), :class:`LaidOut` where observations
            have parts (states are its rows), or ``Discrete`` from 0 (int64).
        action_space: ``Box(-1, 1, (d,), float32)`` or ``Discrete`` from 0; ``own_action_space`` is the environment's.
        state: the states to act from next, ``(num_envs, *state)``; None before the first reset.
        num_steps: how many transitions the environments have made, all of them together.
        max_episode_steps: the time limit that the environment comes with, or None.
        state_names, action_names: what the environment's own attributes of these names call the entries; or None.
        layout: the letters of its grid, ``(rows, columns)``, where its states are cells; or None.
        masks: where states say which actions are allowed; None where they do not.
        mask_size: how long the masks beside observations are; None where there are none, or they are a part of these.

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

    def __init__(
        self,
        environments: list[gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any],
        *,
        seed: int = 0,
        normalization: Normalization | None = None,
        masks: Literal["look"] | int | None = None,
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
        self.seed = int(seed)
        self._first: Any = None  # the observation of a reset that was taken to look for masks
        if isinstance(environments, EnvironmentsInProcesses):
            self.mask_size = environments.mask_size  # which was looked for there
        else:
            found = with_masks(environments, masks, episode_seed(seed, 0, 0), again=normalization is not None)
            environments, self.mask_size, self._first = found.environments, found.size, found.first
        environments = environments if normalization is None else normalization.around(environments)
        self._vector = environments if isinstance(environments, VectorEnv) else None
        self._envs: list[Any] = [] if isinstance(environments, VectorEnv) else environments
        first: Any
        if self._vector is not None:
            first, self.num_envs = self._vector, int(self._vector.num_envs)
            states, actions = self._vector.single_observation_space, self._vector.single_action_space
        else:
            first, self.num_envs = self._envs[0], len(self._envs)
            states, actions = first.observation_space, first.action_space
        self.name = first.name if isinstance(first, EnvironmentsInProcesses) else name_of(first)
        self.own_action_space = actions
        self.state_names, self.action_names = dimension_names(first)
        self.layout = layout_of_cells(first) if isinstance(states, Discrete) else None
        self._autoreset = Autoreset(None if self._vector is None else self._vector.metadata, self.name)
        self.max_episode_steps: int | None = time_limit_of(first)
        for other in self._envs[1:]:
            if (other.observation_space, other.action_space) != (states, actions):
                raise ValueError(f"env: the environments made for {self.name} have different spaces; make them alike")
        self._observations = seen = Observations(states, self.name, self.num_envs)
        self.state_space, self._state_start, self._is_box = seen.state_space, seen.start, seen.is_box
        self._state_shape, self._state_dtype, self._states_shape = seen.shape, seen.dtype, (self.num_envs, *seen.shape)
        self._checks, self._finite, self._given_dtype = seen.checks, seen.finite, seen.given_dtype
        self._num_states = int(states.n) if isinstance(states, Discrete) else 0
        self.action_space, self._to_environment = agent_actions(actions, self.name)
        self._actions_shape = (self.num_envs, *(self.action_space.shape or ()))
        self.masks = masks_in(self.state_space, self.action_space, self.name)
        self._none, self._all = np.zeros(self.num_envs, bool), np.ones(self.num_envs, bool)
        self._none.flags.writeable = self._all.flags.writeable = False
        self.state: Array | None = None
        self.num_steps = 0
        self._episodes = [-1] * self.num_envs
        self._starts = [0] * self.num_envs  # the batch's step at which the running episode began
        self._rewards = np.zeros(self.num_envs)
        self._running = RunningStatistics(environments)
        self._normalizes = normalization is not None and normalization.observations
        self._own_rewards = own_rewards(self._envs)
        self._logs = [np.empty((_FIRST_LOG, *(actions.shape or ())), actions.dtype) for _ in self._envs]

    @classmethod
    def make(
        cls,
        env: EnvironmentLike,
        *,
        num_envs: int = 1,
        seed: int = 0,
        normalization: Normalization | None = None,
        masks: Literal["look"] | int | None = None,
        **make_kwargs: Any,
    ) -> Environments:
        """Returns ``num_envs`` environments.

        Args:
            env: a Gymnasium id (or spec); an environment; a factory of environments, called
                ``num_envs`` times; a vector environment, which has its own number; or a process in parts.
            num_envs: the size of the batch.
            seed: of all episodes, ≥ 0.
            normalization: of observations or rewards, which wrappers around each environment see to.
            masks: what to do with a mask of actions in ``info["action_mask"]``: ``"look"`` whether there is one, and
                make it a part of states then; its length, where that is known; None looks at none.
            **make_kwargs: for :func:`gymnasium.make`, with an id.

        Raises:
            ValueError: if there is no such environment, an argument is out of range, or a space is
                not supported; the message names a wrapper that mends it.
        """
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer >= 1, got {num_envs!r}")
        if isinstance(env, _MakesEnvironments) and not isinstance(env, gymnasium.Env | VectorEnv):
            if normalization is not None:
                make_kwargs["normalization"] = normalization
            if masks is not None:
                make_kwargs["masks"] = masks
            return env.environments(num_envs=num_envs, seed=seed, **make_kwargs)
        return cls(made_of(env, num_envs, make_kwargs), seed=seed, normalization=normalization, masks=masks)

    def reset(self) -> Array:
        """Returns the first states of new episodes, ``(num_envs, *state)``."""
        if self._vector is not None:
            self._autoreset.ended = self._none
            observations, self._first = self._first, None
            if observations is None or self._episodes[0] >= 0:
                observations = self._begin()
            else:
                self._episodes = [episode + 1 for episode in self._episodes]
            self.state = self._batch(observations)
            if self.masks is not None:
                self.masks.check(self.state, self._none, self._checks, self.num_steps, at_reset=True)
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
        if self.masks is not None:
            self.masks.check(next_state, terminated, self._checks, self.num_steps + 1)
        # Counted when all have stepped: after an error, a snapshot is of the step before.
        self.num_steps += self.num_envs
        self._rewards = rewards
        own = np.array([float(each.own_reward) for each in self._own_rewards]) if self._own_rewards else None
        state = next_state
        if terminated is not self._none:
            state = next_state.copy()
            for index in (terminated | truncated).nonzero()[0].tolist():
                self._start(index, state)
        self.state = state
        return Step(next_state, rewards, terminated, truncated, self._all, state, own)

    def agent_state(self, observation: Any, action_mask: Any = None) -> Array:
        """Returns an observation of the environment's, or a batch of them, as states: integers count from 0.

        Where observations are normalised, it is the environment's own, and the first one's statistics are used.

        Args:
            observation: as the environment gives it.
            action_mask: what is allowed there, where that comes beside observations (or instead of what they say).

        Raises:
            ValueError: if one of them does not fit, nothing is allowed, or a mask is lacking or nobody's.
        """
        if self.masks is None:
            if action_mask is not None:
                raise ValueError(f"action_mask: {self.name} gives no masks that are kept to; leave it out")
            return self._plain_state(observation)
        if action_mask is not None:
            observation = put_beside(observation, flat_mask(action_mask, self.own_action_space))
        elif self.mask_size is not None:
            raise ValueError(f"action_mask is needed beside an observation of {self.name}; pass info[{MASK!r}]")
        states = self._plain_state(observation)
        self.masks.check_given(states)
        return states

    def _plain_state(self, observation: Any) -> Array:
        if self._normalizes and (normalized := as_normalized(self._envs[0], observation)) is not None:
            return normalized
        return self._observations.state(observation)

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

    def close(self) -> None:
        """Closes the environments, and ends their processes if they have any."""
        if isinstance(self._vector, EnvironmentsInProcesses):
            self._vector.stop()
            return
        for env in self._envs if self._vector is None else [self._vector]:
            env.close()

    def _begin(self, which: Array | None = None) -> Any:
        """Returns a vector environment's observations after new episodes began, in all environments or in ``which``."""
        vector: Any = self._vector
        begun = self._all if which is None else which
        if isinstance(vector, EnvironmentsInProcesses):
            if vector.closed:  # after an error or an interruption in a step
                vector = self._vector = vector.again()
            self._episodes = [episode + int(begins) for episode, begins in zip(self._episodes, begun, strict=True)]
            return vector.begin([self._seed_of(index) for index in range(self.num_envs)], which)
        if which is not None:
            return vector.reset(options={"reset_mask": which})[0]
        self._episodes = [episode + 1 for episode in self._episodes]
        return vector.reset(seed=self._seed_of(0))[0]

    def _start(self, index: int, states: Array) -> None:
        """Starts environment ``index``'s next episode and writes its first state into the batch."""
        self._episodes[index] += 1
        self._starts[index] = self.num_steps // self.num_envs
        self._running.begin(index)
        observation, self._first = self._first, None
        if observation is None or index or self._episodes[index]:
            observation, _ = self._envs[index].reset(seed=self._seed_of(index))
        self._fill(states, index, observation)
        if self.masks is not None:
            self.masks.check(states, self._none, self._checks, self.num_steps, at_reset=True, only=index)

    def _fill(self, states: Array, index: int, observation: Any, step: int | None = None) -> None:
        """Writes an observation into a batch of states; without a step it came at a reset."""
        taken = self.num_steps if step is None else step
        self._observations.fill(states, index, observation, taken, at_reset=step is None)

    def _batch(self, observations: Any, step: int | None = None) -> Array:
        taken = self.num_steps if step is None else step
        return self._observations.batch(observations, taken, at_reset=step is None)

    def _step_vector(self, actions: Array) -> Step:
        vector: Any = self._vector
        try:
            observations, rewards, terminated, truncated, info = vector.step(self._to_environment(actions))
        except BaseException:
            if isinstance(vector, EnvironmentsInProcesses):  # some have stepped and some have not
                vector.stop()
            raise
        count = self.num_steps + self.num_envs
        state = next_state = self._batch(observations, count)
        rewards = self._checks.rewards(rewards, count)
        terminated = self._checks.flags("terminated", terminated, count)
        truncated, valid = self._checks.flags("truncated", truncated, count), self._all
        ended = terminated | truncated
        final = self._autoreset.final_observations(info) if ended.any() else None
        if self.masks is not None:
            self.masks.check(state, terminated if final is None else self._none, self._checks, count)
        if self._autoreset.skips_steps:
            # The step after an end ignores its action and gives the first state of the next episode.
            self._autoreset.check_starts(rewards, ended)
            valid = ~self._autoreset.ended
        elif final is not None:
            next_state = state.copy()
            for index in np.flatnonzero(ended).tolist():
                self._fill(next_state, index, final[index], count)
                if self.masks is not None:
                    self.masks.check(next_state, terminated, self._checks, count, only=index)
        elif ended.any():
            state = next_state.copy()
            state[ended] = self._batch(self._begin(ended.copy()))[ended]
        self.num_steps += int(valid.sum())
        self._autoreset.ended, self.state = ended, state
        return Step(next_state, rewards, terminated, truncated, valid, state)
