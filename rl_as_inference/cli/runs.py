"""Run folders: what a command writes, and never over something else."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from rl_as_inference.checkpoints import written_whole
from rl_as_inference.records import RECORD, RunRecord, files_of

__all__ = ["RunFolder", "check_run_folder", "new_run_folder"]

_RECORD_ROW = {RECORD: "what was run, with versions and seed"}


class RunFolder:
    """A folder being written; files appear in it whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written: list[tuple[str, str]] = []

    @contextmanager
    def writing(self, name: str, meaning: str) -> Iterator[Path]:
        """Yields a temporary path of the same suffix; on success it becomes ``name``."""
        with written_whole(self.path / name) as temporary:
            yield temporary
        self.written.append((name, meaning))

    def write_record(self, record: RunRecord, **ended: Any) -> None:
        """Writes what was run, with the files that were written."""
        record.changed(**ended).write(self.path, [name for name, _ in self.written])
        self.written += _RECORD_ROW.items()

    def write_json(self, name: str, meaning: str, value: Any) -> None:
        with self.writing(name, meaning) as path:
            path.write_text(json.dumps(value, indent=2) + "\n")

    def show(self, meanings: Mapping[str, str] | None = None) -> None:
        """Prints what was written, or what ``meanings`` says is there."""
        rows = dict(self.written) if meanings is None else {**meanings, **_RECORD_ROW}
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"written to [bold]{self.path}[/bold]:")
        width = max(len(name) for name in rows)
        for name, meaning in rows.items():
            console.print(f"  {name:<{width}}  {meaning}")


def check_run_folder(out: Path, *, overwrite: bool) -> None:
    """Says whether a run may write to ``out``, before the work begins.

    Raises:
        ValueError: if it exists and is not empty (unless ``overwrite``, which only ever replaces an
            earlier run's files), or is not a folder.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {str(out)!r} is a file, not a folder")
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(f"--out: {str(out)!r} exists already; choose another folder, or say --overwrite")
        if not (out / RECORD).exists():
            raise ValueError(
                f"--out: {str(out)!r} is not a run folder (it has no {RECORD}), so --overwrite will not touch it; "
                f"choose another folder"
            )


def new_run_folder(out: Path, *, overwrite: bool) -> RunFolder:
    """Creates the folder a run writes to, without the files of the run that it replaces.

    Raises:
        ValueError: as :func:`check_run_folder` does, or if the folder cannot be made.
    """
    check_run_folder(out, overwrite=overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / RECORD).exists():
            for path in files_of(out):
                path.unlink(missing_ok=True)
                if path.parent != out and path.parent.is_dir() and not any(path.parent.iterdir()):
                    path.parent.rmdir()
    except OSError as error:
        raise ValueError(f"--out: cannot write to the folder {str(out)!r}: {error.strerror}") from error
    # From now on the folder is a run's, so that another may take its place.
    (out / RECORD).write_text(json.dumps({"finished": False, "files": []}) + "\n")
    return RunFolder(out)
