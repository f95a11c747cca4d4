"""Whether what a process answers lies in the spaces that it says it has."""

from typing import Any

import gymnasium
import numpy as np
import pyro.distributions as dist
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from torch.distributions import constraints

from rl_as_inference.checks import holds
from rl_as_inference.factored import FactoredCategorical, Factors
from rl_as_inference.spaces import factor_sizes, is_unit_box

__all__ = ["check_actions", "check_observations", "check_states", "uniform_prior"]


def check_observations(seen: Tensor, space: gymnasium.Space[Any], batch: torch.Size, gave: str) -> None:
    """Raises ValueError unless there is one observation of the space to each state; ``gave`` says what gave them."""
    shape = (*batch, *(space.shape or ()))
    if tuple(seen.shape) != shape:
        raise ValueError(
            f"{gave} gives observations of shape {tuple(seen.shape)}, and a batch {tuple(batch)} of observation_space "
            f"{space} has {shape}; keep the batch, and declare one observation with .to_event(n)"
        )
    check_states(seen, space, gave, "observation")


def check_states(states: Tensor, space: gymnasium.Space[Any], gave: str, what: str = "state") -> None:
    """Raises ValueError if a Discrete space lacks one of the states; ``gave`` says what gave them, and where."""
    if not isinstance(space, Discrete):
        return
    low, high = int(space.start), int(space.start + space.n) - 1
    outside = (states < low) | (states > high)
    if not holds(~outside):
        raise ValueError(
            f"{gave} is {what} {states[outside].flatten()[0].item():g}, and {what}_space {space} holds integers from "
            f"{low} to {high}; mend it, or {what}_space"
        )


def check_actions(prior: Any, space: gymnasium.Space[Any], name: str) -> None:
    """Raises ValueError if an action prior is over other actions than the space's, as far as its kind tells."""
    told = None
    shape = tuple(space.shape or ())
    if tuple(prior.event_shape) != shape:
        told = f"of event shape {tuple(prior.event_shape)}, and one action of it has shape {shape}"
    elif isinstance(prior, FactoredCategorical):
        if prior.sizes != factor_sizes(space):
            told = f"over factors of {prior.sizes} values"
    elif isinstance(space, Discrete):
        count = _count(prior)
        if count is not None and count != int(space.n):
            told = f"over {count:g} actions"
    elif isinstance(space, Box) and (bounds := _bounds(prior)) is not None:
        low, high = (torch.as_tensor(side, dtype=torch.float64).cpu() for side in (space.low, space.high))
        # torch leaves the upper bound out, so that one that is meant is a rounding further.
        if bool(((bounds[0] < low - 1e-6 * (1 + low.abs())) | (bounds[1] > high + 1e-6 * (1 + high.abs()))).any()):
            told = f"over [{float(bounds[0].min()):g}, {float(bounds[1].max()):g}]"
    if told is not None:
        raise ValueError(f"prior(state) of {name} is {told}, and action_space is {space}; give both the same actions")


def uniform_prior(space: gymnasium.Space[Any], batch: torch.Size, dtype: torch.dtype, device: torch.device) -> Any:
    """Returns the uniform distribution over an action space, of a batch shape.

    Raises:
        ValueError: for an action space other than Discrete, MultiDiscrete, MultiBinary and the box ``[-1, 1]^d``.
    """
    if isinstance(space, gymnasium.spaces.Discrete):
        return dist.Categorical(logits=torch.zeros(*batch, int(space.n), dtype=dtype, device=device))
    if is_unit_box(space):
        low = -torch.ones(*batch, *space.shape, dtype=dtype, device=device)
        # A draw of exactly ±1 is in the box.
        high = torch.nextafter(-low, torch.full_like(low, 2.0))  # torch leaves the upper bound out
        return dist.Uniform(low, high, validate_args=False).to_event(len(space.shape))
    return _uniform_factors(space, batch, dtype, device)


def _uniform_factors(
    space: gymnasium.Space[Any], batch: torch.Size, dtype: torch.dtype, device: torch.device
) -> FactoredCategorical:
    """Returns the uniform action prior of a space of several discrete actions at once.

    Raises:
        ValueError: for another space, or one that is no vector of integers from 0.
    """
    sizes = factor_sizes(space)
    if sizes is None or len(space.shape or ()) != 1 or np.any(getattr(space, "start", 0)):
        raise ValueError(
            f"action_space {space} has no uniform prior here: use Discrete(n), Box(-1, 1, shape) and rescale inside "
            f"transition(), or MultiDiscrete([n, m]) of integers from 0; or override prior(state)"
        )
    factors = Factors(sizes).to(device)
    return FactoredCategorical(torch.zeros(*batch, factors.num_values, dtype=dtype, device=device), factors)


def _support(prior: Any) -> Any:
    """Returns the support of one number; None where the distribution does not say it."""
    if isinstance(prior, dist.Delta | dist.MaskedMixture):
        return None
    try:
        support = prior.support
    except NotImplementedError:
        return None
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _count(prior: Any) -> float | None:
    """Returns how many values a discrete prior is over, infinity without end; None where it does not say."""
    if isinstance(prior, torch.distributions.Categorical):
        return int(prior._param.shape[-1])
    support = _support(prior)
    if support is None:
        return None
    if support is constraints.boolean:
        return 2
    if isinstance(support, constraints.integer_interval):
        return int(torch.as_tensor(support.upper_bound - support.lower_bound).max()) + 1
    return float("inf")


def _bounds(prior: Any) -> tuple[Tensor, Tensor] | None:
    """Returns the bounds of a continuous prior, float64; None where there are none, or it does not say."""
    support = _support(prior)
    if not isinstance(support, constraints.interval):
        return None
    low, high = (
        torch.as_tensor(side, dtype=torch.float64).detach().cpu() for side in (support.lower_bound, support.upper_bound)
    )
    return low, high
