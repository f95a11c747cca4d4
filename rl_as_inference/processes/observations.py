"""What a batch of environments observes, as states: checked, counted from 0, laid out in rows."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy import ndarray

from rl_as_inference.processes.faults import Checks
from rl_as_inference.processes.units import agent_states, as_states, finiteness
from rl_as_inference.state_layout import LaidOut

__all__ = ["Observations"]

Array = np.ndarray[Any, Any]


class Observations:
    """The way from an environment's observations to states, held to its space.

    Args:
        space: of one observation, as the environment has it.
        name: the environment's, for messages.
        num_envs: the size of the batch.

    Attributes:
        state_space: the agent's, see :class:`~rl_as_inference.processes.environments.Environments`.
        start: what the environment's integers start with.
        is_box: whether states are arrays of numbers.
        shape: of a state.
        dtype: of states.
        given_dtype: of observations that need no look; None where all do.
        finite: whether a state is.
    """

    def __init__(self, space: gymnasium.Space[Any], name: str, num_envs: int) -> None:
        self.state_space, self.start = agent_states(space, name)
        self.is_box, self.num_envs = isinstance(self.state_space, Box), num_envs
        self.shape: tuple[int, ...] = tuple(self.state_space.shape or ())
        self.dtype: Any = self.state_space.dtype if self.is_box else np.int64
        layout = self.state_space.layout if isinstance(self.state_space, LaidOut) else None
        self.checks = Checks(name, num_envs, space, layout)
        self.finite = finiteness(space if layout is None else self.state_space)
        self.given_dtype = space.dtype if layout is None else None

    def state(self, observation: Any) -> Array:
        """Returns an observation, or a batch of them, as states.

        Raises:
            ValueError: if it does not fit the space.
        """
        if isinstance(self.state_space, LaidOut):
            return self.state_space.layout.flatten(observation)
        return as_states(np.asarray(observation), self.state_space, self.start)

    def fill(self, states: Array, index: int, observation: Any, step: int, *, at_reset: bool) -> None:
        """Writes an observation, given at a step or at a reset after so many, into a batch of states."""
        if (  # else it needs no look
            not self.is_box
            or type(observation) is not ndarray
            or observation.dtype is not self.given_dtype
            or observation.shape != self.shape
        ):
            observation = self.checks.observation(observation, index, step, at_reset=at_reset)
        states[index] = observation if self.is_box else observation - self.start
        if not self.finite(states[index]):
            self.checks.not_finite("observation", index, observation, step, at_reset=at_reset)

    def batch(self, observations: Any, step: int, *, at_reset: bool) -> Array:
        """Returns a vector environment's observations as states; it may write over its own later."""
        given = self.checks.observations(observations, step, at_reset=at_reset)
        if not self.is_box:
            return np.array(given - self.start, self.dtype)
        with np.errstate(over="ignore"):
            states = np.array(given, self.dtype)
        if not np.isfinite(states).all():
            index = int(np.flatnonzero(~np.isfinite(states.reshape(self.num_envs, -1)).all(1))[0])
            self.checks.not_finite("observation", index, given[index], step, at_reset=at_reset)
        return states
