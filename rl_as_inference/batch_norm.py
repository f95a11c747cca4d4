"""Normalisation layers whose statistics are learned beside the parameters, and numbers that are told beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["BatchRenorm", "RewardScale", "Told", "learning_statistics", "statistics_of"]


class BatchRenorm(nn.Module):
    """Batch renormalisation of the last dimension (Ioffe 2017, arXiv:1702.03275), of several members at once.

    Asked as it is, it normalises by its running statistics: a function of one row at a time, as a policy or a critic
    has to be. Inside :func:`learning_statistics` it normalises by the batch's own mean and variance, and says what the
    running ones become. After ``warm_up`` such batches it corrects the batch's by the running ones, within the
    paper's bounds ``r ≤ 3`` and ``d ≤ 5``, as CrossQ's own code does (Bhatt et al. 2024, arXiv:1902.05605).

    Args:
        num_features: ``F``, the size of the last dimension.
        num_members: networks with statistics of their own, whose inputs are ``(num_members, *batch, F)``; None for one,
            whose inputs are ``(*batch, F)``.
        momentum: the share of the running statistics that a batch leaves.
        warm_up: batches before the correction; ``math.inf`` for batch normalisation, which has none.
        epsilon: beside the variance; by default that of Flax and of CrossQ's code.
        affine: scale and shift the outputs by learned parameters.

    Attributes:
        mean, variance: the running statistics, ``(F,)`` or ``(num_members, 1, F)``.
        batches: how many batches they are of, a number.

    Example:
        >>> layer, rows = BatchRenorm(1), torch.tensor([[1.0], [3.0]])
        >>> with learning_statistics(layer) as moved:
        ...     print(layer(rows).detach().flatten())
        tensor([-0.9995,  0.9995])
        >>> moved["mean"], layer.mean
        (tensor([0.0200]), tensor([0.]))
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(
        self,
        num_features: int,
        num_members: int | None = None,
        *,
        momentum: float = 0.99,
        warm_up: float = 100_000,
        epsilon: float = 1e-3,
        affine: bool = True,
    ) -> None:
        super().__init__()
        shape = (num_features,) if num_members is None else (num_members, 1, num_features)
        self.members, self.momentum, self.warm_up, self.epsilon = num_members, momentum, warm_up, epsilon
        self.scale = nn.Parameter(torch.ones(shape)) if affine else None
        self.shift = nn.Parameter(torch.zeros(shape)) if affine else None
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("batches", torch.zeros(()))
        self._moved: tuple[str, dict[str, Tensor]] | None = None

    def forward(self, rows: Tensor) -> Tensor:
        lead = rows.shape[: rows.dim() - 1] if self.members is None else rows.shape[1:-1]
        flat = rows.reshape(*rows.shape[: 0 if self.members is None else 1], -1, rows.shape[-1])
        mean, variance = self.mean, self.variance
        if self._moved is not None:
            mean, variance = self._of_batch(flat, *self._moved)
        factor = (variance + self.epsilon).rsqrt()
        if self.scale is not None and self.shift is not None:
            factor = factor * self.scale
            normal = (flat - mean) * factor + self.shift
        else:
            normal = (flat - mean) * factor
        return normal.reshape(*rows.shape[: 0 if self.members is None else 1], *lead, rows.shape[-1])

    def _of_batch(self, flat: Tensor, prefix: str, moved: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the mean and the variance to normalise a batch by, and notes what the running ones become."""
        keep = self.members is not None
        own_mean = flat.mean(-2, keepdim=keep)
        own_variance = (flat.square().mean(-2, keepdim=keep) - own_mean.square()).clamp(min=0)
        with torch.no_grad():
            deviation = (self.variance + self.epsilon).sqrt()
            ratio = ((own_variance + self.epsilon).sqrt() / deviation).clamp(1 / _MOST_RATIO, _MOST_RATIO)
            shift = ((own_mean - self.mean) / deviation).clamp(-_MOST_SHIFT, _MOST_SHIFT)
            warm = self.batches >= self.warm_up
            ratio, shift = torch.where(warm, ratio, 1.0), torch.where(warm, shift, 0.0)
            moved[f"{prefix}mean"] = torch.lerp(own_mean.detach(), self.mean, self.momentum)
            moved[f"{prefix}variance"] = torch.lerp(own_variance.detach(), self.variance, self.momentum)
            moved[f"{prefix}batches"] = self.batches + 1
        # (x - m)/s · r + d, as one mean and one variance.
        used = own_mean - shift * (own_variance + self.epsilon).sqrt() / ratio
        spread = (own_variance + self.epsilon) / ratio.square() - self.epsilon
        return used, spread


_MOST_RATIO, _MOST_SHIFT = 3.0, 5.0
"""Bounds of the correction (Ioffe 2017, section 5)."""


class Told(nn.Module):
    """Numbers that are not learned, but told as learning goes on, by who runs it; called, it returns them.

    They lie beside running statistics: of each seed, and in checkpoints.

    Args:
        value: what they are until then.
    """

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        return self.value


class RewardScale(Told):
    """By what rewards are divided before a network learns their sum, in reward units; 1 until it is told."""

    def __init__(self) -> None:
        super().__init__(torch.ones(()))


@contextmanager
def learning_statistics(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Has a module's normalisation layers normalise by the batch.

    Yields what their running statistics become, by the names of :func:`statistics_of`; filled as they are asked, and
    nothing in the module changes.
    """
    moved: dict[str, Tensor] = {}
    layers = [(prefix, layer) for prefix, layer in _layers(module) if isinstance(layer, BatchRenorm)]
    for prefix, layer in layers:
        layer._moved = (prefix, moved)
    try:
        yield moved
    finally:
        for _, layer in layers:
            layer._moved = None


def statistics_of(module: nn.Module) -> dict[str, Tensor]:
    """Returns the running statistics in a module, by name: buffers that learning, or what is seen, changes."""
    return {f"{prefix}{key}": buffer for prefix, layer in _layers(module) for key, buffer in layer.named_buffers()}


def _layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    named = module.named_modules()
    return [(f"{name}." if name else "", layer) for name, layer in named if isinstance(layer, BatchRenorm | Told)]
