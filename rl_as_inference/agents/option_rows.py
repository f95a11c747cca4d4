"""What an option may be: the checks of values, and the line of a declaration that names one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch

from rl_as_inference.checks import check_count, check_positive, check_share, check_temperature

__all__ = [
    "SEVERAL",
    "Check",
    "Row",
    "address",
    "below_one",
    "compile",
    "dtype",
    "env_kwargs",
    "function",
    "or_none",
    "share",
    "temperature",
    "yes_or_no",
    "zero_or_positive",
    "zero_or_share",
]

Check = Callable[[str, Any], object]
"""``(name, value)``: raises ValueError for a value that may not be."""


@dataclass(frozen=True)
class Row:
    """An option's default, help and check, beside its name and type."""

    default: Any
    help: str
    check: Check | None = None


def or_none(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


def share(name: str, value: Any) -> None:
    check_positive(name, value)
    if value > 1:
        raise ValueError(f"{name} must be in (0, 1], got {value}")


def below_one(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")


def zero_or_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or value != 0:
        check_positive(name, value)


def yes_or_no(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def address(name: str, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"auto|local|(ray://)?[^\s/]+:\d+", value):
        raise ValueError(f"{name} must be HOST:PORT, ray://HOST:PORT, auto or local, got {value!r}")


def function(name: str, value: Any) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a function (state, action, next_state) -> reward, or None; got {value!r}")


def temperature(name: str, value: Any) -> None:
    if value is None or (isinstance(value, str) and value == "auto"):
        return
    if isinstance(value, str):
        raise ValueError(f"{name} must be 'auto' or a number > 0, got {value!r}")
    check_temperature(value, name)


def dtype(name: str, value: Any) -> None:
    if value not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be torch.float32 or torch.float64, got {value!r}")


def compile(name: str, value: Any) -> None:
    if value not in (True, False, "auto"):
        raise ValueError(f"{name} must be True, False or 'auto', got {value!r}")


def env_kwargs(name: str, value: Any) -> None:
    if not isinstance(value, Mapping | None):
        raise ValueError(f"{name} must be a mapping of options for gymnasium.make, got {value!r}")


zero_or_share: Check = check_share
SEVERAL: Check = partial(check_count, least=2)
