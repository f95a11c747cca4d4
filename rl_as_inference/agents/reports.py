"""What a learner says of itself while it learns."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

__all__ = ["Progress", "Reporter", "interrupts", "progress_text"]


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


class Reporter:
    """Makes rows of the history: what happened since the last one."""

    def __init__(self, of: Progress, every: int) -> None:
        self.of, self.every = of, every
        self.due = (of.num_steps // every + 1) * every
        self._start()

    def _start(self) -> None:
        self.steps, self.updates, self.episodes = self.of.num_steps, self.of.num_updates, len(self.of.episodes)
        self.time = time.perf_counter()

    def row(self) -> dict[str, float]:
        """Returns the row that ends here, and begins the next.

        Raises:
            ValueError: if a loss is no longer finite.
        """
        of, seconds = self.of, max(time.perf_counter() - self.time, 1e-9)
        steps, updates = of.num_steps - self.steps, of.num_updates - self.updates
        returns = [row[2] for row in of.episodes[self.episodes :]]
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
            "steps_per_second": steps / seconds,
            "updates_per_second": updates / seconds,
        }
        self._start()
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


@contextmanager
def interrupts() -> Iterator[list[bool]]:
    """Yields a list that Ctrl-C fills, so that a loop can end where it is consistent; a second one interrupts."""
    flags: list[bool] = []
    if threading.current_thread() is not threading.main_thread():  # where Python delivers no signals
        yield flags
        return

    def note(*_: Any) -> None:
        if flags:
            raise KeyboardInterrupt
        flags.append(True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield flags
    finally:
        signal.signal(signal.SIGINT, before)
