"""What an ensemble predicts of transitions: luck, ignorance, and intervals that hold both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_as_inference.checks import check_positive

__all__ = ["Prediction"]

_BISECTIONS = 40


@dataclass(frozen=True)
class Prediction:
    """Gaussians of every member over what one step gives, the next state's ``d`` numbers and then the reward.

    Attributes:
        mean: ``(E, *batch, d + 1)``; without the reward, where that is a known function, ``(E, *batch, d)``.
        scale: their standard deviations, of the same shape.
    """

    mean: Tensor
    scale: Tensor

    @property
    def ignorance(self) -> Tensor:
        """The standard deviation of what the members expect, ``(*batch, d + 1)``: more data would lessen it."""
        return self.mean.std(0, correction=0)

    @property
    def luck(self) -> Tensor:
        """The standard deviation that the members put down to chance, ``(*batch, d + 1)``, their mean square's root."""
        return self.scale.square().mean(0).sqrt()

    def cdf(self, value: Tensor) -> Tensor:
        """Returns the probability of less than ``value``, of each number by itself, of the shape of ``value``."""
        return torch.special.ndtr((value - self.mean) / self.scale).mean(0)

    def quantile(self, level: float) -> Tensor:
        """Returns that quantile of the mixture of members, of each number by itself, ``(*batch, d + 1)``.

        By bisection, to one part in 10^12 of the range that the members' quantiles span.

        Raises:
            ValueError: if the level is not in (0, 1).
        """
        check_positive("level", level)
        if level >= 1:
            raise ValueError(f"level must be below 1, got {level}")
        ends = self.mean + self.scale * torch.special.ndtri(torch.tensor(level, dtype=torch.float64)).to(self.mean)
        low, high = ends.amin(0), ends.amax(0)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            less = self.cdf(middle) < level
            low, high = torch.where(less, middle, low), torch.where(less, high, middle)
        return (low + high) / 2

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Returns the central interval of each number that holds ``level`` of the predicted mass, as (low, high).

        Raises:
            ValueError: if the level is not in (0, 1).
        """
        check_positive("level", level)
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)
