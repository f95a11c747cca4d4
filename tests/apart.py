"""``rlai`` in processes of its own that begin at once: forked from a server that has imported everything."""

import functools
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

_context = multiprocessing.get_context("forkserver")

LONG = os.environ.get("RLAI_FAULTS") == "long"
"""Whether faults are looked for at length, as ``make test-faults`` does."""


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    """Its exit code; of one that a signal ended, minus its number."""
    out: str
    err: str


class Apart:
    """A running command.

    Args:
        words: after ``rlai``.
        scratch: a folder for its output.
        encoding: of its output.
    """

    def __init__(self, *words: object, scratch: Path, encoding: str = "utf-8") -> None:
        _begin_server()
        self.files = [scratch / f"{name}-{time.monotonic_ns()}" for name in ("out", "err")]
        self.begun = scratch / f"begun-{time.monotonic_ns()}"
        self.process = _context.Process(
            target=_run, args=([str(word) for word in words], self.files, self.begun, encoding)
        )
        self.process.start()
        self.pid = self.process.pid or 0

    def ends(self, within: float = 240.0) -> Ended:
        """Waits for it."""
        self.process.join(within)
        assert self.process.exitcode is not None, "it goes on and on"
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in self.files)
        return Ended(self.process.exitcode, out, err)

    def gets(self, number: int, after: float = 0.0, when: Callable[[], bool] | None = None) -> Ended:
        """Sends it a signal, some time from now or from when something holds, unless it has ended by then."""
        until = time.monotonic() + 120
        while (
            not (self.begun.exists() and (when is None or when()))
            and self.process.is_alive()
            and time.monotonic() < until
        ):
            time.sleep(0.002)
        self.process.join(after)
        if self.process.is_alive():
            os.kill(self.pid, number)
        return self.ends()


@functools.cache
def _begin_server() -> None:
    """Starts what others are forked from; it finds modules by the environment alone."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [before])])
    _context.set_forkserver_preload(["apart_main"])
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def _run(words: list[str], files: list[Path], begun: Path, encoding: str) -> None:
    for number, path in zip((1, 2), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), number)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=encoding, errors="strict" if stream is sys.stdout else "backslashreplace")  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from rl_as_inference.cli import main

    sys.argv = ["rlai", *words]
    begun.touch()
    main()


def moments(seed: int, longest: float) -> Callable[[], float]:
    """Returns what draws moments, seconds."""
    drawn = random.Random(seed)
    return lambda: drawn.uniform(0.0, longest)
