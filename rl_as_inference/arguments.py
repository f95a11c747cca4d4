"""The door of public functions: arguments are held to the types that the signature says, and refused by name."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import operator
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Complex, Real
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, Union, cast, get_args, get_origin

import numpy as np
import torch
from torch import Tensor

from rl_as_inference.checks import check_discount, check_horizon, check_temperature, is_deferred

__all__ = ["checked", "checked_but", "standing_for", "still_wanted", "takes"]

P = ParamSpec("P")
R = TypeVar("R")

_BOOLS = (bool, np.bool_)
_NO_INDEX = (bool, np.bool_, Tensor, np.ndarray)

_LAST_SEED = 2**63 - 1
"""PyTorch takes no larger one."""


Check = Callable[[str, Any], object]
"""``(name, value)``: raises ValueError for a value that may not be."""


class _Kind(NamedTuple):
    """What an argument may be."""

    words: str
    holds: Callable[[Any], bool]


def checked_but(*own: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns :func:`checked` that leaves some arguments to the function, which says better what they must be."""
    return lambda function: _door(function, own)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Returns the function with its arguments held to their annotations whenever it is called.

    One place for the mistakes of all: an annotation says what an argument may be, and what is none of it raises a
    ValueError that names the argument and what it must be. ``int`` takes whatever Python takes for an index, but no
    bool; ``float`` a finite real number; a tensor real numbers; a name that ends in ``seed`` integers from 0 on. What
    an annotation cannot say (ranges, shapes) is left to the function, and what it does not say (``Any``) is not held.

    It costs a microsecond or two an argument, so that it stands before what users call, not inside of loops.

    Example:
        >>> @checked
        ... def walk(num_steps: int, temperature: float | Tensor = 1.0, method: Literal["exact", "smc"] = "exact"):
        ...     return num_steps
        >>> walk(3)
        3
        >>> walk(True)
        Traceback (most recent call last):
        ValueError: num_steps must be an integer, got True
        >>> walk(3, method="ecxact")
        Traceback (most recent call last):
        ValueError: method must be one of exact, smc; got 'ecxact'
    """
    return _door(function)


def _door(function: Callable[P, R], own: Sequence[str] = ()) -> Callable[P, R]:
    parameters = list(inspect.signature(function).parameters.values())
    by_place = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    checks: dict[str, Check] = {}
    ready: list[bool] = []  # from the first call on: an annotation may name what is imported later
    read, without = _read, {*own, *_TOLD_ELSEWHERE}
    plain = _plain

    def door(*args: P.args, **kwargs: P.kwargs) -> R:
        if not ready:  # two threads may both read them, to the same end
            checks.update(read(parameters, function, without))
            ready.append(True)
        for name, value in (*zip(by_place, args), *kwargs.items()):  # noqa: B905 - Python itself tells of too many
            check = checks.get(name)
            if check is not None:
                check(name, value)
        given: Any = [plain(value) for value in args]
        return function(*given, **{name: plain(value) for name, value in kwargs.items()})

    return standing_for(function, door)


def standing_for(function: Callable[P, R], wrapper: Any) -> Callable[P, R]:
    """Returns the wrapper as a function of the module that the wrapped one is of.

    Doctest looks for examples in such alone. The wrapper may name what is in its closure, and no globals.
    """
    own = getattr(inspect.unwrap(function), "__globals__", wrapper.__globals__)
    twin = types.FunctionType(wrapper.__code__, own, wrapper.__name__, None, wrapper.__closure__)
    return cast("Callable[P, R]", functools.update_wrapper(twin, function))


def still_wanted(function: Callable[..., Any], num_given: int = 0, names: Iterable[str] = ()) -> list[str]:
    """Returns the names of the arguments that a call must have beside so many in their places, and some by name.

    Of what has no signature, as some of C's functions, none are known.

    Example:
        >>> still_wanted(lambda state, t, noise=0.0: None), still_wanted(lambda state, t: None, 1)
        (['state', 't'], ['t'])
    """
    if (signature := _signature(function)) is None:
        return []
    by_place = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [p.name for p in by_place[num_given:] if p.default is p.empty and p.name not in names]


def takes(function: Callable[..., Any], count: int) -> bool:
    """Returns whether a call may have so many arguments in their places and no others, or it is not known.

    Example:
        >>> takes(lambda state, t: None, 2), takes(lambda: None, 2), takes(max, 2)
        (True, False, True)
    """
    if (signature := _signature(function)) is None:
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    called = function
    if isinstance(function, torch.nn.Module) and type(function).__call__ is torch.nn.Module.__call__:
        if function._forward_pre_hooks:  # which may give others
            return None
        called = function.forward  # the module's own says *args
    try:
        return inspect.signature(called, follow_wrapped=False)  # a wrapper may give some
    except (TypeError, ValueError):
        return None


def _read(parameters: Sequence[inspect.Parameter], function: Any, without: set[str]) -> dict[str, Check]:
    """Returns the checks of arguments by name."""
    checks: dict[str, Check] = {}
    for parameter in parameters:
        name, annotation = parameter.name, parameter.annotation
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if annotation is parameter.empty or name in without:
            continue
        if isinstance(annotation, str):
            with contextlib.suppress(NameError, AttributeError):  # what only type checkers import
                annotation = eval(annotation, inspect.unwrap(function).__globals__)
        kind = _named(annotation) if isinstance(annotation, str) else _kind_of(annotation)
        if kind is None:
            continue
        parts = (annotation, *get_args(annotation))
        further = next(
            (check for (end, type_), check in _RANGES.items() if name.endswith(end) and type_ in parts), None
        )
        checks[name] = _check_of(kind, further, optional=type(None) in parts)
    return checks


def _check_of(kind: _Kind, further: Check | None, *, optional: bool) -> Check:
    def check(name: str, value: Any) -> None:
        if not kind.holds(value):
            if isinstance(value, Tensor | np.ndarray):
                shown = f"{value.dtype} of shape {tuple(value.shape)}"
            else:
                shown = f"{value!r:.80}"
                shown = type(value).__name__ if " object at 0x" in shown else shown
            if kind.words == "a process" and inspect.isfunction(value):
                shown = f"{shown}; if that is a Pyro program: estimate_elbo, fit, compare and posterior take programs"
            raise ValueError(
                f"{name} must be {kind.words}{';' if kind.words.startswith('one of') else ','} got {shown}"
            )

    def check_range(name: str, value: Any) -> None:
        if value is None and optional:
            return
        assert further is not None
        further(name, value)
        if value is None:  # no horizon, where there must be one
            check(name, value)

    return check if further is None else check_range


def _seed(name: str, value: Any) -> None:
    if not _is_integer(value) or not 0 <= int(value) <= _LAST_SEED:
        raise ValueError(f"{name} must be an integer from 0 to 2**63 - 1, got {value!r:.80}")


_RANGES: dict[tuple[str, Any], Check] = {
    ("temperature", float): lambda name, value: check_temperature(value, name),
    ("discount", float): lambda name, value: check_discount(value),
    ("horizon", int): lambda name, value: check_horizon(value),
    ("seed", int): _seed,
}
"""Checks of arguments that mean the same wherever they have this name and this type."""

_TOLD_ELSEWHERE = ("env", "env_id")
"""Arguments that may be so much that what takes them says it better."""


def _kind_of(annotation: Any) -> _Kind | None:
    """Returns what an annotation allows; None where it allows anything, or what cannot be told."""
    if annotation is None or annotation is type(None):
        return _Kind("None", lambda value: value is None)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is np.ndarray:
        return _PLAIN[np.ndarray]
    if origin in (Union, types.UnionType):
        return _union(parts)
    if origin is Literal:
        words = repr(parts[0]) if len(parts) == 1 else f"one of {', '.join(map(str, parts))}"
        return _Kind(words, lambda value: _among(value, parts))
    if annotation is Callable or origin is Callable:
        return _Kind("a callable", callable)
    if origin is type or annotation is Any or isinstance(annotation, TypeVar):
        return None
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Iterable)):
        return _several(origin, parts)
    if isinstance(origin or annotation, type):
        return _instances(origin or annotation)
    return None


def _union(parts: tuple[Any, ...]) -> _Kind | None:
    for whole, part in ((torch.device, str), (float, Tensor)):  # a device's name, a number's tensor
        if whole in parts:
            parts = tuple(each for each in parts if each is not part)
    kinds = [_kind_of(part) for part in parts]
    if None in kinds:
        return None
    told = [kind for kind in kinds if kind is not None]
    words = list(dict.fromkeys(kind.words for kind in told))
    if words == ["a process", "a callable"]:
        words[1] = "a Pyro program (a callable)"
    comma = "," if any(each.startswith("one of") for each in words) else ""
    said = words[0] if len(words) == 1 else f"{', '.join(words[:-1])}{comma} or {words[-1]}"
    return _Kind(said, lambda value: any(kind.holds(value) for kind in told))


def _several(origin: Any, parts: tuple[Any, ...]) -> _Kind:
    """Returns the kind of what holds several: a tuple of so many, or any number of one kind."""
    if issubclass(origin, Mapping):
        return _Kind("a mapping", lambda value: isinstance(value, Mapping))
    fixed = origin is tuple and ... not in parts
    entries = [_kind_of(part) for part in parts if part is not ...]
    numbers = tuple(parts) in ((float,), (int,), (float, ...), (int, ...))
    allowed = (list, tuple) if origin is tuple else origin

    def holds(value: Any) -> bool:
        if numbers and isinstance(value, Tensor | np.ndarray):
            return value.ndim == 1 and (len(value) == 0 or _entries_hold(value.tolist()))
        if isinstance(value, str | bytes) or not isinstance(value, allowed):
            return False
        if isinstance(value, list | tuple):
            return (not fixed or len(value) == len(parts)) and _entries_hold(value)
        return True  # what may be gone through only once is not looked into

    def _entries_hold(values: Sequence[Any]) -> bool:
        kinds = entries if fixed else entries[:1] * len(values)
        return all(kind is None or kind.holds(value) for kind, value in zip(kinds, values, strict=bool(kinds)))

    each = [kind.words.removeprefix("a ").removeprefix("an ") for kind in entries if kind is not None]
    if fixed:
        return _Kind(
            f"{'a pair' if len(parts) == 2 else len(parts)} of {_plural(each[0])}"
            if each
            else f"a tuple of {len(parts)}",
            holds,
        )
    return _Kind(f"a sequence of {_plural(each[0])}" if each else "a sequence", holds)


def _plural(words: str) -> str:
    head, of, rest = words.partition(" of ")
    return f"{head}s{of}{rest}"


def _instances(kind: type) -> _Kind:
    """Returns the kind of a class's instances, or of what has the methods of a protocol."""
    words = _said(kind.__name__)
    if not getattr(kind, "_is_protocol", False):
        return _Kind(words, lambda value: isinstance(value, kind))
    wanted = [
        name
        for base in kind.__mro__
        for name, member in vars(base).items()
        if inspect.isfunction(member) and (name == "__call__" or not name.startswith("_"))
    ]
    return _Kind(words, lambda value: not isinstance(value, type) and all(hasattr(value, name) for name in wanted))


def _named(annotation: str) -> _Kind | None:
    """Returns the kind of the instances of a class that only type checkers import."""
    name = annotation.rpartition(".")[2]
    if not name.isidentifier():
        return None
    return _Kind(_said(name), lambda value: any(base.__name__ == name for base in type(value).__mro__))


def _said(name: str) -> str:
    return _WORDS.get(name, f"{'an' if name[0] in 'AEIO' else 'a'} {name}")


_WORDS = {
    "PosteriorData": "ArviZ data, as rlai.posterior returns",
    "Policy": "a callable (state, t) -> Distribution",
    "SoftV": "a callable (state, t) -> V",
    "SoftQ": "a callable (state, t) -> Q",
    "Process": "a process",
    "Space": "a gymnasium space such as Discrete(4)",
    "Module": "a torch.nn.Module",
}
"""What a user may take a class for."""


def _plain(value: Any) -> Any:
    """Returns NumPy's integers and words as Python's own, which JSON and others ask for; all else as it is."""
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.str_):
        return str(value)
    if type(value) is tuple and any(isinstance(each, np.integer) for each in value):
        return tuple(map(_plain, value))
    return value


def _among(value: Any, words: tuple[Any, ...]) -> bool:
    return any(
        isinstance(value, type(word)) and isinstance(value, bool) == isinstance(word, bool) and value == word
        for word in words
    )


def _is_integer(value: Any) -> bool:
    if type(value) is int:
        return True
    if isinstance(value, _NO_INDEX):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim > 0 or not _is_real(value):
            return False
        return is_deferred() or bool(torch.as_tensor(value).isfinite())
    if isinstance(value, _BOOLS) or not isinstance(value, Real):
        return False
    return math.isfinite(float(value))


def _is_real(value: Any) -> bool:
    """Returns whether a value is a tensor, an array or nested lists, of real numbers."""
    if isinstance(value, Tensor):
        return not value.is_complex()
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return isinstance(value, list | tuple) and all(isinstance(each, Real) or _is_real(each) for each in value)


def _is_device(value: Any) -> bool:
    if isinstance(value, Complex):
        return False
    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError, TypeError, ValueError):
        return False
    return value is not None


_PLAIN: dict[Any, _Kind] = {
    int: _Kind("an integer", _is_integer),
    float: _Kind("a finite number", _is_number),
    bool: _Kind("True or False", lambda value: isinstance(value, _BOOLS)),
    str: _Kind("a string", lambda value: isinstance(value, str)),
    np.ndarray: _Kind("an array of real numbers", lambda value: isinstance(value, np.ndarray) and _is_real(value)),
    Tensor: _Kind("a tensor of real numbers", _is_real),
    torch.dtype: _Kind(
        "a floating-point type, such as torch.float64",
        lambda value: isinstance(value, torch.dtype) and value.is_floating_point,
    ),
    torch.device: _Kind("a device that there is, such as 'cpu'", _is_device),
}
"""The kinds of annotations that stand for more, or less, than the instances of a class."""
