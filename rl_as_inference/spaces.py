"""What action spaces have in common with a density: their size, and the box that continuous actions live in."""

import math
from typing import Any, TypeGuard

import gymnasium
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["factor_sizes", "first_of", "is_unit_box", "log_tanh_slope", "uniform_log_density"]


def factor_sizes(space: gymnasium.Space[Any]) -> tuple[int, ...] | None:
    """Returns how many values each factor of an action has, row by row; None for spaces without factors.

    Example:
        >>> factor_sizes(MultiDiscrete([3, 2])), factor_sizes(MultiBinary(3)), factor_sizes(Discrete(4))
        ((3, 2), (2, 2, 2), None)
    """
    if isinstance(space, MultiDiscrete):
        return tuple(int(size) for size in space.nvec.reshape(-1))
    if isinstance(space, MultiBinary):
        return (2,) * math.prod(space.shape)
    return None


def uniform_log_density(action_space: gymnasium.Space[Any]) -> float:
    """Returns the log density of the uniform action prior in nats: ``-log|A|``, or ``-d log 2`` on ``[-1, 1]^d``.

    Raises:
        ValueError: for a space that is not Discrete, MultiDiscrete, MultiBinary or a Box of bounded sides.

    Example:
        >>> uniform_log_density(Discrete(4)) == -math.log(4)
        True
        >>> uniform_log_density(MultiDiscrete([3, 2])) == -(math.log(3) + math.log(2))
        True
    """
    if isinstance(action_space, Discrete):
        return -math.log(int(action_space.n))
    if (sizes := factor_sizes(action_space)) is not None:
        return -sum(math.log(size) for size in sizes)
    if isinstance(action_space, Box) and action_space.is_bounded("both"):
        return -math.prod(action_space.shape) * math.log(2.0)
    raise ValueError(f"action_space {action_space} has no uniform density: use Discrete(n) or Box(-1, 1, shape)")


def is_unit_box(space: gymnasium.Space[Any]) -> TypeGuard[Box]:
    """Returns whether a space is the box ``[-1, 1]^d``."""
    return isinstance(space, Box) and bool((space.low == -1).all() and (space.high == 1).all())


def first_of(space: gymnasium.Space[Any]) -> int:
    """Returns the integer that a Discrete space starts with; 0 for other spaces.

    Policies and critics count from 0, and what is outside counts from here.

    Example:
        >>> first_of(Discrete(3, start=-1))
        -1
    """
    return int(space.start) if isinstance(space, Discrete) else 0


def log_tanh_slope(before: Tensor) -> Tensor:
    """Returns ``log(1 - tanh² x)`` elementwise, in nats: the log determinant of squashing, exact in the tails.

    ``2 (log 2 - x - softplus(-2x))``, as in TensorFlow Probability's ``Tanh`` bijector.

    Example:
        >>> import torch
        >>> log_tanh_slope(torch.tensor([0.0, 20.0]))
        tensor([  0.0000, -38.6137])
    """
    return 2 * (math.log(2) - before - softplus(-2 * before))
