"""Checks of numbers that many rooms take, with one message each."""

import math
import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_count", "check_discount", "check_horizon", "check_positive", "check_temperature"]


def _scalar(value: Any) -> Tensor | None:
    """Returns the value as a tensor if it is a single number, else None."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return tensor if tensor.dim() == 0 and not tensor.is_complex() else None


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises ValueError unless the value is an integer, not below ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def check_temperature(temperature: float | Tensor, name: str = "temperature") -> None:
    """Raises ValueError unless the temperature is a positive, finite number."""
    value = _scalar(temperature)
    if value is None or not bool((value > 0) & value.isfinite()):
        raise ValueError(f"{name} must be a finite number > 0 (reward units per nat), got {temperature!r}")


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
