"""The processes of a Ray cluster, one for each run, wherever there is a free processor."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_as_inference.clusters import JoinedRay
from rl_as_inference.records import RECORD
from rl_as_inference.sweeps.plan import Task
from rl_as_inference.sweeps.processes import Run, code_of, nursery_of
from rl_as_inference.sweeps.workers import STOPPING, Ended, Perform, note_start

__all__ = ["RayCluster"]

_LOOK = 0.2
"""Seconds between a task's looks whether it is to stop."""


class RayCluster:
    """As many runs at a time as the cluster has processors.

    A task of Ray's dies with its process or its node; it is never begun again by Ray, but by the sweep, which looks
    first at what it has left in its folder. Tasks only wait: each run is a fork of what its worker has imported once,
    so that what one leaves in memory is no other's.

    Args:
        perform: what each task does.
        address: see :func:`~rl_as_inference.clusters.JoinedRay`.
        out: the sweep's folder, which all nodes must see.

    Raises:
        ValueError: if Ray is not installed, or the address does not answer.
    """

    def __init__(self, perform: Perform, address: str, out: Path) -> None:
        self._joined = JoinedRay(address)
        self.perform, self.out = perform, out
        self._ray = ray = self._joined.ray
        self._task: Any = ray.remote(num_cpus=1, max_retries=0)(_work)  # Ray itself tries nothing again
        self._running: dict[Any, Task] = {}
        # Not by ray.cancel: Ray 2.60 aborts this process where a task that is cancelled ends by itself meanwhile.
        self._stop = out / f".stop-{secrets.token_hex(8)}"

    def room(self) -> int:
        return max(1, int(self._ray.cluster_resources().get("CPU", 0))) - len(self._running)

    def start(self, task: Task, words: Sequence[str], log: Path) -> None:
        note_start(log, words)
        told = str(log), str(self.out), str(self._stop)
        self._running[self._task.remote(self.perform, list(words), *told)] = task

    def wait(self, seconds: float) -> list[Ended]:
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [Ended(self._running.pop(reference), self._code(reference)) for reference in ready]

    def stop(self) -> None:
        if self._running:
            self._stop.touch()
            ended, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=STOPPING)
            for reference in ended:  # so that close() does not cancel them, see above
                del self._running[reference]

    def close(self) -> None:
        for reference in self._running:
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)
        self._running.clear()
        self._stop.unlink(missing_ok=True)
        self._joined.leave()

    def _code(self, reference: Any) -> int | None:
        from ray.exceptions import RayError, RayTaskError

        try:
            code = self._ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, ValueError):
                raise error.cause from None
            raise
        except RayError:  # its process or its node is dead
            return None
        return None if code is None else int(code)


def _work(perform: Perform, words: Sequence[str], log: str, out: str, stop: str) -> int | None:
    """Waits for a run, which is asked to stop once there is a file ``stop``."""
    if not (Path(out) / RECORD).is_file():
        raise ValueError(
            f"--out: {out!r} is not there on {os.uname().nodename}, a node of the cluster; name a folder that all of "
            f"them share"
        )
    run = Run(nursery_of(perform, shared=True), perform, [list(words)], Path(log))
    end = math.inf
    while not run.is_over(_LOOK):
        if end == math.inf and Path(stop).exists():
            run.stop()
            end = time.monotonic() + STOPPING
        if time.monotonic() > end:
            run.fork.kill()
    return code_of(run)
