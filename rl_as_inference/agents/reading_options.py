"""Options as learners, files and the command line read them from their declarations."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from rl_as_inference.agents.option_rows import Check, yes_or_no
from rl_as_inference.agents.options import (
    ARCHITECTURES,
    LearnerOptions,
    ModelBasedOptions,
    MPOOptions,
    SoftActorCriticOptions,
    SoftQLearningOptions,
)

__all__ = ["Option", "all_options", "as_held", "filled", "from_held", "options_of", "takes_options"]


@dataclass(frozen=True)
class Option:
    """One option of a learner."""

    name: str
    type: Any
    """Its annotation, such as ``int`` or ``float | None``."""
    default: Any
    help: str
    """One line, without a full stop."""
    of: str | None
    """``"sac"``, ``"sql"``, ``"mpo"`` or ``"model-based"`` where only that algorithm has it; None where all have."""
    check: Check | None

    @property
    def choices(self) -> tuple[Any, ...]:
        """All the words that it may be; empty for other types."""
        return tuple(word for word in _words(self.type) if word is not None)


_OF: dict[type, str | None] = {
    LearnerOptions: None,
    SoftActorCriticOptions: "sac",
    SoftQLearningOptions: "sql",
    MPOOptions: "mpo",
    ModelBasedOptions: "model-based",
}
"""Whose options these are, as the command line calls the algorithm."""


def options_of(declaration: type) -> tuple[Option, ...]:
    """Returns the options that a learner takes, the common ones first.

    Args:
        declaration: :class:`LearnerOptions`, or one of those that extend it.

    Example:
        >>> [option.name for option in options_of(SoftQLearningOptions) if option.of == "sql"]
        ['double', 'num_critics', 'sampler', 'num_particles', 'num_value_draws']
    """
    common = LearnerOptions.__annotations__
    found = []
    for name, annotation in get_type_hints(declaration, include_extras=True).items():
        kind, row = get_args(annotation)[0], annotation.__metadata__[0]
        check = row.check
        if check is None and (words := _words(kind)):
            check = partial(_check_word, words=words)
        if check is None and kind is bool:
            check = yes_or_no
        found.append(Option(name, kind, row.default, row.help, None if name in common else _OF[declaration], check))
    return tuple(found)


def all_options() -> Iterator[Option]:
    """Yields every option of every algorithm: the common ones, then each algorithm's own."""
    for declaration in _OF:
        yield from (option for option in options_of(declaration) if option.of == _OF[declaration])


Options = TypeVar("Options", bound=LearnerOptions)


def filled(declaration: type[Options], given: Mapping[str, Any], *, by: str = "a learner") -> Options:
    """Returns the options given with the defaults of the others, each checked by itself.

    Args:
        declaration: the options there are.
        given: by name.
        by: who takes them, for messages.

    Raises:
        TypeError: for an option that there is not.
        ValueError: for a value that may not be.
    """
    options = options_of(declaration)
    for name in given.keys() - {option.name for option in options}:
        meant = _meant(name, [option.name for option in options])
        raise TypeError(f"{by} has no option {name!r}" + (f"; did you mean {meant}?" if meant else ""))
    usual = {option.name: option.default for option in options}
    values = {**usual, **_brought_by(given.get("architecture", "plain")), **given}
    for option in options:
        if option.check is not None:
            option.check(option.name, values[option.name])
    return {name: _plain(value) for name, value in values.items()}  # type: ignore[return-value]


def _brought_by(architecture: Any) -> dict[str, Any]:
    """Returns the defaults that an architecture brings; none where there is no such, which its own check tells."""
    return next((defaults for name, defaults in ARCHITECTURES.items() if name == architecture), {})


def _plain(value: Any) -> Any:
    """Returns a number as Python's own, which files hold: NumPy's and tensors are taken too."""
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


Learning = TypeVar("Learning", bound=type)


def takes_options(declaration: type) -> Callable[[Learning], Learning]:
    """Returns a class decorator: the signature and the help say each option with its default and its words."""

    def told(learner: Learning) -> Learning:
        keyword, plain = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        rows = options_of(declaration)
        keywords = [inspect.Parameter(o.name, keyword, default=o.default, annotation=o.type) for o in rows]
        env = inspect.signature(learner.__init__).parameters["env"]  # type: ignore[misc]
        parameters = [inspect.Parameter("env", plain, annotation=env.annotation), *keywords]
        learner.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        # As far in as the word is: from Python 3.13 on docstrings come without the indentation of their place.
        before, indent, after = re.split(r"^( *)OPTIONS\n", learner.__doc__ or "", maxsplit=1, flags=re.MULTILINE)
        learner.__doc__ = "".join([before, *(f"{indent}{option.name}: {option.help}.\n" for option in rows), after])
        return learner

    return told


def _words(kind: Any) -> list[Any]:
    """Returns the words that a type allows, and None among them if it does; empty for other types."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    parts = get_args(kind)
    if len(parts) == 2 and type(None) in parts and (words := _words(parts[0])):
        return [*words, None]
    return []


def _check_word(name: str, value: Any, words: Sequence[Any]) -> None:
    if value not in words:
        shown = ", ".join(word for word in words if word is not None)
        raise ValueError(f"{name} must be one of {shown}; got {value!r}")


def _meant(name: str, names: Sequence[str]) -> str | None:
    """Returns the name that was meant: one much like it, or one that it abbreviates."""
    close = difflib.get_close_matches(name, names, 1)
    short = [each for each in names if "".join(part[0] for part in each.split("_")) == name]
    return next(iter([*close, *short]), None)


def as_held(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as JSON holds them; for a policy of the user's own, which it cannot hold, its class's name."""
    return {name: _held(value) for name, value in options.items()}


def from_held(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options from what :func:`as_held` returned."""
    dtypes = {_held(dtype): dtype for dtype in (torch.float32, torch.float64)}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return {**found, "dtype": dtypes[found["dtype"]]} if found.get("dtype") in dtypes else found


def _held(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return type(value).__name__
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return list(value) if isinstance(value, tuple) else value
