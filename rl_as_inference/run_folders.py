"""Run folders: one writer at a time, every file told before it is there, and never anything else touched."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import weakref
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from rl_as_inference.records import PATTERNS, RECORD, RunRecord, files_of, listed_files
from rl_as_inference.whole_files import UNFINISHED, Owner, remove_leftovers, written_whole

try:
    import fcntl
except ImportError:  # not a POSIX system; there the name in the lock's file is all there is
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "FolderLock", "RunFolder", "has_leftovers", "is_empty", "writer_of"]

LOCK = "run.lock"
"""The file that says who writes into a folder, while somebody does."""

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What file systems say that have none."""

_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """Keeps a folder to one writer: the operating system's lock on a file there, which names its owner.

    The lock goes with the process, however that ends; the name stays in the file then, and the next owner learns from
    it whose leftovers are dead. Processes that are forked have no part in it.

    Args:
        folder: that is there.
        argument: what an error begins with.

    Attributes:
        dead: who held it last and did not give it back.

    Raises:
        ValueError: if somebody else writes there, with their name, or nobody can.
    """

    def __init__(self, folder: Path, argument: str) -> None:
        self.path = folder / LOCK
        self.dead: Owner | None = None
        while True:
            try:
                self._file: IO[str] | None = os.fdopen(
                    os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644), "r+"
                )
            except OSError as error:
                raise ValueError(
                    f"{argument}: cannot write to the folder {str(folder)!r}: {error.strerror or error}"
                ) from error
            if not self._is_ours(self._file):
                owner, since = _named_in(self._file)
                self._file.close()
                raise ValueError(
                    f"{argument}: {str(folder)!r} is being written to by {_told(owner, since)}; wait for it, or choose "
                    f"another folder"
                )
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                    break
            self._file.close()  # its last owner has removed it meanwhile
        self.dead, _ = _named_in(self._file)
        owner = Owner.here()
        self._file.seek(0)
        self._file.truncate()
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._file.write(json.dumps({**owner._asdict(), "since": now}) + "\n")
        self._file.flush()
        _held.add(self)

    def release(self) -> None:
        """Gives the folder back, and removes the file."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # it says only what the next owner overwrites
            if fcntl is None:  # no open file can be removed there
                self._file.close()
            self.path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Closes the file, as a forked process must."""
        if self._file is not None:
            self._file.close()
            self._file = None
        _held.discard(self)

    def _is_ours(self, file: IO[str]) -> bool:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    return False
        owner, _ = _named_in(file)
        return owner is None or not owner.is_alive


def writer_of(folder: Path) -> str | None:
    """Returns who writes to a folder now, in words; None where nobody does. It takes nothing and leaves no trace."""
    try:
        with open(folder / LOCK, encoding="utf-8") as file:
            owner, since = _named_in(file)
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return None
                except OSError as error:
                    if error.errno not in _NO_LOCKS:
                        return _told(owner, since)
            return _told(owner, since) if owner is not None and owner.is_alive else None
    except OSError:
        return None


def _told(owner: Owner | None, since: str) -> str:
    return "another process" if owner is None else f"process {owner.pid} on {owner.host} since {since}"


def _named_in(file: IO[str]) -> tuple[Owner | None, str]:
    """Returns who is named in a lock's file, and since when."""
    file.seek(0)
    try:
        found = json.loads(file.read())
        return Owner(int(found["pid"]), str(found["started"]), str(found["host"])), str(found["since"])
    except (ValueError, TypeError, KeyError):
        return None, ""


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class RunFolder:
    """A folder that this process alone writes to, until it is closed.

    Its record tells of every file before the file is there, so that a run in its place takes all away, however this
    one ended; files appear whole or not at all.

    Attributes:
        path: the folder.
        record: what was run; None until :meth:`begin`.
        written: what was written here, name and meaning.
    """

    def __init__(self, path: Path, argument: str = "--out") -> None:
        """Takes the folder, which is made if need be, and removes what dead writers left half-written."""
        self.path, self.argument = path, argument
        self.record: RunRecord | None = None
        self.written: dict[str, str] = {}
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{argument}: cannot make {str(path)!r}: {error.strerror}") from error
        self._lock = FolderLock(path, argument)
        dead = [] if self._lock.dead is None else [self._lock.dead]
        for each in (path, *(path / PurePosixPath(pattern).parent for pattern in PATTERNS)):
            remove_leftovers(each, dead, nameless=each == path)

    @classmethod
    def of_run(cls, path: Path, argument: str = "RUN") -> Self:
        """Returns the folder of a run that was, to write something more into.

        Raises:
            ValueError: if it is none, or somebody else writes to it.
        """
        RunRecord.read(path, argument)
        folder = cls(path, argument)
        try:
            folder.record = RunRecord.read(path, argument)  # as it is now that nobody else writes
        except BaseException:
            folder.close()
            raise
        return folder

    def clear(self) -> None:
        """Removes the files of the run that was here; a stop in between leaves the rest of them told.

        Raises:
            ValueError: if they cannot be removed.
        """
        if not os.path.lexists(self.path / RECORD):
            return
        files = files_of(self.path)
        told = [str(path.relative_to(self.path)) for path in files]
        self._write_json(RECORD, {"finished": False, "files": told})
        try:
            for path in files:
                path.unlink(missing_ok=True)
                if path.parent != self.path and path.parent.is_dir() and not any(path.parent.iterdir()):
                    path.parent.rmdir()
        except OSError as error:
            raise ValueError(
                f"{self.argument}: cannot remove {str(path)!r}, of the earlier run: {error.strerror}"
            ) from error

    def begin(self, record: RunRecord, *files: str) -> None:
        """Writes what is run from now on, and which files it may write.

        Raises:
            ValueError: for a name that leads elsewhere, or if nothing can be written.
        """
        for name in files:
            self._check_name(name)
        self.record = record.changed(finished=False, sums={}, files=tuple(dict.fromkeys((*record.files, *files))))
        self.record.write(self.path)

    def tell(self, *names: str) -> None:
        """Tells of files before they are there.

        Raises:
            ValueError: for a name that leads elsewhere.
        """
        for name in names:
            self._check_name(name)
        assert self.record is not None
        new = [name for name in names if name not in self.record.files]
        sums = {name: kept for name, kept in self.record.sums.items() if name not in names}  # others are to come
        if new or len(sums) < len(self.record.sums):
            self.record = self.record.changed(files=(*self.record.files, *new), sums=sums)
            self.record.write(self.path)

    @contextlib.contextmanager
    def writing(self, name: str, meaning: str = "") -> Iterator[Path]:
        """Yields a temporary path of the same name; on success it becomes the folder's file of that name."""
        self.tell(name)
        with written_whole(self.path / name) as temporary:
            yield temporary
        self.written[name] = meaning

    def write_json(self, name: str, meaning: str, value: Any) -> None:
        """Writes a value that JSON can hold."""
        with self.writing(name, meaning) as path:
            path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    def change(self, **parts: Any) -> None:
        """Changes the record; see :meth:`RunRecord.changed`."""
        assert self.record is not None
        self.record = self.record.changed(**parts)

    def settle(self, **parts: Any) -> None:
        """Writes the record with such changes, and with those files alone that came into being."""
        self.change(files=tuple(listed_files(self.path, self.record.files if self.record else ())), **parts)
        assert self.record is not None
        self.record = self.record.summed(self.path)
        self.record.write(self.path)

    def close(self) -> None:
        """Gives the folder back."""
        remove_leftovers(self.path)  # an interruption's
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        with written_whole(self.path / name) as path:
            path.write_text(json.dumps(value) + "\n", encoding="utf-8")

    def _check_name(self, name: str) -> None:
        parts = PurePosixPath(name).parts
        if not parts or len(parts) > 2 or PurePosixPath(name).is_absolute() or {"..", "\\"} & {*parts, *name}:
            raise ValueError(f"name must be that of a file in the run's folder, got {name!r}")
        if (self.path / parts[0]).is_symlink() and len(parts) == 2:
            raise ValueError(
                f"{self.argument}: {str(self.path / parts[0])!r} is a link, which a run does not follow; remove it"
            )


def is_empty(folder: Path) -> bool:
    """Returns whether nothing is in a folder but what a run that was killed before it began has left."""
    return not any(path.name != LOCK and not path.name.startswith(UNFINISHED) for path in folder.iterdir())


def has_leftovers(folder: Path) -> bool:
    """Returns whether a folder has what somebody left who was killed, or has somebody who writes there now."""
    return any(path.name == LOCK or path.name.startswith(UNFINISHED) for path in folder.iterdir())
