"""Monte Carlo estimates with their standard errors."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, in the same unit."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, samples: Tensor) -> "Estimate":
        """Returns the estimate of the mean of independent samples, ``(N,)``."""
        error = samples.std() / len(samples) ** 0.5 if len(samples) > 1 else torch.tensor(torch.nan)
        return cls(float(samples.mean()), float(error))

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.standard_error:.2g}"
