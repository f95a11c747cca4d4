"""Checks of numbers that many rooms take, with one message each; and how to put off those that look at values."""

import contextlib
import math
import operator
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.turns import turn

__all__ = [
    "all_hold",
    "below_infinity",
    "check_at_least",
    "check_count",
    "check_discount",
    "check_horizon",
    "check_positive",
    "check_share",
    "check_temperature",
    "deferred",
    "has_no_nan",
    "holds",
    "is_deferred",
    "unvalidated",
]

_NOTED: ContextVar[list[Tensor] | None] = ContextVar("noted", default=None)


@contextlib.contextmanager
def deferred() -> Iterator[list[Tensor]]:
    """Takes all conditions that :func:`holds` is asked for true, and notes them in the list, each a bool tensor ``()``.

    Under ``torch.func.vmap`` one tensor stands for many rows, and whether it fulfils a condition has no one
    answer; nor does ``requires_grad`` tell whether it depends on what is batched. So within it nothing looks at
    values, and everything is differentiable. Whoever batches a computation looks at the list afterwards.

    Example:
        >>> with deferred() as conditions:
        ...     check_temperature(torch.tensor(-1.0))
        >>> conditions
        [tensor(False)]
    """
    conditions: list[Tensor] = []
    token = _NOTED.set(conditions)
    try:
        yield conditions
    finally:
        _NOTED.reset(token)


def is_deferred() -> bool:
    """Returns whether conditions on values are being put off."""
    return _NOTED.get() is not None


def holds(condition: Tensor) -> bool:
    """Returns whether a condition on values is true everywhere; within :func:`deferred`, True after noting it."""
    noted = _NOTED.get()
    if noted is None:
        return bool(condition.all())
    noted.append(condition.all())
    return True


def has_no_nan(values: Tensor) -> bool:
    """Returns whether no value is NaN; within :func:`deferred`, True after noting it."""
    # A sum is NaN if one of its terms is, and takes a third of the time of looking at each.
    return (_NOTED.get() is None and not bool(values.sum().isnan())) or holds(~values.isnan())


def below_infinity(values: Tensor) -> bool:
    """Returns whether no value is NaN or +∞; within :func:`deferred`, True after noting it."""
    return (_NOTED.get() is None and bool(values.sum() < math.inf)) or holds(values < math.inf)


def all_hold(conditions: Sequence[Tensor]) -> Tensor:
    """Returns whether all of the noted conditions are true, bool ``()``, on the host."""
    return torch.stack([torch.ones((), dtype=torch.bool), *(condition.cpu() for condition in conditions)]).all()


def _scalar(value: Any) -> Tensor | None:
    """Returns the value as a tensor if it is a single real number, and no bool; else None."""
    if isinstance(value, bool):
        return None
    try:
        # A number of Python's own has double precision, and its range.
        tensor = torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    except (TypeError, ValueError, RuntimeError):
        return None
    return tensor if tensor.dim() == 0 and not tensor.is_complex() else None


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises ValueError unless the value is an integer, not below ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def check_at_least(name: str, value: Any, least: int = 1) -> None:
    """Raises ValueError unless the value is an integer, and not below ``least``: it says which is wrong."""
    check_count(name, value, least if isinstance(value, bool) or not isinstance(value, Integral) else int(value))
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")


def check_share(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {value!r}")


def check_temperature(temperature: float | Tensor, name: str = "temperature") -> None:
    """Raises ValueError unless the temperature is a positive, finite number."""
    value = _scalar(temperature)
    if value is None or not holds((value > 0) & value.isfinite()):
        raise ValueError(f"{name} must be a finite number > 0 (reward units per nat), got {temperature!r}")


def check_discount(discount: float | Tensor) -> None:
    """Raises ValueError unless the discount is a number in [0, 1]."""
    value = _scalar(discount)
    if value is None or not holds((value >= 0) & (value <= 1)):
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


@contextlib.contextmanager
def unvalidated() -> Iterator[None]:
    """Skips argument checks of distributions: in an inner loop they cost more than the draws.

    They are switched for the process (a policy makes its distributions without asking), so that it is a turn.
    """
    with turn:
        default = torch.distributions.Distribution._validate_args
        try:  # a signal may come as soon as they are off
            torch.distributions.Distribution.set_default_validate_args(False)
            yield
        finally:
            torch.distributions.Distribution.set_default_validate_args(default)
