"""Distributions over a first action, from weighted draws of it."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from rl_as_inference.guides.gaussian import TanhNormal
from rl_as_inference.guides.mixture import TanhNormalMixture
from rl_as_inference.planning.planner import Answer
from rl_as_inference.processes.point_masses import is_point
from rl_as_inference.spaces import is_unit_box

__all__ = ["Defended", "gaussian_answer", "kernel_answer", "squashed", "unsquashed"]


class Defended(TorchDistribution):
    """A proposal mixed with the action prior: no draw weighs more than ``1/share`` for having been drawn too seldom.

    Args:
        chosen: the proposal's distribution.
        prior: the action prior.
        share: of the draws that are the prior's.

    Defensive mixtures: Hesterberg (1995), Technometrics 37.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, chosen: Any, prior: Any, share: float) -> None:
        self.chosen, self.prior, self.share = chosen, prior, share
        super().__init__(chosen.batch_shape, chosen.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.prior.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Defended:
        return Defended(self.chosen.expand(batch_shape), self.prior.expand(batch_shape), self.share)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            own, other = self.chosen.sample(sample_shape), self.prior.sample(sample_shape)
            of_prior = torch.rand(*sample_shape, *self.batch_shape, device=own.device) < self.share
            return torch.where(of_prior.reshape(of_prior.shape + (1,) * len(self.event_shape)), other, own)

    def log_prob(self, value: Tensor) -> Tensor:
        own = self.chosen.log_prob(value)
        if (point := is_point(self.chosen)) is not False and is_point(self.prior) is False:
            # Among densities a point mass is infinite, so that its draws weigh nothing.
            own = torch.where(torch.as_tensor(point, device=own.device) & (own > -math.inf), math.inf, own)
        own = math.log1p(-self.share) + own
        return torch.logaddexp(own, math.log(self.share) + self.prior.log_prob(value))


class _KernelMixture(TanhNormalMixture):
    """A kernel estimate, whose best action is the component where most of the others are."""

    @property
    def deterministic(self) -> Tensor:
        error = (self.loc[..., :, None, :] - self.loc[..., None, :, :]) / self.scale[..., None, :, :]
        density = torch.logsumexp(self.log_weights[..., None, :] - 0.5 * error.square().sum(-1), -1)
        index = density.argmax(-1)[..., None, None].expand(*density.shape[:-1], 1, self.loc.shape[-1])
        return self.loc.gather(-2, index).squeeze(-2).tanh()


def squashed(values: Tensor, space: gymnasium.Space[Any]) -> Tensor:
    """Returns actions of the unit box from unbounded ones, by tanh; other spaces take them as they are."""
    if not is_unit_box(space):
        return values
    limit = 1 - torch.finfo(values.dtype).eps
    return values.tanh().clamp(-limit, limit)


def unsquashed(actions: Tensor, space: gymnasium.Space[Any]) -> Tensor:
    """Returns what :func:`squashed` makes actions of."""
    if not is_unit_box(space):
        return actions
    limit = 1 - torch.finfo(actions.dtype).eps
    return actions.clamp(-limit, limit).atanh()


def gaussian_answer(mean: Tensor, scale: Tensor, space: gymnasium.Space[Any]) -> Answer:
    """Returns a Gaussian over actions, squashed where the space is the unit box; both ``(B, d)``."""
    family = TanhNormal if is_unit_box(space) else dist.Normal
    return lambda loc, std: family(loc, std).to_event(1), (mean, scale)


def kernel_answer(actions: Tensor, log_weight: Tensor, space: gymnasium.Space[Any]) -> Answer:
    """Returns a kernel estimate of weighted actions ``(B, K, d)``, of the mean and the variance that they have.

    Gaussian kernels before squashing, drawn towards the mean so that they add no variance (Liu & West 2001, in
    *Sequential Monte Carlo Methods in Practice*), of Silverman's width for as many draws as the weights are worth.

    Args:
        actions: draws, ``(B, K, d)``.
        log_weight: ``(B, K)`` in nats, not normalised.
        space: of the actions.
    """
    values = unsquashed(actions, space)
    log_weight = log_weight.log_softmax(1)
    weight = log_weight.exp()[..., None]
    mean = (weight * values).sum(1, keepdim=True)
    variance = (weight * (values - mean).square()).sum(1, keepdim=True)
    size, dims = values.shape[1], values.shape[2]
    worth = (1 / weight.square().sum(1, keepdim=True)).clamp(max=size)
    width = (4 / (dims + 2) / worth).pow(1 / (dims + 4)).clamp(max=1.0)
    # One draw says nothing of the spread: never narrower than what the draws themselves resolve.
    floor = (values.var(1, keepdim=True) / size**2).clamp(min=torch.finfo(values.dtype).eps)
    scale = (width.square() * variance + floor).sqrt().expand_as(values)
    loc = mean + (1 - width.square()).sqrt() * (values - mean)
    return (_KernelMixture if is_unit_box(space) else _mixture), (log_weight, loc, scale)


def _mixture(logits: Tensor, loc: Tensor, scale: Tensor) -> Any:
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1))
