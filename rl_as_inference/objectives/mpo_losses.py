"""Losses of maximum a posteriori policy optimisation (MPO), as pure functions of tensors.

MPO (Abdolmaleki et al. 2018, arXiv:1806.06920 and arXiv:1812.02256) improves a policy ``π̄`` in two steps. The
E-step is the posterior over an action whose prior is the *old policy* and whose factor is ``exp(Q/η)``,

    q(a|s) ∝ π̄(a|s) exp(Q(s, a)/η)

(:func:`~rl_as_inference.objectives.soft_critics.softmax_policy` with ``π̄`` for the prior), at the temperature η
at which the mean ``KL(q‖π̄)`` is what is allowed. The M-step regresses the policy on ``q``, within another such bound.
``Q`` is in reward units, η in reward units per nat. Shapes are checked and values are not, as in
:mod:`rl_as_inference.objectives.soft_critics`.
"""

from torch import Tensor

from rl_as_inference.objectives.soft_critics import check_actions, check_number, check_shape, log_sum_exp_value

__all__ = ["dual_loss", "gaussian_divergences", "multiplier_loss", "regression_loss"]


def dual_loss(q_a: Tensor, log_policy_a: Tensor, temperature: float | Tensor, divergence: float | Tensor) -> Tensor:
    """Returns ``η ε + mean η log Σ_a π̄(a) exp(Q(a)/η)``, one number in reward units: the dual of the E-step.

    Convex in η, and least where the mean ``KL(q‖π̄)`` is ε (the η of
    :func:`~rl_as_inference.objectives.projection.temperature_dual`), or for η → 0 where even the greedy policy is
    within ε. Its least value is the largest mean of ``E_q[Q]`` that any ``q`` within ε has (Abdolmaleki et al. 2018,
    arXiv:1806.06920, section 4.1). No gradient passes into ``Q`` or ``π̄``.

    Args:
        q_a: values of all actions, or of draws from ``π̄``, ``(*batch, A)``, reward units.
        log_policy_a: ``log π̄`` of all actions, nats, or ``-log A`` of draws; it may broadcast.
        temperature: η.
        divergence: ε, nats.

    Example:
        >>> import torch
        >>> dual_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([0.5, 0.5]).log(), 1.0, 0.1)
        tensor(0.7201)
    """
    check_number("divergence", divergence)
    return temperature * divergence + log_sum_exp_value(q_a.detach(), log_policy_a.detach(), temperature).mean()


def regression_loss(log_policy_a: Tensor, weight_a: Tensor) -> Tensor:
    """Returns ``-mean Σ_a q(a) log π(a)``, one number in nats: the M-step, ``KL(q‖π)`` less what ``π`` cannot change.

    Actions without weight count nothing, and their gradient is 0, also where ``log π`` is ``-inf``.

    Args:
        log_policy_a: of all actions or of draws, ``(*batch, A)``, nats.
        weight_a: ``q(a)``, or a draw's share, ``(*batch, A)``; no gradient passes through it.

    Example:
        >>> import torch
        >>> regression_loss(torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.25, 0.75, 0.0]]))
        tensor(0.6931)
    """
    check_actions("log_policy_a", log_policy_a)
    check_shape("weight_a", weight_a, "log_policy_a", log_policy_a)
    weight_a = weight_a.detach()
    return -(weight_a * log_policy_a.masked_fill(weight_a == 0, 0.0)).sum(-1).mean()


def gaussian_divergences(loc: Tensor, scale: Tensor, old_loc: Tensor, old_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``KL(old ‖ old with the new mean)`` and ``KL(old ‖ old with the new scale)``, both ``(*batch, d)``, nats.

    Of diagonal Gaussians, by dimension. Bounded apart from each other, the mean may move while the scale, by which the
    policy explores, hardly does (Abdolmaleki et al. 2018, arXiv:1812.02256, section 4.2). A divergence stays the same
    under a bijection of the actions: these are also those of the squashed policies.

    Args:
        loc, scale: of the new policy, ``(*batch, d)``.
        old_loc, old_scale: of the old one; no gradient passes into it.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> gaussian_divergences(2 * one, 2 * one, 0 * one, one)
        (tensor([2.]), tensor([0.3181]))
    """
    for name, value in (("scale", scale), ("old_loc", old_loc), ("old_scale", old_scale)):
        check_shape(name, value, "loc", loc)
    old_loc, old_scale = old_loc.detach(), old_scale.detach()
    of_mean = 0.5 * ((loc - old_loc) / old_scale).square()
    ratio = old_scale / scale
    return of_mean, 0.5 * ratio.square() - 0.5 - ratio.log()


def multiplier_loss(multiplier: Tensor, divergence: Tensor, bound: float) -> Tensor:
    """Returns ``λ KL + λ (ε - KL)`` with the gradient in ``KL`` of the first term and in ``λ`` of the second alone.

    Lagrange's way to hold ``KL ≤ ε``: the policy pays ``λ`` a nat, and ``λ`` grows while the divergence is above its
    bound and falls below it. In value it is ``λ ε``.

    Args:
        multiplier: ``λ``, positive, of the shape of ``divergence`` without its batch.
        divergence: ``(*batch, *shape)``, nats, with the policy's gradient; its mean over the batch is bounded.
        bound: ε, nats.

    Example:
        >>> import torch
        >>> multiplier, divergence = torch.ones((), requires_grad=True), torch.full((4,), 0.3, requires_grad=True)
        >>> loss = multiplier_loss(multiplier, divergence, 0.1)
        >>> [gradient.sum() for gradient in torch.autograd.grad(loss, (multiplier, divergence))]
        [tensor(-0.2000), tensor(1.)]
    """
    shape = multiplier.shape
    if divergence.shape[divergence.dim() - len(shape) :] != shape:
        raise ValueError(
            f"divergence must be (*batch, *shape) with the shape of multiplier, {tuple(shape)}; got "
            f"{tuple(divergence.shape)}"
        )
    mean = divergence.reshape(-1, *shape).mean(0)
    return (multiplier.detach() * mean + multiplier * (bound - mean.detach())).sum()
