"""How far a sweep is, on standard error: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rl_as_inference.sweeps.plan import Task
from rl_as_inference.tables import counted

__all__ = ["Display"]

_EVERY = 1.0
"""Seconds between looks at how far the runs are."""


class Display:
    """Says which runs begin, go on, and end.

    Nothing here has a thread of its own: processes are forked meanwhile.

    Args:
        title: of the sweep.
        total: returns how many runs there will be.
        step_of: returns the step at which a run is and how many it has; None if that is not known.
        show: whether to say anything; bars need a terminal.
    """

    def __init__(
        self, title: str, total: Callable[[], int], step_of: Callable[[Task], tuple[int, int] | None], show: bool
    ) -> None:
        self.show, self._total, self._step_of = show, total, step_of
        self.num_finished = self.num_failed = 0
        self._progress: Progress | None = None
        self._bars: dict[str, tuple[Task, TaskID]] = {}
        self._looked = 0.0
        if show and sys.stderr.isatty():
            columns: Any = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._progress = Progress(*columns, console=Console(stderr=True), auto_refresh=False)
            self._whole = self._progress.add_task(escape(title), total=total())
            self._progress.start()
        elif show:
            print(f"{title}: {counted(total(), 'runs')}", file=sys.stderr)

    def begin(self, task: Task, how: str) -> None:
        """Says that a run begins; ``how`` says how, where that is not from its start."""
        if self._progress is None:
            if self.show and how:
                print(f"  {task}: {how}", file=sys.stderr)
            return
        bar = self._progress.add_task(escape(f"  {task}") + (f" ({escape(how)})" if how else ""), total=None)
        self._bars[task.name] = task, bar

    def end(self, task: Task, told: str, *, finished: bool, counts: bool = True) -> None:
        """Says how a run ended; ``counts`` says whether for good."""
        if counts:
            self.num_finished, self.num_failed = self.num_finished + finished, self.num_failed + (not finished)
        if self._progress is not None and task.name in self._bars:
            self._progress.remove_task(self._bars.pop(task.name)[1])
        if self.show and counts:
            count = f"[{self.num_finished + self.num_failed}/{self._total()}]"
            self.say(f"{count} {task}: {told}")
        self.look(at_once=True)

    def say(self, text: str) -> None:
        """Says something above the bars."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self.show:
            print(text, file=sys.stderr)

    def look(self, *, at_once: bool = False) -> None:
        """Draws how far the runs are, from time to time."""
        if self._progress is None or (not at_once and time.monotonic() - self._looked < _EVERY):
            return
        self._looked = time.monotonic()
        done = self.num_finished + self.num_failed
        self._progress.update(self._whole, completed=done, total=self._total())
        for task, bar in self._bars.values():
            if (at := self._step_of(task)) is not None:
                self._progress.update(bar, completed=at[0], total=at[1])
        self._progress.refresh()

    def close(self) -> None:
        """Leaves the last state on the screen."""
        if self._progress is not None:
            for _, bar in self._bars.values():
                self._progress.remove_task(bar)
            self._bars.clear()
            self._progress.stop()
