"""Who carries out the runs of a sweep, and how each of them ended."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import torch

from rl_as_inference.sweeps.plan import Task

__all__ = ["STOPPING", "Ended", "Perform", "Workers", "last_words", "note_start", "one_thread", "starts_in"]

Perform: TypeAlias = Callable[[Sequence[str]], int]
"""Runs the words of a command line, and returns its exit code. A function of a module, which processes find by name."""

STOPPING = 120.0
"""Seconds in which a run that is asked to stop must have."""

_MARK = "# begun "
"""How a line of a run's log begins that tells of a start."""


class Ended(NamedTuple):
    """A run that no longer goes on."""

    task: Task
    code: int | None
    """Of its command; None if its process died, or its machine."""


class Workers(Protocol):
    """Processes, here or elsewhere, that carry out one run each."""

    def room(self) -> int:
        """Returns how many runs more there is room for."""

    def start(self, task: Task, words: Sequence[str], log: Path) -> None:
        """Begins a run."""

    def wait(self, seconds: float) -> list[Ended]:
        """Returns the runs that have ended, at once if there are some, or else after some time at the latest."""

    def stop(self) -> None:
        """Asks all runs to stop, and waits until they have: each writes its checkpoint first."""

    def close(self) -> None:
        """Ends whatever is left at once."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Has PyTorch, and the processes begun here, compute on one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    try:
        yield
    finally:
        torch.set_num_threads(before)


def note_start(log: Path, words: Sequence[str]) -> None:
    """Writes into a run's log that it begins."""
    log.parent.mkdir(parents=True, exist_ok=True)
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{_MARK}{now} on {socket.gethostname()}: rlai {shlex.join(words)}\n")


def starts_in(log: Path) -> int:
    """Returns how often a run has begun."""
    return sum(line.startswith(_MARK) for line in _lines(log))


def last_words(log: Path) -> str:
    """Returns why a run failed, as its log's end says: its one line of error, or its last line."""
    lines = [line.strip() for line in _lines(log) if line.strip()]
    last = max((index for index, line in enumerate(lines) if line.startswith(_MARK)), default=-1)
    lines = lines[last + 1 :]
    errors = [line.removeprefix("rlai: error: ") for line in lines if line.startswith("rlai: error: ")]
    return (errors or lines or ["it said nothing"])[-1]


def _lines(log: Path) -> list[str]:
    try:
        return log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
