"""Run folders on the command line: which may be written to, and what is said of them."""

from collections.abc import Mapping
from pathlib import Path

from rl_as_inference.records import RECORD, is_ours
from rl_as_inference.run_folders import RunFolder, is_empty

__all__ = ["check_run_folder", "new_run_folder", "show"]


def show(path: Path, meanings: Mapping[str, str]) -> None:
    """Says which files are in a folder, and what each is."""
    rows = {**meanings, RECORD: "what was run, with versions and seed"}
    width = max(len(name) for name in rows)
    print(f"written to {path}:")
    for name, meaning in rows.items():
        print(f"  {name:<{width}}  {meaning}")


def check_run_folder(out: Path, *, overwrite: bool) -> None:
    """Says whether a run may write to ``out``, before the work begins.

    Raises:
        ValueError: if it exists and is not empty (unless ``overwrite``, which only ever replaces an
            earlier run's files), or is not a folder.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {str(out)!r} is a file, not a folder")
    if out.exists() and not is_empty(out):
        if not overwrite:
            raise ValueError(f"--out: {str(out)!r} exists already; choose another folder, or say --overwrite")
        if not (out / RECORD).is_file():
            raise ValueError(
                f"--out: {str(out)!r} is not a run folder (it has no {RECORD}), so --overwrite will not touch it; "
                f"choose another folder"
            )
        if not is_ours(out):
            raise ValueError(
                f"--out: {str(out / RECORD)!r} is not one that a run wrote, so --overwrite will not touch its folder; "
                f"choose another folder"
            )
        if (out / RECORD).is_symlink():
            raise ValueError(f"--out: {str(out / RECORD)!r} is a link, which --overwrite does not follow; remove it")


def new_run_folder(out: Path, *, overwrite: bool) -> RunFolder:
    """Returns the folder a run writes to, this process's alone, without the files of the run that it replaces.

    Raises:
        ValueError: as :func:`check_run_folder` does, or if somebody else writes there, or it cannot be made.
    """
    check_run_folder(out, overwrite=overwrite)
    folder = RunFolder(out)
    try:
        check_run_folder(out, overwrite=overwrite)  # as it is now that nobody else writes
        folder.clear()
    except BaseException:
        folder.close()
        raise
    return folder
