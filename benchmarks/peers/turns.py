"""What a contestant is told and how it takes turns; both ends of the line between it and the umpire.

A contestant is a process of its own, with its own interpreter and libraries, so this module needs the
standard library alone. Its line, one JSON object or one word of command at a time:

- the task, as the program's argument;
- from it, once it has compiled and warmed up: what it is (versions, settings, seconds that took);
- to it, ``go 1500``: play that many steps; from it: the seconds they took. And again, until its input ends.

Between its turns a contestant waits for input, so that one process works at a time.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

__all__ = ["Task", "Turns"]


@dataclass(frozen=True)
class Task:
    """What every contestant does: one environment, and one update a step."""

    environment: str
    hidden_sizes: tuple[int, ...]
    batch_size: int
    threads: int
    """How many threads the contestant's arithmetic may use."""
    algorithm: str = "sac"
    """``"sac"``, or ``"crossq"``: batch-normalised critics, and a policy that learns in every third update."""
    critic_hidden_sizes: tuple[int, ...] | None = None
    """The critics', where these are others."""
    precision: str = "float32"
    """Of matrix products, where a contestant has the choice."""
    cold: bool = False
    """Whether what a contestant does before its first step counts: it then decides itself whether to compile."""
    learning_starts: int = 100
    warm_up: int = 500
    """Steps before the first turn, random ones included."""
    seed: int = 0

    def encode(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> "Task":
        fields = json.loads(text)
        for name in ("hidden_sizes", "critic_hidden_sizes"):
            fields[name] = None if fields[name] is None else tuple(fields[name])
        return cls(**fields)

    @property
    def widths(self) -> dict[str, list[int]]:
        """Of policy and critics, as Stable-Baselines3 and SBX call them."""
        return {"pi": list(self.hidden_sizes), "qf": list(self.critic_hidden_sizes or self.hidden_sizes)}


class Turns:
    """A contestant's end of the line.

    From here on, whatever libraries print goes to standard error; standard output holds answers alone.
    Make it before importing them.
    """

    def __init__(self) -> None:
        self.task = Task.decode(sys.argv[1])
        self._answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def play(
        self, learn: Callable[[int], object], packages: Iterable[str], settings: Callable[[], dict[str, Any]]
    ) -> None:
        """Warms up, then plays turns until there are no more.

        Args:
            learn: takes that many further environment steps, each with one update.
            packages: distributions whose versions matter, the contestant's own first.
            settings: what else is worth knowing, asked once warm.
        """
        seconds = 0.0 if self.task.cold else _seconds(learn, self.task.warm_up)
        self._answer(warm_up_seconds=seconds, **_about(packages, settings))
        for line in sys.stdin:
            steps = int(line.removeprefix("go "))
            self._answer(steps=steps, seconds=_seconds(learn, steps))

    def _answer(self, **fields: Any) -> None:
        print(json.dumps(fields), file=self._answers, flush=True)


def _seconds(learn: Callable[[int], object], steps: int) -> float:
    start = time.perf_counter()
    learn(steps)
    return time.perf_counter() - start


def _about(packages: Iterable[str], settings: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    versions = {name: version(name) for name in (*packages, "gymnasium", "mujoco", "numpy")}
    return {"versions": {**versions, "python": platform.python_version()}, "settings": settings()}
