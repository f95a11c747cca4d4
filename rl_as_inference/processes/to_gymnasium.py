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
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from rl_as_inference.processes.mdp import MarkovDecisionProcess, unvalidated

__all__ = ["ProcessEnv", "ProcessVectorEnv", "to_gymnasium", "to_gymnasium_vector"]

Array = np.ndarray[Any, Any]


def to_gymnasium(process: MarkovDecisionProcess) -> ProcessEnv:
    """Returns a process in parts as a :class:`gymnasium.Env`.

    Spaces are the process's own and rewards are in its reward units. Terminal states terminate, the
    horizon truncates. The discount and the temperature are the learner's: no survival coin is tossed
    here. Draws are the environment's own; torch's global generator is neither used nor moved.

    Raises:
        ValueError: if the process is not in parts (a Pyro program), or its spaces are not Box or Discrete.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> env = to_gymnasium(TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4))
        >>> env.reset(seed=0)
        (np.int64(0), {})
        >>> env.step(1)
        (np.int64(0), 1.0, False, False, {})
    """
    return ProcessEnv(process)


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
        self.observation_space, self.action_space = process.state_space, process.action_space
        self.max_episode_steps = process.horizon
        self.spec = _spec(process, ProcessEnv)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns the first observation and no information; a seed starts the draws anew."""
        super().reset(seed=seed)
        if seed is not None or not self._stepper.seeded:
            self._stepper.seed(self.np_random)
        self._stepper.start()
        return self._observation(self._stepper.states), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Returns what Gymnasium's ``step`` does; in a terminal state nothing happens and nothing is earned."""
        final, reward, terminated, truncated = self._stepper.step(np.asarray(action)[None])
        return self._observation(final), float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def _observation(self, states: Tensor) -> Any:
        first = _numpy(states, self.observation_space)[0]
        return first if isinstance(self.observation_space, gymnasium.spaces.Box) else np.int64(first)


class ProcessVectorEnv(VectorEnv[Any, Any, Any]):
    """The vector environment that :func:`to_gymnasium_vector` makes."""

    def __init__(self, process: MarkovDecisionProcess, num_envs: int) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs must be an integer >= 1, got {num_envs!r}")
        self._stepper = _Stepper(process, int(num_envs))
        self.process, self.num_envs = process, int(num_envs)
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space, self.single_action_space = process.state_space, process.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.max_episode_steps = process.horizon
        self.spec = _spec(process, ProcessEnv)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Returns the first observations and no information; a seed starts the draws anew."""
        super().reset(seed=seed)
        if seed is not None or not self._stepper.seeded:
            self._stepper.seed(self.np_random)
        self._stepper.start()
        return _numpy(self._stepper.states, self.single_observation_space), {}

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Returns what Gymnasium's ``step`` does, in its mode ``SAME_STEP``."""
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions must have shape {self.action_space.shape}, got {actions.shape}")
        final, rewards, terminated, truncated = self._stepper.step(actions)
        ended = terminated | truncated
        if not ended.any():
            return _numpy(final, self.single_observation_space), rewards, terminated, truncated, {}
        self._stepper.start(ended)
        info = {"final_obs": _numpy(final, self.single_observation_space), "_final_obs": ended}
        return _numpy(self._stepper.states, self.single_observation_space), rewards, terminated, truncated, info

    def snapshot(self) -> dict[str, Array]:
        """Returns states, times and the state of the generator, from which :meth:`restore` goes on exactly."""
        stepper = self._stepper
        return {
            "process_states": stepper.states.cpu().numpy().copy(),
            "process_times": stepper.times.copy(),
            "process_generator": stepper.generator_state.numpy().copy(),
        }

    def restore(self, arrays: dict[str, Array]) -> None:
        """Goes back to where :meth:`snapshot` was taken.

        Raises:
            ValueError: if the snapshot is of another number of environments, or lacks something.
        """
        names = ("process_states", "process_times", "process_generator")
        if any(name not in arrays for name in names) or len(arrays["process_times"]) != self.num_envs:
            raise ValueError(
                f"arrays must hold {', '.join(names)} of {self.num_envs} environments: a snapshot() of them"
            )
        stepper = self._stepper
        stepper.states = torch.tensor(arrays["process_states"], device=stepper.device)
        stepper.times = np.array(arrays["process_times"])
        stepper.generator_state = torch.tensor(arrays["process_generator"])


class _Stepper:
    """A batch of running episodes of a process, with a random generator of its own.

    ``torch.distributions`` draw from the global generator alone, so its state is exchanged for the
    time of a draw.
    """

    def __init__(self, process: MarkovDecisionProcess, count: int) -> None:
        _check_process(process)
        self.process, self.count = process, count
        self.states = torch.empty(0)
        self.times = np.zeros(count, np.int64)
        self.generator_state = torch.empty(0, dtype=torch.uint8)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
            example = process.initial().sample()
        self.device: torch.device = example.device
        space = process.action_space
        discrete = isinstance(space, gymnasium.spaces.Discrete)
        # Actions of a process are of its own precision, whatever its action space is declared in.
        self._action_dtype = (
            torch.long if discrete else example.dtype if example.is_floating_point() else torch.get_default_dtype()
        )

    @property
    def seeded(self) -> bool:
        return bool(self.generator_state.numel())

    def seed(self, generator: np.random.Generator) -> None:
        own = torch.Generator(self.device).manual_seed(int(generator.integers(2**62)))
        self.generator_state = own.get_state()

    @contextlib.contextmanager
    def _own_draws(self) -> Iterator[None]:
        on_cpu = self.device.type == "cpu"
        exchange: tuple[Callable[..., Any], Callable[..., Any]] = (
            (torch.get_rng_state, torch.set_rng_state)
            if on_cpu
            else (
                lambda: torch.cuda.get_rng_state(self.device),
                lambda state: torch.cuda.set_rng_state(state, self.device),
            )
        )
        get, put = exchange
        with torch.random.fork_rng(devices=[] if on_cpu else [self.device]), torch.no_grad(), unvalidated():
            put(self.generator_state)
            yield
            self.generator_state = get()

    def start(self, which: Array | None = None) -> None:
        """Starts new episodes, all or ``which`` (a mask)."""
        if which is None:
            with self._own_draws():
                self.states = self.process.initial().expand([self.count]).sample()
            self.times[:] = 0
            return
        index = torch.as_tensor(np.flatnonzero(which), device=self.device)
        with self._own_draws():
            fresh = self.process.initial().expand([len(index)]).sample()
        self.states = self.states.index_copy(0, index, fresh)
        self.times[which] = 0

    def step(self, actions: Array) -> tuple[Tensor, Array, Array, Array]:
        """Returns the states reached, the rewards, and which episodes terminated and were truncated."""
        if not len(self.states):
            raise ValueError("step() before reset(): reset() the environment first")
        process, states = self.process, self.states
        action = torch.as_tensor(actions, dtype=self._action_dtype, device=self.device)
        with self._own_draws():
            reached = process.next_state(states, action)
            earned = process.reward(states, action, reached)
            rewards = process._checked_reward(earned, self.count, states, int(self.times.max()))
            # An episode may begin in a terminal state, which Gymnasium can only hear about now.
            before, after = process.terminated(states), process.terminated(reached)
            if before is not None:
                ended = torch.as_tensor(before, device=self.device).expand(self.count)
                stays = ended.reshape(-1, *(1,) * (states.dim() - 1))
                reached = torch.where(stays, states, reached)
                rewards = torch.where(ended, 0.0, rewards)
                after = ended if after is None else ended | torch.as_tensor(after, device=self.device)
        self.states = reached
        self.times += 1
        terminated = np.zeros(self.count, bool)
        if after is not None:
            terminated |= after.cpu().numpy()
        truncated = np.zeros(self.count, bool) if process.horizon is None else self.times >= process.horizon
        return reached, rewards.cpu().numpy().astype(np.float64), terminated, truncated


def _check_process(process: Any) -> None:
    if not isinstance(process, MarkovDecisionProcess):
        raise ValueError(
            f"process must be a MarkovDecisionProcess, got {type(process).__name__}; a Pyro program runs whole "
            f"trajectories and cannot be stepped: give the problem in parts"
        )
    for name in ("state_space", "action_space"):
        space = getattr(process, name, None)
        if not isinstance(space, gymnasium.spaces.Box | gymnasium.spaces.Discrete):
            raise ValueError(f"{name} of {type(process).__name__} must be a gymnasium Box or Discrete, got {space}")


def _spec(process: MarkovDecisionProcess, kind: Callable[..., Any]) -> EnvSpec:
    """Returns a spec that makes the environment again; it is in nobody's registry."""
    identity = re.sub(r"[^\w:.-]+", "_", process.name).strip("_") or "process"
    return EnvSpec(identity, entry_point=lambda **kwargs: kind(process, **kwargs))


def _numpy(states: Tensor, space: gymnasium.Space[Any]) -> Array:
    """Returns states as observations of a space, in memory of their own."""
    return np.array(states.cpu().numpy(), dtype=space.dtype)
