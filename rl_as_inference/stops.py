"""How a run is asked to stop: by Ctrl-C, or by SIGTERM, as schedulers of clusters and containers do."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Terminated", "asked_to_stop", "stop_of", "stop_once", "stoppable"]


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever ends in good order after Ctrl-C does after this."""


def stop_of(number: int) -> KeyboardInterrupt:
    """Returns what to raise after a signal."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


_came: list[int] = []
"""Signals that came to a handler of this process."""


def stop_once() -> None:
    """Asks this process to stop, as SIGTERM does, unless a signal has asked it already: a second one ends it at once.

    For another thread than the main one, in a process whose signals are handled by this module.
    """
    if not _came:
        os.kill(os.getpid(), signal.SIGTERM)


class _Handler:
    """What is called when a signal comes: it notes it, and raises, unless it defers and this is the first."""

    def __init__(self, asked: list[int], *, defers: bool) -> None:
        self.asked, self.defers = asked, defers

    def __call__(self, number: int, _: Any) -> None:
        _came.append(number)
        raises = bool(self.asked) or not self.defers
        self.asked.append(number)
        if raises:
            raise stop_of(number)


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM raises :class:`Terminated`, where nobody else handles it; afterwards all is as it was.

    What is raised may come out as another error, such as the ImportError of a module whose C code was being
    initialised: after a signal, any error is the stop that was asked for.
    """
    asked: list[int] = []
    try:
        with _handling(_Handler(asked, defers=False)):
            yield
    except Exception as error:
        if asked:
            raise stop_of(asked[0]) from error
        raise


@contextmanager
def asked_to_stop(*, afresh: bool = False) -> Iterator[list[int]]:
    """Yields a list that Ctrl-C and SIGTERM fill with their number, so that a loop can end where it is consistent.

    A second one interrupts at once. SIGTERM is left to whoever handles it already. Within another of these the list
    begins with what that one's has, unless it is to begin ``afresh``, and what the loop does not heed is left to it.

    Example:
        >>> import os, signal
        >>> with asked_to_stop() as asked:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     print("goes on")
        goes on
        >>> asked == [signal.SIGTERM]
        True
    """
    now, outer = signal.getsignal(signal.SIGINT), []
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and isinstance(now, _Handler) and now.defers and not afresh:
        outer = now.asked
    asked = list(outer)
    with _handling(_Handler(asked, defers=True)):
        yield asked
    outer[:] = asked


@contextmanager
def _handling(handler: _Handler) -> Iterator[None]:
    before = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python delivers no signals
        if handler.defers or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, handler)
        now = signal.getsignal(signal.SIGTERM)
        if now is signal.SIG_DFL or isinstance(now, _Handler):
            before[signal.SIGTERM] = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
