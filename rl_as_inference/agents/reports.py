"""What a learner says of itself while it learns."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

__all__ = ["Counts", "Progress", "Reporter", "progress_text"]


class Progress(Protocol):
    """What a report is made of: counts, episodes, α, and what was summed since the last report."""

    @property
    def num_steps(self) -> int:
        """Environment steps so far."""

    @property
    def num_updates(self) -> int:
        """Gradient steps so far."""

    @property
    def episodes(self) -> list[tuple[int, int, float, int]]:
        """``(step, seed index, return, length)`` of every finished episode."""

    @property
    def temperature(self) -> float:
        """α, in reward units per nat."""

    def mean_metrics(self, num_updates: int) -> dict[str, float]:
        """Returns the means of the reported numbers over the last updates, and forgets them."""


class Counts(NamedTuple):
    """How far a learner had come at some point."""

    steps: int = 0
    updates: int = 0
    episodes: int = 0

    @classmethod
    def of(cls, learner: Progress) -> Counts:
        """Returns how far a learner has come."""
        return cls(learner.num_steps, learner.num_updates, len(learner.episodes))


class Reporter:
    """Makes rows of the history: what happened since the last one.

    Args:
        of: whose.
        every: steps between rows.
        since: where the last row was made; a stop may lie between.

    Attributes:
        since: where the latest row was made.
    """

    def __init__(self, of: Progress, every: int, since: Counts) -> None:
        self.of, self.every, self.since = of, every, since
        self.due = (of.num_steps // every + 1) * every
        self._began, self._time = Counts.of(of), time.perf_counter()

    def row(self) -> dict[str, float]:
        """Returns the row that ends here, and begins the next.

        Raises:
            ValueError: if a loss is no longer finite.
        """
        of, now, seconds = self.of, Counts.of(self.of), max(time.perf_counter() - self._time, 1e-9)
        updates, returns = now.updates - self.since.updates, [row[2] for row in of.episodes[self.since.episodes :]]
        metrics = of.mean_metrics(updates) if updates else {}
        if bad := [name for name, value in metrics.items() if not math.isfinite(value)]:
            raise ValueError(
                f"learning diverged by step {of.num_steps}: {', '.join(bad)} is no longer finite; lower "
                f"learning_rate, or scale the rewards"
            )
        row = {
            "step": float(of.num_steps),
            "return": sum(returns) / len(returns) if returns else math.nan,
            "episodes": float(len(returns)),
            "temperature": of.temperature,
            **metrics,
            "steps_per_second": (now.steps - self._began.steps) / seconds,
            "updates_per_second": (now.updates - self._began.updates) / seconds,
        }
        self.since = self._began = now
        self._time = time.perf_counter()
        self.due += self.every
        return row


def progress_text(row: dict[str, float], episodes: Sequence[tuple[int, int, float, int]]) -> str:
    """Returns a row in a few words; where no episode ended, with the return of the last that did."""
    latest = row["return"] if not math.isnan(row["return"]) or not episodes else episodes[-1][2]
    parts = [] if math.isnan(latest) else [f"return {latest:.1f}"]
    parts.append(f"α {row['temperature']:.3g}")
    if "entropy" in row:
        parts.append(f"entropy {row['entropy']:.2f} nats")
    return ", ".join([*parts, f"{row['updates_per_second']:.0f} updates/s"])
