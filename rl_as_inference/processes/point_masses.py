"""Policies that are certain of a real number, which have no density there."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.nouns import Policy
from rl_as_inference.program.recording import log_prob_of
from rl_as_inference.trajectories import Trajectories

__all__ = ["check_density", "is_point", "log_density"]


def log_density(chosen: Any, prior: Any, action: Tensor) -> Tensor:
    """Returns ``log π(a|s)`` in nats, infinite for a point mass among densities: its ELBO is -∞.

    Pyro's Delta says 0, the logarithm of a probability; weighed against a density it would pass for one of 1.

    Args:
        chosen: the policy's distribution.
        prior: the action prior's.
        action: drawn from ``chosen``.

    Example:
        >>> point = dist.Delta(torch.tensor(0.5))
        >>> log_density(point, dist.Uniform(-1, 1), torch.tensor(0.5)), log_density(point, point, torch.tensor(0.5))
        (tensor(inf), tensor(0.))
    """
    log = log_prob_of(chosen, action)
    where = is_point(chosen)
    if where is False or is_point(prior) is not False or _is_discrete(prior):
        return log
    return torch.where(torch.as_tensor(where, device=log.device), math.inf, log)


def check_density(policy: Policy | None, draws: Trajectories) -> None:
    """Raises ValueError if a policy is a point mass over continuous actions, where it has no density."""
    if policy is not None and draws.actions.is_floating_point() and bool((draws.log_policy == math.inf).any()):
        raise ValueError(
            "policy is a point mass (Delta) over continuous actions and has no density: its entropy and ELBO are -inf; "
            "give it some spread, such as a Normal with a small scale"
        )


def is_point(distribution: Any) -> bool | Tensor:
    """Returns whether a distribution is a point mass, for each of a mixture of the ended and the living."""
    while isinstance(distribution, torch.distributions.Independent | torch.distributions.TransformedDistribution):
        distribution = distribution.base_dist
    if isinstance(distribution, dist.MaskedMixture):
        return distribution.mask if is_point(distribution.component1) is not False else False
    return isinstance(distribution, dist.Delta)


def _is_discrete(prior: Any) -> bool:
    try:
        return bool(prior.support.is_discrete)
    except NotImplementedError:  # one of the user's own, that does not say
        return False
