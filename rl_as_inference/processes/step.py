"""What one step of a batch of environments gives."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["Step"]

Array = np.ndarray[Any, Any]


class Step(NamedTuple):
    """What one step of every environment gave; the first dimension of each array is the environment."""

    next_state: Array
    """The true successor, ``(num_envs, *state)``: the final one where an episode ended."""
    reward: Array
    """``(num_envs,)`` float64, in reward units: what is learned from."""
    terminated: Array
    """``(num_envs,)`` bool: nothing more can be earned."""
    truncated: Array
    """``(num_envs,)`` bool: the episode was cut off, and values bootstrap through it."""
    valid: Array
    """``(num_envs,)`` bool; false where a vector environment only started an episode: never store such a row."""
    state: Array
    """The states to act from next, ``(num_envs, *state)``: the new episode's first where one ended."""
    own_reward: Array | None = None
    """``(num_envs,)`` float64: the environment's own rewards, where these are normalised for learning."""

    @property
    def earned(self) -> Array:
        """The environment's own rewards: what is reported."""
        return self.reward if self.own_reward is None else self.own_reward
