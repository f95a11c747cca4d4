"""One thread at a time: what PyTorch, Pyro and Python have but one of in a process is used in turns."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turn", "silenced", "turn"]


class Turn:
    """A lock of the whole process that a thread may take again while it has it; others wait for it.

    A process has one generator of random numbers that distributions draw from, one switch for their checks of
    arguments, one number of threads, one precision of matrix products, one stack of Pyro's handlers and one store of
    its parameters, one list of filters for warnings, and one compiler. A computation that changes one of these for a
    while, or draws from it, is a turn. So several threads may each fit, compare or learn, and each gets bit for bit
    what it would get alone, as long as its random numbers are its own (``seed=`` or ``generator=``); they take no
    less time than one after the other. A call is one turn, but for a learner's ``learn``, where each step may be: an
    agent in another thread acts, or is saved, between two steps.

    Who draws from PyTorch's generator, builds distributions or runs Pyro in a thread of their own beside that takes a
    turn too: ``with rl_as_inference.turns.turn: ...``. Whoever has the turn must not wait for a thread that wants it.

    Example:
        >>> with turn:
        ...     with turn:  # again, by the same thread
        ...         turn.is_wanted
        False
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._guard = threading.Lock()
        self._waiting = self._depth = 0
        self._owner: int | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_in_child)

    @property
    def is_wanted(self) -> bool:
        """Whether another thread waits."""
        return self._waiting > 0

    @property
    def is_ours(self) -> bool:
        """Whether this thread has it: a thread with the context of another need not."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> None:
        self._take()
        self._owner = threading.get_ident()
        self._depth += 1

    def _take(self) -> None:
        if self._lock.acquire(blocking=False):
            return
        with self._guard:
            self._waiting += 1
        try:
            self._lock.acquire()
        finally:
            with self._guard:
                self._waiting -= 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
        self._lock.release()

    def give_way(self) -> None:
        """Lets a thread that waits go first; to be called between turns."""
        if self.is_wanted:
            time.sleep(1e-4)  # else the lock, which knows no order, would go to who asks again at once

    def _begin_in_child(self) -> None:
        """Forgets the threads that a forked process does not have."""
        self._guard, self._waiting = threading.Lock(), 0
        if self._lock.acquire(blocking=False):  # nobody's, or the forking thread's own
            self._lock.release()
        else:
            self._lock, self._owner, self._depth = threading.RLock(), None, 0


turn = Turn()
"""The turn of this process."""


@contextmanager
def silenced(message: str = "", category: type[Warning] = Warning, module: str = "") -> Iterator[None]:
    """Ignores such warnings within it, as :func:`warnings.filterwarnings` takes them.

    Filters are the process's: two threads that each put back what they found would leave what the other put there.

    Example:
        >>> with silenced(category=UserWarning):
        ...     warnings.warn("nobody hears of it")
    """
    with turn, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message, category=category, module=module)
        yield
