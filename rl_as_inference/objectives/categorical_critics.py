"""Critics that say a categorical distribution over returns: its projected target, and the loss, as pure functions.

Positions, atoms and targets are in one unit, whichever it is. No function looks at values, only at shapes: all of them
can be traced, compiled and vmapped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rl_as_inference.objectives.soft_critics import check_shape

__all__ = ["categorical_critic_loss", "categorical_projection", "least_distribution"]


def categorical_projection(positions: Tensor, probabilities: Tensor, support: Tensor) -> Tensor:
    """Returns the probabilities ``(*batch, K)`` on the atoms of a distribution that has its mass elsewhere.

    Each mass goes to the two atoms around it, to each the more the nearer it is; what lies past the ends goes to the
    last atoms (Bellemare, Dabney & Munos 2017, arXiv:1707.06887, equation 7). So the mean stays what it was, where no
    mass lies past the ends.

    It is written with all ``M K`` pairs, ``Σ_m p_m max(0, 1 - |b_m - k|)``, which a compiler fuses: scattered sums come
    in no order on a GPU, and would not be the same twice.

    Args:
        positions: where the mass lies, ``(*batch, M)``.
        probabilities: how much, ``(*batch, M)``.
        support: the atoms, ``(K,)``, equally far apart and rising.

    Example:
        >>> atoms = torch.tensor([-1.0, 0.0, 1.0])
        >>> categorical_projection(torch.tensor([0.25, 7.0]), torch.tensor([0.5, 0.5]), atoms)
        tensor([0.0000, 0.3750, 0.6250])
    """
    check_shape("probabilities", probabilities, "positions", positions)
    _check_support(support)
    spacing = (support[-1] - support[0]) / (len(support) - 1)
    places = (positions.clamp(support[0], support[-1]) - support[0]) / spacing
    atoms = torch.arange(len(support), dtype=places.dtype, device=places.device)
    shares = (1 - (places[..., None] - atoms).abs()).clamp(min=0)
    return (probabilities[..., None] * shares).sum(-2)


def least_distribution(probabilities: Tensor, support: Tensor) -> Tensor:
    """Returns the distribution ``(*batch, K)`` of the critic whose mean is least.

    What the least of several values is for critics that say a number (clipped double Q-learning, Fujimoto, van Hoof &
    Meger 2018, arXiv:1802.09477), as in FlashSAC (Kim et al. 2026, arXiv:2604.04539).

    Args:
        probabilities: of each critic, ``(num_critics, *batch, K)``.
        support: the atoms, ``(K,)``.

    Example:
        >>> least_distribution(torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([0.0, 1.0]))
        tensor([0.9000, 0.1000])
    """
    _check_support(support)
    least = (probabilities * support).sum(-1).argmin(0)
    return probabilities.gather(0, least[None, ..., None].expand(1, *least.shape, len(support)))[0]


def categorical_critic_loss(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Returns ``Σ_i mean -w Σ_k y_k log p_ik``, a number in nats: the cross entropy of critics to their target.

    Averaged over the batch and summed over the critics, each of which then has the gradient it would have alone. None
    passes through the target. It is bounded as a squared error is not (XQC, Palenicek et al. 2025, arXiv:2509.25174).

    Args:
        logits: of each critic, ``(num_critics, *batch, K)``.
        target: ``y``, probabilities ``(*batch, K)``.
        weight: ``w``, ``(*batch,)``, what each counts; None counts all alike.

    Example:
        >>> categorical_critic_loss(torch.zeros(2, 1, 4), torch.tensor([[0.0, 0.5, 0.5, 0.0]]))
        tensor(2.7726)
    """
    if logits.dim() < 2 or logits.shape[1:] != target.shape:
        raise ValueError(
            f"logits must be (num_critics, *batch, K) with the shape of target, {tuple(target.shape)}; "
            f"got {tuple(logits.shape)}"
        )
    entropy = -(target.detach() * logits.log_softmax(-1)).sum(-1)
    if weight is not None:
        check_shape("weight", weight, "a row of target", target[..., 0])
        entropy = weight * entropy
    return entropy.reshape(len(logits), -1).mean(1).sum()


def _check_support(support: Tensor) -> None:
    """Raises ValueError unless there are at least two atoms in a row."""
    if support.dim() != 1 or len(support) < 2:
        raise ValueError(f"support must be at least two atoms (K,), got shape {tuple(support.shape)}")
