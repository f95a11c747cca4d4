"""Soft values, temporal-difference targets and the critic's loss, as pure functions of tensors.

Values are in reward units and log probabilities in nats; ``temperature`` is α, in reward units per
nat. Everything is elementwise over leading batch dimensions; where all discrete actions are given,
they are the last dimension. The action prior is part of the model, so a soft value is relative to it,
``V = E_π[Q - α (log π - log p)]``. Soft actor-critic's own papers have ``log p = 0``, a flat measure.

No function looks at values, only at shapes: all of them can be traced, compiled and vmapped.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "exact_soft_value",
    "importance_log_sum_exp_value",
    "log_sum_exp_value",
    "n_step_td_target",
    "sampled_soft_value",
    "soft_critic_loss",
    "soft_double_q_value",
    "soft_td_target",
    "softmax_policy",
    "wrong_td_target",
]


def sampled_soft_value(q: Tensor, log_policy: Tensor, log_prior: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns ``Q - α (log π - log p)`` of an action drawn from π: an unbiased draw of the soft value.

    Haarnoja et al. (2018, arXiv:1801.01290), equation 3, relative to the action prior.

    Args:
        q: soft action values of the drawn actions, reward units.
        log_policy, log_prior: log densities of these actions, nats, of shapes that fit ``q``.
        temperature: α.

    Example:
        >>> sampled_soft_value(torch.tensor(3.0), torch.tensor(-1.0), torch.tensor(-2.0), 0.5)
        tensor(2.5000)
    """
    _check("log_policy", log_policy, q)
    return q - temperature * (log_policy - log_prior)


def exact_soft_value(q_a: Tensor, log_policy_a: Tensor, log_prior_a: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns ``Σ_a π(a) (Q(a) - α (log π(a) - log p(a)))``, reward units.

    Christodoulou (2019, arXiv:1910.07207), equation 10, relative to the action prior. Actions without
    probability count nothing, and their gradient is 0.

    Args:
        q_a, log_policy_a, log_prior_a: of all actions, ``(*batch, A)`` (the prior may broadcast).
        temperature: α.

    Example:
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> exact_soft_value(torch.tensor([1.0, 3.0]), half, half, 0.5)
        tensor(2.)
    """
    _check("log_policy_a", log_policy_a, q_a)
    relative = _relative(log_policy_a, log_prior_a)
    return (log_policy_a.exp() * (q_a - temperature * relative)).sum(-1)


def softmax_policy(q_a: Tensor, log_prior_a: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns the log probabilities of ``π(a) ∝ p(a) exp(Q(a)/α)``, nats: the best policy for ``Q``.

    Haarnoja et al. (2017, arXiv:1702.08165), theorem 1; Levine (2018, arXiv:1805.00909), section 2.3.

    Example:
        >>> softmax_policy(torch.tensor([0.0, 1.0]), torch.zeros(2), 1.0).exp()
        tensor([0.2689, 0.7311])
    """
    return (q_a / temperature + log_prior_a).log_softmax(-1)


def log_sum_exp_value(q_a: Tensor, log_prior_a: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns ``α log Σ_a p(a) exp(Q(a)/α)``, reward units: the soft value of the best policy.

    Haarnoja et al. (2017, arXiv:1702.08165), equation 3. Its limits are ``max_a Q`` for α → 0 and the
    prior's mean of ``Q`` for α → ∞.

    Example:
        >>> log_sum_exp_value(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]).log(), 1.0)
        tensor(0.6201)
    """
    return temperature * (q_a / temperature + log_prior_a).logsumexp(-1)


def importance_log_sum_exp_value(
    q_k: Tensor, log_proposal_k: Tensor, log_prior_k: Tensor, temperature: float | Tensor
) -> Tensor:
    """Returns ``α log (1/K) Σ_k exp(Q(a_k)/α) p(a_k)/q(a_k)`` for ``a_k ~ q``, reward units.

    The log-sum-exp over continuous actions (Haarnoja et al. 2017, arXiv:1702.08165, equation 10). Its
    exponential is unbiased; the logarithm is low by about half the relative variance over ``K``.

    Args:
        q_k, log_proposal_k, log_prior_k: of the draws, which are the last dimension.
        temperature: α.

    Example:
        >>> importance_log_sum_exp_value(torch.tensor([0.0, 1.0]), torch.zeros(2), torch.zeros(2), 1.0)
        tensor(0.6201)
    """
    _check("log_proposal_k", log_proposal_k, q_k)
    exponent = q_k / temperature + log_prior_k - log_proposal_k
    return temperature * (exponent.logsumexp(-1) - math.log(q_k.shape[-1]))


def soft_double_q_value(
    q_online_a: Tensor, q_target_a: Tensor, log_prior_a: Tensor, temperature: float | Tensor
) -> Tensor:
    """Returns ``E_{a ~ π₁}[Q₂ - α (log π₁ - log p)]`` with ``π₁ ∝ p exp(Q₁/α)``, reward units.

    Soft double Q-learning (the project's first source): the online network ``Q₁`` defines the softmax,
    the target network ``Q₂`` values it. It equals ``α log Z₁ + E_{π₁}[Q₂ - Q₁]``, the log-sum-exp value
    of ``Q₁`` corrected, and for α → 0 double Q-learning's ``Q₂(argmax Q₁)``.

    Args:
        q_online_a, q_target_a: ``(*batch, A)``.
        log_prior_a: of shape that fits, nats.
        temperature: α.

    Example:
        >>> q = torch.tensor([0.0, 1.0])
        >>> soft_double_q_value(q, q + 2.0, torch.tensor([0.5, 0.5]).log(), 1.0)
        tensor(2.6201)
    """
    _check("q_target_a", q_target_a, q_online_a)
    return exact_soft_value(q_target_a, softmax_policy(q_online_a, log_prior_a, temperature), log_prior_a, temperature)


def soft_td_target(reward: Tensor, next_value: Tensor, terminated: Tensor, discount: float | Tensor) -> Tensor:
    """Returns ``r + γ (1 - terminated) V(s')``, reward units, through which no gradient passes.

    Haarnoja et al. (2018, arXiv:1801.01290), equation 8. A step that was only cut off by a time limit
    is not terminated: its value bootstraps.

    Args:
        reward: ``(*batch,)``, reward units.
        next_value: soft value of the next state, reward units.
        terminated: bool, or 0 and 1.
        discount: γ.

    Example:
        >>> soft_td_target(torch.ones(2), torch.tensor([10.0, 10.0]), torch.tensor([False, True]), 0.9)
        tensor([10.,  1.])
    """
    _check("next_value", next_value, reward)
    _check("terminated", terminated, reward)
    return (reward + discount * (1 - terminated.to(reward.dtype)) * next_value).detach()


def n_step_td_target(
    rewards_k: Tensor, bonuses_k: Tensor, values_k: Tensor, alive_k: Tensor, terminated_k: Tensor, discount: float
) -> Tensor:
    """Returns the soft ``n``-step target, ``(*batch,)`` in reward units, without gradient.

        Σ_{k < m} γ^k r_k  +  Σ_{0 < k < m} γ^k α h(s_k)  +  γ^m (1 - terminated) V(s_m)

    where ``m ≤ n`` is how far the segment goes and ``h(s_k)`` is the policy's entropy relative to the
    prior at the states on the way, analytic where it can be: the ``n``-step soft return with the
    entropies of the next steps (the project's first source). The entropy at ``s_0`` is not part of a
    soft Q. Without a correction for the actions on the way it is biased towards the policy that acted.

    Args:
        rewards_k: ``(n, *batch)``, reward units.
        bonuses_k: ``α h(s_{k+1})`` in reward units at each step's next state, ``(n, *batch)``; the one
            at the segment's last state is not used.
        values_k: ``V(s_{k+1})``, ``(n, *batch)``; only that at the segment's last state is used.
        alive_k: ``(n, *batch)``: 1 for the steps of the segment, 0 behind its end; the first is 1.
        terminated_k: ``(n, *batch)``: 1 where the step ended in a terminal state.
        discount: γ.

    Example:
        >>> one = torch.ones(2, 1)
        >>> n_step_td_target(one, 0.5 * one, 10 * one, one, 0 * one, 0.9)
        tensor([10.4500])
    """
    for name, value in (
        ("bonuses_k", bonuses_k),
        ("values_k", values_k),
        ("alive_k", alive_k),
        ("terminated_k", terminated_k),
    ):
        _check(name, value, rewards_k)
    # A step is the segment's last one where the next is not of the segment.
    follows = torch.cat([alive_k[1:], torch.zeros_like(alive_k[:1])])
    terminated_k = terminated_k.to(rewards_k.dtype)
    target = torch.zeros_like(rewards_k[0])
    for k in range(rewards_k.shape[0]):
        ahead = torch.where(follows[k] > 0, bonuses_k[k], (1 - terminated_k[k]) * values_k[k])
        target = target + discount**k * torch.where(alive_k[k] > 0, rewards_k[k] + discount * ahead, 0.0)
    return target.detach()


def wrong_td_target(
    reward: Tensor,
    log_policy: Tensor,
    log_prior: Tensor,
    next_q: Tensor,
    terminated: Tensor,
    discount: float | Tensor,
    temperature: float | Tensor,
) -> Tensor:
    """Returns ``r - α (log π(a|s) - log p(a|s)) + γ (1 - terminated) Q(s', a')``: the wrong Bellman equation.

    The second source's equation 7, which puts the entropy of the *present* action into its own value.
    It is no mistake as an identity of the objective, but the actor update that goes with it, equation
    8, ``max_π E_π[Q]``, has no entropy left in it: its optimum is deterministic, where the MaxEnt
    objective's is not, so that learning cannot stay where it should. The entropy must begin with the
    next action (equations 9 to 13), as in :func:`soft_td_target`.

    Args:
        reward, next_q, terminated: as for :func:`soft_td_target`, with ``Q(s', a')`` of a drawn action.
        log_policy, log_prior: of the action that was taken, nats.
        discount: γ.
        temperature: α.

    Example:
        >>> one = torch.ones(1)
        >>> wrong_td_target(one, -one, 0 * one, 10 * one, 0 * one, 0.9, 0.5)
        tensor([10.5000])
    """
    _check("log_policy", log_policy, reward)
    return soft_td_target(reward - temperature * (log_policy - log_prior), next_q, terminated, discount)


def soft_critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Returns ``Σ_i mean ½ (Q_i - y)²``, a number in reward units².

    Haarnoja et al. (2018, arXiv:1801.01290), equation 5, summed over the critics.

    Args:
        q: ``(num_critics, *batch)``, reward units.
        target: ``y``, ``(*batch,)``, reward units.

    Example:
        >>> soft_critic_loss(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 1.0]))
        tensor(3.5000)
    """
    if q.shape[1:] != target.shape:
        raise ValueError(
            f"q must be (num_critics, *batch) with the batch of target, {tuple(target.shape)}; got {tuple(q.shape)}"
        )
    return 0.5 * (q - target.detach()).square().flatten(1).mean(1).sum()


def _relative(log_policy_a: Tensor, log_prior_a: Tensor) -> Tensor:
    """Returns ``log π - log p``, 0 with zero gradient where π is 0."""
    impossible = log_policy_a == -torch.inf
    safe = torch.where(impossible, 0.0, log_policy_a)
    return torch.where(impossible, 0.0, safe - log_prior_a)


def _check(name: str, value: Tensor, like: Tensor) -> None:
    if value.shape != like.shape:
        raise ValueError(f"{name} must have shape {tuple(like.shape)} as the values do, got {tuple(value.shape)}")
