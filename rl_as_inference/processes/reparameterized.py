"""Draws that gradients go through."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_reparameterized", "reparameterized"]


def reparameterized(distribution: Any, what: str) -> Tensor:
    """Returns a draw by ``rsample``; ValueError names ``what`` has none."""
    check_reparameterized(distribution, what)
    drawn: Tensor = distribution.rsample()
    return drawn


def check_reparameterized(distribution: Any, what: str) -> None:
    """Raises ValueError if a distribution has no ``rsample``."""
    if isinstance(distribution, torch.distributions.Distribution) and not distribution.has_rsample:
        kind = type(distribution).__name__
        raise ValueError(
            f"pathwise gradients need reparameterized draws, but {what} is a {kind}; use the score estimator"
        )
