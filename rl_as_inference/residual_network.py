"""Residual networks whose weights stay on spheres: the body of critics and policies of ``architecture="residual"``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rl_as_inference.batch_norm import BatchRenorm

__all__ = ["ResidualNetwork", "UnitLinear", "UnitRMSNorm", "check_residual_widths", "on_spheres"]

EXPANSION = 4
"""How much wider a block is inside than outside."""
_EPSILON = 1e-16
"""Beside squared lengths."""


class UnitLinear(nn.Module):
    """A linear layer, each of whose outputs weighs its inputs by a vector of length 1; ``(*batch, num_outputs)``.

    It begins with orthogonal weights, without a bias or with one of 0. :func:`on_spheres` brings the weights back
    after a step of learning; a bias is free.

    Args:
        num_inputs, num_outputs: sizes of the last dimension.
        num_members: layers of as many networks, whose inputs are ``(num_members, rows, num_inputs)``; None for one.
        bias: add one.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, num_members: int | None = None, *, bias: bool = False
    ) -> None:
        super().__init__()
        members = [nn.init.orthogonal_(torch.empty(num_outputs, num_inputs)) for _ in range(num_members or 1)]
        weight = _unit(torch.stack(members).mT, dim=-2)
        self.weight = nn.Parameter(weight[0].contiguous() if num_members is None else weight.contiguous())
        shape = (num_outputs,) if num_members is None else (num_members, 1, num_outputs)
        self.bias = nn.Parameter(torch.zeros(shape)) if bias else None

    def forward(self, rows: Tensor) -> Tensor:
        product = rows @ self.weight
        return product if self.bias is None else product + self.bias


class UnitRMSNorm(nn.Module):
    """Divides each row by its root mean square (Zhang & Sennrich 2019, arXiv:1910.07467), and scales its features.

    Args:
        num_features: ``F``, the size of the last dimension.
        num_members: of networks, whose inputs are ``(num_members, rows, F)``; None for one.
    """

    def __init__(self, num_features: int, num_members: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_features if num_members is None else (num_members, 1, num_features)))

    def forward(self, rows: Tensor) -> Tensor:
        return rows * (rows.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.scale


class Block(nn.Module):
    """Adds to its inputs what a wider layer makes of them: expand, normalise, rectify, contract, normalise, rectify."""

    def __init__(self, width: int, num_members: int | None) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.expand, self.expanded = UnitLinear(width, wide, num_members), _batch_norm(wide, num_members)
        self.contract, self.contracted = UnitLinear(wide, width, num_members), _batch_norm(width, num_members)

    def forward(self, rows: Tensor) -> Tensor:
        wide = self.expanded(self.expand(rows)).relu()
        return rows + self.contracted(self.contract(wide)).relu()


class ResidualNetwork(nn.Module):
    """Inverted residual blocks between a normalised input and a linear head, ``(*batch, num_outputs)``.

    The network of FlashSAC (Kim et al. 2026, arXiv:2604.04539), in the footsteps of SimbaV2 (Lee et al. 2025,
    arXiv:2502.15280) and XQC (Palenicek et al. 2025, arXiv:2509.25174): batch normalisation of the inputs and before
    each nonlinearity, the root mean square of each row divided out behind the blocks (once, as in the authors' code),
    and weights that are unit vectors, so that what a step of learning turns is a direction and its size does not
    shrink as weights grow. Scale and shift of a batch normalisation together have the length ``√F``, and the scale of
    the last normalisation has: :func:`on_spheres` brings all of them back there.

    Args:
        num_inputs, num_outputs: sizes of the last dimension.
        widths: of the blocks, all the same: as many as there are blocks.
        num_members: independent networks, whose inputs are ``(num_members, rows, num_inputs)``; None for one, whose
            inputs are ``(*batch, num_inputs)``.

    Raises:
        ValueError: if there is no block, or their widths differ.

    Example:
        >>> network = ResidualNetwork(3, 2, (8, 8))
        >>> lengths = network.head.weight.norm(dim=0)
        >>> network(torch.zeros(5, 3)).shape, bool((lengths - 1).abs().max() < 1e-6)
        (torch.Size([5, 2]), True)
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, widths: Sequence[int], *, num_members: int | None = None
    ) -> None:
        super().__init__()
        check_residual_widths("widths", widths)
        width = widths[0]
        self.inputs, self.first = _batch_norm(num_inputs, num_members), UnitLinear(num_inputs, width, num_members)
        self.blocks = nn.Sequential(*(Block(width, num_members) for _ in widths))
        self.features = UnitRMSNorm(width, num_members)
        self.head = UnitLinear(width, num_outputs, num_members, bias=True)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(self.blocks(self.first(self.inputs(rows)))))
        return out


def check_residual_widths(name: str, widths: Sequence[int]) -> None:
    """Raises ValueError unless there is at least one width, and all are the same."""
    if not widths or len(set(widths)) > 1:
        raise ValueError(
            f"{name} must be one width for each residual block, all the same, as (128, 128) for two blocks; "
            f"got {tuple(widths)}"
        )


def on_spheres(module: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the parameters of a module with those of its residual networks brought back to unit length.

    Of a :class:`UnitLinear`, each output's weights have length 1; scale and shift of a batch normalisation of ``F``
    features have length ``√F`` together, and so has the scale of a :class:`UnitRMSNorm`. Others are as they are.

    Args:
        module: with residual networks in it, or without.
        parameters: of it, by name, as they are after a step of learning.

    Example:
        >>> network = ResidualNetwork(3, 2, (8,))
        >>> longer = {name: 2 * value for name, value in network.named_parameters()}
        >>> bool((on_spheres(network, longer)["first.weight"] - network.first.weight).abs().max() < 1e-6)
        True
    """
    found = dict(parameters)
    for outer, network in module.named_modules():
        if not isinstance(network, ResidualNetwork):
            continue
        for inner, layer in network.named_modules(prefix=outer):
            at = f"{inner}." if inner else ""
            if isinstance(layer, UnitLinear):
                found[f"{at}weight"] = _unit(found[f"{at}weight"], dim=-2)
            elif isinstance(layer, UnitRMSNorm):
                (found[f"{at}scale"],) = _long(found[f"{at}scale"])
            elif isinstance(layer, BatchRenorm):
                found[f"{at}scale"], found[f"{at}shift"] = _long(found[f"{at}scale"], found[f"{at}shift"])
    return found


def _batch_norm(num_features: int, num_members: int | None) -> BatchRenorm:
    """Batch normalisation as in FlashSAC: never corrected by the running statistics."""
    return BatchRenorm(num_features, num_members, warm_up=math.inf, epsilon=1e-5)


def _unit(weight: Tensor, dim: int) -> Tensor:
    """Returns vectors of length 1, of those that are not 0."""
    return weight * (weight.square().sum(dim, keepdim=True) + _EPSILON).rsqrt()


def _long(*parts: Tensor) -> list[Tensor]:
    """Returns vectors scaled so that together they have the length ``√F``, of their last dimension."""
    squares = torch.stack([part.square() for part in parts]).sum(0).sum(-1, keepdim=True)
    factor = math.sqrt(parts[0].shape[-1]) * (squares + _EPSILON).rsqrt()
    return [part * factor for part in parts]
