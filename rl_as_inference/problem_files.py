"""A user's Python file: what stands in it under a name, and in one line what is wrong with it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pyro

from rl_as_inference.nouns import is_process
from rl_as_inference.option_names import check_options

__all__ = ["EnvironmentFactory", "call", "one_line", "problem_in_file"]


def problem_in_file(path: Path, name: str, options: dict[str, Any], own: Sequence[str] = ()) -> Any:
    """Returns the problem that stands in a file under ``name``.

    It may stand there itself, or a function (or class) that returns it, given ``options``.

    Returns:
        a process, a Pyro program, or an :class:`EnvironmentFactory`. For an environment that the file has made, the
        factory runs the file anew for every one but the first.

    Raises:
        ValueError: with one line that names the file, the cause and its line.
    """
    found = _named(_run(path), path, name)
    where = f"{path}:{name}"
    if isinstance(found, gymnasium.Env):
        check_options(options, (), where, own)
        return EnvironmentFactory(_EnvironmentOfFile(path, name, found))
    if is_process(found) and not isinstance(found, type):
        check_options(options, (), f"{where}, which is a process already,", own)
        return found
    if not callable(found):
        raise ValueError(
            f"PROBLEM: {path}: {name!r} is {type(found).__name__}, neither a process nor a Pyro program nor a "
            f"Gymnasium environment, nor a function that returns one"
        )
    if isinstance(found, type) or inspect.signature(found).parameters:
        return call(found, options, where, path, own)
    check_options(options, (), where, own)
    try:
        answer = _silent(found)
    except Exception as error:
        raise ValueError(f"PROBLEM: {path}: {name}() failed: {one_line(error, path)}") from error
    if isinstance(answer, gymnasium.Env) or is_process(answer) or (callable(answer) and not hasattr(answer, "shape")):
        return _settled(answer, found)
    return found  # the function is a Pyro program itself


def call(
    factory: Callable[..., Any], options: dict[str, Any], where: str, path: Path | None = None, own: Sequence[str] = ()
) -> Any:
    """Returns the problem that a factory makes, as :func:`problem_in_file` does.

    Raises:
        ValueError: if it takes no such option, fails, or returns something else; the message begins with the cause.
    """
    check_options(options, inspect.signature(factory).parameters.values(), where, own)
    try:
        made = factory(**options)
    except ValueError as error:
        raise ValueError(str(error) if path is None else f"PROBLEM: {where}: {error}") from error
    except Exception as error:  # whatever the user's function raises
        raise ValueError(f"PROBLEM: {where}: {one_line(error, path or Path())}") from error
    if not isinstance(made, gymnasium.Env) and not is_process(made) and not callable(made):
        raise ValueError(
            f"PROBLEM: {where} returned {type(made).__name__}, neither a process nor a Pyro program nor a Gymnasium "
            f"environment"
        )
    return _settled(made, functools.partial(factory, **options))


class EnvironmentFactory:
    """A function without arguments of which it is known that it makes Gymnasium environments."""

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]]) -> None:
        self.make = make

    def __call__(self) -> gymnasium.Env[Any, Any]:
        return self.make()


class _EnvironmentOfFile:
    """Gives the environment that a file makes when it is run: the first time the one that is there, then new ones."""

    def __init__(self, path: Path, name: str, first: gymnasium.Env[Any, Any]) -> None:
        self.path, self.name = path, name
        self.first: gymnasium.Env[Any, Any] | None = first

    def __call__(self) -> gymnasium.Env[Any, Any]:
        made, self.first = self.first, None
        return _named(_run(self.path), self.path, self.name) if made is None else made


def _settled(made: Any, again: Callable[[], Any]) -> Any:
    """Returns what a function made; where that is an environment, or a factory of them, a factory.

    Args:
        made: what ``again`` returned.
        again: the function.
    """
    if isinstance(made, gymnasium.Env):
        made.close()
        return EnvironmentFactory(again)
    if is_process(made):
        return made
    try:  # a Pyro program or a factory of environments: what it returns tells
        answer = _silent(made)
    except Exception:  # a program in trouble, of which whoever runs it for real tells more
        return made
    if not isinstance(answer, gymnasium.Env):
        return made
    answer.close()
    return EnvironmentFactory(made)


def _silent(function: Callable[[], Any]) -> Any:
    """Returns what a function returns, which may be a Pyro program, of which no handler hears."""
    with pyro.poutine.block():
        return function()


def _run(path: Path) -> ModuleType:
    """Returns the file as a module of its own, run anew."""
    if not path.is_file():
        raise ValueError(f"PROBLEM: there is no file {str(path)!r}")
    # Not the name that `import` would use: a user's random.py must not be taken for Python's.
    module = ModuleType(f"rlai_problem_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for what it defines
    sys.path.insert(0, str(path.resolve().parent))  # as `python FILE` does, so that it finds its neighbours
    try:
        # From the text itself: a cached form is known by its second, and a file may change twice in one.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except SystemExit as error:
        raise ValueError(f"PROBLEM: {path}: the file exits on import (code {error.code})") from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ValueError(f"PROBLEM: {path}: cannot be imported: {one_line(error, path)}") from error
    finally:
        sys.path.pop(0)
    return module


def _named(module: ModuleType, path: Path, name: str) -> Any:
    if not hasattr(module, name):
        raise ValueError(
            f"PROBLEM: {path}: defines no {name!r}; give it a process, a Pyro program, a Gymnasium environment, or a "
            f"function that returns one, under that name (or say FILE:NAME)"
        )
    return getattr(module, name)


def one_line(error: BaseException, path: Path) -> str:
    """Returns the error in one line, with the line of the user's file where it arose."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    traceback = error.__traceback__
    while traceback is not None and line is None:
        if Path(traceback.tb_frame.f_code.co_filename) == path or (
            traceback.tb_frame.f_code.co_filename == str(path.resolve())
        ):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    text = " ".join(f"{type(error).__name__}: {message}".split())
    return text if line is None else f"{text} (line {line})"
