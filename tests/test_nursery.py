"""The process that workers are forked from: how it ends, and how it is replaced."""

import os
import resource
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from rl_as_inference.nursery import Nursery, waited_for


def lasting(connection: Connection) -> None:
    """Says who it is, and stays until it is alone."""
    parent = os.getppid()
    connection.send(os.getpid())
    while waited_for(connection, parent):
        connection.recv()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def is_gone(pid: int, within: float = 60.0) -> bool:
    end = time.monotonic() + within
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(pid)


def test_a_nursery_that_is_killed_is_replaced_and_another_ctrl_c_ends_it_at_once() -> None:
    nursery = Nursery("test_nursery:lasting", patience=600.0)
    first = nursery.fork()
    worker, server = first.connection.recv(), nursery.pid
    assert not first.has_ended()
    os.kill(server, signal.SIGKILL)
    assert is_gone(worker)  # it saw that it is alone
    assert first.has_ended()
    assert first.how_ended() == f"with the process that it was forked from ({server})"

    fork = nursery.fork()
    worker, other = fork.connection.recv(), nursery.fork()
    assert nursery.pid != server
    killed = other.connection.recv()
    assert other.kill() == "killed by SIGKILL"
    assert is_gone(killed)
    assert not fork.has_ended()
    # Its fork lasts as long as our end of the connection is open, and is waited for ten minutes.
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        nursery.close()
    assert time.monotonic() - began < 60
    assert not is_alive(nursery.pid)
    assert is_gone(worker)


def test_a_program_may_hold_more_than_a_thousand_files_open() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, limits[1]))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]
    try:
        with Nursery("test_nursery:lasting") as nursery:
            fork = nursery.fork()
            assert is_alive(fork.connection.recv())
            fork.connection.close()
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
