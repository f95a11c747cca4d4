"""Finding the problem that a user names: a model, a Gymnasium id, or a Python file."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from inspect import Parameter
from typing import Any, NamedTuple

import gymnasium
import torch
from gymnasium.envs.registration import load_env_creator

from rl_as_inference import models
from rl_as_inference.environments import MODELS
from rl_as_inference.nouns import EnvironmentLike, Process, is_process
from rl_as_inference.option_names import check_options
from rl_as_inference.problem_files import EnvironmentFactory, call, one_line, problem_in_file
from rl_as_inference.processes import GymnasiumProcess, MarkovDecisionProcess, TabularMDP
from rl_as_inference.processes.programs import as_process
from rl_as_inference.records import path_of

__all__ = ["NamedEnvironment", "is_gymnasium_id", "load_environment", "load_problem"]


class NamedEnvironment(NamedTuple):
    """What a learner is made with."""

    env: EnvironmentLike
    env_kwargs: dict[str, Any]
    """For ``gymnasium.make``, with an id."""


def load_problem(
    problem: str,
    options: dict[str, Any],
    *,
    horizon: int | None = None,
    discount: float | None = None,
    temperature: float | None = None,
    own: Sequence[str] = (),
) -> Process:
    """Returns the process that ``problem`` names, on which a guide can be trained.

    Args:
        problem: the name of a model (``corridor``), a Gymnasium id (``FrozenLake-v1``; that of a model is the model
            itself), or a Python file (``lake.py``, or ``lake.py:name``) that defines ``problem``: a process, a Pyro
            program, or a function that returns one.
        options: arguments of the model's factory, of ``gymnasium.make``, or of the file's function.
        horizon, discount, temperature: set where given; a Gymnasium environment's horizon is its
            time limit otherwise.
        own: names of other options, which a misspelt one may have meant.

    Raises:
        ValueError: with one line that names the problem and the cause.
    """
    problem = MODELS.get(problem, problem)
    common = {"horizon": horizon, "discount": discount, "temperature": temperature}
    given: dict[str, Any] = {name: value for name, value in common.items() if value is not None}
    if is_gymnasium_id(problem):  # if it is none, Gymnasium says what is wrong; it knows similar names
        _check_make_options(problem, options, own)
        given.setdefault("horizon", gymnasium.spec(problem).max_episode_steps)
        try:
            return TabularMDP.from_gymnasium(problem, **given, **options)
        except ValueError as error:
            about, colon, told = str(error).partition(": ")
            if about != "env_id" or not colon:
                raise
            mend = f"; learn on it with rlai train {problem}" if "has no transition table" in told else ""
            raise ValueError(f"PROBLEM: {told}{mend}") from error
    found = _found(problem, {**options, **given}, own)
    if isinstance(found, EnvironmentFactory):
        raise ValueError(
            f"PROBLEM: {problem} is a Gymnasium environment, which can be stepped and nothing more: no guide can be "
            f"trained on it without its densities; learn on it with rlai train {problem} --out RUN, and rlai inspect "
            f"RUN compares what was learned"
        )
    process: Process = as_process(found)
    if (path := path_of(problem)) is not None:
        process.name = problem.partition(":")[2] or path.stem
        try:  # a first look, so that what is wrong with the file is said in one line
            process.rollout(None, 2)
        except Exception as error:
            raise ValueError(f"PROBLEM: {path}: cannot be run: {one_line(error, path)}") from error
    return process


def load_environment(problem: str, options: dict[str, Any], *, own: Sequence[str] = ()) -> NamedEnvironment:
    """Returns the environment that ``problem`` names, in which a learner can learn.

    Args:
        problem: as in :func:`load_problem`; the file may define a Gymnasium environment, or a function that returns
            one.
        options: likewise.
        own: likewise.

    Raises:
        ValueError: with one line that names the problem and the cause.
    """
    if is_gymnasium_id(problem):
        _check_make_options(problem, options, own)
        return NamedEnvironment(problem, options)
    found = _found(problem, options, own)
    if isinstance(found, EnvironmentFactory):
        return NamedEnvironment(found, {})
    if not isinstance(found, MarkovDecisionProcess | GymnasiumProcess):
        what = "a process that cannot be stepped" if is_process(found) else "a Pyro program"
        raise ValueError(
            f"PROBLEM: {problem} is {what}, which runs whole trajectories and has no steps to learn from; give it in "
            f"parts (a MarkovDecisionProcess) or as a Gymnasium environment, or train a guide on it with rlai fit"
        )
    if (path := path_of(problem)) is not None:
        found.name = problem.partition(":")[2] or path.stem
    return NamedEnvironment(found, {})


def is_gymnasium_id(problem: str) -> bool:
    """Returns whether ``problem`` names an environment of Gymnasium, or looks as if it did."""
    if path_of(problem) is not None or problem in models.__all__:
        return False
    return problem in gymnasium.registry or "-v" in problem or "/" in problem


def _found(problem: str, options: dict[str, Any], own: Sequence[str]) -> Any:
    """Returns the process, the Pyro program or the :class:`EnvironmentFactory` that a model or a file is."""
    options = {name: _dtype(value) if name == "dtype" else value for name, value in options.items()}
    if (path := path_of(problem)) is not None:
        return problem_in_file(path, problem.partition(":")[2] or "problem", options, own)
    if problem in models.__all__:
        return call(getattr(models, problem), options, problem, own=own)
    close = difflib.get_close_matches(problem, models.__all__, 1)
    raise ValueError(
        f"PROBLEM: {problem!r} is neither a model ({', '.join(models.__all__)}), nor a Gymnasium id such as "
        f"FrozenLake-v1, nor a path to a Python file{f'; did you mean {close[0]}?' if close else ''}"
    )


def _check_make_options(env_id: str, options: dict[str, Any], own: Sequence[str]) -> None:
    """Raises ValueError if there is no such environment, or it takes no such option."""
    try:
        spec = gymnasium.spec(env_id)
        entry = spec.entry_point
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
    except (gymnasium.error.Error, ImportError, AttributeError) as error:
        raise ValueError(f"PROBLEM: {env_id!r}: {error}") from error
    made_by = [*_parameters(gymnasium.make, "id", "kwargs"), *_parameters(creator)]
    check_options(options, made_by, env_id, own)


def _parameters(function: Any, *without: str) -> list[Parameter]:
    return [each for name, each in inspect.signature(function).parameters.items() if name not in without]


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"--dtype must be one of torch's, such as float32 or float64; got {name!r}")
    return found
