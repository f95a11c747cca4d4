"""Checks of numbers that many rooms take, with one message each."""

import operator
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_discount", "check_horizon", "check_temperature"]


def _scalar(value: Any) -> Tensor | None:
    """Returns the value as a tensor if it is a single number, else None."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return tensor if tensor.dim() == 0 and not tensor.is_complex() else None


def check_temperature(temperature: float | Tensor) -> None:
    """Raises ValueError unless the temperature is a positive, finite number."""
    value = _scalar(temperature)
    if value is None or not bool((value > 0) & value.isfinite()):
        raise ValueError(f"temperature must be a finite number > 0 (reward units per nat), got {temperature!r}")


def check_discount(discount: float | Tensor) -> None:
    """Raises ValueError unless the discount is a number in [0, 1]."""
    value = _scalar(discount)
    if value is None or not bool((value >= 0) & (value <= 1)):
        raise ValueError(f"discount must be in [0, 1], got {discount!r}")


def check_horizon(horizon: Any) -> int | None:
    """Returns the horizon as an integer ≥ 1, or None; raises ValueError for anything else."""
    if horizon is None:
        return None
    try:
        steps = operator.index(horizon)
    except TypeError:
        steps = 0
    if isinstance(horizon, bool) or steps < 1:
        raise ValueError(f"horizon must be an integer >= 1, or None for no horizon, got {horizon!r}")
    return steps
