"""Learning curves: evaluations over environment steps, written, read and drawn."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rl_as_inference.arguments import checked
from rl_as_inference.data_frames import Frame, frame
from rl_as_inference.style import BLUE, GREY, new_axes, tidy
from rl_as_inference.whole_files import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CurveRow", "curve_frame", "plot_learning_curve", "read_curve", "write_curve"]


class CurveRow(NamedTuple):
    """One evaluation of one seed."""

    step: int
    """Environment steps taken by then."""
    seed: int
    """Which of the learner's seeds, from 0."""
    mean_return: float
    """Mean undiscounted return of the deterministic policy's episodes, in reward units."""
    least_return: float
    """The least of them."""
    largest_return: float
    """The largest of them."""
    temperature: float
    """α in reward units per nat."""
    entropy: float
    """The policy's, in nats: mean over the latest batches; NaN before the first update."""
    seconds: float
    """Wall time of learning until then: compiling counts, evaluations do not."""
    standard_error: float = math.nan
    """Of the mean return over this seed's episodes, in reward units; NaN of a single one, or where it was not kept."""


_FORMER = CurveRow._fields[:-1]
"""The columns of a file that has no standard errors yet."""


def curve_frame(curve: Sequence[CurveRow]) -> Frame:
    """Returns a curve as a frame, a row an evaluation of a seed (see :mod:`rl_as_inference.data_frames`)."""
    return frame({name: [getattr(row, name) for row in curve] for name in CurveRow._fields})


def write_curve(path: Path, curve: Iterable[CurveRow]) -> None:
    """Writes the rows, a line each: the whole file, or nothing."""
    with written_whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CurveRow._fields)
        for row in curve:
            *numbers, error = ("" if math.isnan(value) else f"{value:.6g}" for value in (*row[2:7], row.standard_error))
            writer.writerow((row.step, row.seed, *numbers, f"{row.seconds:.2f}", error))


def read_curve(path: Path, until: int) -> list[CurveRow]:
    """Returns the rows up to a step.

    Raises:
        ValueError: if the file is not such a curve.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        if tuple(rows[0]) not in (CurveRow._fields, _FORMER):
            raise ValueError(f"its columns are {', '.join(rows[0])}")
        curve = [
            CurveRow(int(step), int(seed), *(float(value or "nan") for value in rest)) for step, seed, *rest in rows[1:]
        ]
    except (ValueError, TypeError, LookupError, OSError) as error:
        raise ValueError(f"folder: {str(path)!r} is no curve of a run: {error}") from error
    return [row for row in curve if row.step <= until]


@checked
def plot_learning_curve(curve: Sequence[CurveRow], *, title: str = "", ax: Axes | None = None) -> Axes:
    """Draws evaluation returns over environment steps: every seed thin, their mean thick.

    A single seed has a band from the least to the largest return of its episodes.

    Args:
        curve: the rows that :func:`rl_as_inference.agents.train` returns.
        title: of the axes.
    """
    ax = new_axes(ax)
    steps = sorted({row.step for row in curve})
    seeds = sorted({row.seed for row in curve})
    for seed in seeds:
        own = [row for row in curve if row.seed == seed]
        at = [row.step for row in own]
        if len(seeds) == 1:
            low, high = [row.least_return for row in own], [row.largest_return for row in own]
            ax.fill_between(at, low, high, color=BLUE, alpha=0.2, linewidth=0, label="least to largest episode")
        else:
            label = f"each of {len(seeds)} seeds" if seed == seeds[0] else None
            ax.plot(at, [row.mean_return for row in own], color=GREY, linewidth=0.8, alpha=0.8, label=label)
    means = [float(np.mean([row.mean_return for row in curve if row.step == step])) for step in steps]
    marker = "o" if len(steps) < 3 else None
    label = "mean of the episodes" if len(seeds) == 1 else "mean of the seeds"
    ax.plot(steps, means, color=BLUE, linewidth=2.2, marker=marker, label=label)
    ax.legend(frameon=False)
    return tidy(ax, "environment steps", "evaluation return (reward units)", title)
