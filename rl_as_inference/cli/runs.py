"""Run folders: what a command writes, and never over something else."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["RunFolder", "new_run_folder"]

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

    def write_json(self, name: str, meaning: str, value: Any) -> None:
        with self.writing(name, meaning) as path:
            path.write_text(json.dumps(value, indent=2) + "\n")


def new_run_folder(out: Path, *, overwrite: bool) -> RunFolder:
    """Creates the folder a run writes to.

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
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: cannot make the folder {str(out)!r}: {error.strerror}") from error
    return RunFolder(out)
