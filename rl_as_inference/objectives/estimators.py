"""Gradient estimators of the trajectory ELBO, as pure functions of time-major tensors.

Throughout, time runs along dimension 0, ``c_t`` is the scaled ELBO term of step ``t`` in nats,
``γ^t (r_t/α + log p(a_t|s_t) - log π(a_t|s_t))``, and a trailing dimension is the batch. Each
``*_surrogate`` returns a tensor whose gradient is the estimate; its value means nothing.
"""

from typing import Any

import torch
from torch import Tensor

from rl_as_inference.distributed import ALONE, Ranks

__all__ = [
    "critic_loss",
    "exact_sum_surrogate",
    "lambda_advantage",
    "n_step_advantage",
    "n_step_surrogate",
    "return_to_go",
    "score_surrogate",
]

_MANY = 4096
"""From so many trajectories on, summing step by step takes less time than moving time to the end and back."""


def return_to_go(terms_t: Tensor) -> Tensor:
    """Returns ``Σ_{k ≥ t} c_k``, in nats, of the shape of ``terms_t``.

    Example:
        >>> return_to_go(torch.tensor([1.0, 2.0, 3.0]))
        tensor([6., 5., 3.])
    """
    many = terms_t[:1].numel() >= _MANY and terms_t.device.type == "cpu"
    if many and not terms_t.requires_grad:  # in double precision, as ``cumsum`` does
        running, to_go = torch.zeros_like(terms_t[0], dtype=torch.float64), []
        for term in reversed(terms_t.unbind()):
            running = running + term
            to_go.append(running.to(terms_t.dtype))
        return torch.stack(to_go[::-1])
    # Three times faster with time last, where one sum's numbers lie side by side.
    back = terms_t.flip(0).movedim(0, -1).contiguous()
    return back.cumsum(-1).movedim(-1, 0).flip(0)


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


def n_step_advantage(terms_t: Tensor, values_t: Tensor, n: int) -> Tensor:
    """Returns ``Σ_{0 ≤ k < n} c_{t+k} + v_{t+n} - v_t``, in nats: the n-step soft return less its baseline.

    What the terms hold decides how the entropies of the next steps are taken (docs/elbo-and-sac.md), with
    everything scaled by its ``γ^t``:

    - *sampled*: ``c = r/α + log p - log π``, the ELBO's own terms.
    - *analytic, naive*: ``c = r/α + h(s)`` with ``h = E_π[log p - log π]``. The gradient of ``h(s_t)``
      itself is then to be added.
    - *analytic, with the soft Q as control variate*: ``c = r/α + V(s) - Q(s,a)`` with
      ``V = E_π[Q] + h``; see :func:`n_step_surrogate`.

    Args:
        terms_t: ``(T, *batch)``, scaled by ``γ^t``; 0 behind the end.
        values_t: scaled soft values ``γ^t V(s_t)``, ``(T, *batch)``; the value after the last step is 0.
        n: how many steps, ≥ 1; from ``T`` on it is λ = 1.

    Example:
        >>> c, v = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.25, 4.0])
        >>> n_step_advantage(c, v, 1), n_step_advantage(c, v, 2)
        (tensor([ 0.7500,  5.7500, -1.0000]), tensor([ 6.5000,  4.7500, -1.0000]))
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be an integer >= 1, got {n!r}")
    if terms_t.shape != values_t.shape:
        raise ValueError(
            f"values_t must have the shape of terms_t, {tuple(terms_t.shape)}, got {tuple(values_t.shape)}"
        )
    n = min(n, len(terms_t))
    to_go = return_to_go(terms_t)
    behind = torch.zeros_like(terms_t[:n])
    return to_go - torch.cat([to_go[n:], behind]) + torch.cat([values_t[n:], behind]) - values_t


def n_step_surrogate(
    log_policy_t: Tensor, rewards_t: Tensor, own_values_t: Tensor, taken_t: Tensor, weight_t: Tensor, n: int
) -> Tensor:
    """Returns the n-step soft policy gradient whose entropies are all analytic, as a surrogate summed over everything.

        Σ_t γ^t ( ∇V(s_t) + ∇log π(a_t|s_t) (G_t - Q(s_t,a_t)) ),   V = E_π[Q] + h,   Q held fixed
        G_t = r_t + Σ_{0 < k < n} γ^k (r_{t+k} + V(s_{t+k}) - Q(s_{t+k},a_{t+k})) + γ^n V(s_{t+n})

    Every entropy on the way is an expectation, and so is every ``Q``: its own deviation from the mean,
    ``Q(s,a) - E_π Q``, is taken away as a control variate of mean zero, as in the n-step returns of De Asis and
    Sutton (2018, arXiv:1807.01830). Analytic entropies alone are not enough: at the optimum
    ``Q + log p - log π`` is the same for all actions, so that a *sampled* entropy cancels the noise of the action's own
    worth, and an analytic one leaves it. With the policy's own soft ``Q`` this form has no noise of actions
    on the way at all. It is unbiased for that ``Q``; for another it is biased only by ``γ^n V(s_{t+n})``.

    Args:
        log_policy_t: ``log π(a_t|s_t)``, ``(T, *batch)``.
        rewards_t: scaled, ``γ^t r_t/α``, ``(T, *batch)``; 0 behind the end.
        own_values_t: ``V(s_t)`` in nats with its gradient in the policy, ``(T, *batch)``.
        taken_t: ``Q(s_t,a_t)`` in nats, ``(T, *batch)``.
        weight_t: ``γ^t`` where the trajectory is alive, 0 elsewhere.
        n: how many steps, ≥ 1.
    """
    values = weight_t * own_values_t
    fixed = values.detach()
    # n_step_advantage is relative to V(s_t), and its first term to Q(s_t,a_t): what remains is G_t - Q(s_t,a_t).
    beyond = n_step_advantage(rewards_t + fixed - weight_t * taken_t, fixed, n)
    return values.sum() + score_surrogate(log_policy_t, beyond)


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


def critic_loss(values_t: Tensor, targets_t: Tensor, alive_t: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Returns the mean squared error of a critic over living steps, in nats²; of several ranks, this one's part of it.

    The regression that Pyro calls a learned baseline's loss; here the baseline is the soft critic.
    """
    error = torch.where(alive_t, values_t - targets_t.detach(), 0.0)
    return error.square().sum() / ranks.sum(alive_t.sum()).clamp(min=1)
