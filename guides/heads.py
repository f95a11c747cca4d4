"""The family of policies that fits an action space: what other policies put upon features of their own."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from torch import Tensor, nn

from rl_as_inference.guides.categorical import CategoricalPolicy
from rl_as_inference.guides.factored import FactoredCategoricalPolicy
from rl_as_inference.guides.gaussian import GaussianPolicy, TanhGaussianPolicy
from rl_as_inference.spaces import factor_sizes, is_unit_box

__all__ = ["policy_for"]


def policy_for(
    state_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    *,
    horizon: int | None = None,
    hidden_sizes: Sequence[int] = (64, 64),
    prior: Callable[[Tensor], Any] | None = None,
) -> nn.Module:
    """Returns a policy for an action space that sees state and time.

    Discrete actions get a :class:`CategoricalPolicy`, several at once a :class:`FactoredCategoricalPolicy`, the unit
    box a :class:`TanhGaussianPolicy`, unbounded actions a :class:`GaussianPolicy`.

    Args:
        state_space: what it sees, ``Discrete`` or ``Box``.
        action_space: ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` or ``Box``.
        horizon: the number of steps; None for a stationary policy.
        hidden_sizes: widths of the hidden layers.
        prior: the action prior of discrete actions; uniform by default.

    Raises:
        ValueError: if there is no policy for the action space.
    """
    options: dict[str, Any] = {"horizon": horizon, "hidden_sizes": hidden_sizes}
    if isinstance(action_space, gymnasium.spaces.Discrete):
        return CategoricalPolicy(state_space, int(action_space.n), prior=prior, **options)
    if (sizes := factor_sizes(action_space)) is not None:
        return FactoredCategoricalPolicy(state_space, sizes, prior=prior, **options)
    if not isinstance(action_space, gymnasium.spaces.Box):
        raise ValueError(f"action_space must be Discrete, MultiDiscrete, MultiBinary or Box, got {action_space}")
    if action_space.shape == ():
        raise ValueError("action_space Box(shape=()) has no policy here; use shape (1,), one action as an event")
    family = TanhGaussianPolicy if is_unit_box(action_space) else GaussianPolicy
    return family(state_space, math.prod(action_space.shape), **options)
