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
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import ClassVar, NoReturn

__all__ = ["PATIENCE", "Nursery", "waited_for", "worded_exit"]

PATIENCE = 3.0
"""Seconds that a process has to end by itself, before it is killed."""
_LOOK = 1.0
"""Seconds between looks whether the parent is still there, which a closed pipe tells at once in most cases."""
_REQUEST, _ANSWER = struct.Struct("!cq"), struct.Struct("!q")
_UNKNOWN = 1 << 30
"""In place of an exit code."""
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from rl_as_inference.nursery import serve; serve(int(sys.argv[2]), sys.argv[3])"
)


class Nursery:
    """A process whose forks run one function; all of them end when it is closed, or when this process ends.

    Use :meth:`shared`, by which all in this process that want the same have one of them.

    Args:
        body: ``"module:function"``, which a fork calls with its end of a connection. It computes on one thread.

    Raises:
        ValueError: where processes are not forked.
    """

    _SHARED: ClassVar[dict[tuple[int, str], Nursery]] = {}

    def __init__(self, body: str) -> None:
        self._key, self._users, self._ended, self._lock = (os.getpid(), body), 1, False, threading.Lock()
        if not hasattr(os, "fork") or not hasattr(socket, "send_fds"):
            raise ValueError(f"num_actors needs processes that are forked, which {sys.platform} has not")
        self._control, theirs = socket.socketpair()
        with theirs:
            paths = json.dumps([path for path in sys.path if isinstance(path, str)])
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, paths, str(theirs.fileno()), body],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    @classmethod
    def shared(cls, body: str) -> Nursery:
        """Returns the nursery of this process, which ends when all who asked for it have closed it."""
        found = cls._SHARED.get((os.getpid(), body))
        if found is not None and not found._ended and found._process.poll() is None:
            found._users += 1
            return found
        cls._SHARED[os.getpid(), body] = made = cls(body)
        return made

    def fork(self) -> Connection:
        """Returns a connection to a new process.

        Raises:
            OSError: if this nursery has ended.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [_REQUEST.pack(b"f", 0)], [theirs.fileno()])
            except OSError:
                ours.close()
                self._ended = True
                raise
        return Connection(ours.detach())

    def how_ended(self, pid: int) -> str:
        """Returns in words how a fork ended whose connection has closed; it is killed if it does not end."""
        try:
            with self._lock:
                self._control.sendall(_REQUEST.pack(b"w", pid))
                code = _ANSWER.unpack(self._control.recv(_ANSWER.size))[0]
        except (OSError, struct.error):
            return f"with the process that it was forked from ({self._process.pid})"
        return "for an unknown reason" if code == _UNKNOWN else worded_exit(code)

    def has_ended(self, pid: int) -> bool:
        """Whether a fork has ended; its connection may still be held by processes of its own."""
        try:
            with self._lock:
                self._control.sendall(_REQUEST.pack(b"?", pid))
                return bool(_ANSWER.unpack(self._control.recv(_ANSWER.size))[0])
        except (OSError, struct.error):
            return True

    def close(self) -> None:
        """Ends all forks, and waits until they have ended; if others share this nursery, they see to that."""
        self._users -= 1
        if self._users > 0:
            return
        if self._SHARED.get(self._key) is self:
            del self._SHARED[self._key]
        self._control.close()
        try:
            self._process.wait(PATIENCE + 2 * _LOOK)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


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


def serve(fd: int, body: str) -> NoReturn:
    """Forks as it is asked to until nobody can ask any more; then it ends its forks and itself."""
    # Terminals and schedulers send these to all processes. What an environment starts would inherit SIG_IGN, but no
    # handler, and can be ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    control, parent = socket.socket(fileno=fd), os.getppid()
    module, _, name = body.partition(":")
    function = getattr(importlib.import_module(module), name)
    codes: dict[int, int | None] = {}
    while True:
        _reap(codes)
        if not select.select([control], [], [], _LOOK)[0]:
            if os.getppid() != parent:  # a fork of the parent may still hold the other end
                break
            continue
        message, fds, _, _ = socket.recv_fds(control, _REQUEST.size, 1)
        if len(message) < _REQUEST.size:
            break
        kind, pid = _REQUEST.unpack(message)
        if kind == b"w":
            control.sendall(_ANSWER.pack(_exit_code(pid, codes)))
        elif kind == b"?":
            _reap(codes)
            control.sendall(_ANSWER.pack(codes.get(pid, _UNKNOWN) is not None))
        elif (pid := os.fork()) == 0:
            control.close()
            _run(function, fds[0])
        else:
            os.close(fds[0])
            codes[pid] = None
    end = time.monotonic() + PATIENCE
    for pid in codes:
        _exit_code(pid, codes, end)
    os._exit(0)


def _run(function: object, fd: int) -> NoReturn:
    code = 1
    try:
        function(Connection(fd))  # type: ignore[operator]
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _reap(codes: dict[int, int | None]) -> None:
    """Notes how those ended that have ended by now."""
    for pid, code in codes.items():
        if code is None and (found := os.waitpid(pid, os.WNOHANG))[0]:
            codes[pid] = os.waitstatus_to_exitcode(found[1])


def _exit_code(pid: int, codes: dict[int, int | None], end: float | None = None) -> int:
    """Returns how a fork ended that has closed its connection; it is killed if it has not by ``end``."""
    end = time.monotonic() + PATIENCE if end is None else end
    while (code := codes.get(pid, _UNKNOWN)) is None:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
        _reap(codes)
    return code


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
