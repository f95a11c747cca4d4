"""Whose error it is: ours, which one line tells, or of the user's own code, whose place must be seen."""

import site
import sysconfig
from functools import cache
from pathlib import Path
from types import TracebackType

import rl_as_inference.guides
import rl_as_inference.models
from rl_as_inference.agents.actor import ActorTraceback

__all__ = ["is_of_users_code"]


def is_of_users_code(error: BaseException) -> bool:
    """Returns whether an error arose in the user's code, or in what that called.

    What a frame's file tells: it is neither this package's, nor Python's, nor installed with other packages.
    """
    if isinstance(there := error.__cause__, ActorTraceback) and any(map(_is_users, there.files)):
        return True
    return _passes_users_code(error.__traceback__)


def _passes_users_code(traceback: TracebackType | None) -> bool:
    while traceback is not None:
        if _is_users(traceback.tb_frame.f_code.co_filename):
            return True
        traceback = traceback.tb_next
    return False


@cache
def _is_users(file: str) -> bool:
    path = Path(file)
    if file.startswith("<") or (not path.is_absolute() and not path.is_file()):  # made by dataclasses, or compiled
        return False
    path = path.resolve()
    return not any(path.is_relative_to(place) for place in _others()) and "site-packages" not in path.parts


@cache
def _others() -> tuple[Path, ...]:
    """Returns where code lies that is not the user's."""
    packages = (rl_as_inference, rl_as_inference.models, rl_as_inference.guides)
    ours = [Path(package.__file__ or "").resolve().parent for package in packages]
    paths = sysconfig.get_paths()
    python = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return (*ours, *(Path(place).resolve() for place in [*python, *site.getsitepackages()]))
