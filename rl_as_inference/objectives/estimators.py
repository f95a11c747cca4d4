"""Gradient estimators of the trajectory ELBO, as pure functions of time-major tensors.

Throughout, time runs along dimension 0, ``c_t`` is the scaled ELBO term of step ``t`` in nats,
``γ^t (r_t/α + log p(a_t|s_t) - log π(a_t|s_t))``, and a trailing dimension is the batch. Each
``*_surrogate`` returns a tensor whose gradient is the estimate; its value means nothing.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "critic_loss",
    "exact_sum_surrogate",
    "lambda_advantage",
    "return_to_go",
    "score_surrogate",
]


def return_to_go(terms_t: Tensor) -> Tensor:
    """Returns ``Σ_{k ≥ t} c_k``, in nats, of the shape of ``terms_t``.

    Example:
        >>> return_to_go(torch.tensor([1.0, 2.0, 3.0]))
        tensor([6., 5., 3.])
    """
    return terms_t.flip(0).cumsum(0).flip(0)


def lambda_advantage(terms_t: Tensor, values_t: Tensor, lambda_: float) -> Tensor:
    """Returns the soft advantage ``Σ_k λ^k δ_{t+k}`` with ``δ_t = c_t + v_{t+1} - v_t``, in nats.

    Schulman et al. (2016, arXiv:1506.02438), equation 16, with the entropy inside the terms and the
    discount inside terms and values. λ=1 is the return-to-go less the baseline; λ=0 one-step
    actor-critic.

    Args:
        terms_t: ``(T, *batch)``.
        values_t: scaled baselines ``γ^t V(s_t)/α``, ``(T, *batch)``; the value after the last step is 0.
        lambda_: λ in [0, 1].

    Example:
        >>> c, v = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.25])
        >>> lambda_advantage(c, v, 0.0), lambda_advantage(c, v, 1.0)
        (tensor([0.7500, 1.7500]), tensor([2.5000, 1.7500]))
    """
    if terms_t.shape != values_t.shape:
        raise ValueError(
            f"values_t must have the shape of terms_t, {tuple(terms_t.shape)}, got {tuple(values_t.shape)}"
        )
    if lambda_ == 1.0:
        return return_to_go(terms_t) - values_t
    values_tp1 = torch.cat([values_t[1:], torch.zeros_like(values_t[:1])])
    errors = terms_t + values_tp1 - values_t
    if lambda_ == 0.0:
        return errors
    advantage, running = [], torch.zeros_like(errors[0])
    for error in errors.flip(0):
        running = error + lambda_ * running
        advantage.append(running)
    return torch.stack(advantage[::-1])


def score_surrogate(log_policy_t: Tensor, advantage_t: Tensor) -> Tensor:
    """Returns ``Σ_t log π(a_t|s_t) Â_t`` summed over everything; no gradient passes through ``Â``.

    Williams (1992); with ``Â`` the return-to-go it is the plain score-function estimator.
    """
    return (log_policy_t * advantage_t.detach()).sum()


def exact_sum_surrogate(policy: Any, prior: Any, q_t: Tensor, weight_t: Tensor) -> Tensor:
    """Returns ``Σ_t w_t Σ_a π(a|s_t) (Q(s_t,a) + log p(a|s_t) - log π(a|s_t))``, summed over everything.

    The expectation over the action is taken exactly, the one over states by the trajectories.
    Unbiased when ``Q`` is the policy's own soft Q. Levine (2018, arXiv:1805.00909), section 4.1.

    Args:
        policy, prior: categorical distributions of batch shape ``(T, *batch)``.
        q_t: ``Q/α`` in nats, ``(T, *batch, A)``.
        weight_t: ``γ^t`` where the trajectory is alive, 0 elsewhere, ``(T, *batch)``.
    """
    log_pi = policy.logits
    if q_t.shape != log_pi.shape:
        raise ValueError(
            f"the exact sum needs a soft Q of every action, of shape {tuple(log_pi.shape)}; the critic gave "
            f"{tuple(q_t.shape)}"
        )
    pi = log_pi.exp()
    possible = pi > 0
    gain = q_t.detach() + torch.where(possible, prior.logits - log_pi, 0.0)
    total: Tensor = (weight_t * (pi * gain).sum(-1)).sum()
    return total


def critic_loss(values_t: Tensor, targets_t: Tensor, alive_t: Tensor) -> Tensor:
    """Returns the mean squared error of a critic over living steps, in nats².

    The regression that Pyro calls a learned baseline's loss; here the baseline is the soft critic.
    """
    error = torch.where(alive_t, values_t - targets_t.detach(), 0.0)
    return error.square().sum() / alive_t.sum().clamp(min=1)
