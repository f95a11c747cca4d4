"""Losses of the actor and of the temperature, as pure functions of tensors.

Every actor loss is in nats and is minus the ELBO of the one-step program

    a ~ p(a|s),    factor exp(Q(s, a)/α)

against the policy: ``E_π[log π(a|s) - log p(a|s) - Q(s, a)/α]``, the KL divergence to the energy-based
policy less a constant (Haarnoja et al. 2018, arXiv:1801.01290, equation 10). They differ in how the
expectation and its gradient are taken. ``Q`` is in reward units, α in reward units per nat. Soft
actor-critic's own papers have ``log p = 0``, a flat measure. Shapes are checked and values are not, as in
:mod:`rl_as_inference.objectives.soft_critics`.
"""

from torch import Tensor

from rl_as_inference.objectives.soft_critics import (
    check_actions,
    check_fits,
    check_number,
    check_shape,
    exact_soft_value,
)

__all__ = [
    "deterministic_actor_loss",
    "exact_sum_actor_loss",
    "pathwise_actor_loss",
    "score_actor_loss",
    "temperature_loss",
    "weighted_actor_loss",
]


def pathwise_actor_loss(q: Tensor, log_policy: Tensor, log_prior: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns ``mean(log π - log p - Q/α)`` of reparameterized actions, nats.

    Haarnoja et al. (2018, arXiv:1801.01290), equations 12 and 13: the gradient passes through the
    action into ``Q`` and ``log π``.

    Args:
        q, log_policy, log_prior: of the drawn actions, ``(*batch,)`` (the prior may broadcast).
        temperature: α.

    Example:
        >>> import torch
        >>> pathwise_actor_loss(torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([-1.5]), 0.5)
        tensor(-3.5000)
    """
    check_shape("log_policy", log_policy, "q", q)
    check_fits("log_prior", log_prior, "q", q)
    check_number("temperature", temperature)
    return (log_policy - log_prior - q / temperature).mean()


def exact_sum_actor_loss(q_a: Tensor, log_policy_a: Tensor, log_prior_a: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns ``mean Σ_a π(a) (log π(a) - log p(a) - Q(a)/α)``, nats.

    Christodoulou (2019, arXiv:1910.07207), equation 12: for discrete actions nothing need be drawn.

    Args:
        q_a, log_policy_a, log_prior_a: of all actions, ``(*batch, A)`` (the prior may broadcast).
        temperature: α.

    Example:
        >>> import torch
        >>> half = torch.tensor([[0.5, 0.5]]).log()
        >>> exact_sum_actor_loss(torch.tensor([[1.0, 3.0]]), half, half, 0.5)
        tensor(-4.)
    """
    check_number("temperature", temperature)
    return -exact_soft_value(q_a / temperature, log_policy_a, log_prior_a, 1.0).mean()


def weighted_actor_loss(
    q_k: Tensor, log_policy_k: Tensor, log_prior_k: Tensor, log_weight_k: Tensor, temperature: float | Tensor
) -> Tensor:
    """Returns ``mean Σ_k w_k (log π(a_k) - log p(a_k) - Q(a_k)/α)``, nats, for a mixture policy.

    One reparameterized draw ``a_k`` from each component, and an exact sum over the choice of it: the
    gradient of soft actor-critic's first policy, a mixture of Gaussians (arXiv:1801.01290v1), without
    a score function.

    Args:
        q_k, log_policy_k, log_prior_k: of each component's draw, ``(*batch, K)`` (the prior may
            broadcast); ``log π`` is the whole mixture's.
        log_weight_k: log weights of the components, ``(*batch, K)``.
        temperature: α.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 2)
        >>> weighted_actor_loss(2 * one, -one, 0 * one, torch.tensor([[0.25, 0.75]]).log(), 1.0)
        tensor(-3.)
    """
    check_actions("q_k", q_k)
    check_shape("log_policy_k", log_policy_k, "q_k", q_k)
    check_fits("log_prior_k", log_prior_k, "q_k", q_k)
    check_shape("log_weight_k", log_weight_k, "q_k", q_k)
    check_number("temperature", temperature)
    return (log_weight_k.exp() * (log_policy_k - log_prior_k - q_k / temperature)).sum(-1).mean()


def score_actor_loss(
    q: Tensor,
    log_policy: Tensor,
    log_prior: Tensor,
    temperature: float | Tensor,
    baseline: Tensor | float = 0.0,
) -> Tensor:
    """Returns ``mean(log π - log p - Q/α)``, nats, whose gradient is the score-function estimate.

    ``E[∇log π (log π - log p - Q/α - b)]`` (Williams 1992), for actions that are drawn without
    reparameterization, with ``sample`` and not ``rsample``. What else has a gradient, such as a learned
    action prior, keeps its own.

    Args:
        q, log_policy, log_prior: of the drawn actions, ``(*batch,)`` (the prior may broadcast).
        temperature: α.
        baseline: ``b`` in nats, a number or ``(*batch,)``: anything that does not depend on the action.

    Example:
        >>> import torch
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> log_policy = logits.log_softmax(-1)[:1]
        >>> loss = score_actor_loss(torch.tensor([1.0]), log_policy, log_policy.detach(), 1.0)
        >>> loss.detach(), torch.autograd.grad(loss, logits)[0]
        (tensor(-1.), tensor([-0.5000,  0.5000]))
    """
    check_shape("log_policy", log_policy, "q", q)
    check_fits("log_prior", log_prior, "q", q)
    check_number("temperature", temperature)
    if isinstance(baseline, Tensor):
        check_fits("baseline", baseline, "q", q)
    # E[∇log π] is 0, so log π's own gradient is left out of the loss.
    loss = log_policy.detach() - log_prior - q / temperature
    # Zero in value; in gradient, ∇log π times how bad the action was.
    score = (loss - baseline).detach() * (log_policy - log_policy.detach())
    return (loss + score).mean()


def deterministic_actor_loss(q: Tensor) -> Tensor:
    """Returns ``-mean Q(s, a)`` in reward units: what is left of the actor's loss, times α, for α → 0.

    The deterministic policy gradient for ``a = μ(s)`` (Lillicrap et al. 2016, arXiv:1509.02971,
    equation 6), SVG(0) for a reparameterized ``a`` (Heess et al. 2015, arXiv:1510.09142).

    Example:
        >>> import torch
        >>> deterministic_actor_loss(torch.tensor([1.0, 3.0]))
        tensor(-2.)
    """
    return -q.mean()


def temperature_loss(log_temperature: Tensor, entropy: Tensor, target_entropy: float) -> Tensor:
    """Returns ``α (mean entropy - target)`` in reward units; only α has a gradient.

    The dual of the constraint that the policy's entropy be at least the target (Haarnoja et al. 2018,
    arXiv:1812.05905, equation 18): α grows while the entropy is below it, and shrinks above.

    Its slope in ``log α`` is the loss itself, so ``α = exp(log α)`` stays positive and stands still where
    the mean entropy is the target.

    Args:
        log_temperature: ``log α``, one number; α in reward units per nat.
        entropy: of the policy in each state, or ``-log π`` of drawn actions, ``(*batch,)``, nats.
        target_entropy: nats, of the same measure as ``entropy``.

    Example:
        >>> import torch
        >>> log_temperature = torch.zeros((), requires_grad=True)
        >>> loss = temperature_loss(log_temperature, torch.tensor([0.5, 1.5]), 0.25)
        >>> loss.detach(), torch.autograd.grad(loss, log_temperature)[0]
        (tensor(0.7500), tensor(0.7500))
    """
    check_number("log_temperature", log_temperature)
    return log_temperature.exp() * (entropy.detach().mean() - target_entropy)
