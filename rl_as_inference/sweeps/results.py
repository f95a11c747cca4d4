"""What came of a sweep: a row for each run, one for each configuration, a table and the files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl_as_inference.agents.evaluation import mean_interval
from rl_as_inference.data_frames import UNITS, units_of
from rl_as_inference.run_folders import RunFolder
from rl_as_inference.sweeps.conducting import Report, starts_of
from rl_as_inference.sweeps.looking import METRICS, Metric
from rl_as_inference.sweeps.plan import RUNS, Plan, Task
from rl_as_inference.sweeps.space import Values, written
from rl_as_inference.tables import counted, render

if TYPE_CHECKING:
    import pandas

__all__ = ["FILES", "Sweep", "gathered"]

COLUMNS = frozenset({"run", "seed", "status", "reason", "starts", "num_seeds", "mean", "low", "high", "step", "value"})
"""What options cannot be called, in a sweep's tables."""
FILES = {
    "sweep.html": "the page: table, intervals, learning curves; open it in a browser",
    "sweep.csv": "a row for each run",
    "sweep.json": "everything: plan, runs, configurations, curves",
}
"""What a sweep writes beside its runs."""


@dataclass(frozen=True)
class Sweep:
    """What :func:`rl_as_inference.sweep` returns."""

    folder: Path
    """Where its runs are, each in ``runs/NAME``."""
    plan: Plan
    runs: pandas.DataFrame
    """A row for each run: its name, the values that differ, ``seed``, ``status`` (``"finished"`` or ``"failed"``),
    ``reason``, ``starts`` (how often a process began it), and its numbers: ``return`` (reward), ``temperature``
    (reward/nat) and ``entropy`` (nats) of ``train``; ``elbo`` (nats) of ``fit``; the rows of ``compare``."""
    summary: pandas.DataFrame
    """A row for each configuration, the best first: the values, ``num_seeds``, ``mean``, and ``low`` and ``high``, the
    95 % bootstrap interval of the mean over seeds (NaN for a single one)."""
    curves: pandas.DataFrame
    """``run``, ``step`` and ``value`` of each run's curve, up to 200 points each. In all three ``attrs["units"]`` says
    the unit of each column that has one; so does ``units`` in ``sweep.json``."""

    @property
    def metric(self) -> Metric:
        """What runs are compared by, and its unit."""
        return METRICS[self.plan.command]

    @property
    def is_finished(self) -> bool:
        """Whether all runs have finished."""
        return bool((self.runs["status"] == "finished").all())

    @property
    def best(self) -> dict[str, Any]:
        """The values of the configuration with the largest mean; empty if no run has finished."""
        found = self.summary.dropna(subset="mean")
        if found.empty:
            return {}
        values = {name: found[name].iloc[0] for name in self.plan.axes}  # a row would make all of its numbers floats
        return {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}

    def table(self) -> str:
        """Returns the configurations as a table, the best first."""
        keys = list(self.plan.axes)
        rows: list[list[str] | None] = [
            [*cells, seeds, mean, low, high] for cells, seeds, mean, low, high in self.rows()
        ]
        header = [*keys, "seeds", f"mean ({self.metric.unit})", "low", "high"]
        # Above the table, which may be narrower than a file's path and would break it.
        return f"{self.title}\n{render(self.metric.title, header, rows, right=range(len(keys), len(header)))}"

    @property
    def title(self) -> str:
        """What was swept, in a few words."""
        count = int((self.runs["status"] == "finished").sum())
        return f"rlai {self.plan.command} {self.plan.problem}, {count} of {counted(len(self.runs), 'runs')}"

    def rows(self) -> list[tuple[list[str], str, str, str, str]]:
        """Returns the rows of the table as text: values, seeds, mean, and the interval's ends."""
        found = []
        for _, row in self.summary.iterrows():
            mean, low, high = (_number(row[name]) for name in ("mean", "low", "high"))
            found.append(([_cell(row[name]) for name in self.plan.axes], f"{int(row['num_seeds'])}", mean, low, high))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON can hold it."""
        plan = dataclasses.asdict(self.plan)
        return {
            "plan": plan,
            "metric": self.metric._asdict(),
            "units": self.curves.attrs["units"] | self.summary.attrs["units"] | self.runs.attrs["units"],
            "runs": _plain(self.runs),
            "summary": _plain(self.summary),
            "curves": {
                str(name): [
                    [int(step), _finite(value)] for step, value in zip(rows["step"], rows["value"], strict=True)
                ]
                for name, rows in self.curves.groupby("run", sort=False)
            },
        }

    def write(self, folder: RunFolder, page: str) -> None:
        """Writes the page, ``sweep.csv`` and ``sweep.json``."""
        with folder.writing("sweep.csv", FILES["sweep.csv"]) as path:
            self.runs.to_csv(path, index=False)
        folder.write_json("sweep.json", FILES["sweep.json"], self.to_dict())
        with folder.writing("sweep.html", FILES["sweep.html"]) as path:
            path.write_text(page, encoding="utf-8")


def gathered(plan: Plan, out: Path, configurations: Sequence[Values], reports: Mapping[str, Report]) -> Sweep:
    """Returns what came of a sweep.

    Args:
        plan: of it.
        out: its folder.
        configurations: whose runs there are.
        reports: how each run stands.
    """
    import pandas

    metric = METRICS[plan.command]
    runs: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    curves: list[tuple[str, int, float]] = []
    for values in configurations:
        reached = []
        for task in plan.tasks(values):
            report = reports.get(task.name, Report(None, "it has not been run"))
            runs.append(_row(task, report, out))
            if report.outcome is not None:
                reached.append(report.outcome.numbers[metric.name])
                curves += [(task.name, step, value) for step, value in report.outcome.curve]
        mean = sum(reached) / len(reached) if reached else math.nan
        interval = mean_interval(torch.tensor(reached, dtype=torch.float64).reshape(-1, 1)) if reached else None
        low, high = interval or (math.nan, math.nan)
        summary.append({**values, "num_seeds": len(reached), "mean": mean, "low": low, "high": high})
    frame = pandas.DataFrame(summary)
    frame = frame.sort_values("mean", ascending=False, kind="stable", na_position="last", ignore_index=True)
    sweep = Sweep(out, plan, pandas.DataFrame(runs), frame, pandas.DataFrame(curves, columns=["run", "step", "value"]))
    for table in (sweep.runs, sweep.summary, sweep.curves):
        own = [name for name in table.columns if name not in plan.axes]  # an option may have the name of a quantity
        finals = {f"final_{name}": unit for name, unit in UNITS.items() if name in plan.axes}
        table.attrs["units"] = units_of(own, **dict.fromkeys(("mean", "low", "high", "value"), metric.unit), **finals)
    return sweep


def _row(task: Task, report: Report, out: Path) -> dict[str, Any]:
    status = "failed" if report.outcome is None else "finished"
    found = {} if report.outcome is None else report.outcome.numbers
    numbers = {f"final_{name}" if name in task.values else name: value for name, value in found.items()}
    told = {"status": status, "reason": report.reason, "starts": starts_of(task, out)}
    return {"run": f"{RUNS}/{task.name}", **task.values, "seed": task.seed, **told, **numbers}


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else written(value)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _plain(frame: pandas.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): _finite(value) for name, value in row.items()} for row in frame.to_dict("records")]


def _finite(value: Any) -> Any:
    """Returns a value as JSON can hold it: null where it is no finite number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
