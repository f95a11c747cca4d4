"""Simulators that are slow, each in a process of its own: Gymnasium's ``AsyncVectorEnv``, as learners want it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from rl_as_inference.nouns import EnvironmentLike
from rl_as_inference.processes.action_masks import MaskBeside, with_masks
from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.processes.running_statistics import RunningStatistics
from rl_as_inference.processes.sources import made_of
from rl_as_inference.processes.units import name_of, time_limit_of

__all__ = ["EnvironmentsInProcesses", "in_processes"]

Array = np.ndarray[Any, Any]

_PATIENCE = 5.0
"""Seconds that a process has to end in."""


def in_processes(
    env: EnvironmentLike, num_envs: int, make_kwargs: Mapping[str, Any], *, masks: bool = False
) -> EnvironmentsInProcesses:
    """Returns ``num_envs`` environments that step at the same time, each in a process of its own.

    Observations come back through shared memory. What they give is what they would give one after the other.

    Args:
        env: a Gymnasium id (or spec), or a factory of environments. Where processes are not forked, the factory must be
            one that ``cloudpickle`` takes.
        num_envs: how many.
        make_kwargs: for :func:`gymnasium.make`, with an id.
        masks: look for masks of actions in ``info``, and put them beside what is observed.

    Raises:
        ValueError: for anything else, if no such environment can be made, or if its wrappers hold running statistics,
            which could not be read out of its process.

    Example:
        >>> envs = in_processes("CartPole-v1", 2, {})
        >>> envs.reset(seed=[1, 2])[0].shape
        (2, 4)
        >>> envs.close()
    """
    if isinstance(env, MarkovDecisionProcess | VectorEnv | gymnasium.Env) or not (
        isinstance(env, str | EnvSpec) or callable(env)
    ):
        mend = "a process in parts steps all its environments in one call already: leave asynchronous out"
        if not isinstance(env, MarkovDecisionProcess):
            mend = "pass the environment's id, or a factory such as lambda: make_my_environment()"
        raise ValueError(
            f"asynchronous=True makes each environment in a process, and env is {type(env).__name__}; {mend}"
        )
    return EnvironmentsInProcesses(_Maker(env, dict(make_kwargs), masks), num_envs)


class EnvironmentsInProcesses(AsyncVectorEnv):
    """What :func:`in_processes` makes.

    Episodes begin when they are told to, by :meth:`begin`; Ctrl-C and SIGTERM reach the learner alone, which stops them
    when its step is whole.

    Attributes:
        name, max_episode_steps: of each environment, as where it is not in a process.
        mask_size: of the masks in ``info``, if they were looked for and are there.
    """

    def __init__(self, maker: _Maker, num_envs: int) -> None:
        self._maker = maker
        try:
            super().__init__([maker] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
        except (EOFError, ConnectionError) as error:
            self.stop()
            raise ValueError(f"env: a process ended while its environment was made there ({error!r})") from error
        self.spec, self.name, self.max_episode_steps = maker.spec, maker.name, maker.max_episode_steps
        self.mask_size = maker.mask_size

    def begin(self, seeds: list[int], which: Array | None = None) -> Any:
        """Returns the observations after new episodes began, in all environments or in ``which`` (a mask)."""
        return self.reset(seed=list(seeds), options=None if which is None else {"reset_mask": which})[0]

    def again(self) -> EnvironmentsInProcesses:
        """Returns others like these, in new processes."""
        return EnvironmentsInProcesses(self._maker, self.num_envs)

    def stop(self) -> None:
        """Ends the processes, whatever they are doing."""
        self.closed = True
        for process in getattr(self, "processes", []):
            process.kill()
        for process in getattr(self, "processes", []):
            process.join(_PATIENCE)
        for pipe in getattr(self, "parent_pipes", []):
            if pipe is not None:
                pipe.close()


class _Maker:
    """Makes one environment, here or in a process."""

    def __init__(self, env: Any, make_kwargs: dict[str, Any], masks: bool) -> None:
        self._env, self._make_kwargs, self._home, self._looks = env, make_kwargs, os.getpid(), masks
        self.mask_size: int | None = None
        self.spec: EnvSpec | None = None
        self.name = ""
        self.max_episode_steps: int | None = None

    def __call__(self) -> gymnasium.Env[Any, Any]:
        in_process = os.getpid() != self._home
        if in_process:
            # Terminals and schedulers send these to all processes. What an environment starts would inherit SIG_IGN,
            # but no handler, and can be ended.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: None)
        made = made_of(self._env, 1, self._make_kwargs)
        assert isinstance(made, list)
        if not in_process:  # asked once, for spaces
            self.spec, self.name, self.max_episode_steps = made[0].spec, name_of(made[0]), time_limit_of(made[0])
            if names := sorted(RunningStatistics(made).statistics()):
                made[0].close()
                raise ValueError(
                    f"asynchronous=True: {names[0].partition('/')[2].partition('.')[0]} holds running statistics in "
                    f"each environment's process, where evaluations and checkpoints cannot read them; leave "
                    f"asynchronous out, or normalise outside"
                )
            if self._looks:
                self.mask_size = with_masks(made, "look", 0, again=True).size
        return made[0] if self.mask_size is None else MaskBeside(made[0], self.mask_size)
