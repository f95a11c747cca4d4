"""Monte Carlo estimates with their standard errors."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rl_as_inference.distributed import ALONE, Ranks

__all__ = ["Estimate", "plus_minus"]


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
        return f"{self.mean:.4g} {plus_minus(self.standard_error, self.mean)}".rstrip()


def plus_minus(error: float | None, *terms: float | None, draws: int = 4096, digits: int = 2) -> str:
    """Returns ``± 0.031`` for people; nothing where there is no standard error, or it is rounding and no luck.

    A float32 has seven digits, and sums over steps lose about one: where single draws differ by a millionth of the
    largest term, that says how numbers are added, and not how far their mean is from the truth.

    Args:
        error: the standard error; None or not finite where there is none.
        terms: the value that it is of, and what else that is a sum of.
        draws: how many it is of; as many as readings take by default, where nobody knows.
        digits: significant ones.

    Example:
        >>> plus_minus(0.0312, 27.73), plus_minus(7.7e-8, 27.73), plus_minus(7.7e-8, 1e-7)
        ('± 0.031', '', '± 7.7e-08')
    """
    scale = max((abs(term) for term in terms if term is not None and math.isfinite(term)), default=0.0)
    rounding = 8 * torch.finfo(torch.float32).eps * scale / draws**0.5
    if error is None or not math.isfinite(error) or error <= rounding:
        return ""
    return f"± {error:.{digits}g}"
