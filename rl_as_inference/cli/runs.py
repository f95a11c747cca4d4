"""Run folders: what a command writes, and never over something else."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from rl_as_inference.checkpoints import written_whole

__all__ = ["RunFolder", "check_run_folder", "new_run_folder", "read_record"]

_MARK = "run.json"


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

    def mark(self, record: dict[str, Any]) -> None:
        """Writes what makes the folder a run's, so that a later run may replace it."""
        (self.path / _MARK).write_text(json.dumps(record, indent=2) + "\n")

    def write_json(self, name: str, meaning: str, value: Any) -> None:
        with self.writing(name, meaning) as path:
            path.write_text(json.dumps(value, indent=2) + "\n")

    def show(self) -> None:
        """Prints what was written."""
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"written to [bold]{self.path}[/bold]:")
        width = max(len(name) for name, _ in self.written)
        for name, meaning in self.written:
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
        if not (out / _MARK).exists():
            raise ValueError(
                f"--out: {str(out)!r} is not a run folder (it has no {_MARK}), so --overwrite will not touch it; "
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
        if (out / _MARK).exists():
            for path in _files_of(out):
                path.unlink(missing_ok=True)
                if path.parent != out and path.parent.is_dir() and not any(path.parent.iterdir()):
                    path.parent.rmdir()
    except OSError as error:
        raise ValueError(f"--out: cannot write to the folder {str(out)!r}: {error.strerror}") from error
    folder = RunFolder(out)
    folder.mark({"finished": False, "files": []})
    return folder


def read_record(folder: Path, command: str, argument: str) -> dict[str, Any]:
    """Returns what ``run.json`` says of a run of ``command``.

    Raises:
        ValueError: if the folder is not one of such a run; the message begins with ``argument``.
    """
    mark = folder / _MARK
    if not mark.is_file():
        missing = f"it has no {_MARK}" if folder.is_dir() else "there is no such folder"
        raise ValueError(f"{argument}: {str(folder)!r} is not a run folder ({missing})")
    try:
        record = json.loads(mark.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{argument}: {str(mark)!r} cannot be read: {error}") from error
    found = record.get("command") if isinstance(record, dict) else None
    if found != command:
        what = "begins no run" if found is None else f"is of rlai {found}"
        raise ValueError(f"{argument}: {str(mark)!r} {what}, and a run of rlai {command} is needed")
    return dict(record)


def _files_of(folder: Path) -> list[Path]:
    """Returns the files that an earlier run lists as its own; never anything outside its folder."""
    try:
        files = json.loads((folder / _MARK).read_text()).get("files", [])
    except (OSError, ValueError, AttributeError):
        return []
    paths = [folder / name for name in files if isinstance(name, str) and ".." not in Path(name).parts]
    return [
        path
        for path in paths
        if not path.is_dir()
        and path.parent.is_dir()
        and path.parent.resolve() in (folder.resolve(), folder.resolve() / path.parent.name)
    ]
