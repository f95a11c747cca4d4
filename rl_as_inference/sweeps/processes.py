"""Processes of this machine, one for each run: whatever kills one of them, or all, ends nothing else."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

from rl_as_inference.stops import stop_once
from rl_as_inference.sweeps.plan import Task
from rl_as_inference.sweeps.workers import Ended, Perform, note_start, one_thread

__all__ = ["LocalProcesses", "answer_of", "num_processors"]

_PRELOADED = "rl_as_inference.sweeps.preloaded"
_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_STOPPING = 120.0
"""Seconds in which a run that is asked to stop must have."""


class LocalProcesses:
    """So many processes of this machine at a time, of one thread each.

    A process is forked, so that it need not import anything again: from this one where that has done nothing but
    import (``fork``, as the command line does), else from a server that has. It is its own group, so that Ctrl-C
    reaches the sweep alone, which asks each of its runs to stop once. Where the sweep dies they see a pipe close, and
    stop as SIGTERM would stop them.

    Args:
        perform: what each of them does.
        jobs: how many at a time.
        fork: fork this process itself.
    """

    def __init__(self, perform: Perform, jobs: int, *, fork: bool) -> None:
        self.perform, self.jobs = perform, jobs
        self._context = context_of(fork, perform)
        self._theirs, self._ours = self._context.Pipe(duplex=False)
        self._forks = fork
        self._running: dict[int, tuple[Any, Task]] = {}

    def room(self) -> int:
        return self.jobs - len(self._running)

    def start(self, task: Task, words: Sequence[str], log: Path) -> None:
        note_start(log, words)
        args = (self.perform, list(words), log, self._theirs, self._ours if self._forks else None)
        process = begun(self._context, _work, args)
        self._running[process.sentinel] = process, task

    def wait(self, seconds: float) -> list[Ended]:
        ended = []
        for sentinel in wait(list(self._running), seconds):
            assert isinstance(sentinel, int)
            process, task = self._running.pop(sentinel)
            process.join()
            code = process.exitcode
            ended.append(Ended(task, code if code is not None and 0 <= code != 255 else None))
            process.close()
        return ended

    def stop(self) -> None:
        for process, _ in self._running.values():
            process.terminate()
        end = time.monotonic() + _STOPPING
        for process, _ in self._running.values():  # what hangs is left to close()
            process.join(max(0.0, end - time.monotonic()))

    def close(self) -> None:
        for process, _ in self._running.values():
            process.kill()
            process.join()
        self._running.clear()
        self._ours.close()
        self._theirs.close()


def num_processors() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def answer_of(function: Callable[..., Any], *args: Any, fork: bool) -> Any:
    """Returns what a function of a module returns in a process of its own, as runs do: this one is left as it was.

    Raises:
        ValueError: that the function raised, or if its process died.
    """
    context = context_of(fork, function)
    ours, theirs = context.Pipe(duplex=False)
    process = begun(context, _answer, (function, args, theirs))
    theirs.close()
    try:
        answer, error = ours.recv()
    except EOFError:
        process.join()
        raise ValueError(f"PROBLEM: the process that looked at it died (exit code {process.exitcode})") from None
    finally:
        ours.close()
        if sys.exc_info()[0] is not None and process.is_alive():
            process.kill()
    process.join()
    if error is not None:
        raise ValueError(error)
    return answer


def context_of(fork: bool, function: Callable[..., Any]) -> Any:
    """Returns how processes are begun; a server is told to import what ``function`` stands on, and more."""
    if not hasattr(signal, "pthread_sigmask"):
        raise ValueError(f"a sweep needs processes that signals reach, which {sys.platform} has not")
    if fork:
        importlib.import_module(_PRELOADED)
        return multiprocessing.get_context("fork")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__, __name__, _PRELOADED])
    return context


def begun(context: Any, target: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Returns a process that has begun; no signal reaches it before it is ready for signals.

    The host's own program is not run again in it, as it would be by default: it has nothing that a run needs, and need
    not guard what it does with ``if __name__ == "__main__"``.
    """
    process = context.Process(target=target, args=args)
    main = sys.modules["__main__"]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        sys.modules["__main__"] = types.ModuleType("__main__")
        process.start()
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


@contextlib.contextmanager
def _apart(log: Path | None) -> Iterator[None]:
    """Makes this new process one by itself: its group, its signals, and where it writes."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
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


def _work(perform: Perform, words: Sequence[str], log: Path, alive: Connection, others: Connection | None) -> NoReturn:
    if others is not None:  # a forked process has the sweep's end of the pipe, too, and would keep it open
        others.close()
    with _apart(log):
        threading.Thread(target=_watch, args=(alive,), daemon=True).start()
        code = perform(words)
    sys.exit(code)


def _watch(alive: Connection) -> None:
    """Asks this process to stop when the sweep is no more."""
    with contextlib.suppress(EOFError, OSError):
        alive.recv_bytes()
    stop_once()


def _answer(function: Callable[..., Any], args: tuple[Any, ...], to: Connection) -> None:
    with _apart(None):
        try:
            answer, error = function(*args), None
        except Exception as found:  # of the user's code, perhaps; it is told in the process that asked
            told = str(found) if isinstance(found, ValueError) else f"{type(found).__name__}: {found}"
            answer, error = None, told
    to.send((answer, error))
