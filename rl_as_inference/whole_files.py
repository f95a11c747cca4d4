"""Files written whole or not at all, and what writers that were killed have left behind."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["UNFINISHED", "Owner", "draft_folder", "remove_leftovers", "written_whole"]

UNFINISHED = ".rlai-"
"""How the names of folders begin in which files are being written; then comes whose they are."""
_NAMED = re.compile(rf"^{re.escape(UNFINISHED)}(\d+)-(\d*)-(.+)-[^-]+$")


_drafts: set[str] = set()
"""Those that this process is writing in."""


class Owner(NamedTuple):
    """A process that writes, on some host."""

    pid: int
    started: str
    """When it began, as its host counts, so that another of the same number is not taken for it; may be empty."""
    host: str

    @classmethod
    def here(cls) -> Owner:
        """Returns this process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Owner:
        """Returns a process of this host."""
        return cls(pid, _state_of(pid)[1], _host())

    @property
    def is_alive(self) -> bool:
        """Whether it may still be running: of a process on another host that cannot be told, and is taken for true."""
        if self.host != _host():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):  # it is another user's, or this is no POSIX system
            return True
        state, started = _state_of(self.pid)
        return state != "Z" and (not started or not self.started or started == self.started)


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yields a path at which to write; on success the file there takes the name ``path``, else it is removed.

    It is on the disk before it takes the name, so that a machine that stops leaves the old file or the new one. It
    lies in a folder of its own beside ``path``, which also holds what libraries write besides. A link at ``path`` is
    replaced, and not followed.

    Raises:
        ValueError: if it cannot be written.
    """
    path = Path(path)
    try:
        with draft_folder(path.parent) as draft:
            temporary = draft / path.name
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
    except OSError as error:
        raise ValueError(f"path: cannot write {str(path)!r}: {error.strerror or error}") from error
    _sync_folder(path.parent)


@contextlib.contextmanager
def draft_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder in ``folder``, named for this process, which is removed afterwards; dead ones' are, too.

    Raises:
        ValueError: if ``folder`` cannot be written to.
    """
    remove_leftovers(folder)
    owner = Owner.here()
    try:
        draft = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{owner.pid}-{owner.started}-{owner.host}-", dir=folder))
    except OSError as error:
        raise ValueError(f"path: cannot write to the folder {str(folder)!r}: {error.strerror}") from error
    try:
        _drafts.add(draft.name)
        yield draft
    finally:
        _drafts.discard(draft.name)  # first, so that what an interruption leaves is nobody's
        shutil.rmtree(draft, ignore_errors=True)


def remove_leftovers(folder: Path, dead: Collection[Owner] = (), *, nameless: bool = False) -> None:
    """Removes what writers into ``folder`` have left that are no longer alive, or no longer write.

    Args:
        folder: where they wrote.
        dead: owners of whom it is known, whatever their host.
        nameless: remove what does not say whose it is, too (as earlier versions did not).
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(UNFINISHED):
                continue
            named = _NAMED.match(entry.name)
            owner = None if named is None else Owner(int(named[1]), named[2], named[3])
            if owner == Owner.here():
                is_left = entry.name not in _drafts
            else:
                is_left = nameless if owner is None else owner in dead or not owner.is_alive
            if is_left:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)


def _sync_folder(folder: Path) -> None:
    """Puts a new name on the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@functools.cache
def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname()) or "localhost"


def _state_of(pid: int) -> tuple[str, str]:
    """Returns the state of a process and when it began, in ticks since its host did; empty where nothing tells."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return fields[0].decode(), fields[19].decode()
    except (OSError, IndexError):
        return "", ""
