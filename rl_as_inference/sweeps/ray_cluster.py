"""The processes of a Ray cluster, one for each run, wherever there is a free processor."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_as_inference.records import RECORD
from rl_as_inference.sweeps.plan import Task
from rl_as_inference.sweeps.workers import Ended, Perform, note_start, one_thread

__all__ = ["RayCluster"]

_SECONDS = 5.0
"""How long an address may take to answer."""
_STOPPING = 120.0


class RayCluster:
    """As many runs at a time as the cluster has processors.

    A task of Ray's dies with its process or its node; it is never begun again by Ray, but by the sweep, which looks
    first at what it has left in its folder.

    Args:
        perform: what each task does.
        address: ``host:port`` of a cluster of which this machine is a node, ``auto``, or ``ray://host:port``.
        out: the sweep's folder, which all nodes must see.

    Raises:
        ValueError: if Ray is not installed, or the address does not answer.
    """

    def __init__(self, perform: Perform, address: str, out: Path) -> None:
        ray = _imported()
        _check_answers(address)
        self.perform, self.out = perform, out
        handler = signal.getsignal(signal.SIGTERM)
        try:
            # A runtime environment of uv's is none of ours; what tasks print is in the runs' logs.
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # of many classes, by what went wrong on the way
            raise ValueError(f"--ray: cannot join the cluster at {address}: {' '.join(str(error).split())}") from error
        if threading.current_thread() is threading.main_thread():  # Ray has put its own there, which ends at once
            signal.signal(signal.SIGTERM, handler)
        self._ray = ray
        # A new process for each: what one run leaves in memory is no other's. Ray itself tries nothing again.
        self._task: Any = ray.remote(num_cpus=1, max_calls=1, max_retries=0)(_work)
        self._running: dict[Any, Task] = {}

    def room(self) -> int:
        return max(1, int(self._ray.cluster_resources().get("CPU", 0))) - len(self._running)

    def start(self, task: Task, words: Sequence[str], log: Path) -> None:
        note_start(log, words)
        self._running[self._task.remote(self.perform, list(words), str(log), str(self.out))] = task

    def wait(self, seconds: float) -> list[Ended]:
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [Ended(self._running.pop(reference), self._code(reference)) for reference in ready]

    def stop(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=False)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=_STOPPING)

    def close(self) -> None:
        for reference in self._running:
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)
        self._running.clear()
        self._ray.shutdown()

    def _code(self, reference: Any) -> int | None:
        from ray.exceptions import RayError, RayTaskError

        try:
            return int(self._ray.get(reference))
        except RayTaskError as error:
            if isinstance(error.cause, ValueError):
                raise error.cause from None
            raise
        except RayError:  # its process or its node is dead
            return None


def _work(perform: Perform, words: Sequence[str], log: str, out: str) -> int:
    if not (Path(out) / RECORD).is_file():
        raise ValueError(
            f"--out: {out!r} is not there on {os.uname().nodename}, a node of the cluster; name a folder that all of "
            f"them share"
        )
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(log, "a", encoding="utf-8", buffering=1))
        for manager in (one_thread(), contextlib.redirect_stdout(file), contextlib.redirect_stderr(file)):
            stack.enter_context(manager)
        return perform(words)


def _imported() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # tasks see the node's GPUs, as processes do
    try:
        import ray
    except ImportError as error:
        raise ValueError("--ray needs Ray; pip install 'rl-as-inference[ray]'") from error
    return ray


def _check_answers(address: str) -> None:
    """Raises ValueError if nothing answers at an address: Ray itself would try for minutes."""
    import grpc

    if address == "auto":
        address = _address_here()
    place = address.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--ray must be host:port, ray://host:port or auto; got {address!r}")
    with grpc.insecure_channel(place, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=_SECONDS)
        except grpc.RpcError as error:
            # A client's server has no such method, and says so itself.
            is_ray = (
                place != address and error.code() is grpc.StatusCode.UNIMPLEMENTED and "http2" not in error.details()
            )
            if not is_ray:
                raise ValueError(
                    f"--ray: {place} does not answer as Ray does ({error.details()}); see that the cluster is up (ray "
                    f"status), or leave --ray out for processes of this machine"
                ) from None


def _address_here() -> str:
    from ray._private.services import canonicalize_bootstrap_address  # what ray.init(address="auto") itself asks

    found = canonicalize_bootstrap_address("auto")
    if not found:
        raise ValueError("--ray auto: no cluster runs on this machine; begin one (ray start --head), or say host:port")
    return str(found)
