"""Learning a policy from data: expectiles, λ-returns and the weights of advantages, as pure functions of tensors.

All weigh what was done by ``exp(A(s, a)/η)``, with ``A`` in reward units and the temperature η in reward units per nat:
the E-step of a program whose action prior is the behaviour in the data, and whose factor is the exponentiated
advantage. The policy is then regressed on it. Shapes are checked and values are not, as in
:mod:`rl_as_inference.objectives.soft_critics`.
"""

import torch
from torch import Tensor

from rl_as_inference.objectives.soft_critics import check_number, check_shape

__all__ = ["advantage_weights", "expectile_loss", "lambda_return", "weighted_likelihood_loss"]


def expectile_loss(value: Tensor, target: Tensor, expectile: float) -> Tensor:
    """Returns ``mean |τ - 1(u < 0)| u²`` with ``u = target - value``, one number in the units of both, squared.

    Least where ``value`` is the τ-expectile of the targets: their mean for ½, and towards 1 ever nearer to their
    largest. Of ``target = Q(s, a)`` over the actions of data that is nearly the best value *within the data*, without a
    look at any other action (Kostrikov, Nair & Levine 2021, arXiv:2110.06169, equation 5). No gradient passes through
    the target.

    Args:
        value, target: ``(*batch,)``.
        expectile: τ in (0, 1).

    Example:
        >>> expectile_loss(torch.zeros(2), torch.tensor([1.0, -1.0]), 0.9)
        tensor(0.5000)
    """
    check_shape("value", value, "target", target)
    if not 0 < expectile < 1:
        raise ValueError(f"expectile must be between 0 and 1, got {expectile}")
    error = target.detach() - value
    return torch.where(error < 0, (1 - expectile) * error.square(), expectile * error.square()).mean()


def advantage_weights(advantage: Tensor, temperature: float | Tensor, largest: float) -> Tensor:
    """Returns ``exp(A/η)`` over its mean in the batch, at most ``largest``, ``(*batch,)`` without gradient.

    What an action of the data counts (Peng, Kumar, Zhang & Levine 2019, arXiv:1910.00177, equation 9, who clip at 20;
    Kostrikov et al. 2021, equation 7, at 100). Dividing by the mean is the ``1/Z`` that both leave to the step size.

    Args:
        advantage: ``(*batch,)``, reward units.
        temperature: η.
        largest: the most that one action counts; ``inf`` for no limit.

    Example:
        >>> advantage_weights(torch.tensor([0.0, 1.0]), 1.0, 20.0)
        tensor([0.5379, 1.4621])
    """
    check_number("temperature", temperature)
    exponent = (advantage / temperature).detach()
    return (exponent.flatten().softmax(0) * exponent.numel()).reshape(exponent.shape).clamp(max=largest)


def weighted_likelihood_loss(log_policy: Tensor, weight: Tensor) -> Tensor:
    """Returns ``-mean w log π(a|s)`` of the actions in data, one number in nats: their weighted regression.

    With weights of 1 it is behaviour cloning.

    Args:
        log_policy: ``(*batch,)``, nats.
        weight: ``(*batch,)``; no gradient passes through it.

    Example:
        >>> weighted_likelihood_loss(torch.tensor([-1.0, -2.0]), torch.tensor([1.5, 0.5]))
        tensor(1.2500)
    """
    check_shape("weight", weight, "log_policy", log_policy)
    return -(weight.detach() * log_policy).mean()


def lambda_return(
    rewards_k: Tensor, values_k: Tensor, alive_k: Tensor, terminated_k: Tensor, discount: float, lambda_: float
) -> Tensor:
    """Returns the λ-return of the first state of a segment, ``(*batch,)`` in reward units, without gradient.

        G_k = r_k + γ ((1 - λ) V(s_{k+1}) + λ G_{k+1}),    G_k = r_k + γ V(s_{k+1}) at the segment's last step

    Sutton & Barto (2018), section 12.1, cut off after ``n`` steps; the estimate of the return in advantage-weighted
    regression (arXiv:1910.00177, section 3.2). ``λ = 0`` is the one-step target, ``λ = 1`` the sum of the rewards of
    the segment and the value of what follows it. The value of a terminal state is 0.

    Args:
        rewards_k: ``(n, *batch)``, reward units.
        values_k: ``V(s_{k+1})``, ``(n, *batch)``, reward units.
        alive_k: ``(n, *batch)``: 1 for the steps of the segment, 0 behind its end.
        terminated_k: ``(n, *batch)``: 1 where the step ended in a terminal state.
        discount: γ.
        lambda_: λ in [0, 1].

    Example:
        >>> one = torch.ones(2, 1)
        >>> lambda_return(one, 10 * one, one, 0 * one, 0.5, 0.5)
        tensor([5.])
    """
    for name, value in (("values_k", values_k), ("alive_k", alive_k), ("terminated_k", terminated_k)):
        check_shape(name, value, "rewards_k", rewards_k)
    following = torch.cat([alive_k[1:], torch.zeros_like(alive_k[:1])])
    target = torch.zeros_like(rewards_k[0])
    for k in reversed(range(len(rewards_k))):
        value = (1 - terminated_k[k]) * values_k[k]
        ahead = torch.where(following[k] > 0, (1 - lambda_) * value + lambda_ * target, value)
        target = rewards_k[k] + discount * ahead
    return target.detach()
