"""The E-step of expectation maximization on linear-Gaussian processes, in closed form, and the averages it needs."""

import math
from typing import TypeAlias

import torch
from torch import Tensor

from rl_as_inference.exact.linear_gaussian import LinearGaussianPlan, marginals, symmetric
from rl_as_inference.nouns import ExactPolicy
from rl_as_inference.processes import LinearGaussianMDP

__all__ = ["RuleTensors", "expected_log_density", "improved_rule", "rule_within", "sigma_points"]

RuleTensors: TypeAlias = tuple[Tensor, ...]
"""Three, ``a ~ N(K s + k, L L')`` at each step: ``K`` ``(T, da, ds)``, ``k`` ``(T, da)`` and ``L`` ``(T, da, da)``."""

_HALVINGS = 60
_FURTHEST = 1e6


def improved_rule(mdp: LinearGaussianMDP, plan: LinearGaussianPlan, eta: float | Tensor) -> RuleTensors:
    """Returns ``q*(a|s) ∝ π(a|s) exp(A(s,a)/η)`` with ``A = Q + α (log p - log π)``, linear-Gaussian again.

    At ``η = α`` it is soft policy iteration, ``q* ∝ p e^{Q/α}``.

    Args:
        mdp: the process.
        plan: π with its soft values, of :func:`rl_as_inference.exact.evaluate`.
        eta: η ≥ α, in reward units per nat.
    """
    alpha = mdp.temperature
    share = alpha / torch.as_tensor(eta, dtype=mdp.A.dtype, device=mdp.A.device)
    P, p = plan.value_matrix[1:] / alpha, plan.value_vector[1:] / alpha
    own, prior = (torch.cholesky_inverse(x) for x in (plan.scale_tril, mdp.action_prior_scale_tril))
    curved = symmetric(mdp.action_cost) / alpha + mdp.B.mT @ P @ mdp.B
    precision = symmetric((1 - share) * own + share * (prior + curved))
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
    gain = (1 - share) * own @ plan.gain - share * mdp.B.mT @ P @ mdp.A
    onward = p - (P @ mdp.drift)
    offset = (1 - share) * (own @ plan.offset[..., None]).squeeze(-1) + share * onward @ mdp.B
    return (
        covariance @ gain,
        (covariance @ offset[..., None]).squeeze(-1),
        torch.linalg.cholesky(symmetric(covariance)),
    )


def rule_within(mdp: LinearGaussianMDP, plan: LinearGaussianPlan, epsilon: float) -> tuple[RuleTensors, Tensor]:
    """Returns the same at the least η ≥ α whose ``KL(q* || π)``, averaged over states and steps, is ≤ ε nats; and η."""
    alpha = torch.as_tensor(mdp.temperature, dtype=mdp.A.dtype, device=mdp.A.device)
    own = (plan.gain, plan.offset, plan.scale_tril)
    states, weights = sigma_points(mdp, plan)
    low, high = alpha.log(), (_FURTHEST * alpha).log()

    def is_far(eta: Tensor) -> Tensor:
        rule = improved_rule(mdp, plan, eta)
        apart = expected_log_density(states, rule, rule) - expected_log_density(states, rule, own)
        return (weights * apart).sum() > epsilon * weights.sum()

    high = torch.where(is_far(alpha), high, low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        far = is_far(middle.exp())
        low, high = torch.where(far, middle, low), torch.where(far, high, middle)
    return improved_rule(mdp, plan, high.exp()), high.exp()


def sigma_points(mdp: LinearGaussianMDP, policy: ExactPolicy) -> tuple[Tensor, Tensor]:
    """Returns ``2 ds`` states for each time, ``(T, 2 ds, ds)``, and weights: of any quadratic their mean is exact."""
    mean, cov = (x[:-1] for x in marginals(mdp, policy))
    spread = math.sqrt(mdp.state_size) * torch.linalg.cholesky(cov).mT
    states = mean[:, None] + torch.cat([spread, -spread], 1)
    return states, torch.full_like(states[..., 0], 1 / states.shape[1])


def expected_log_density(states: Tensor, acting: RuleTensors, judging: RuleTensors) -> Tensor:
    """Returns ``E log q(a)`` of one linear-Gaussian rule's actions under another's density, ``(T, N)`` in nats.

    Args:
        states: ``(T, N, ds)``.
        acting: the rule that acts.
        judging: the rule whose density ``q`` is.
    """
    (K, k, L), (J, j, M) = acting, judging
    away = states @ (K - J).mT + (k - j)[:, None]
    far = torch.linalg.solve_triangular(M[:, None], away[..., None], upper=False).squeeze(-1).square().sum(-1)
    wide = torch.linalg.solve_triangular(M, L, upper=False).square().sum((-1, -2))
    volume = M.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return -(far + wide[:, None]) / 2 - volume[:, None] - L.shape[-1] * math.log(2 * math.pi) / 2
