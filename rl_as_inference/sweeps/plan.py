"""Which runs a sweep is of, and what its own folder says of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rl_as_inference.records import RECORD, RunRecord, path_of
from rl_as_inference.run_folders import LOCK
from rl_as_inference.sweeps.space import Axis, Range, Value, Values, draw, grid, named, written

__all__ = ["COMMANDS", "LOGS", "RUNS", "Command", "Plan", "Search", "Task", "check_place", "read_plan"]

Command = Literal["train", "fit", "compare"]
COMMANDS: tuple[Command, ...] = ("train", "fit", "compare")
"""Of whose runs a sweep may be."""
Search = Literal["grid", "random", "optuna"]
RUNS, LOGS = "runs", "logs"
"""Where they are in a sweep's folder, and what they have said."""


class Task(NamedTuple):
    """One run of a sweep."""

    values: Values
    """Of the options that differ."""
    seed: int

    @property
    def name(self) -> str:
        """Its folder's."""
        return f"{named(self.values)},seed={self.seed}" if self.values else f"seed={self.seed}"

    def folder(self, out: Path) -> Path:
        return out / RUNS / self.name

    def log(self, out: Path) -> Path:
        """What its process has said."""
        return out / LOGS / f"{self.name}.log"

    def __str__(self) -> str:
        return ", ".join([*(f"{name} {written(value)}" for name, value in self.values.items()), f"seed {self.seed}"])


@dataclass(frozen=True)
class Plan:
    """What is swept, how far and in which order."""

    command: Command
    problem: str
    options: Values
    """Those that are the same in all runs, of the command and of the problem."""
    axes: Mapping[str, Axis]
    seeds: int
    search: Search = "grid"
    trials: int | None = None

    def configurations(self) -> list[dict[str, Value]]:
        """Returns what is known of them before anything has run: of Optuna's, what would be drawn without it."""
        return grid(self.axes) if self.search == "grid" else draw(self.axes, self.trials or 1)

    def tasks(self, values: Values) -> list[Task]:
        """Returns the runs of a configuration."""
        return [Task(values, seed) for seed in range(self.seeds)]

    def corners(self) -> list[dict[str, Value]]:
        """Returns configurations among which every value is, and of a range both ends: the first, then one for each."""
        lists = {name: (axis.low, axis.high) if isinstance(axis, Range) else axis for name, axis in self.axes.items()}
        first = {name: values[0] for name, values in lists.items()}
        return [first, *({**first, name: value} for name, values in lists.items() for value in values[1:])]

    def record(self, out: Path) -> RunRecord:
        """Returns what the sweep's folder says of it."""
        axes = {name: asdict(axis) if isinstance(axis, Range) else list(axis) for name, axis in self.axes.items()}
        settings = {
            "swept": self.command,
            "values": axes,
            "seeds": self.seeds,
            "search": self.search,
            "trials": self.trials,
        }
        return RunRecord.of("sweep", self.problem, out, options=dict(self.options), settings=settings)

    def check_goes_on(self, there: RunRecord, out: Path) -> None:
        """Raises ValueError if the sweep in a folder is another one; values, seeds and trials may be more or fewer."""
        ours = self.record(out)
        where = f"--out: the sweep in {str(out)!r} has"
        if there.problem_sha256 != ours.problem_sha256 and ours.problem_sha256 and there.problem_sha256:
            raise ValueError(
                f"--out: {path_of(self.problem)} has changed since the sweep in {str(out)!r} began (its SHA-256 is no "
                f"longer {there.problem_sha256[:12]}…), and its runs would not go together; put the old file back, or "
                f"choose another folder"
            )
        # A file may have moved; what is meant in it may not have changed.
        in_files = bool(there.problem_sha256 and ours.problem_sha256)
        had, has = ((name or "").partition(":")[2] if in_files else name for name in (there.problem, ours.problem))
        if had != has:
            raise ValueError(f"{where} PROBLEM {there.problem}, and this says {ours.problem}; choose another folder")
        pairs: list[tuple[str, Any, Any]] = [("--command", there.settings.get("swept"), self.command)]
        pairs += [("--search", there.settings.get("search"), self.search)]
        names = dict.fromkeys((*there.options, *self.options))
        pairs += [(f"--{name.replace('_', '-')}", there.options.get(name), self.options.get(name)) for name in names]
        if self.search == "optuna":  # whose study is of these values
            pairs += [("--set", there.settings.get("values"), ours.settings["values"])]
        for name, has, says in pairs:
            if has != says:
                raise ValueError(f"{where} {name} {has}, and this says {says}; choose another folder")


def read_plan(out: Path, *, trust: bool) -> Plan:
    """Returns the plan of the sweep in a folder, with its problem where it is now.

    Raises:
        ValueError: if there is none, or its problem's file is not to be trusted (:meth:`RunRecord.find_problem`).
    """
    record = RunRecord.read(out, "--out", ("sweep",))
    found = record.find_problem(out, "--out", trust=trust, may_change=False)
    try:
        told = record.settings
        axes: dict[str, Any] = {
            name: Range(**axis) if isinstance(axis, dict) else tuple(axis) for name, axis in told["values"].items()
        }
        seeds, trials = int(told["seeds"]), told["trials"]
        return Plan(told["swept"], found.name, dict(record.options), axes, seeds, told["search"], trials)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"--out: {str(out / RECORD)!r} is not as rlai sweep writes it ({error})") from error


def check_place(out: Path) -> RunRecord | None:
    """Returns the record of the sweep in a folder; None where the folder is free.

    Raises:
        ValueError: if something else is there.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {str(out)!r} is a file, not a folder")
    if (out / RECORD).exists():
        return RunRecord.read(out, "--out", ("sweep",))
    if out.is_dir() and any(path.name != LOCK and not path.name.startswith(".") for path in out.iterdir()):
        raise ValueError(f"--out: {str(out)!r} exists already, and is no sweep's; choose another folder")
    return None
