"""How much memory is free, whether something will fit beside what is there, and whether it is given back at once."""

import ctypes
import os
import sys
from pathlib import Path

import torch

__all__ = ["check_fits", "free_memory", "keep_freed_memory"]

_KEPT, _BLOCK = 512 << 20, 32 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Lets this process keep up to half a GiB of what it frees, where the C library is glibc; returns whether it does.

    A step of a fit asks for tens of megabytes and frees them again. glibc gives them back to the system each time, and
    the next step waits for the same pages, filled with zeros: of 4,096 trajectories that is a tenth of the time. It is
    for programs of the library's own; who says ``MALLOC_TRIM_THRESHOLD_`` or the like (``mallopt(3)``) is left alone.
    """
    said = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if sys.platform != "linux" or said or (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _BLOCK)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))


def free_memory(device: torch.device | str = "cpu", *, root: str | Path = "/") -> int:
    """Returns how many bytes are free on a device: of the host, what the system would give without swapping.

    That is Linux's ``MemAvailable`` (``proc(5)``), or what a control group leaves where that is less (containers, batch
    systems); elsewhere what :func:`os.sysconf` tells, and where it tells nothing, no bound.

    Args:
        device: of a GPU, what its driver says.
        root: where ``proc`` and ``sys`` are.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [*_of_groups(Path(root))]
    try:
        lines = dict(line.split(":", 1) for line in (Path(root) / "proc/meminfo").read_text().splitlines())
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
            if pages in getattr(os, "sysconf_names", {}):
                free.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages))
                break
    return max(0, min(free, default=sys.maxsize))


def _of_groups(root: Path) -> list[int]:
    """Returns what the control groups of this process leave, those above it too; empty where none bounds it."""
    try:
        lines = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in lines:
        if controllers == "":
            top, limit, used, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            used, cache = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        own = top / path.lstrip("/")
        for group in (own, *(parent for parent in own.parents if parent.is_relative_to(top))):
            try:
                most = int((group / limit).read_text())  # "max" is no number, and no bound
                taken = int((group / used).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            found.append(most - taken + int(stat.get(cache, 0)))  # pages of files are given up before all else
    return found


def check_fits(name: str, count: int, needed: int, device: torch.device | str, what: str) -> None:
    """Raises ValueError unless ``needed`` bytes are free on a device; it says how many of ``count`` would fit.

    Args:
        name: the argument that is too large.
        count: what it asks for.
        needed: bytes for that.
        device: where.
        what: it is for, for the message.
    """
    free = free_memory(device)
    if needed <= free:
        return
    fit = int(count * free / needed)
    raise ValueError(
        f"{name} {count} needs {needed / 2**30:.1f} GiB for {what}, and {free / 2**30:.1f} GiB are free on {device}; "
        f"lower {name} to {_rounded(0.8 * fit)} or less ({fit} would fill it)"
    )


def _rounded(count: float) -> int:
    """Returns a number with two digits, not above."""
    unit = 10 ** max(len(str(int(count))) - 2, 0)
    return int(count // unit * unit)
