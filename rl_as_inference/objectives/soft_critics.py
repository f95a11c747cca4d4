"""Soft values, temporal-difference targets and the critic's loss, as pure functions of tensors.

Values are in reward units and log probabilities in nats; ``temperature`` is α, in reward units per
nat. Everything is elementwise over leading batch dimensions; where all discrete actions are given,
they are the last dimension. The action prior is part of the model, so a soft value is relative to it,
``V = E_π[Q - α (log π - log p)]``. Soft actor-critic's own papers have ``log p = 0``, a flat measure.

No function looks at values, only at shapes: all of them can be traced, compiled and vmapped. A shape
that does not fit raises a ``ValueError`` that names the argument; nothing broadcasts beyond the values.
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
    "td_error",
    "wrong_td_target",
]


def sampled_soft_value(q: Tensor, log_policy: Tensor, log_prior: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns ``Q - α (log π - log p)`` of an action drawn from π: an unbiased draw of the soft value.

    Haarnoja et al. (2018, arXiv:1801.01290), equation 3, relative to the action prior.

    Args:
        q: soft action values of the drawn actions, ``(*batch,)``, reward units.
        log_policy, log_prior: log densities of these actions, nats, ``(*batch,)`` (the prior may broadcast).
        temperature: α.

    Example:
        >>> sampled_soft_value(torch.tensor(3.0), torch.tensor(-1.0), torch.tensor(-2.0), 0.5)
        tensor(2.5000)
    """
    check_shape("log_policy", log_policy, "q", q)
    check_fits("log_prior", log_prior, "q", q)
    check_number("temperature", temperature)
    return q - temperature * (log_policy - log_prior)


def exact_soft_value(q_a: Tensor, log_policy_a: Tensor, log_prior_a: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns ``Σ_a π(a) (Q(a) - α (log π(a) - log p(a)))``, reward units.

    Christodoulou (2019, arXiv:1910.07207), equation 10, relative to the action prior. Actions without
    probability count nothing, whatever their value and prior, and their gradient is 0.

    Args:
        q_a, log_policy_a, log_prior_a: of all actions, ``(*batch, A)`` (the prior may broadcast).
        temperature: α.

    Example:
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> exact_soft_value(torch.tensor([1.0, 3.0]), half, half, 0.5)
        tensor(2.)
    """
    check_actions("q_a", q_a)
    check_shape("log_policy_a", log_policy_a, "q_a", q_a)
    check_fits("log_prior_a", log_prior_a, "q_a", q_a)
    check_number("temperature", temperature)
    # 0 log 0 = 0, and with a gradient of 0: what is impossible is replaced before the subtraction.
    impossible = log_policy_a == -torch.inf
    relative = torch.where(impossible, 0.0, log_policy_a) - torch.where(impossible, 0.0, log_prior_a)
    worth = torch.where(impossible, 0.0, q_a) - temperature * relative
    return (log_policy_a.exp() * worth).sum(-1)


def softmax_policy(q_a: Tensor, log_prior_a: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns the log probabilities of ``π(a) ∝ p(a) exp(Q(a)/α)``, nats: the best policy for ``Q``.

    Haarnoja et al. (2017, arXiv:1702.08165), theorem 1; Levine (2018, arXiv:1805.00909), section 2.3.

    Args:
        q_a: ``(*batch, A)``, reward units.
        log_prior_a: nats, of a shape that broadcasts to ``q_a``.
        temperature: α.

    Example:
        >>> softmax_policy(torch.tensor([0.0, 1.0]), torch.zeros(2), 1.0).exp()
        tensor([0.2689, 0.7311])
    """
    check_actions("q_a", q_a)
    check_fits("log_prior_a", log_prior_a, "q_a", q_a)
    check_number("temperature", temperature)
    return (q_a / temperature + log_prior_a).log_softmax(-1)


def log_sum_exp_value(q_a: Tensor, log_prior_a: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns ``α log Σ_a p(a) exp(Q(a)/α)``, reward units: the soft value of the best policy.

    The soft value of Haarnoja et al. (2017, arXiv:1702.08165), theorem 1. Its limits are ``max_a Q`` for
    α → 0 and the prior's mean of ``Q`` for α → ∞.

    Args:
        q_a: ``(*batch, A)``, reward units.
        log_prior_a: nats, of a shape that broadcasts to ``q_a``.
        temperature: α.

    Example:
        >>> log_sum_exp_value(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]).log(), 1.0)
        tensor(0.6201)
    """
    check_actions("q_a", q_a)
    check_fits("log_prior_a", log_prior_a, "q_a", q_a)
    check_number("temperature", temperature)
    return temperature * (q_a / temperature + log_prior_a).logsumexp(-1)


def importance_log_sum_exp_value(
    q_k: Tensor, log_proposal_k: Tensor, log_prior_k: Tensor, temperature: float | Tensor
) -> Tensor:
    """Returns ``α log (1/K) Σ_k exp(Q(a_k)/α) p(a_k)/q(a_k)`` for ``a_k ~ q``, reward units.

    The log-sum-exp over continuous actions (Haarnoja et al. 2017, arXiv:1702.08165, equation 10). Its
    exponential is unbiased; the logarithm is low by about half the relative variance over ``K``.

    Args:
        q_k, log_proposal_k, log_prior_k: of the draws, ``(*batch, K)`` (the prior may broadcast).
        temperature: α.

    Example:
        >>> importance_log_sum_exp_value(torch.tensor([0.0, 1.0]), torch.zeros(2), torch.zeros(2), 1.0)
        tensor(0.6201)
    """
    check_actions("q_k", q_k)
    check_shape("log_proposal_k", log_proposal_k, "q_k", q_k)
    check_fits("log_prior_k", log_prior_k, "q_k", q_k)
    check_number("temperature", temperature)
    exponent = q_k / temperature + log_prior_k - log_proposal_k
    return temperature * (exponent.logsumexp(-1) - math.log(q_k.shape[-1]))


def soft_double_q_value(
    q_online_a: Tensor, q_target_a: Tensor, log_prior_a: Tensor, temperature: float | Tensor
) -> Tensor:
    """Returns ``E_{a ~ π₁}[Q₂ - α (log π₁ - log p)]`` with ``π₁ ∝ p exp(Q₁/α)``, reward units.

    Soft double Q-learning (Nonlinear Function, *maximum-entropy reinforcement learning*, notes, 2022): the
    online network ``Q₁`` defines the softmax, the target network ``Q₂`` values it. It equals
    ``α log Z₁ + E_{π₁}[Q₂ - Q₁]``, the log-sum-exp value of ``Q₁`` corrected, and for α → 0 double
    Q-learning's ``Q₂(argmax Q₁)``.

    Args:
        q_online_a, q_target_a: ``(*batch, A)``, reward units.
        log_prior_a: nats, of a shape that broadcasts to them.
        temperature: α.

    Example:
        >>> q = torch.tensor([0.0, 1.0])
        >>> soft_double_q_value(q, q + 2.0, torch.tensor([0.5, 0.5]).log(), 1.0)
        tensor(2.6201)
    """
    check_shape("q_target_a", q_target_a, "q_online_a", q_online_a)
    return exact_soft_value(q_target_a, softmax_policy(q_online_a, log_prior_a, temperature), log_prior_a, temperature)


def soft_td_target(reward: Tensor, next_value: Tensor, terminated: Tensor, discount: float | Tensor) -> Tensor:
    """Returns ``r + γ (1 - terminated) V(s')``, reward units, through which no gradient passes.

    Haarnoja et al. (2018, arXiv:1801.01290), equation 8; lecture notes *Stochastic Actors and Maximum Entropy
    RL* (docs/mathematics.md), equation 12. A step that was only cut off by a time limit is not
    terminated: its value bootstraps. With a next value without entropy (temperature 0) only the actor's
    loss rewards entropy, that of the present step: Williams and Peng (1991), the notes' equation 4.

    Args:
        reward: ``(*batch,)``, reward units.
        next_value: soft value of the next state, ``(*batch,)``, reward units.
        terminated: ``(*batch,)``, bool, or 0 and 1.
        discount: γ.

    Example:
        >>> soft_td_target(torch.ones(2), torch.tensor([10.0, 10.0]), torch.tensor([False, True]), 0.9)
        tensor([10.,  1.])
    """
    check_shape("next_value", next_value, "reward", reward)
    check_shape("terminated", terminated, "reward", reward)
    check_number("discount", discount)
    return (reward + discount * (1 - terminated.to(reward.dtype)) * next_value).detach()


def n_step_td_target(
    rewards_k: Tensor,
    bonuses_k: Tensor,
    values_k: Tensor,
    alive_k: Tensor,
    terminated_k: Tensor,
    discount: float | Tensor,
) -> Tensor:
    """Returns the soft ``n``-step target, ``(*batch,)`` in reward units, without gradient.

        Σ_{k < m} γ^k r_k  +  Σ_{0 < k < m} γ^k α h(s_k)  +  γ^m (1 - terminated) V(s_m)

    where ``m ≤ n`` is how far the segment goes and ``h(s_k)`` is the policy's entropy relative to the
    prior at the states on the way, analytic where it can be: the ``n``-step soft return with the
    entropies of the next steps (docs/elbo-and-sac.md). The entropy at ``s_0`` is
    not part of a soft Q. Without a correction for the actions on the way it is biased towards the policy
    that acted. With ``n = 1`` it is :func:`soft_td_target`.

    Args:
        rewards_k: ``(n, *batch)``, reward units.
        bonuses_k: ``α h(s_{k+1})`` in reward units at each step's next state, ``(n, *batch)``; the one
            at the segment's last state is not used.
        values_k: ``V(s_{k+1})``, ``(n, *batch)``; only that at the segment's last state is used.
        alive_k: ``(n, *batch)``, bool, or 0 and 1: 1 for the ``m`` steps of the segment, 0 behind its end.
        terminated_k: ``(n, *batch)``, bool, or 0 and 1: 1 where the step ended in a terminal state.
        discount: γ.

    Example:
        >>> one = torch.ones(2, 1)
        >>> n_step_td_target(one, 0.5 * one, 10 * one, one, 0 * one, 0.9)
        tensor([10.4500])
    """
    if rewards_k.dim() < 1 or rewards_k.shape[0] < 1:
        raise ValueError(f"rewards_k must be (n, *batch) with n >= 1 steps, got {tuple(rewards_k.shape)}")
    for name, value in (
        ("bonuses_k", bonuses_k),
        ("values_k", values_k),
        ("alive_k", alive_k),
        ("terminated_k", terminated_k),
    ):
        check_shape(name, value, "rewards_k", rewards_k)
    check_number("discount", discount)
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

    Reward units, without gradient. It is equation 7 of the lecture notes *Stochastic Actors and Maximum
    Entropy RL* (docs/mathematics.md), which puts the entropy of the *present* action into its own value.
    As an identity of the MaxEnt objective (equation 5) it is right. It is wrong for learning because of
    the actor's update that goes with it, equation 8, ``max_π E_π[Q]``: linear in ``π``, it is solved by a
    single action, where the optimum of equation 5 is always stochastic. At that optimum this ``Q`` is the
    same for all actions, ``V(s)``, and holds the actor nowhere; at any other policy it sends the actor to
    one action, whose lost entropy the critic must then charge for, so that the two chase each other. The
    entropy must begin with the next action (equations 9 and 11, :func:`soft_td_target`); the present one's
    is the actor's to add (equation 13).

    Args:
        reward, next_q, terminated: as for :func:`soft_td_target`, with ``Q(s', a')`` of a drawn action.
        log_policy, log_prior: of the action that was taken, nats, ``(*batch,)`` (the prior may broadcast).
        discount: γ.
        temperature: α.

    Example:
        >>> one = torch.ones(1)
        >>> wrong_td_target(one, -one, 0 * one, 10 * one, 0 * one, 0.9, 0.5)
        tensor([10.5000])
    """
    check_shape("log_policy", log_policy, "reward", reward)
    check_fits("log_prior", log_prior, "reward", reward)
    check_number("temperature", temperature)
    check_shape("next_q", next_q, "reward", reward)
    return soft_td_target(reward - temperature * (log_policy - log_prior), next_q, terminated, discount)


def soft_critic_loss(q: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Returns ``Σ_i mean ½ w (Q_i - y)²``, a number in reward units².

    Haarnoja et al. (2018, arXiv:1812.05905), equation 5, averaged over the batch and summed over the
    critics, each of which then has the gradient it would have alone. None passes through ``y``.

    Args:
        q: ``(num_critics, *batch)``, reward units.
        target: ``y``, ``(*batch,)``, reward units.
        weight: ``w``, ``(*batch,)``, what each counts; None counts all alike.

    Example:
        >>> soft_critic_loss(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 1.0]))
        tensor(3.5000)
    """
    _check_critics(q, target)
    square = (q - target.detach()).square()
    if weight is not None:
        check_shape("weight", weight, "target", target)
        square = weight * square
    return 0.5 * square.reshape(q.shape[0], -1).mean(1).sum()


def td_error(q: Tensor, target: Tensor) -> Tensor:
    """Returns ``|Q - y|``, the mean over the critics, ``(*batch,)`` in reward units, without gradient.

    What prioritised replay draws by (Schaul et al. 2016, arXiv:1511.05952, section 3.2).

    Args:
        q: ``(num_critics, *batch)``, reward units.
        target: ``y``, ``(*batch,)``, reward units.

    Example:
        >>> td_error(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 1.0]))
        tensor([1., 2.])
    """
    _check_critics(q, target)
    return (q - target).detach().abs().mean(0)


def _check_critics(q: Tensor, target: Tensor) -> None:
    if q.dim() < 1 or q.shape[1:] != target.shape:
        raise ValueError(
            f"q must be (num_critics, *batch) with the batch of target, {tuple(target.shape)}; got {tuple(q.shape)}"
        )


def check_shape(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """Raises ValueError unless ``value`` has the shape of ``like``."""
    if value.shape != like.shape:
        raise ValueError(f"{name} must have the shape of {like_name}, {tuple(like.shape)}, got {tuple(value.shape)}")


def check_fits(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """Raises ValueError unless ``value`` broadcasts to the shape of ``like``."""
    sizes = zip(reversed(value.shape), reversed(like.shape), strict=False)
    if value.dim() > like.dim() or any(mine not in (1, size) for mine, size in sizes):
        raise ValueError(
            f"{name} must broadcast to the shape of {like_name}, {tuple(like.shape)}, got {tuple(value.shape)}"
        )


def check_actions(name: str, value: Tensor) -> None:
    """Raises ValueError unless ``value`` has a last dimension of actions."""
    if value.dim() < 1 or value.shape[-1] < 1:
        raise ValueError(f"{name} must have its actions in a last dimension, got shape {tuple(value.shape)}")


def check_number(name: str, value: float | Tensor) -> None:
    """Raises ValueError unless ``value`` is one number."""
    if isinstance(value, Tensor) and value.dim() > 0:
        raise ValueError(
            f"{name} must be a number or a 0-dimensional tensor, got shape {tuple(value.shape)}; vmap over several"
        )
