"""Progress bars on long work, shown on terminals and silent elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressBar", "progress_bar"]


class ProgressBar:
    """A running bar; ``advance`` moves it and sets its text."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task("", total=total)

    def advance(self, text: str, by: int = 1) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=by, description=text)

    def say(self, text: str) -> None:
        """Sets the text."""
        self.advance(text, by=0)


@contextmanager
def progress_bar(title: str, total: int, *, show: bool | None = None) -> Iterator[ProgressBar]:
    """Yields a bar on standard error; ``show=None`` shows it where that is a terminal."""
    if show is None:
        show = sys.stderr.isatty()
    if not show:
        yield ProgressBar(None, total)
        return
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield ProgressBar(progress, total)
