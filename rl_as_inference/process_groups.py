"""The process group of a ``torchrun`` job: formed and ended by the library, or the program's own."""

from __future__ import annotations

import importlib
import math
import os
import shlex
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

__all__ = ["JOB", "PATIENCE", "add_up", "exchanged", "is_started_by_torchrun", "words_to_type"]

PATIENCE = "RLAI_RANK_SECONDS"
"""The environment's variable that says how long ranks wait for one that hangs; as long as PyTorch's, if unset."""

_AWAKE = 0.005
"""Seconds in which a rank that waits for another keeps its core awake."""

_AT_ONCE = 2**21
"""Bytes that two ranks send each other at once: from half a MiB a ring takes as long, and for 60 MiB two thirds."""


class _Job:
    """This process's part in the job.

    Attributes:
        group: that was met last; None after it was ended here.
    """

    def __init__(self) -> None:
        self.group: Any = None
        self._times_opened = 0
        self._store: Any = None
        self._keys: Any = None
        self._hook: Any = None

    def open(self) -> None:
        """Forms the process group, under keys of its own: those of one that was ended would be taken for its own.

        Raises:
            ValueError: if ``PATIENCE`` is no number of seconds.
        """
        # Where it is read first while there is a group, as by a first fit, the defaults of its functions keep that
        # group; its threads then outlive it, and one that ends its work late aborts a program that is ending.
        importlib.import_module("torch.distributed.nn.functional")

        patience = _patience()
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if self._store is None:
            self._store, rank, size = next(rendezvous("env://"))
        self._times_opened += 1
        self._keys = PrefixStore(f"rl_as_inference/{self._times_opened}", self._store)
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        self._hook = sys.excepthook
        store = PrefixStore("group", self._keys)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)

    def meet(self, *, opened: bool) -> None:
        """Notes the group that there is now."""
        self.group = dist.group.WORLD
        if not opened:
            self._keys = None

    def leave(self) -> None:
        """Ends the group that was formed here."""
        if self.group is not None and self.group is dist.group.WORLD:
            dist.destroy_process_group()
            sys.excepthook = self._hook  # in whose place the group's own stood
        self.group = self._keys = None

    def keys(self) -> Any:
        """Returns the store where ranks leave words for each other."""
        if self._keys is None:  # the group is the program's own
            self._keys = PrefixStore("rl_as_inference", dist.distributed_c10d._get_default_store())
        return self._keys


JOB = _Job()


def add_up(tensor: Tensor) -> None:
    """Sums all ranks' tensors of one shape in place."""
    if tensor.device.type != "cpu" or dist.get_world_size() > 2 or tensor.nbytes > _AT_ONCE:
        held = tensor.detach().contiguous()
        _await(dist.all_reduce(held, async_op=True), held)
        if held.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(held)
    else:  # the ring of two would send each half there, and the sum of it back
        to_other = [dist.get_rank(), 1 - dist.get_rank()]
        (other,) = exchanged(tensor.detach()[None], to_other, to_other)
        tensor.detach().add_(other)


def exchanged(
    rows: Tensor, sent: list[int], received: list[int], meanwhile: Callable[[], None] | None = None
) -> Tensor:
    """Returns the rows that all ranks have for this one, in their order.

    Args:
        rows: for all ranks, in their order.
        sent: how many are for each.
        received: how many each has for this one.
        meanwhile: what to do while they are on their way.
    """
    of_all = rows.new_empty(sum(received), *rows.shape[1:])
    work = dist.all_to_all_single(of_all, rows.contiguous(), received, sent, async_op=True)
    try:
        if meanwhile is not None:
            meanwhile()
    finally:
        _await(work, rows)
    return of_all


def _await(work: Any, sent: Tensor) -> None:
    """Waits for what is on its way, and awake where that is between processors: a sleeping core wakes late.

    A step of 4,096 trajectories took 32 ms on two ranks that slept and 28 on two that did not.
    """
    try:
        end = time.monotonic() + (_AWAKE if sent.device.type == "cpu" and _has_core() else 0.0)
        while time.monotonic() < end and not work.is_completed():
            os.sched_yield()
    finally:  # a signal's error waits until the numbers are no longer written on
        work.wait()


@cache
def _has_core() -> bool:
    """Returns whether each rank of this machine can have a core to itself."""
    if not hasattr(os, "sched_yield") or not hasattr(os, "sched_getaffinity"):
        return False
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())) <= len(os.sched_getaffinity(0))


def _patience() -> timedelta:
    said = os.environ.get(PATIENCE)
    if said is None:
        return dist.constants.default_pg_timeout
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 1e9:  # no clock counts much further
        raise ValueError(f"{PATIENCE} must be a number of seconds > 0 and <= 1e9, got {said!r}; correct or unset it")
    return timedelta(seconds=seconds)


def is_started_by_torchrun() -> bool:
    """Returns whether the environment says which rank of which job this process is."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def words_to_type() -> str:
    """Returns what to type to start this program as a job of two ranks."""
    program = Path(sys.argv[0]).name or "script.py"
    is_script = program.endswith(".py") or not os.access(sys.argv[0], os.X_OK)
    words = [program, *sys.argv[1:]]
    return f"torchrun --nproc-per-node 2 {'' if is_script else '--no-python '}{shlex.join(words)}"
