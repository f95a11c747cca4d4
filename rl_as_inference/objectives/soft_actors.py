"""Losses of the actor and of the temperature, as pure functions of tensors.

Every actor loss is in nats and is minus the ELBO of the one-step program

    a ~ p(a|s),    factor exp(Q(s, a)/α)

against the policy: ``E_π[log π(a|s) - log p(a|s) - Q(s, a)/α]``, the KL divergence to the energy-based
policy less a constant (Haarnoja et al. 2018, arXiv:1801.01290, equation 10). They differ in how the
expectation and its gradient are taken. ``Q`` is in reward units, α in reward units per nat.
"""

from torch import Tensor

from rl_as_inference.objectives.soft_critics import exact_soft_value

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
        >>> pathwise_actor_loss(torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([-1.5]), 0.5)
        tensor(-3.5000)
    """
    _check("log_policy", log_policy, q)
    return (log_policy - log_prior - q / temperature).mean()


def exact_sum_actor_loss(q_a: Tensor, log_policy_a: Tensor, log_prior_a: Tensor, temperature: float | Tensor) -> Tensor:
    """Returns ``mean Σ_a π(a) (log π(a) - log p(a) - Q(a)/α)``, nats.

    Christodoulou (2019, arXiv:1910.07207), equation 12: for discrete actions nothing need be drawn.

    Args:
        q_a, log_policy_a, log_prior_a: of all actions, ``(*batch, A)`` (the prior may broadcast).
        temperature: α.

    Example:
        >>> half = torch.tensor([[0.5, 0.5]]).log()
        >>> exact_sum_actor_loss(torch.tensor([[1.0, 3.0]]), half, half, 0.5)
        tensor(-4.)
    """
    return -exact_soft_value(q_a / temperature, log_policy_a, log_prior_a, 1.0).mean()


def weighted_actor_loss(
    q_k: Tensor, log_policy_k: Tensor, log_prior_k: Tensor, log_weight_k: Tensor, temperature: float | Tensor
) -> Tensor:
    """Returns ``mean Σ_k w_k (log π(a_k) - log p(a_k) - Q(a_k)/α)``, nats, for a mixture policy.

    One reparameterized draw ``a_k`` from each component, and an exact sum over the choice of it: the
    gradient of soft actor-critic's first policy, a mixture of Gaussians (arXiv:1801.01290v1), without
    a score function.

    Args:
        q_k, log_policy_k, log_prior_k: of each component's draw, ``(*batch, K)``; ``log π`` is the
            whole mixture's.
        log_weight_k: log weights of the components, ``(*batch, K)``.
        temperature: α.

    Example:
        >>> one = torch.ones(1, 2)
        >>> weighted_actor_loss(2 * one, -one, 0 * one, torch.tensor([[0.25, 0.75]]).log(), 1.0)
        tensor(-3.)
    """
    _check("log_policy_k", log_policy_k, q_k)
    _check("log_weight_k", log_weight_k, q_k)
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
    reparameterization; no gradient passes through the action.

    Args:
        q, log_policy, log_prior: of the drawn actions, ``(*batch,)``.
        temperature: α.
        baseline: ``b`` in nats, anything that does not depend on the action.

    Example:
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> log_policy = logits.log_softmax(-1)[:1]
        >>> loss = score_actor_loss(torch.tensor([1.0]), log_policy, log_policy.detach(), 1.0)
        >>> loss.detach(), torch.autograd.grad(loss, logits)[0]
        (tensor(-1.), tensor([-0.5000,  0.5000]))
    """
    _check("log_policy", log_policy, q)
    loss = (log_policy - log_prior - q / temperature).detach()
    # Zero in value; in gradient, ∇log π times how bad the action was. E[∇log π] itself is 0.
    score = (loss - baseline) * (log_policy - log_policy.detach())
    return (loss + score).mean()


def deterministic_actor_loss(q: Tensor) -> Tensor:
    """Returns ``-mean Q(s, a)`` in reward units: what is left of the actor's loss, times α, for α → 0.

    The deterministic policy gradient for ``a = μ(s)`` (Lillicrap et al. 2016, arXiv:1509.02971,
    equation 6), SVG(0) for a reparameterized ``a`` (Heess et al. 2015, arXiv:1510.09142).

    Example:
        >>> deterministic_actor_loss(torch.tensor([1.0, 3.0]))
        tensor(-2.)
    """
    return -q.mean()


def temperature_loss(log_temperature: Tensor, entropy: Tensor, target_entropy: float) -> Tensor:
    """Returns ``α (mean entropy - target)`` in reward units; only α has a gradient.

    The dual of the constraint that the policy's entropy be at least the target (Haarnoja et al. 2018,
    arXiv:1812.05905, equation 18): α grows while the entropy is below it, and shrinks above.

    Args:
        log_temperature: ``log α``, a number.
        entropy: of the policy in each state, or ``-log π`` of drawn actions, nats.
        target_entropy: nats.

    Example:
        >>> log_temperature = torch.zeros((), requires_grad=True)
        >>> loss = temperature_loss(log_temperature, torch.tensor([0.5, 1.5]), 0.25)
        >>> loss.detach(), torch.autograd.grad(loss, log_temperature)[0]
        (tensor(0.7500), tensor(0.7500))
    """
    return log_temperature.exp() * (entropy.detach().mean() - target_entropy)


def _check(name: str, value: Tensor, like: Tensor) -> None:
    if value.shape != like.shape:
        raise ValueError(f"{name} must have shape {tuple(like.shape)} as q does, got {tuple(value.shape)}")
