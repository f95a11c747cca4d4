"""What a call leaves behind in the program that makes it: its answer, and nothing else."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import pyro
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from rl_as_inference.arguments import standing_for
from rl_as_inference.imports import put_back_filters
from rl_as_inference.randomness import drawing
from rl_as_inference.turns import turn

__all__ = ["as_found", "in_turn", "levels_to_the_user", "note_registered"]

P = ParamSpec("P")
R = TypeVar("R")

_REGISTERED: ContextVar[dict[str, Tensor] | None] = ContextVar("registered", default=None)


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """Returns the function as one turn of its thread, which leaves the program around it as it was found.

    So is every public function that computes: see :class:`rl_as_inference.turns.Turn` and :func:`as_found`. If it has
    an argument ``seed`` or ``generator``, its random numbers come from there, as :func:`drawing` says; the function
    itself need not look at them.

    Example:
        >>> import torch
        >>> @in_turn
        ... def dice(*, seed=None, generator=None):
        ...     return int(torch.randint(1, 7, ()))
        >>> dice(seed=3) == dice(seed=3)
        True
    """
    names = inspect.signature(function).parameters.keys() & {"seed", "generator"}
    found, drawn = as_found, drawing

    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        sources = {name: kwargs.get(name) for name in names}
        with found(), drawn(**sources):  # type: ignore[arg-type]
            return function(*args, **kwargs)

    return standing_for(function, called)


@contextmanager
def as_found() -> Iterator[None]:
    """Puts back what the calls within it change of the process but need not: it is a turn.

    These are the policies and critics in Pyro's store of parameters, whose modules keep them (what the user's own
    program registers there stays: it learns, or is read, by its name); warning filters and environment variables that
    come with a library that is loaded on the way; and the thread that watches tqdm's bars, which other libraries draw.
    """
    if _REGISTERED.get() is not None and turn.is_ours:  # within another, who will
        yield
        return
    with turn:
        filters, environment, registered = list(warnings.filters), _set_by_libraries(), dict[str, Tensor]()
        monitor, token = tqdm.monitor, _REGISTERED.set(registered)
        try:
            yield
        finally:
            _REGISTERED.reset(token)
            store = pyro.get_param_store()
            for name, value in registered.items():
                if store._params.get(name) is value:
                    del store[name]
            put_back_filters(filters)
            for variable in _set_by_libraries().keys() | environment.keys():
                if variable not in environment:
                    del os.environ[variable]
                elif os.environ.get(variable) != environment[variable]:
                    os.environ[variable] = environment[variable]
            if monitor is None and tqdm.monitor is not None and not tqdm._instances:
                tqdm.monitor.exit()
                tqdm.monitor = None


def note_registered(name: str, value: Tensor) -> None:
    """Notes a parameter of a module that :func:`rl_as_inference.follow` brought into Pyro's store."""
    registered = _REGISTERED.get()
    if registered is not None:
        registered[name] = value


def _set_by_libraries() -> dict[str, str]:
    """Returns the environment variables that are of PyTorch's compilers."""
    ours = ("TORCH", "_TORCH", "TRITON", "PYTORCH")
    return {name: value for name, value in os.environ.items() if name.startswith(ours)}


def levels_to_the_user() -> int:
    """Returns how far up the stack the package was called from, as seen by who asks: ``stacklevel`` of a warning."""
    frame, levels = sys._getframe(1), 1
    inside = ("rl_as_inference", "torch.utils._contextlib")  # whose decorators stand between
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(inside):
        frame, levels = frame.f_back, levels + 1
    return levels
