"""Finding the problem that a user names on the command line."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import torch

from rl_as_inference import models
from rl_as_inference.processes import TabularMDP
from rl_as_inference.processes.programs import as_process

__all__ = ["is_gymnasium_id", "load_problem", "parse_options", "path_of"]


def parse_options(words: list[str]) -> dict[str, Any]:
    """Returns ``--map-name 8x8 --no-is-slippery`` as ``{"map_name": "8x8", "is_slippery": False}``.

    Values become integers, floats or booleans where they look like them. ``--name=value`` is the
    same; ``--name`` alone is true, ``--no-name`` false.

    Raises:
        ValueError: for a word that is not an option.
    """
    options: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise ValueError(f"unexpected argument {word!r}; options of the problem look like --name value")
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if equals:
            options[name] = _value(value)
        elif rest and not rest[0].startswith("--"):
            options[name] = _value(rest.pop(0))
        elif name.startswith("no_"):
            options[name[3:]] = False
        else:
            options[name] = True
    return options


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"--dtype must be one of torch's, such as float32 or float64; got {name!r}")
    return found


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def path_of(problem: str) -> Path | None:
    """Returns the Python file that ``problem`` names (``lake.py``, ``lake.py:name``); None if it names none."""
    path = problem.partition(":")[0]
    return Path(path) if path.endswith(".py") or ("/" in path and Path(path).exists()) else None


def is_gymnasium_id(problem: str) -> bool:
    """Whether ``problem`` names an environment of Gymnasium, or looks as if it did."""
    if path_of(problem) is not None or problem in models.__all__:
        return False
    return problem in gymnasium.registry or "-v" in problem or "/" in problem


def load_problem(
    problem: str,
    options: dict[str, Any],
    *,
    horizon: int | None = None,
    discount: float | None = None,
    temperature: float | None = None,
) -> Any:
    """Returns the process or program that ``problem`` names.

    Args:
        problem: the name of a model (``corridor``), a Gymnasium id (``FrozenLake-v1``), or a Python
            file (``lake.py``, or ``lake.py:name``) that defines ``problem``: a process, a Pyro
            program, or a function that returns one.
        options: arguments of the model's factory, of ``gymnasium.make``, or of the file's function.
        horizon, discount, temperature: set where given; a Gymnasium environment's horizon is its
            time limit otherwise.

    Raises:
        ValueError: with one line that names the problem and the cause.
    """
    options = {name: _dtype(value) if name == "dtype" else value for name, value in options.items()}
    common = {"horizon": horizon, "discount": discount, "temperature": temperature}
    given = {name: value for name, value in common.items() if value is not None}
    if (path := path_of(problem)) is not None:
        attribute = problem.partition(":")[2]
        found = as_process(_from_file(path, attribute or "problem", {**options, **given}))
        found.name = attribute or path.stem
        try:  # a first look, so that what is wrong with the file is said in one line
            found.rollout(None, 2)
        except Exception as error:
            raise ValueError(f"PROBLEM: {path}: cannot be run: {_one_line(error, path)}") from error
        return found
    if problem in models.__all__:
        return _call(getattr(models, problem), {**options, **given}, problem)
    if is_gymnasium_id(problem):  # if it is none, Gymnasium says what is wrong; it knows similar names
        return _from_gymnasium(problem, options, given)
    raise ValueError(
        f"PROBLEM: {problem!r} is neither a model ({', '.join(models.__all__)}), nor a Gymnasium id such as "
        f"FrozenLake-v1, nor a path to a Python file"
    )


def _from_gymnasium(env_id: str, options: dict[str, Any], given: dict[str, Any]) -> TabularMDP:
    try:
        limit = gymnasium.spec(env_id).max_episode_steps
    except gymnasium.error.Error as error:
        raise ValueError(f"PROBLEM: {env_id!r}: {error}") from error
    return TabularMDP.from_gymnasium(env_id, **{"horizon": limit, **given}, **options)


def _from_file(path: Path, attribute: str, options: dict[str, Any]) -> Any:
    if not path.is_file():
        raise ValueError(f"PROBLEM: there is no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # as `python FILE` does, so that it finds its neighbours
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        raise ValueError(f"PROBLEM: {path}: the file exits on import (code {error.code})") from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ValueError(f"PROBLEM: {path}: cannot be imported: {_one_line(error, path)}") from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, attribute):
        raise ValueError(
            f"PROBLEM: {path}: defines no {attribute!r}; give it a process, a Pyro program, or a function that "
            f"returns one, under that name (or say FILE:NAME)"
        )
    found = getattr(module, attribute)
    if hasattr(found, "rollout") and not isinstance(found, type):
        if options:
            raise ValueError(
                f"PROBLEM: {path}: {attribute!r} is a process already and takes no options ({', '.join(options)}); "
                f"make it a function of them"
            )
        return found
    if not callable(found):
        raise ValueError(
            f"PROBLEM: {path}: {attribute!r} is {type(found).__name__}, neither a process, nor a Pyro program, nor a "
            f"function that returns one"
        )
    if isinstance(found, type) or inspect.signature(found).parameters or _makes_a_problem(found, path):
        return _call(found, options, f"{path}:{attribute}", path)
    if options:
        raise ValueError(f"PROBLEM: {path}: {attribute!r} takes no options ({', '.join(options)})")
    return found


def _makes_a_problem(function: Callable[[], Any], path: Path) -> bool:
    """Whether a function without arguments returns a problem, and is not itself a Pyro program."""
    import pyro

    try:
        with pyro.poutine.block():
            answer = function()
    except Exception as error:
        raise ValueError(f"PROBLEM: {path}: {function.__name__}() failed: {_one_line(error, path)}") from error
    return hasattr(answer, "rollout") or (callable(answer) and not hasattr(answer, "shape"))


def _call(factory: Callable[..., Any], options: dict[str, Any], name: str, path: Path | None = None) -> Any:
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [option for option in options if option not in parameters and not takes_any]
    if unknown:
        flags = ", ".join("--" + option.replace("_", "-") for option in unknown)
        known = ", ".join("--" + option.replace("_", "-") for option in parameters) or "none"
        raise ValueError(f"{flags}: not an option of {name}; it takes {known}")
    try:
        made = factory(**options)
    except ValueError as error:
        raise ValueError(str(error) if path is None else f"PROBLEM: {name}: {error}") from error
    except Exception as error:  # whatever the user's function raises
        raise ValueError(f"PROBLEM: {name}: {_one_line(error, path or Path())}") from error
    if not hasattr(made, "rollout") and not callable(made):
        raise ValueError(f"PROBLEM: {name} returned {type(made).__name__}, neither a process nor a Pyro program")
    return made


def _one_line(error: BaseException, path: Path) -> str:
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
