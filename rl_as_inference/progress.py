"""Progress bars on long work, shown on terminals and silent elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["ProgressBar", "progress_bar"]


class ProgressBar:
    """A running bar; ``advance`` moves it and sets its text."""

    def __init__(self, progress: Progress | None, total: int, done: int = 0) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task("", total=total, completed=done)

    def advance(self, text: str, by: int = 1) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=by, description=text)

    def say(self, text: str) -> None:
        """Sets the text."""
        self.advance(text, by=0)


class _TwoLines(Progress):
    """A bar with its text beneath: beside it, on a terminal of eighty columns, one would push out the other."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(f"  {task.description}", overflow="ellipsis", no_wrap=True)


@contextmanager
def progress_bar(
    title: str, total: int, *, show: bool | ProgressBar | None = None, done: int = 0
) -> Iterator[ProgressBar]:
    """Yields a bar on standard error; ``show=None`` shows it where that is a terminal.

    A bar for ``show`` is yielded itself: the work is a part of what that bar is about.
    """
    if isinstance(show, ProgressBar):
        yield show
        return
    if show is None:
        show = sys.stderr.isatty()
    if not show:
        yield ProgressBar(None, total, done)
        return
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _TwoLines(*columns, console=Console(stderr=True)) as progress:
        yield ProgressBar(progress, total, done)
