"""Numbers that are affine in Gaussian unknowns, and which of these hang together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import torch
from torch import Tensor

__all__ = ["Affine", "NotAffineError", "affine", "by_block"]

_AT_ONCE = 512
"""Numbers whose gradients are taken together."""

_SMALL = 8
"""Blocks up to this size are worked on together."""


class NotAffineError(ValueError):
    """Says in what a function is not affine."""


class Affine(NamedTuple):
    """``y = offset + slopes · x`` with ``x`` Gaussian, in ``B`` blocks of at most ``k`` that are independent.

    In each block ``x = mean + factor z``, and ``z`` is a standard normal before anything is seen.
    """

    offset: Tensor
    """``(M,)``, float64 as all here."""
    varying: Tensor
    """Which row of ``slopes`` belongs to each number, ``(M,)``; -1 where it is known."""
    slopes: Tensor
    """``(V, k)``, in the coordinates ``x`` of the block."""
    block: Tensor
    """The block of each row of ``slopes``, ``(V,)``."""
    mean: Tensor
    """``(B, k)``."""
    factor: Tensor
    """``(B, k, k)``."""
    place: Tensor
    """Where each Gaussian number lies in the blocks, as an index into ``B * k``, ``(n,)``."""

    def in_blocks(self, x: Tensor) -> Tensor:
        """Returns Gaussian numbers ``(D, n)`` by blocks, ``(D, B, k)``."""
        return x.new_zeros(len(x), self.mean.numel()).index_copy(1, self.place, x).reshape(len(x), *self.mean.shape)

    def at(self, x: Tensor, which: Tensor) -> Tensor:
        """Returns the numbers ``y`` of these indices ``(L,)`` at Gaussian numbers ``(D, n)``: ``(D, L)``."""
        row = self.varying[which]
        open_ = (row >= 0).nonzero().squeeze(-1)
        row = row[open_]
        if len(self.mean) == 1:
            told = self.in_blocks(x)[:, 0] @ self.slopes[row].T
        else:
            told = torch.einsum("lk,dlk->dl", self.slopes[row], self.in_blocks(x)[:, self.block[row]])
        return self.offset[which].expand(len(x), -1).index_add(1, open_, told)


def by_block(rows: Tensor, block: Tensor, matrices: Tensor) -> Tensor:
    """Returns each row ``(V, k)`` times the matrix of its block, of ``(B, k, k)``: ``(V, k)``."""
    if matrices.shape[-1] <= _SMALL:
        return torch.einsum("vi,vij->vj", rows, matrices[block])
    out = torch.empty_like(rows)  # a matrix for each row would not fit
    for b in block.unique().tolist():
        out[block == b] = rows[block == b] @ matrices[b]
    return out


def affine(
    function: Callable[[Tensor], Tensor],
    points: list[Tensor],
    values: list[Tensor],
    prior: list[tuple[Tensor, Tensor]],
    groups: Tensor | None,
    eps: float,
) -> Affine:
    """Returns how the values of a function are affine in its argument.

    Args:
        function: of ``(n,)`` Gaussian numbers, gives ``(M,)``.
        points: some arguments, ``(n,)`` each.
        values: what the function gives there.
        prior: means ``(c, k)`` and Cholesky factors ``(c, k, k)`` of independent vectors, that fill ``(n,)`` in order.
        groups: numbers that belong together, ``(M,)``, so that what they hang on is one block; None if none do.
        eps: the rounding error of the coarsest numbers that the function computes with.

    Raises:
        NotAffineError: if it is not affine.
    """
    device, size = values[0].device, len(points[0])
    first, rounding = values[0], 64 * eps
    varies = torch.zeros_like(first, dtype=torch.bool)
    for value in values[1:]:
        varies |= (value - first).abs() > rounding * torch.maximum(value.abs(), first.abs())
    at = varies.nonzero().squeeze(-1)
    if len(at) and size == 0:
        raise NotAffineError("depends on unknowns that are not Normal")
    rows, columns, slopes = _jacobian(function, points[0], at)
    jacobian = scipy.sparse.csr_array(
        (slopes.double().cpu().numpy(), (rows.cpu().numpy(), columns.cpu().numpy())), shape=(len(at), size)
    )
    offset = first.clone()
    if len(at):
        here, start = first[at].cpu().numpy(), points[0].cpu().numpy()
        for point, value in zip(points[1:], values[1:], strict=True):
            there, end = value[at].cpu().numpy(), point.cpu().numpy()
            off = abs(here + jacobian @ (end - start) - there)
            if (off > rounding * (abs(here) + abs(there) + abs(jacobian) @ (abs(start) + abs(end)))).any():
                raise NotAffineError("is not affine in unknowns that are Normal")
        offset[at] -= torch.as_tensor(jacobian @ start, device=device)
    return _in_blocks(jacobian, offset, at, prior, groups, size)


def _jacobian(function: Callable[[Tensor], Tensor], point: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the entries of the Jacobian that are not 0: row, column and value."""
    rows, columns, slopes = [at[:0]], [at[:0]], [point[:0]]
    if len(at):
        with torch.enable_grad():
            x = point.detach().clone().requires_grad_()
            chosen = function(x)[at]
            for start in range(0, len(at), _AT_ONCE) if chosen.requires_grad else ():
                count = min(_AT_ONCE, len(at) - start)
                seeds = chosen.new_zeros(count, len(at))
                seeds[torch.arange(count), start + torch.arange(count)] = 1.0
                (part,) = torch.autograd.grad(
                    chosen, x, seeds, retain_graph=True, is_grads_batched=True, allow_unused=True
                )
                if part is None:
                    continue
                row, column = part.nonzero(as_tuple=True)
                rows.append(row + start)
                columns.append(column)
                slopes.append(part[row, column])
    return torch.cat(rows), torch.cat(columns), torch.cat(slopes)


def _in_blocks(
    jacobian: scipy.sparse.csr_array,
    offset: Tensor,
    at: Tensor,
    prior: list[tuple[Tensor, Tensor]],
    groups: Tensor | None,
    size: int,
) -> Affine:
    device = offset.device
    labels = _components(jacobian, at, prior, groups, size)
    blocks = int(labels.max()) + 1 if size else 0
    counts = np.bincount(labels, minlength=blocks) if size else np.zeros(0, dtype=int)
    width = int(counts.max()) if size else 0
    order = np.argsort(labels, kind="stable")
    local = np.empty(size, dtype=int)
    local[order] = np.arange(size) - np.repeat(np.cumsum(counts) - counts, counts)
    place = torch.as_tensor(labels * width + local, dtype=torch.long, device=device)
    mean = torch.zeros(blocks * width, dtype=torch.float64, device=device)
    factor = torch.eye(width, dtype=torch.float64, device=device).repeat(blocks, 1, 1)
    start = 0
    for own, root in prior:
        count, k = own.shape
        here = place[start : start + count * k].reshape(count, k)
        mean[here] = own.to(device)
        block, inner = here // max(width, 1), here % max(width, 1)
        factor[block[:, :, None], inner[:, :, None], inner[:, None, :]] = root.to(device)
        start += count * k
    coordinate = jacobian.tocoo()
    slopes = torch.zeros(len(at), width, dtype=torch.float64, device=device)
    row = torch.as_tensor(coordinate.coords[0], dtype=torch.long, device=device)
    column = torch.as_tensor(coordinate.coords[1], dtype=torch.long, device=device)
    if len(row):
        slopes[row, place[column] % width] = torch.as_tensor(coordinate.data, device=device)
    block_of = torch.zeros(len(at), dtype=torch.long, device=device)
    if len(row):
        block_of[row] = place[column] // width
    varying = torch.full((len(offset),), -1, dtype=torch.long, device=device)
    varying[at] = torch.arange(len(at), device=device)
    return Affine(offset, varying, slopes, block_of, mean.reshape(blocks, width), factor, place)


def _components(
    jacobian: scipy.sparse.csr_array, at: Tensor, prior: list[tuple[Tensor, Tensor]], groups: Tensor | None, size: int
) -> np.ndarray[Any, Any]:
    """Returns for each Gaussian number the block that it is in: what hangs together is in one."""
    if size == 0:
        return np.zeros(0, dtype=int)
    owner, start = np.empty(size, dtype=int), 0
    vectors = 0
    for own, _ in prior:
        count, k = own.shape
        owner[start : start + count * k] = vectors + np.repeat(np.arange(count), k)
        start, vectors = start + count * k, vectors + count
    coordinate = jacobian.tocoo()
    rows = coordinate.coords[0] if groups is None else groups[at].cpu().numpy()[coordinate.coords[0]]
    last = int(rows.max()) + 1 if len(rows) else 0
    ties = (np.concatenate([rows, last + owner]), np.concatenate([coordinate.coords[1], np.arange(size)]))
    graph = scipy.sparse.coo_array(
        (np.ones(len(ties[0])), (ties[0], last + vectors + ties[1])), shape=(last + vectors + size,) * 2
    )
    labels = scipy.sparse.csgraph.connected_components(graph, directed=False)[1][last + vectors :]
    return np.unique(labels, return_inverse=True)[1]
