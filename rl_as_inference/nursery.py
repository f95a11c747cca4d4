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
import time
import traceback
from multiprocessing.connection import Connection
from typing import NoReturn

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

    Args:
        body: ``"module:function"``, which a fork calls with its end of a connection. It computes on one thread.

    Raises:
        ValueError: where processes are not forked.

    Example:
        >>> nursery = Nursery("rl_as_inference.nursery:echo")
        >>> connection = nursery.fork()
        >>> connection.send("hello")
        >>> pid, answer = connection.recv()
        >>> answer, pid == os.getpid()
        ('hello', False)
        >>> nursery.close()
    """

    def __init__(self, body: str) -> None:
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
                raise
        return Connection(ours.detach())

    def how_ended(self, pid: int) -> str:
        """Returns in words how a fork ended whose connection has closed."""
        try:
            self._control.sendall(_REQUEST.pack(b"w", pid))
            code = _ANSWER.unpack(self._control.recv(_ANSWER.size))[0]
        except (OSError, struct.error):
            return f"with the process that it was forked from ({self._process.pid})"
        return "for an unknown reason" if code == _UNKNOWN else worded_exit(code)

    def close(self) -> None:
        """Ends all forks, and waits until they have ended."""
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
    for asks in (signal.SIGINT, signal.SIGTERM):  # terminals and schedulers send them to all processes
        signal.signal(asks, signal.SIG_IGN)
    control, parent = socket.socket(fileno=fd), os.getppid()
    module, _, name = body.partition(":")
    function = getattr(importlib.import_module(module), name)
    forks: set[int] = set()
    while True:
        if not select.select([control], [], [], _LOOK)[0]:
            if os.getppid() != parent:  # a fork of the parent may still hold the other end
                break
            continue
        message, fds, _, _ = socket.recv_fds(control, _REQUEST.size, 1)
        if len(message) < _REQUEST.size:
            break
        kind, pid = _REQUEST.unpack(message)
        if kind == b"w":
            control.sendall(_ANSWER.pack(_exit_code(pid, forks)))
        elif (pid := os.fork()) == 0:
            control.close()
            _run(function, fds[0])
        else:
            os.close(fds[0])
            forks.add(pid)
    end = time.monotonic() + PATIENCE
    while forks and time.monotonic() < end:
        _reap(forks)
        time.sleep(0.005)
    for pid in forks:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
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


def _reap(forks: set[int]) -> None:
    for pid in list(forks):
        if os.waitpid(pid, os.WNOHANG)[0]:
            forks.discard(pid)


def _exit_code(pid: int, forks: set[int]) -> int:
    """Returns how a fork ended that has closed its connection; it is killed if it does not end."""
    if pid not in forks:
        return _UNKNOWN
    end = time.monotonic() + _LOOK
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            forks.discard(pid)
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


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


def echo(connection: Connection) -> None:
    """Sends back the first thing that it receives, with the number of its process."""
    connection.send((os.getpid(), connection.recv()))
