"""Processes in parts as Gymnasium environments, for other people's agents."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.processes.mdp import MarkovDecisionProcess, unvalidated
from rl_as_inference.processes.partially_observed import PartiallyObservedMDP
from rl_as_inference.randomness import RandomStream, seeded
from rl_as_inference.spaces import first_of

__all__ = ["ProcessEnv", "ProcessVectorEnv", "observation_space_of", "to_gymnasium", "to_gymnasium_vector"]

Array = np.ndarray[Any, Any]


@checked
def to_gymnasium(process: MarkovDecisionProcess) -> ProcessEnv:
    """Returns a process in parts as a :class:`gymnasium.Env`.

    Spaces are the process's own and rewards are in its reward units. Where the state is hidden, observations are what
    the agent sees; before the first action, where nothing is seen, one more integer of a Discrete space, or zeros.
    Terminal states terminate, the
    horizon truncates. The discount and the temperature are the learner's: no survival coin is tossed
    here. Draws are the environment's own; torch's global generator is neither used nor moved.

    Raises:
        ValueError: if the process is not in parts (a Pyro program), or its spaces are not Box or Discrete.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> env = to_gymnasium(TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4))
        >>> _ = env.reset(seed=0)
        >>> state, *rest = env.step(1)
        >>> int(state), rest
        (0, [1.0, False, False, {}])
    """
    return ProcessEnv(process)


@checked
def to_gymnasium_vector(process: MarkovDecisionProcess, num_envs: int) -> ProcessVectorEnv:
    """Returns ``num_envs`` copies of a process in parts as one vector environment.

    All of them make their step in one batched call. An episode that ends is followed by a new one in
    the same step (``AutoresetMode.SAME_STEP``): ``info["final_obs"]`` has the final observations,
    where ``info["_final_obs"]`` is true. Otherwise as :func:`to_gymnasium`.

    Raises:
        ValueError: as :func:`to_gymnasium`, and if ``num_envs`` < 1.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=1)
        >>> envs = to_gymnasium_vector(mdp, 3)
        >>> _ = envs.reset(seed=0)
        >>> _, rewards, terminations, truncations, _ = envs.step(np.array([0, 1, 1]))
        >>> rewards, truncations
        (array([0., 1., 1.]), array([ True,  True,  True]))
    """
    return ProcessVectorEnv(process, num_envs)


class ProcessEnv(gymnasium.Env[Any, Any]):
    """The environment that :func:`to_gymnasium` makes."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, process: MarkovDecisionProcess) -> None:
        self._stepper = _Stepper(process, 1)
        self.process = process
        self.observation_space, self.action_space = observation_space_of(process), process.action_space
        self.max_episode_steps = process.horizon
        self.spec = _spec(process, ProcessEnv)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns the first observation and no information; a seed starts the draws anew."""
        super().reset(seed=seed)
        if seed is not None or self._stepper.random is None:
            self._stepper.seed(self.np_random)
        self._stepper.start()
        return self._observation(self._stepper.seen), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Returns what Gymnasium's ``step`` does; in a terminal state nothing happens and nothing is earned."""
        final, reward, terminated, truncated = self._stepper.step(np.asarray(action)[None])
        return self._observation(final), float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def _observation(self, seen: Tensor) -> Any:
        first = self._stepper.observations(seen)[0]
        return first if isinstance(self.observation_space, gymnasium.spaces.Box) else np.int64(first)


class ProcessVectorEnv(VectorEnv[Any, Any, Any]):
    """The vector environment that :func:`to_gymnasium_vector` makes."""

    def __init__(self, process: MarkovDecisionProcess, num_envs: int) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer >= 1, got {num_envs!r}")
        self._stepper = _Stepper(process, int(num_envs))
        self.process, self.num_envs = process, int(num_envs)
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space, self.single_action_space = observation_space_of(process), process.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.max_episode_steps = process.horizon
        self.spec = _spec(process, ProcessEnv)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns the first observations and no information; a seed starts the draws anew."""
        super().reset(seed=seed)
        if seed is not None or self._stepper.random is None:
            self._stepper.seed(self.np_random)
        self._stepper.start()
        return self._stepper.observations(self._stepper.seen), {}

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Returns what Gymnasium's ``step`` does, in its mode ``SAME_STEP``."""
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions must have shape {self.action_space.shape}, got {actions.shape}")
        final, rewards, terminated, truncated = self._stepper.step(actions)
        ended = terminated | truncated
        if not ended.any():
            return self._stepper.observations(final), rewards, terminated, truncated, {}
        self._stepper.start(ended)
        info = {"final_obs": self._stepper.observations(final), "_final_obs": ended}
        return self._stepper.observations(self._stepper.seen), rewards, terminated, truncated, info

    def snapshot(self) -> dict[str, Array]:
        """Returns states, times and the state of the generator, from which :meth:`restore` goes on exactly."""
        stepper = self._stepper
        return {
            "process_states": stepper.states.cpu().numpy().copy(),
            "process_seen": stepper.seen.cpu().numpy().copy(),
            "process_times": stepper.times.copy(),
            "process_generator": self._stream().states[-1].numpy().copy(),
        }

    def restore(self, arrays: dict[str, Array]) -> None:
        """Goes back to where :meth:`snapshot` was taken.

        Raises:
            ValueError: if the snapshot is of another number of environments, or lacks something.
        """
        names = ("process_states", "process_seen", "process_times", "process_generator")
        if any(name not in arrays for name in names) or len(arrays["process_times"]) != self.num_envs:
            raise ValueError(
                f"arrays must hold {', '.join(names)} of {self.num_envs} environments: a snapshot() of them"
            )
        stepper = self._stepper
        stepper.states = torch.tensor(arrays["process_states"], device=stepper.device)
        stepper.seen = torch.tensor(arrays["process_seen"], device=stepper.device)
        stepper.times = np.array(arrays["process_times"])
        stream = self._stream()
        stream.states = [*stream.states[:-1], torch.tensor(arrays["process_generator"])]

    def _stream(self) -> RandomStream:
        """Returns the random numbers of the episodes; before the first reset, of a seed that will be replaced."""
        if self._stepper.random is None:
            self._stepper.seed(np.random.default_rng(0))
        assert self._stepper.random is not None
        return self._stepper.random


class _Stepper:
    """A batch of running episodes of a process, with random numbers of its own; integers count from 0."""

    def __init__(self, process: MarkovDecisionProcess, count: int) -> None:
        _check_process(process)
        self.process, self.count = process, count
        self.states = self.seen = torch.empty(0)
        self.times = np.zeros(count, np.int64)
        with seeded(0), torch.no_grad():
            example = process.begin(1)
        self.device: torch.device = example.device
        self.random: RandomStream | None = None
        self.hidden = process if isinstance(process, PartiallyObservedMDP) else None
        self.space = observation_space_of(process)
        # Observations of a hidden state are of their own space as they are.
        self.first_seen = 0 if self.hidden else first_of(process.state_space)
        self.first_action = first_of(process.action_space)
        # Actions of a process are of its own precision, whatever its action space is declared in.
        self._action_dtype = torch.get_default_dtype()
        if not isinstance(process.action_space, gymnasium.spaces.Box):
            self._action_dtype = torch.long
        elif example.is_floating_point():
            self._action_dtype = example.dtype

    def seed(self, generator: np.random.Generator) -> None:
        self.random = RandomStream(int(generator.integers(2**62)), self.device)

    @contextlib.contextmanager
    def _own_draws(self) -> Iterator[None]:
        assert self.random is not None
        with self.random, torch.no_grad(), unvalidated():
            yield

    def start(self, which: Array | None = None) -> None:
        """Starts new episodes, all or ``which`` (a mask)."""
        if which is None:
            with self._own_draws():
                self.states = self.process.begin(self.count)
                self.seen = self._see(self.states, None)
            self.times[:] = 0
            return
        index = torch.as_tensor(np.flatnonzero(which), device=self.device)
        with self._own_draws():
            fresh = self.process.begin(len(index))
            seen = self._see(fresh, None)
        self.states = self.states.index_copy(0, index, fresh)
        self.seen = self.seen.index_copy(0, index, seen)
        self.times[which] = 0

    def step(self, actions: Array) -> tuple[Tensor, Array, Array, Array]:
        """Returns what was seen of where it led, the rewards, and which episodes terminated and were truncated."""
        if not len(self.states):
            raise ValueError("step() before reset(): reset() the environment first")
        if isinstance(space := self.process.action_space, gymnasium.spaces.Discrete):
            last = space.start + space.n - 1
            wrong = (actions < space.start) | (actions > last)
            if wrong.any():
                raise ValueError(f"action must be an integer from {space.start} to {last}, got {actions[wrong][0]}")
        action = torch.as_tensor(actions - self.first_action, dtype=self._action_dtype, device=self.device)
        with self._own_draws():
            step = self.process.advance(self.states, action, int(self.times.max()))
            after = self.process.has_ended(step.next_state)
            self.seen = self._see(step.next_state, action)
        self.states = step.next_state
        self.times += 1
        # An episode may begin in a terminal state, which Gymnasium can only hear about now.
        terminated = np.zeros(self.count, bool) if step.alive is None else ~step.alive.cpu().numpy()
        if after is not None:
            terminated = terminated | after.cpu().numpy()
        horizon = self.process.horizon
        truncated = np.zeros(self.count, bool) if horizon is None else self.times >= horizon
        return self.seen, step.reward.cpu().numpy().astype(np.float64), terminated, truncated

    def _see(self, states: Tensor, action: Tensor | None) -> Tensor:
        """Returns what is seen of states; of those that are not hidden all."""
        if self.hidden is None:
            return self.process.as_seen(states)
        taken = None if action is None else self.hidden._own_action(action)
        seen = self.hidden.draw_observation(self.hidden._own_state(states), taken)
        if seen is not None:
            return seen
        space, batch = self.space, self.hidden.batch_shape(states)
        nothing = float(space.start + space.n - 1) if isinstance(space, gymnasium.spaces.Discrete) else 0.0
        like = torch.long if isinstance(space, gymnasium.spaces.Discrete) else torch.get_default_dtype()
        return torch.full((*batch, *(space.shape or ())), nothing, dtype=like, device=states.device)

    def observations(self, seen: Tensor) -> Array:
        """Returns what was seen as observations of the environment's space, in memory of their own."""
        return np.array(seen.cpu().numpy() + self.first_seen, dtype=self.space.dtype)


def observation_space_of(process: MarkovDecisionProcess) -> gymnasium.Space[Any]:
    """Returns the space of what an environment gives: states; where they are hidden, observations."""
    if not isinstance(process, PartiallyObservedMDP):
        return process.state_space
    space = process.observation_space
    if not isinstance(space, gymnasium.spaces.Discrete):
        return space
    with seeded(0), torch.no_grad():
        sees_first = process.view(process.begin(1)).observed_first
    return space if sees_first else gymnasium.spaces.Discrete(int(space.n) + 1, start=int(space.start))


def _check_process(process: Any) -> None:
    if not isinstance(process, MarkovDecisionProcess):
        raise ValueError(
            f"process must be a MarkovDecisionProcess, got {type(process).__name__}; a Pyro program runs whole "
            f"trajectories and cannot be stepped: give the problem in parts"
        )
    hidden = isinstance(process, PartiallyObservedMDP)
    for name in ("state_space", "action_space", *(("observation_space",) if hidden else ())):
        space = getattr(process, name, None)
        if name == "action_space" and isinstance(space, MultiDiscrete | MultiBinary):
            continue
        if not isinstance(space, gymnasium.spaces.Box | gymnasium.spaces.Discrete):
            raise ValueError(f"{name} of {type(process).__name__} must be a gymnasium Box or Discrete, got {space}")


def _spec(process: MarkovDecisionProcess, kind: Callable[..., Any]) -> EnvSpec:
    """Returns a spec that makes the environment again; it is in nobody's registry."""
    identity = re.sub(r"[^\w:.-]+", "_", process.name).strip("_") or "process"
    return EnvSpec(identity, entry_point=lambda **kwargs: kind(process, **kwargs))
