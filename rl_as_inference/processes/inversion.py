"""Draws from finite distributions: the inverse of their cumulative probabilities at uniform numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rl_as_inference.checks import is_deferred

__all__ = ["Inversion", "Sampler", "cumulated", "invert"]

_FEW = 16
"""Outcomes that are compared with a uniform number one and all; of more, searching takes no longer."""

_FEW_ROWS = 2**16
"""Rows of which it is looked at whether all change at the same numbers; in more it takes as long to look one up."""

_STEPS = 16
"""Steps whose uniform numbers are compared at once: more would not stay near the processor."""


def cumulated(log_probabilities: Tensor) -> Tensor:
    """Returns cumulative probabilities whose last is exactly one."""
    return _summed(log_probabilities.detach().exp())


def invert(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """Returns the first ``k`` whose cumulative probability exceeds ``uniform``: never one of probability 0.

    Args:
        cumulative: ``(*batch, K)``, whose last is 1.
        uniform: draws in [0, 1), ``(*batch, 1)``.
    """
    return torch.searchsorted(cumulative, uniform, right=True).squeeze(-1)


class Inversion:
    """Inverts rows of cumulative probabilities, each at many uniform numbers.

    A search guesses at every draw how it goes on, and a processor that guesses wrong waits: of four outcomes a draw
    takes 18 ns. To count those that a uniform number has passed takes 5, and finds the same.

    Args:
        held: all columns but the last, ``(K - 1, R)``, where they are counted; else the rows.
        counts: whether they are.
    """

    def __init__(self, held: Tensor, counts: bool) -> None:
        self._held, self._counts = held, counts

    @classmethod
    def of(cls, cumulative: Tensor) -> Inversion:
        """Returns that of ``(R, K)``, as :func:`invert` takes them."""
        return cls.of_steps(cumulative[None])[0]

    @classmethod
    def of_steps(cls, cumulative: Tensor) -> list[Inversion]:
        """Returns one for each step, of ``(T, R, K)``."""
        counts = cumulative.shape[-1] <= _FEW
        held = cumulative[..., :-1].mT.contiguous() if counts else cumulative
        return [cls(each, counts) for each in held.unbind()]

    def __call__(self, row: Tensor, uniform: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns the ``k`` of rows ``(N,)`` at uniform numbers ``(N,)``; written into ``out``, if it is given."""
        # index_select takes less than half the time of self._held[row].
        if self._counts:
            return torch.sum(self._held.index_select(1, row) <= uniform, 0, out=out)
        k = invert(self._held.index_select(0, row), uniform[:, None])
        return k if out is None else out.copy_(k)


class Sampler:
    """Draws successors from rows of probabilities.

    Where all rows change from one outcome to the next at the same few numbers, as in a world that slips alike
    everywhere, which of these a uniform number has passed does not depend on the row, and is found for many steps at
    once.

    Args:
        indices: which successors the outcomes are, ``(R, K)``; None where they are all states.
        probabilities: ``(R, K)``; of those that are learned no common numbers are looked for.
    """

    def __init__(self, indices: Tensor | None, probabilities: Tensor) -> None:
        cumulative, learns = _summed(probabilities.detach()), probabilities.requires_grad
        self._invert: Inversion | None = Inversion.of(cumulative)
        self._num_cells, self._edges = probabilities.shape[-1], None if learns else _common_edges(cumulative)
        if self._edges is not None:
            row = torch.arange(len(cumulative), device=cumulative.device)
            starts = torch.cat([self._edges.new_zeros(1), self._edges])
            outcomes = torch.stack([self._invert(row, start.expand(len(row))) for start in starts], -1)
            indices = outcomes if indices is None else indices.gather(-1, outcomes)
            self._invert, self._num_cells = None, len(starts)
        self._successors = None if indices is None else indices.flatten()

    def __call__(self, row: Tensor, uniform: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns the successors in rows ``(N,)``, by uniform numbers ``(N,)``; written into ``out`` if it is given."""
        if self._invert is None:
            return self._successor(self._cells(uniform), row, out)
        if self._successors is None:
            return self._invert(row, uniform, out)
        return self._successor(self._invert(row, uniform), row, out)

    def along(self, uniform: Tensor) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
        """Yields for each of ``T`` steps what :meth:`__call__` does with its uniform numbers, of ``(T, N)``."""
        if self._invert is not None:
            for numbers in uniform.unbind():
                yield lambda row, out, numbers=numbers: self(row, numbers, out)  # type: ignore[misc]
            return
        for block in uniform.split(_STEPS):
            for cell in self._cells(block).unbind():
                yield lambda row, out, cell=cell: self._successor(cell, row, out)  # type: ignore[misc]

    def _cells(self, uniform: Tensor) -> Tensor:
        assert self._edges is not None
        return (self._edges.view(-1, *[1] * uniform.dim()) <= uniform).sum(0)

    def _successor(self, cell: Tensor, row: Tensor, out: Tensor | None) -> Tensor:
        assert self._successors is not None
        place = row if self._num_cells == 1 else torch.add(cell, row, alpha=self._num_cells)
        return torch.index_select(self._successors, 0, place, out=out)


def _common_edges(cumulative: Tensor) -> Tensor | None:
    """Returns where any row of ``(R, K)`` changes, in (0, 1); None where a table of them would be large."""
    if len(cumulative) > _FEW_ROWS or is_deferred():  # nor may values be looked at
        return None
    some = cumulative[:: -(-len(cumulative) // _FEW)]
    for rows in (some, cumulative):  # of a world without such numbers a few rows tell
        edges = rows.unique()
        edges = edges[(edges > 0) & (edges < 1)]
        if len(edges) >= min(_FEW, 2 * rows.shape[-1]):
            return None
    return edges


def _summed(probabilities: Tensor) -> Tensor:
    cumulative = probabilities.cumsum(-1)
    return cumulative / cumulative[..., -1:]
