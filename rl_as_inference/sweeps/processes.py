"""Processes of this machine, one for each run: whatever kills one of them, or all, ends nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rl_as_inference.nursery import Fork, Nursery, waited_for
from rl_as_inference.stops import stop_once
from rl_as_inference.sweeps.plan import Task
from rl_as_inference.sweeps.workers import STOPPING, Ended, Perform, note_start, one_thread

__all__ = ["LocalProcesses", "Run", "answer_of", "num_processors", "nursery_of", "serve"]

_PRELOADED = "rl_as_inference.sweeps.preloaded"
_LOOK = 1.0
"""Seconds between looks whether a run has ended, which its closed connection tells at once in most cases."""


def nursery_of(function: Callable[..., Any], *, here: bool = False, shared: bool = False) -> Nursery:
    """Returns what runs are forked from; each is its own group, so that Ctrl-C reaches the sweep alone.

    Args:
        function: whose module is imported there, with all that runs import late.
        here: fork this process itself, see :class:`~rl_as_inference.nursery.Nursery`.
        shared: with all in this process that ask for it.
    """
    body, preload = f"{__name__}:serve", (function.__module__, _PRELOADED)
    if shared:
        return Nursery.shared(body, preload=preload, patience=STOPPING)
    return Nursery(body, preload=preload, patience=STOPPING, here=here)


class Run:
    """A function of a module, called in a process of its own, which stops as SIGTERM stops it where this one ends.

    Args:
        nursery: see :func:`nursery_of`.
        function, args: what it calls.
        log: where it writes; None is nowhere.
    """

    def __init__(self, nursery: Nursery, function: Callable[..., Any], args: Sequence[Any], log: Path | None) -> None:
        self.fork: Fork = nursery.fork()
        self.connection = self.fork.connection
        with contextlib.suppress(OSError):  # of one that died, as answer() says
            self.connection.send((function, args, log))

    def is_over(self, within: float) -> bool:
        """Returns whether it has answered or died, at once or after some seconds at the latest."""
        return self.connection.poll(within) or self.fork.has_ended()

    def answer(self) -> Any:
        """Returns what the function returned, once it has.

        Raises:
            ValueError: that it raised, or with what else it did.
            EOFError: if the process died.
        """
        try:
            while not self.is_over(_LOOK):
                pass
            if not self.connection.poll():  # processes of its own hold the connection open
                raise EOFError
            answer, error = self.connection.recv()
        except OSError:
            raise EOFError from None
        finally:
            self.connection.close()
        if error is not None:
            raise ValueError(error)
        return answer

    def stop(self) -> None:
        """Asks it to stop, once."""
        with contextlib.suppress(OSError):
            self.connection.send(None)


class LocalProcesses:
    """So many processes of this machine at a time, of one thread each.

    Args:
        perform: what each of them does.
        jobs: how many at a time.
        nursery: what they are forked from.
    """

    def __init__(self, perform: Perform, jobs: int, nursery: Nursery) -> None:
        self.perform, self.jobs, self._nursery = perform, jobs, nursery
        self._running: dict[Run, Task] = {}

    def room(self) -> int:
        return self.jobs - len(self._running)

    def start(self, task: Task, words: Sequence[str], log: Path) -> None:
        note_start(log, words)
        self._running[Run(self._nursery, self.perform, [list(words)], log)] = task

    def wait(self, seconds: float) -> list[Ended]:
        ready = wait([run.connection for run in self._running], seconds)
        ended = [run for run in self._running if run.connection in ready or run.is_over(0.0)]
        return [Ended(self._running.pop(run), code_of(run)) for run in ended]

    def stop(self) -> None:
        end = time.monotonic() + STOPPING
        for run in self._running:
            run.stop()
        for run in self._running:  # what hangs is left to close()
            run.is_over(max(0.0, end - time.monotonic()))

    def close(self) -> None:
        for run in self._running:
            run.fork.kill()
            run.connection.close()
        self._running.clear()


def code_of(run: Run) -> int | None:
    """Returns the exit code of a command line that has ended; None if its process died."""
    try:
        code = int(run.answer())
    except EOFError:
        return None
    except ValueError:  # its log says so
        return 1
    return code if 0 <= code != 255 else None


def num_processors() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def answer_of(nursery: Nursery, function: Callable[..., Any], *args: Any) -> Any:
    """Returns what a function of a module returns in a process of its own, as runs do: this one is left as it was.

    Raises:
        ValueError: that the function raised, or if its process died.
    """
    run = Run(nursery, function, args, None)
    try:
        return run.answer()
    except EOFError:
        raise ValueError(f"PROBLEM: the process that looked at it died ({run.fork.how_ended()})") from None
    except KeyboardInterrupt:
        run.fork.kill()
        raise


def serve(connection: Connection) -> None:
    """Runs in a process of its own what it is told to, and answers."""
    parent = os.getppid()
    try:
        function, args, log = connection.recv()
    except EOFError:
        return
    answer, error = None, None
    with _apart(log):
        threading.Thread(target=_watch, args=(connection, parent), daemon=True).start()
        try:
            answer = function(*args)
        except Exception as found:  # of the user's code, perhaps; it is told in the process that asked
            traceback.print_exc()
            error = str(found) if isinstance(found, ValueError) else f"{type(found).__name__}: {found}"
    with contextlib.suppress(OSError):  # nobody listens any more
        connection.send((answer, error))


def _watch(connection: Connection, parent: int) -> None:
    """Asks this process to stop when it is told to, or nobody is there who could tell it."""
    if waited_for(connection, parent):
        with contextlib.suppress(EOFError, OSError):
            connection.recv()
    stop_once()


@contextlib.contextmanager
def _apart(log: Path | None) -> Iterator[None]:
    """Makes this new process one by itself: its group, its signals, and where it writes."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    written = nowhere if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(nowhere, 0)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        os.dup2(written, number)
    # New ones: the host's may be none of the system's, as a notebook's are.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, encoding="utf-8", closefd=False) for number in (1, 2))
    with one_thread():
        yield
    sys.stdout.flush()
    sys.stderr.flush()
