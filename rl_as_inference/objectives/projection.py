"""The guide as a projection: weights of expectation maximization, their temperature, the regression: pure functions.

The E-step improves a policy within its trust region, the M-step regresses the guide on the answer,

    q*(a|s) ∝ π(a|s) exp(A(s,a)/η),   A = Q + α (log p - log π),      max_θ E_s Σ_a q*(a|s) log π_θ(a|s)

where soft actor-critic makes KL(π || q*) least, this makes KL(q* || π) least. ``q*`` is the largest of
``E_q[Q] - α KL(q || p) - (η - α) KL(q || π)``, so that ``η = α`` is soft policy iteration, ``q* ∝ p e^{Q/α}``, and a
larger η stays nearer to π. Actions are the last dimension; they may also be draws from π, whose base log weights are 0.

Abdolmaleki et al. (2018, arXiv:1806.06920), with the action prior. No function looks at values, only at shapes.
"""

import torch
from torch import Tensor

from rl_as_inference.objectives.soft_critics import check_actions, check_fits, check_number, check_shape

__all__ = ["improved_policy", "projection_loss", "soft_advantage", "temperature_dual", "tilt_kl"]

_HALVINGS = 40
"""Of the interval that holds the temperature, on a logarithmic scale: a relative error below 1e-10."""

_LEAST = 1e-6
"""The least temperature that is looked at, beside the largest difference of advantages."""


def soft_advantage(q_a: Tensor, log_policy_a: Tensor, log_prior_a: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns ``Q + α (log p - log π)``, ``(*batch, A)`` in reward units: what the E-step raises probabilities by.

    It is the soft advantage but for a number of each state, which cancels. An action that the policy never takes has
    0, and one that the prior forbids -∞.

    Args:
        q_a, log_policy_a, log_prior_a: of all actions, or of draws, ``(*batch, A)`` (the prior may broadcast).
        temperature: α.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> soft_advantage(torch.tensor([1.0, 3.0]), half, half, 0.5)
        tensor([1., 3.])
    """
    check_actions("q_a", q_a)
    check_shape("log_policy_a", log_policy_a, "q_a", q_a)
    check_fits("log_prior_a", log_prior_a, "q_a", q_a)
    check_number("temperature", temperature)
    never = log_policy_a == -torch.inf
    advantage = q_a + temperature * (log_prior_a - torch.where(never, 0.0, log_policy_a))
    return torch.where(never, 0.0, advantage)


def improved_policy(advantage_a: Tensor, log_policy_a: Tensor, eta: float | Tensor) -> Tensor:
    """Returns ``log q*`` with ``q* ∝ π exp(A/η)``, ``(*batch, A)`` in nats: the E-step.

    Abdolmaleki et al. (2018, arXiv:1806.06920), equation 4 of section 3.1. Of draws from π, with ``log_policy_a = 0``,
    they are log self-normalised weights.

    Args:
        advantage_a: ``(*batch, A)``, reward units; any number may be added to all of a state's.
        log_policy_a: ``(*batch, A)``, nats.
        eta: η, in reward units per nat.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> improved_policy(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]).log(), 1.0).exp()
        tensor([0.2689, 0.7311])
    """
    check_actions("advantage_a", advantage_a)
    check_shape("log_policy_a", log_policy_a, "advantage_a", advantage_a)
    check_number("eta", eta)
    return (log_policy_a + advantage_a / eta).log_softmax(-1)


def tilt_kl(advantage_a: Tensor, log_policy_a: Tensor, eta: float | Tensor) -> Tensor:
    """Returns ``KL(q* || π)``, ``(*batch,)`` in nats, of the E-step at ``eta``; it falls in η.

    Arguments as of :func:`improved_policy`.

    Example:
        >>> tilt_kl(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]).log(), 1.0)
        tensor(0.1109)
    """
    log_policy = log_policy_a.log_softmax(-1)
    log_target = improved_policy(advantage_a, log_policy, eta)
    target = log_target.exp()
    apart = torch.where(target > 0, log_target, 0.0) - torch.where(target > 0, log_policy, 0.0)
    return (target * apart).sum(-1)


def temperature_dual(
    advantage_a: Tensor,
    log_policy_a: Tensor,
    epsilon: float | Tensor,
    weights: Tensor | None = None,
    minimum: float | Tensor = 0.0,
) -> Tensor:
    """Returns the η at which ``E_s KL(q*(·|s) || π(·|s)) = ε``, 0-dimensional in reward units per nat.

    The least of the dual ``g(η) = η ε + η E_s log Σ_a π(a|s) exp(A(s,a)/η)``, of Abdolmaleki et al. (2018,
    arXiv:1806.06920), equation 8, and of relative entropy policy search (Peters, Mülling & Altün 2010). It is convex,
    with slope ``ε - E_s KL``, whose zero lies below ``R/√(8 ε)`` for advantages that differ by ``R`` at most
    (Hoeffding), and is found by halving. Where not even ``minimum`` leaves the trust region, that is the answer: with
    ``minimum = α`` it is the dual of the best policy within the region of the soft objective, whose multiplier is
    ``η - α``. No gradient passes, and nothing is read back from the device.

    Args:
        advantage_a: ``(*batch, A)``, reward units.
        log_policy_a: ``(*batch, A)``, nats; of draws from π, 0. Rows are normalised.
        epsilon: ε > 0, nats.
        weights: of states, ``(*batch,)``, whose sum is taken for one; all alike by default.
        minimum: the least η.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> a, half = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]).log()
        >>> eta = temperature_dual(a, half, 0.1)
        >>> round(float(eta), 2), tilt_kl(a, half, eta)
        (1.06, tensor([0.1000]))
    """
    check_actions("advantage_a", advantage_a)
    check_shape("log_policy_a", log_policy_a, "advantage_a", advantage_a)
    check_number("epsilon", epsilon)
    check_number("minimum", minimum)
    advantage, log_policy = advantage_a.detach(), log_policy_a.detach().log_softmax(-1)
    share = torch.ones_like(advantage[..., 0]) if weights is None else weights.detach()
    check_shape("weights", share, "advantage_a without its actions", advantage[..., 0])
    share = share / share.sum()
    counts = (log_policy > -torch.inf) & (advantage > -torch.inf) & (share > 0)[..., None]
    most = torch.where(counts, advantage, -torch.inf).amax(-1)
    least = torch.where(counts, advantage, torch.inf).amin(-1)
    widest = torch.where(share > 0, most - least, 0.0).max()
    tiny = torch.finfo(advantage.dtype).tiny
    floor = torch.as_tensor(minimum, dtype=advantage.dtype, device=advantage.device)
    low = torch.maximum(floor, _LEAST * widest).clamp(min=tiny).log()
    high = torch.maximum(low, (widest / (8 * epsilon) ** 0.5).clamp(min=tiny).log())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        far = (share * torch.where(share > 0, tilt_kl(advantage, log_policy, middle.exp()), 0.0)).sum() > epsilon
        low, high = torch.where(far, middle, low), torch.where(far, high, middle)
    return torch.maximum(floor, high.exp())


def projection_loss(log_policy_a: Tensor, log_target_a: Tensor, weights: Tensor) -> Tensor:
    """Returns ``-Σ_s w(s) Σ_a q*(a|s) log π(a|s)``, a number in nats: the M-step, a weighted log likelihood.

    Its gradient is that of ``Σ_s w(s) KL(q* || π)``. No gradient passes through ``q*``; an action to which it gives
    no probability counts nothing.

    Args:
        log_policy_a: ``log π_θ``, ``(*batch, A)``, nats.
        log_target_a: ``log q*``, ``(*batch, A)``, nats.
        weights: of states, ``(*batch,)``.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> half = torch.tensor([[0.5, 0.5]]).log()
        >>> projection_loss(half, half, torch.ones(1))
        tensor(0.6931)
    """
    check_actions("log_policy_a", log_policy_a)
    check_shape("log_target_a", log_target_a, "log_policy_a", log_policy_a)
    check_shape("weights", weights, "log_policy_a without its actions", log_policy_a[..., 0])
    target = weights.detach()[..., None] * log_target_a.detach().exp()
    return -(target * torch.where(target > 0, log_policy_a, 0.0)).sum()
