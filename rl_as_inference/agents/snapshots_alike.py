"""What a saved snapshot has, and lacks, beside that of the learner that is to go on from it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_as_inference.checkpoints import outline

__all__ = ["Snapshot", "differences"]

_MAY_BE_MISSING = re.compile(r"random\.[1-9]\d*|companion\.plan\.\d+\.\d+|companion\.\d+\.starts")
"""A GPU's generator, and plans and fitted dynamics that there are not yet."""
_MAY_BE_LEFT = re.compile(
    rf"{_MAY_BE_MISSING.pattern}|env\.actions_\d+"
    r"|replay\.(priorities|priority_sums|largest_priority|priority_updates)"
)
"""And those, of a learner that replays uniformly, or whose environments are in processes."""
_FREE = {
    re.compile(r"env\.actions_\d+"): 0,
    re.compile(r"companion\.(plan\.\d+\.\d+|\d+\.starts)"): 0,
    re.compile(r"(replay|companion\.imagined)\.(rows|priorities|priority_sums)"): 1,
}
"""Which dimension has the length of what was lived so far."""
_NEW = {"reported"}
"""What files of earlier versions lack."""
_ROWS, _NUMBERS = {"history", "episodes"}, {"fitted_at", "log_likelihood", "reached"}
"""Lists that grow; and numbers that may be None."""
_TOLD = 5
"""Differences that a message names."""


class Snapshot(NamedTuple):
    """Everything that a learner goes on from."""

    tensors: Mapping[str, Tensor]
    """Those of a file are read when they are asked for."""
    progress: dict[str, Any]
    """Counts, histories and the environments' own state, as JSON holds them."""


def differences(found: Snapshot, like: Snapshot) -> str:
    """Returns in words what is missing from a snapshot, misshapen or too much; empty if nothing is.

    Args:
        found: from a file.
        like: of a learner made in the same way, at whatever step.
    """
    told = list(islice(_all(found, like), _TOLD + 1))
    return ", ".join([*told[:_TOLD], *(["and more"] if len(told) > _TOLD else [])])


def _all(found: Snapshot, like: Snapshot) -> Iterator[str]:
    outlines = {name: outline(found.tensors, name) for name in found.tensors}  # a replay need not be read for it
    rows, ranks = (outlines.get(f"replay.{name}") for name in ("rows", "priorities"))
    for name in sorted(like.tensors.keys() - found.tensors.keys()):
        if not _MAY_BE_MISSING.fullmatch(name):
            yield f"lacks {name}"
    for name, tensor in sorted(outlines.items()):
        if name in like.tensors:
            emptied = rows is not None and rows.dim() == 3 and not rows.shape[1] and name.startswith("replay.")
            yield from _tensor(name, tensor, like.tensors[name], emptied)
            yield from _content(name, found.tensors)
        elif not _MAY_BE_LEFT.fullmatch(name):
            yield f"has {name}, which this agent has not"
    if rows is not None and ranks is not None and rows.shape[1:2] != ranks.shape[1:2]:
        yield "has another number of replay.priorities than of replay.rows"
    yield from _value("", found.progress, like.progress)


def _tensor(name: str, tensor: Tensor, like: Tensor, emptied: bool) -> Iterator[str]:
    free = next((dim for pattern, dim in _FREE.items() if pattern.fullmatch(name)), None)
    if emptied and tensor.dim() > 1 and not tensor.shape[1]:  # of what was saved without replay
        free = 1
    shape, wanted = list(tensor.shape), list(like.shape)
    if free is not None and len(shape) == len(wanted):
        shape[free] = wanted[free]
    if tensor.dtype != like.dtype or shape != wanted:
        yield (
            f"has {name} of {_kind(tensor)}, wanted {_kind(like)}"
            + ("" if free is None else f" (of any length in dimension {free})")
        )


def _content(name: str, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    if name == "random.0":  # one of a GPU is its own to judge
        try:
            torch.Generator().set_state(tensors[name])
        except (RuntimeError, TypeError) as error:
            yield f"has {name} that is no generator's state ({error})"
    elif name.endswith(".position") and tensors[name].numel() == 1 and not int(tensors[name]) >= 0:
        yield f"has {name} {int(tensors[name])}"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _value(where: str, found: Any, like: Any) -> Iterator[str]:
    """Yields the differences of two values that JSON holds."""
    last = where.rpartition(".")[2]
    if last in _NUMBERS and (found is None or _is_number(found)):
        return
    if last in _ROWS and isinstance(found, list) and "envs" not in where:
        yield from _rows(where, found)
    elif last == "plans" and isinstance(found, dict):
        yield from (f"has {where}.{name} {step!r}" for name, step in found.items() if type(step) is not int)
    elif isinstance(like, dict) and isinstance(found, dict):
        for name in like.keys() - found.keys() - _NEW:
            yield f"lacks {_join(where, name)}"
        for name, value in found.items():
            if name in like:
                yield from _value(_join(where, name), value, like[name])
            elif name not in _NEW:
                yield f"has {_join(where, name)}, which this agent has not"
    elif isinstance(like, list | tuple) and isinstance(found, list):
        if len(found) != len(like):
            yield f"has {len(found)} {where}, wanted {len(like)}"
        for index, pair in enumerate(zip(found, like, strict=False)):
            yield from _value(f"{where}.{index}", *pair)
    elif not _same_kind(found, like):
        yield f"has {where} {found!r}, wanted {_in_words(like)}"
    elif where in ("envs.name", "envs.num_envs") and found != like:
        yield f"has {where} {found!r}, wanted {like!r}"
    elif type(found) is int and found < 0 and last not in ("side",):
        yield f"has {where} {found}"


def _rows(where: str, found: list[Any]) -> Iterator[str]:
    for index, row in enumerate(found):
        if where == "history":
            sound = isinstance(row, dict) and all(map(_is_number, row.values())) and "step" in row
        else:
            sound = isinstance(row, list | tuple) and len(row) == 4 and all(map(_is_number, row))
        if not sound:
            yield f"has {where}.{index} {row!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_kind(found: Any, like: Any) -> bool:
    if isinstance(like, float):
        return _is_number(found) and not math.isnan(found)
    return type(found) is type(like)


def _in_words(like: Any) -> str:
    return "a number" if isinstance(like, float) else "none" if like is None else f"a {type(like).__name__}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
