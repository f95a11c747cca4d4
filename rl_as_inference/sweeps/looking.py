"""What a run's folder says of the run: whether it has ended, and what came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from rl_as_inference.agents.curves import read_curve
from rl_as_inference.records import RECORD, RunRecord
from rl_as_inference.sweeps.plan import Command

__all__ = ["METRICS", "Metric", "Outcome", "State", "look", "outcome_of", "step_of"]

State: TypeAlias = Literal["new", "begun", "broken", "finished"]
"""Of a run: ``begun`` goes on from its checkpoint, ``broken`` has none and is replaced."""

_POINTS = 200
"""Of a curve, at most."""


class Metric(NamedTuple):
    """What runs are compared by."""

    name: str
    unit: str
    title: str
    steps: str
    """What its curve is over."""


METRICS: dict[Command, Metric] = {
    "train": Metric("return", "reward", "evaluation return", "environment steps"),
    "fit": Metric("elbo", "nats", "ELBO at the last step", "gradient steps"),
    "compare": Metric("elbo", "nats", "ELBO of the guide", "gradient steps"),
}


class Outcome(NamedTuple):
    """What came of a run that has ended."""

    numbers: dict[str, float]
    """By name, the metric among them."""
    curve: list[tuple[int, float]]
    """Steps, and the metric then (of ``compare``, as the training's rollouts estimate it)."""


def look(folder: Path, problem_sha256: str | None) -> State:
    """Returns how far the run in a folder is.

    Raises:
        ValueError: if it has ended and was of another state of the problem's file.
    """
    if not (folder / RECORD).exists():
        return "new"
    try:
        record = RunRecord.read(folder)
    except ValueError:  # a guide's that did not end, or a damaged one
        return "broken"
    if not record.finished:
        return "begun"
    if problem_sha256 is not None and record.problem_sha256 != problem_sha256:
        raise ValueError(
            f"--out: the run in {str(folder)!r} is of another state of its problem's file; remove that folder, or put "
            f"the file back"
        )
    return "finished"


def outcome_of(command: Command, folder: Path) -> Outcome:
    """Returns what came of a run that has ended.

    Raises:
        ValueError: if its files are damaged.
    """
    record = RunRecord.read(folder)
    for name in ("curve.csv", "history.json", "comparison.json"):
        record.check_file(folder, name)
    numbers = {"seconds": float(record.settings.get("seconds", math.nan))}
    if command == "train":
        rows = read_curve(folder / "curve.csv", 2**63)
        last = rows[-1]
        numbers |= {"return": last.mean_return, "return_standard_error": last.standard_error}
        numbers |= {"temperature": last.temperature, "entropy": last.entropy}
        return Outcome(numbers, _thinned([(row.step, row.mean_return) for row in rows]))
    history = _json(folder / "history.json")
    curve = _thinned([(step, float(value)) for step, value in enumerate(history)])
    if command == "fit":
        return Outcome({**numbers, "elbo": float(history[-1])}, curve)
    compared = _json(folder / "comparison.json")
    numbers |= {name: float(value) for name, value in compared.items() if _is_number(value)}
    if "elbo_exact" in numbers:
        numbers |= {"elbo": numbers["elbo_exact"], "elbo_standard_error": 0.0}
    return Outcome(numbers, curve)


def step_of(command: Command, folder: Path) -> tuple[int, int] | None:
    """Returns the step of the latest evaluation of a run that goes on, and how many there will be; None if unknown."""
    if command != "train":
        return None
    try:
        rows = read_curve(folder / "curve.csv", 2**63)
        total = json.loads((folder / RECORD).read_text(encoding="utf-8"))["num_steps"]
    except (OSError, ValueError, KeyError):
        return None
    return (rows[-1].step if rows else 0, int(total))


def _thinned(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Returns a curve with so few points that many of them can be drawn; the last one among them."""
    every = -(-len(curve) // _POINTS)
    return [point for index, point in enumerate(curve) if (len(curve) - 1 - index) % every == 0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--out: {str(path)!r} is damaged ({error}); remove its folder, and sweep again") from error
