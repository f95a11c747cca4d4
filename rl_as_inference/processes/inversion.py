"""Draws from finite distributions: the inverse of their cumulative probabilities at uniform numbers."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Inversion", "cumulated", "invert"]

_FEW = 16
"""Outcomes that are compared with a uniform number one and all; of more, searching takes no longer."""


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
        cumulative: ``(R, K)``, as of :func:`invert`.
    """

    def __init__(self, cumulative: Tensor) -> None:
        self._is_counted = cumulative.shape[-1] <= _FEW
        self._held = _columns(cumulative) if self._is_counted else cumulative

    @classmethod
    def of_steps(cls, cumulative: Tensor) -> list[Inversion]:
        """Returns one for each step, of ``(T, R, K)``."""
        counted = cumulative.shape[-1] <= _FEW
        found = []
        for held in (_columns(cumulative) if counted else cumulative).unbind():
            one = cls.__new__(cls)
            one._is_counted, one._held = counted, held
            found.append(one)
        return found

    @classmethod
    def of(cls, probabilities: Tensor) -> Inversion:
        """Returns that of rows of probabilities, ``(R, K)``."""
        return cls(_summed(probabilities))

    def __call__(self, row: Tensor, uniform: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns the ``k`` of rows ``(N,)`` at uniform numbers ``(N,)``; written into ``out``, if it is given."""
        # index_select takes less than half the time of self._held[row].
        if self._is_counted:
            return torch.sum(self._held.index_select(1, row) <= uniform, 0, out=out)
        k = invert(self._held.index_select(0, row), uniform[:, None])
        return k if out is None else out.copy_(k)


def _columns(cumulative: Tensor) -> Tensor:
    """Returns all but the last, ``(..., K - 1, R)``."""
    return cumulative[..., :-1].mT.contiguous()


def _summed(probabilities: Tensor) -> Tensor:
    cumulative = probabilities.cumsum(-1)
    return cumulative / cumulative[..., -1:]
