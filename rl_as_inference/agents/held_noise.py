"""Noise of a policy's draws that is held for several steps: exploration that goes somewhere."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["HeldNoise"]

_EXPONENT = 2.0
"""Of how many steps a draw is held, as in FlashSAC."""


class HeldNoise:
    """For how many steps more each environment's noise is held.

    Each draw of standard Gaussian noise serves for ``n`` steps, ``n ≤ most`` with chance ``∝ 1/n²``: the noise
    repetition of FlashSAC (Kim et al. 2026, arXiv:2604.04539). Which action a state gets has the policy's own
    distribution as before; but successive actions err to the same side.

    Args:
        most: steps at most, ≥ 1.
        num: of environments, of all learners.

    Example:
        >>> held = HeldNoise(1, num=2)
        >>> held.passed(), held.passed()
        (tensor([True, True]), tensor([True, True]))
    """

    def __init__(self, most: int, *, num: int) -> None:
        self._chances = torch.arange(1.0, most + 1, dtype=torch.float64) ** -_EXPONENT
        self._left = torch.zeros(num, dtype=torch.int64)

    def passed(self) -> Tensor:
        """Takes in a step, and returns whose noise is to be drawn anew for the next, ``(num,)`` bool."""
        self._left = self._left - 1
        anew = self._left <= 0
        if bool(anew.any()):
            self._left[anew] = torch.multinomial(self._chances, int(anew.sum()), replacement=True) + 1
        return anew

    def state_dict(self) -> list[int]:
        """Returns all that it goes on from, as JSON holds it."""
        return [int(left) for left in self._left]

    def load_state_dict(self, state: list[int]) -> None:
        """Goes on from there."""
        self._left = torch.tensor(state, dtype=torch.int64)
