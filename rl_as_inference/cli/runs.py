"""Run folders: what a command writes, and never over something else."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["RunFolder", "check_run_folder", "new_run_folder"]

_MARK = "run.json"


class RunFolder:
    """A folder being written; files appear in it whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written: list[tuple[str, str]] = []

    @contextmanager
    def writing(self, name: str, meaning: str) -> Iterator[Path]:
        """Yields a temporary path of the same suffix; on success it becomes ``name``."""
        final = self.path / name
        handle, temporary = tempfile.mkstemp(suffix=final.suffix, prefix=".", dir=self.path)
        os.close(handle)
        try:
            yield Path(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, final)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self.written.append((name, meaning))

    def mark(self, record: dict[str, Any]) -> None:
        """Writes what makes the folder a run's, so that a later run may replace it."""
        (self.path / _MARK).write_text(json.dumps(record, indent=2) + "\n")

    def write_json(self, name: str, meaning: str, value: Any) -> None:
        with self.writing(name, meaning) as path:
            path.write_text(json.dumps(value, indent=2) + "\n")


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
            for name in _files_of(out / _MARK):
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"--out: cannot write to the folder {str(out)!r}: {error.strerror}") from error
    folder = RunFolder(out)
    folder.mark({"finished": False, "files": []})
    return folder


def _files_of(mark: Path) -> list[str]:
    """Returns the files that an earlier run lists as its own; never anything outside its folder."""
    try:
        files = json.loads(mark.read_text()).get("files", [])
    except (OSError, ValueError, AttributeError):
        return []
    return [name for name in files if isinstance(name, str) and Path(name).name == name]
