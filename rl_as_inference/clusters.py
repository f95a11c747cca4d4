"""Joining a Ray cluster."""

from __future__ import annotations

import importlib.util
import signal
import threading
from typing import Any, ClassVar

__all__ = ["JoinedRay"]

_PATIENCE = 5.0
"""Seconds in which an address must answer; Ray itself tries for minutes."""


class JoinedRay:
    """A cluster that this process has joined, and leaves when all who joined it here have left.

    A process that has joined a cluster already stays in that; one that the program joined itself is never left here.
    What is done at SIGTERM stays as it was.

    Args:
        address: ``"HOST:PORT"`` of a cluster of which this machine is a node, ``"ray://HOST:PORT"``, ``"auto"`` for the
            one that runs on this machine, or ``"local"`` for a new one.

    Attributes:
        ray: the module.

    Raises:
        ValueError: without Ray, or if no cluster answers there.
    """

    _together: ClassVar[set[JoinedRay]] = set()
    """Who has joined what was joined here."""

    def __init__(self, address: str) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ValueError(f"ray={address!r} needs Ray; pip install 'rl-as-inference[ray]'")
        import ray

        self.ray: Any = ray
        if not ray.is_initialized():
            _join(ray, address)
            self._together.clear()
        elif not self._together:
            return
        self._together.add(self)

    def leave(self) -> None:
        """Leaves the cluster, unless others are there, who then see to that."""
        if self in self._together:
            self._together.remove(self)
            if not self._together and self.ray.is_initialized():
                self.ray.shutdown()


def _join(ray: Any, address: str) -> None:
    if address != "local":
        _check_answers(_address_here() if address == "auto" else address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # of many classes, by what went wrong on the way
        raise ValueError(f"ray: cannot join the cluster at {address}: {' '.join(str(error).split())}") from error
    finally:
        if threading.current_thread() is threading.main_thread():  # Ray has put its own there, which ends at once
            signal.signal(signal.SIGTERM, handler)


def _check_answers(address: str) -> None:
    import grpc

    place = address.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"ray must be host:port, ray://host:port, auto or local; got {address!r}")
    with grpc.insecure_channel(place, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=_PATIENCE)
        except grpc.RpcError as error:
            # A client's server has no such method, and says so itself.
            is_ray = (
                place != address and error.code() is grpc.StatusCode.UNIMPLEMENTED and "http2" not in error.details()
            )
            if not is_ray:
                raise ValueError(
                    f"ray: {place} does not answer as Ray does ({error.details()}); see that the cluster is up (ray "
                    f"status), begin one (ray start --head), or leave ray out for processes of this machine"
                ) from None


def _address_here() -> str:
    from ray._private.services import canonicalize_bootstrap_address  # what ray.init(address="auto") itself asks

    found = canonicalize_bootstrap_address("auto")
    if not found:
        raise ValueError("ray=auto: no cluster runs on this machine; begin one (ray start --head), or say host:port")
    return str(found)
