"""Worker processes that begin at once: forks of one process that has imported the package already.

Importing PyTorch and Pyro takes seconds of a core; a fork takes milliseconds, and shares that memory. It is the fork
server of :mod:`multiprocessing`, but that it knows nothing of the main program, which so need not be importable: a
script without a guard, a notebook and standard input all serve.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import ClassVar, NoReturn, Self

__all__ = ["PATIENCE", "Fork", "Nursery", "waited_for", "worded_exit"]

PATIENCE = 3.0
"""Seconds that a process has to end by itself, before it is killed."""
_LOOK = 1.0
"""Seconds between looks whether the parent is still there, which a closed pipe tells at once in most cases."""
_REQUEST, _ANSWER = struct.Struct("!cq"), struct.Struct("!q")
_UNKNOWN = 1 << 30
"""In place of an exit code."""
_PROGRAM = (
    "import json, sys; paths, fd, *what = json.loads(sys.argv[1]); sys.path[:] = paths; "
    "from rl_as_inference.nursery import serve; serve(fd, *what)"
)


class Nursery:
    """A process whose forks run one function; all of them end when it is closed, or when this process ends.

    A server that was killed is replaced by the next :meth:`fork`.

    Args:
        body: ``"module:function"``, which a fork calls with its end of a connection. It computes on one thread.
        preload: modules that forks need not import.
        patience: seconds that forks have to end by themselves when they are alone.
        here: fork this process itself, which must have done nothing but import; else a new one imports it all again.

    Raises:
        ValueError: where processes are not forked.
    """

    _SHARED: ClassVar[dict[tuple[int, str], Nursery]] = {}

    def __init__(
        self, body: str, *, preload: Sequence[str] = (), patience: float = PATIENCE, here: bool = False
    ) -> None:
        if not hasattr(os, "fork") or not hasattr(socket, "send_fds"):
            raise ValueError(f"actors and sweeps need processes that are forked, which {sys.platform} has not")
        self._what = body, patience, list(preload)
        self._key, self._users = (os.getpid(), body), 1
        self._server = _Server(self._what, here=here)

    @classmethod
    def shared(cls, body: str, *, preload: Sequence[str] = (), patience: float = PATIENCE) -> Nursery:
        """Returns the nursery of this process for ``body``, which ends when all who asked for it have closed it."""
        found = cls._SHARED.get((os.getpid(), body))
        if found is None:
            found = cls._SHARED[os.getpid(), body] = cls(body, preload=preload, patience=patience)
        else:
            found._users += 1
        return found

    @property
    def pid(self) -> int:
        """The process that is forked."""
        return self._server.process.pid

    def fork(self) -> Fork:
        """Returns a new process, which begins as soon as its server has."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                number = self._server.fork(theirs.fileno())
            except OSError:  # it was killed
                self._server.end(0.0)
                self._server = _Server(self._what, here=False)
                number = self._server.fork(theirs.fileno())
        return Fork(Connection(ours.detach()), self._server, number)

    def close(self) -> None:
        """Ends all forks, and waits until they have ended; if others share this nursery, they see to that."""
        self._users -= 1
        if self._users <= 0:
            if self._SHARED.get(self._key) is self:
                del self._SHARED[self._key]
            self._server.end(self._what[1] + 2 * _LOOK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Fork:
    """A process that was forked.

    Attributes:
        connection: to it. When it closes the process has ended, but that processes of its own may hold it open.
    """

    def __init__(self, connection: Connection, server: _Server, number: int) -> None:
        self.connection = connection
        self._server, self._number = server, number

    def has_ended(self) -> bool:
        """Whether it has ended."""
        return bool(self._server.ask(b"?", self._number, otherwise=1))

    def kill(self) -> str:
        """Kills it if it has not ended, and returns in words how it did."""
        return self._worded(b"k")

    def how_ended(self) -> str:
        """Returns in words how it ended, whose connection has closed; it is killed if it does not end."""
        return self._worded(b"w")

    def _worded(self, kind: bytes) -> str:
        code = self._server.ask(kind, self._number, otherwise=None)
        if code is None:
            return f"with the process that it was forked from ({self._server.process.pid})"
        return "for an unknown reason" if code == _UNKNOWN else worded_exit(code)


def worded_exit(code: int) -> str:
    """Returns in words what an exit code says, negative of a signal.

    Example:
        >>> worded_exit(-9), worded_exit(1)
        ('killed by SIGKILL', 'exited with code 1')
    """
    if code >= 0:
        return f"exited with code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


class _Server:
    """The process that is forked, as this one sees it; forks are told by numbers, which are known before they begin."""

    def __init__(self, what: tuple[str, float, list[str]], *, here: bool) -> None:
        self._control, theirs = socket.socketpair()
        self._lock, self._count = threading.Lock(), 0
        self.process: subprocess.Popen[bytes] | _Forked
        with theirs:
            if here:
                sys.stdout.flush()
                sys.stderr.flush()
                if (pid := os.fork()) == 0:
                    try:
                        self._control.close()
                        serve(theirs.fileno(), *what)
                    finally:
                        os._exit(1)
                self.process = _Forked(pid)
                return
            paths = [path for path in sys.path if isinstance(path, str)]
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps([paths, theirs.fileno(), *what])],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def fork(self, fd: int) -> int:
        """Returns the number of a new fork, which has ``fd``.

        Raises:
            OSError: if the server has ended.
        """
        with self._lock:
            self._count += 1
            socket.send_fds(self._control, [_REQUEST.pack(b"f", self._count)], [fd])
            return self._count

    def ask(self, kind: bytes, number: int, otherwise: int | None) -> int | None:
        """Returns what the server says of a fork; ``otherwise`` if it has ended."""
        with self._lock:
            try:
                self._control.sendall(_REQUEST.pack(kind, number))
                return int(_ANSWER.unpack(self._control.recv(_ANSWER.size))[0])
            except (OSError, struct.error):
                return otherwise
            except BaseException:  # an answer that comes later would be taken for that to another question
                self._control.close()
                self.process.kill()
                raise

    def end(self, seconds: float) -> None:
        """Has it end its forks and itself; after so many seconds, or another Ctrl-C, it is killed itself.

        Its forks then see that they are alone, and end in their own time.
        """
        self._control.close()
        try:
            if self._count:
                self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.process.kill()
            self.process.wait()


class _Forked:
    """A process that this one has forked, with what is needed here of :class:`subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid, self._is_over = pid, False

    def wait(self, timeout: float | None = None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while not self._is_over:
            try:
                self._is_over = os.waitpid(self.pid, os.WNOHANG)[0] != 0
            except ChildProcessError:  # somebody else has waited for it
                self._is_over = True
            if not self._is_over:
                if end is not None and time.monotonic() >= end:
                    raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
                time.sleep(0.002)

    def kill(self) -> None:
        if not self._is_over:
            os.kill(self.pid, signal.SIGKILL)


class _Child:
    """A fork, as the server sees it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None

    def reap(self) -> None:
        """Notes how it ended if it has by now."""
        if self.code is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.code = os.waitstatus_to_exitcode(found[1])

    def ended(self, within: float) -> int:
        """Returns how it ended; it is killed if it has not after some seconds."""
        end = time.monotonic() + within
        self.reap()
        while self.code is None:
            if time.monotonic() >= end:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.002)
            self.reap()
        return self.code


def serve(fd: int, body: str, patience: float, preload: Sequence[str]) -> NoReturn:
    """Forks as it is asked to until nobody can ask any more; then it ends its forks and itself."""
    # Terminals and schedulers send these to all processes. What an environment starts would inherit SIG_IGN, but no
    # handler, and can be ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    control, parent = socket.socket(fileno=fd), os.getppid()
    module, _, name = body.partition(":")
    for each in preload:
        importlib.import_module(each)
    function = getattr(importlib.import_module(module), name)
    children: dict[int, _Child] = {}
    while True:
        for child in children.values():
            child.reap()
        if not wait([control], _LOOK):  # select.select knows only the first 1,024 files of a process
            if os.getppid() != parent:  # a fork of the parent may still hold the other end
                break
            continue
        message, fds, _, _ = socket.recv_fds(control, _REQUEST.size, 1)
        if len(message) < _REQUEST.size:
            break
        kind, number = _REQUEST.unpack(message)
        if kind == b"f":
            if (pid := os.fork()) == 0:
                control.close()
                _run(function, fds[0])
            os.close(fds[0])
            children[number] = _Child(pid)
        elif (found := children.get(number)) is None:
            control.sendall(_ANSWER.pack(_UNKNOWN))
        elif kind == b"?":
            found.reap()
            control.sendall(_ANSWER.pack(found.code is not None))
        else:
            control.sendall(_ANSWER.pack(found.ended(PATIENCE if kind == b"w" else 0.0)))
    end = time.monotonic() + patience
    for child in children.values():
        child.ended(end - time.monotonic())
    os._exit(0)


def _run(function: Callable[[Connection], object], fd: int) -> NoReturn:
    code = 1
    try:
        function(Connection(fd))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def waited_for(connection: Connection, parent: int) -> bool:
    """Waits until there is something to receive; returns false where there never will be, since the parent ended.

    Args:
        connection: of a fork.
        parent: the process that it was forked from.
    """
    try:
        while not connection.poll(_LOOK):
            if os.getppid() != parent:
                return False
    except OSError:
        return False
    return True
