"""Logarithms of expectations of exponentials, to rounding whatever the size of the exponents."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rl_as_inference.checks import is_deferred

__all__ = ["WORTH_LIMIT", "Span", "change_of_sum", "exp_from", "log_mean_exp", "log_or_minus_inf", "log_to", "span"]

WORTH_LIMIT = 40.0
"""Nats, to which slopes in impossible transitions are limited; see :func:`log_mean_exp`."""


def log_mean_exp(weights: Tensor, exponents: Tensor) -> Tensor:
    """Returns ``log Σ_k weights_k exp(exponents_k)`` over the last dimension, of weights that sum to one and may be 0.

    Its slope in a weight of 0 is that of what the weight would bring in, up to e^40 times what is there: without a
    limit it would be infinite, and in what weights are made from not a number.
    """
    if span(exponents).is_small:
        return torch.log1p((weights * torch.expm1(exponents)).sum(-1) + change_of_sum(weights))
    # Only exponents that carry weight may set the scale, or everything else underflows.
    carried = torch.where(weights > 0, exponents, -torch.inf)
    top = carried.detach().amax(-1, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    if weights.requires_grad or is_deferred():
        carried = exponents.minimum(top + WORTH_LIMIT)
    return (weights * (carried - top).exp()).sum(-1).log() + top.squeeze(-1)


def change_of_sum(weights: Tensor) -> Tensor | float:
    """Returns 0, whose slopes are those of ``Σ w``: of ``log Σ w e^x = log(Σ w (e^x - 1) + Σ w)`` in single weights."""
    return (weights - weights.detach()).sum(-1) if weights.requires_grad else 0.0


class Span(NamedTuple):
    """The least and the largest of exponents, which tell how their exponentials are best summed."""

    low: float
    top: float
    dtype: torch.dtype

    @property
    def is_small(self) -> bool:
        """Whether all lie near 0, where ``log Σ w e^x``, of ``Σ w = 1``, is better had by ``e^x - 1``."""
        return self.low > -0.5 and self.top < 0.5

    @property
    def scale(self) -> float | None:
        """A number near which all lie, so that ``exp(exponents - number)`` keeps them; 0 if they need none; or None."""
        widest = -0.9 * math.log(torch.finfo(self.dtype).tiny)
        if -widest / 2 < self.low and self.top < widest / 2:
            return 0.0
        return self.top if self.top - self.low < widest else None


_UNKNOWN = Span(-math.inf, math.inf, torch.float64)


def span(exponents: Tensor) -> Span:
    """Returns the span of exponents; where values cannot be looked at, one that is neither small nor has a scale."""
    if is_deferred():
        return _UNKNOWN
    low, top = exponents.detach().aminmax()
    return Span(float(low), float(top), exponents.dtype)


def exp_from(scale: float, exponents: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns ``exp(exponents - scale)``, in the memory of ``out`` or new memory."""
    return torch.sub(exponents, scale, out=out).exp_() if scale else torch.exp(exponents, out=out)


def log_to(scale: float, factors: Tensor) -> Tensor:
    """Returns ``scale + log(factors)``, in their memory."""
    logs = factors.log_()
    return logs.add_(scale) if scale else logs


def log_or_minus_inf(probabilities: Tensor) -> Tensor:
    """Returns the logarithm, with gradient 0 instead of infinity where the probability is 0."""
    possible = probabilities > 0
    return torch.where(possible, torch.where(possible, probabilities, 1.0).log(), -torch.inf)
