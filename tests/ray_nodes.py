"""Nodes of a Ray cluster, all on this machine, that can be killed one by one."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

_MEMORY = "200000000"


class Nodes:
    """So many nodes of one processor each; the first is the head.

    They begin with this Python, which ``ray`` of another environment might not. The cluster has a secret of its own,
    made here: whether one lies in the user's home, which is somebody else's, makes no difference.

    Attributes:
        address: of the head.
        client_address: the same for those who are no node.
        environment: of whoever joins.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.groups: list[list[int]] = []
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"}
        own["RAY_worker_niceness"] = "0"  # Ray has its workers give way to all else, and on a busy machine they starve
        self.environment = {**os.environ, **own}

    def __enter__(self) -> Self:
        # Its path is short, as sockets want it.
        self._folder = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
        self.port, client = _free_port(), _free_port()
        self.client_address = f"ray://127.0.0.1:{client}"
        try:
            ports = [f"--port={self.port}", f"--ray-client-server-port={client}"]
            self._start("--head", *ports, "--include-dashboard=false", f"--temp-dir={self._folder.name}")
            self.address = next(
                line.partition("--address=")[2].strip("' ") for line in self.said.splitlines() if "--address=" in line
            )
            for _ in range(1, self.count):
                self._start(f"--address={self.address}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def kill(self, index: int) -> None:
        """Kills a node with all that runs on it."""
        for pid in self.groups[index]:
            for each in [pid, *_below(pid)]:
                try:
                    os.kill(each, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.groups[index] = []

    def tasks(self, index: int) -> list[int]:
        """Returns the processes of a node that carry tasks out, and those that these have begun."""
        everyone = {pid for root in self.groups[index] for pid in _below(root)}
        workers = [pid for pid in everyone if _words(pid).startswith(b"ray::_work")]
        return sorted({*workers, *(pid for worker in workers for pid in _below(worker))})

    def __exit__(self, *_: object) -> None:
        for index in reversed(range(len(self.groups))):
            self.kill(index)
        self._folder.cleanup()

    def _ours(self) -> list[int]:
        return _marked(self._folder.name, f":{self.port} ", f":{self.port}\0")

    def _start(self, *words: str) -> None:
        before = set(self._ours())
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--disable-usage-stats"]
        done = subprocess.run(
            [*command, f"--object-store-memory={_MEMORY}", *words],
            capture_output=True,
            text=True,
            timeout=150,
            env=self.environment,
            check=False,
        )
        self.groups.append(sorted(set(self._ours()) - before))
        assert done.returncode == 0, done.stdout + done.stderr
        self.said = done.stdout


def _free_port() -> int:
    """Returns a port that nobody has, by chance: two clusters could listen on the same one, and take each other's."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _marked(*marks: str) -> list[int]:
    """Returns the processes that have one of the words in theirs: those of a cluster of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            words = _words(int(entry.name))
            if any(mark.encode() in words for mark in marks):
                found.append(int(entry.name))
    return found


def _words(pid: int) -> bytes:
    """Returns a process's command line; nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _below(pid: int) -> list[int]:
    """Returns the processes that a process has begun, and those that they have."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found += [int(entry.name), *_below(int(entry.name))]
    return found
