"""Distributions of next states under an ensemble: with the member that a walk carries, or one that is drawn now."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["CarriedStates", "gaussian_log_density"]


def gaussian_log_density(value: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Returns the log density of independent Gaussians, summed over the last dimension, in nats."""
    error = (value - mean) / scale
    return (-0.5 * error.square() - scale.log()).sum(-1) - 0.5 * value.shape[-1] * math.log(2 * math.pi)


class CarriedStates(TorchDistribution):
    """``p(s', k)`` over next states that carry their member, events of size ``d + 1``.

    Args:
        mean, scale: of every member's Gaussian, ``(E, *batch, d)``; of the member's own where that is given,
            ``(*batch, d)``.
        member: which one a walk carries, ``(*batch,)`` integers; None draws one, all alike.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 1)
    has_rsample = True

    def __init__(self, mean: Tensor, scale: Tensor, member: Tensor | None) -> None:
        self.loc, self.scale, self.member = mean, scale, member
        batch = mean.shape[1:-1] if member is None else mean.shape[:-1]
        super().__init__(torch.Size(batch), torch.Size([mean.shape[-1] + 1]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CarriedStates:
        lead = self.loc.shape[:1] if self.member is None else ()
        mean, scale = (value.expand(*lead, *batch_shape, value.shape[-1]) for value in (self.loc, self.scale))
        return CarriedStates(mean, scale, None if self.member is None else self.member.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = (*sample_shape, *self.batch_shape)
        member, mean, scale = self.member, self.loc, self.scale
        if member is None:
            member = torch.randint(len(mean), shape, device=mean.device)
            size = mean.shape[-1]
            index = member[None, ..., None].expand(1, *shape, size)
            mean, scale = (
                value[(slice(None), *(None,) * len(sample_shape))].expand(-1, *shape, size).gather(0, index)[0]
                for value in (mean, scale)
            )
        drawn = mean + scale * torch.randn((*shape, mean.shape[-1]), dtype=mean.dtype, device=mean.device)
        return torch.cat([drawn, member.to(drawn).expand(shape)[..., None]], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        state, carried = value[..., :-1], value[..., -1].long()
        if self.member is not None:
            log = gaussian_log_density(state, self.loc, self.scale)
            return torch.where(carried == self.member, log, -math.inf)
        logs = torch.stack([gaussian_log_density(state, *each) for each in zip(self.loc, self.scale, strict=True)])
        return logs.gather(0, carried.expand(logs.shape[1:])[None])[0] - math.log(len(logs))
