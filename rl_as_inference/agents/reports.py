"""What a learner says of itself while it learns."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_as_inference.agents.learner import Learner

__all__ = ["Reporter", "interrupts", "progress_text"]


class Reporter:
    """Makes rows of the history: what happened since the last one."""

    def __init__(self, learner: Learner, every: int) -> None:
        self.learner, self.every = learner, every
        self.due = (learner.num_steps // every + 1) * every
        self._start()

    def _start(self) -> None:
        learner = self.learner
        self.steps, self.updates, self.episodes = learner.num_steps, learner.num_updates, len(learner.episodes)
        self.time = time.perf_counter()

    def row(self) -> dict[str, float]:
        """Returns the row that ends here, and begins the next.

        Raises:
            ValueError: if a loss is no longer finite.
        """
        learner = self.learner
        seconds = max(time.perf_counter() - self.time, 1e-9)
        steps, updates = learner.num_steps - self.steps, learner.num_updates - self.updates
        returns = [row[2] for row in learner.episodes[self.episodes :]]
        row = {
            "step": float(learner.num_steps),
            "return": sum(returns) / len(returns) if returns else math.nan,
            "episodes": float(len(returns)),
            "temperature": learner.temperature,
            **(learner.mean_metrics(updates) if updates else {}),
            "steps_per_second": steps / seconds,
            "updates_per_second": updates / seconds,
        }
        bad = [name for name in learner.metrics if not math.isfinite(row.get(name, 0.0))]
        if bad:
            raise ValueError(
                f"learning diverged by step {learner.num_steps}: {', '.join(bad)} is no longer finite; lower "
                f"learning_rate, or scale the rewards"
            )
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
