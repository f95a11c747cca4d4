"""Monte Carlo estimates with their standard errors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_as_inference.distributed import ALONE, Ranks

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, in the same unit."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, samples: Tensor, ranks: Ranks = ALONE) -> "Estimate":
        """Returns the estimate of the mean of independent samples, ``(N,)``, of all ranks together."""
        if ranks.size == 1:
            error = samples.std() / len(samples) ** 0.5 if len(samples) > 1 else torch.tensor(torch.nan)
            return cls(float(samples.mean()), float(error))
        held = samples.detach().double()
        number, total = ranks.sum(torch.stack([held.new_tensor(len(held)), held.sum()]))
        mean = total / number
        variance = ranks.sum((held - mean).square().sum()) / (number - 1)  # about the mean of all
        return cls(float(mean), float((variance / number).sqrt()))

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.standard_error:.2g}"
