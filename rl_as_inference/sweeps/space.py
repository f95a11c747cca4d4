"""What a sweep goes through: options and the values that each takes, in turn or by chance."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from rl_as_inference.option_names import typed

__all__ = ["Axis", "Range", "Value", "Values", "axis_of", "draw", "grid", "named", "read_set", "written"]

Value: TypeAlias = bool | int | float | str
"""Of an option, as plain data holds it; widths of layers are the word ``"64,64"``."""
Values: TypeAlias = Mapping[str, Value]
"""A configuration: values by the options' names."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")
_LONGEST = 80
"""Signs of a run's name, of which the rest is told by its hash."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both possible, for ``search="random"`` and ``"optuna"``.

    Whole numbers if both ends are; uniform, or uniform in the logarithm.

    Example:
        >>> Range(1e-4, 1e-2, log=True)
        Range(low=0.0001, high=0.01, log=True)
        >>> Range(8, 4)
        Traceback (most recent call last):
        ValueError: a range goes from the lesser number to the larger one, got 8..4
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range goes from the lesser number to the larger one, got {self.low}..{self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a range in the logarithm is of numbers > 0, got {self.low}..{self.high}:log")

    @property
    def is_whole(self) -> bool:
        """Whether it is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


Axis: TypeAlias = tuple[Value, ...] | Range
"""The values that an option takes."""


def read_set(text: str) -> tuple[str, Axis]:
    """Returns the option and the values of ``key=v1,v2`` or ``key=low..high[:log]``; commas in parentheses do not part.

    Raises:
        ValueError: for anything else.

    Example:
        >>> read_set("learning_rate=1e-3,3e-4")
        ('learning_rate', (0.001, 0.0003))
        >>> read_set("hidden-sizes=(64,64),256")
        ('hidden_sizes', ('64,64', 256))
        >>> read_set("temperature=0.01..1:log")
        ('temperature', Range(low=0.01, high=1, log=True))
    """
    key, equals, rest = text.partition("=")
    name = key.strip().strip("-").replace("-", "_")
    if not equals or not name or not rest.strip():
        raise ValueError(f"--set must be an option and its values, as learning_rate=1e-3,3e-4; got {text!r}")
    try:
        if found := _RANGE.fullmatch(rest.strip()):
            low, high = typed(found[1]), typed(found[2])
            return name, Range(low, high, log=found[3] is not None)
        return name, axis_of([typed(_bare(word, text)) for word in _parted(rest)])
    except ValueError as error:
        told = str(error).removeprefix("--set ")
        raise ValueError(f"--set {name}: {told}") from None


def axis_of(values: Any) -> Axis:
    """Returns a range, or values as plain data: a sequence among them is the widths of layers.

    Raises:
        ValueError: if it is neither, empty, or says a value twice.
    """
    if isinstance(values, Range):
        return values
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        values = [values]
    found = tuple(_plain(value) for value in values)
    if not found:
        raise ValueError("there must be a value at least, got none")
    words = [written(value) for value in found]  # by which commands read them, and folders are named
    twice = [word for index, word in enumerate(words) if word in words[:index]]
    if twice:
        raise ValueError(f"says {twice[0]} twice; widths of several layers go in parentheses, (64,64)")
    return found


def written(value: Value) -> str:
    """Returns a value as a command line says it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def grid(axes: Mapping[str, Axis]) -> list[dict[str, Value]]:
    """Returns every combination of the values; the last option changes first."""
    lists = [axis for axis in axes.values() if not isinstance(axis, Range)]
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*lists)]


def draw(axes: Mapping[str, Axis], count: int) -> list[dict[str, Value]]:
    """Returns ``count`` combinations drawn at random, the same ones every time, and the first of them of any count.

    Fewer where there are no more, or none came in a hundred draws that was not there already.

    Example:
        >>> draw({"discount": (0.9, 0.99), "steps": Range(10, 20)}, 2)
        [{'discount': 0.99, 'steps': 17}, {'discount': 0.99, 'steps': 12}]
    """
    found: dict[str, dict[str, Value]] = {}
    draws = np.random.default_rng(0)
    missed = 0
    while len(found) < count and missed < 100:
        values = {name: _drawn(axis, draws) for name, axis in axes.items()}
        missed = missed + 1 if named(values) in found else 0
        found.setdefault(named(values), values)
    return list(found.values())


def named(values: Values) -> str:
    """Returns a name for a configuration that a folder can have."""
    full = ",".join(f"{name}={written(value)}" for name, value in values.items())
    plain = re.sub(r"[^A-Za-z0-9_=,.+-]+", "-", full).strip(".-")[:_LONGEST] or "as-it-is"
    if plain == full or not values:
        return plain
    return f"{plain}-{hashlib.sha256(json.dumps(dict(values)).encode()).hexdigest()[:6]}"


def _drawn(axis: Axis, draws: np.random.Generator) -> Value:
    if not isinstance(axis, Range):
        return axis[int(draws.integers(len(axis)))]
    low, high = float(axis.low), float(axis.high)
    if axis.is_whole:
        if not axis.log:
            return int(draws.integers(int(low), int(high) + 1))
        return min(int(high), int(math.exp(draws.uniform(math.log(low), math.log(high + 1)))))
    value = math.exp(draws.uniform(math.log(low), math.log(high))) if axis.log else draws.uniform(low, high)
    return float(f"{min(max(value, low), high):.6g}")


def _plain(value: Any) -> Value:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"values must be finite numbers, got {value}")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(str(_plain(each)) for each in value)
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"values must be numbers, truth values, words, or widths of layers; got {value!r:.80}")
    return value


def _parted(text: str) -> Iterator[str]:
    depth, word = 0, ""
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            yield word
            word = ""
        else:
            word += sign
    yield word


def _bare(word: str, text: str) -> str:
    bare = word.strip()
    if bare[:1] in ("(", "[") and bare[-1:] in (")", "]"):
        bare = bare[1:-1].replace(" ", "")
    if not bare or set("()[]") & set(bare):
        raise ValueError(f"must be values between commas, got {text.partition('=')[2]!r}")
    return bare
