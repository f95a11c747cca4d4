"""Joining a Ray cluster."""

from __future__ import annotations

import importlib.util
import re
import socket
from typing import Any

__all__ = ["joined_ray"]

_PATIENCE = 10.0
"""Seconds to reach a cluster's address; Ray itself tries for minutes."""


def joined_ray(address: str) -> tuple[Any, bool]:
    """Returns the module ``ray``, connected to a cluster, and whether it was connected by this call.

    A process that has joined a cluster already stays in that.

    Args:
        address: as ``ray.init`` takes it: ``"HOST:PORT"``, ``"ray://HOST:PORT"``, ``"auto"``, or ``"local"`` for a
            cluster of its own on this machine.

    Raises:
        ImportError: without Ray.
        ValueError: if no cluster answers there.
    """
    if importlib.util.find_spec("ray") is None:
        raise ImportError("Ray is not installed; pip install 'rl-as-inference[ray]' brings it (or pip install ray)")
    import ray

    if ray.is_initialized():
        return ray, False
    try:
        if found := re.fullmatch(r"(?:ray://)?\[?([^\]]+?)\]?:(\d+)", address):
            socket.create_connection((found[1], int(found[2])), timeout=_PATIENCE).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"ray: no cluster answers at {address!r} ({reason}); begin one with ray start --head, or say local for one "
            f"on this machine"
        ) from error
    return ray, True
