"""How a learner reaches its actors: in processes of this machine, or in a Ray cluster. What runs there is the same."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any, Protocol

from rl_as_inference.agents.actor import Actor, Made
from rl_as_inference.clusters import JoinedRay
from rl_as_inference.nursery import Fork, Nursery

__all__ = ["ActorDiedError", "Cluster", "Link", "Machine", "Places"]


_BODY = "rl_as_inference.agents.actor:serve"
_LOOK = 2.0
"""Seconds between looks whether an actor lives, which its closed connection tells at once in most cases."""


class ActorDiedError(Exception):
    """An actor's process has ended, and not because it was told to."""


class Link(Protocol):
    """One actor, which answers commands in their order: see :class:`~rl_as_inference.agents.actor.Actor`."""

    where: str
    """Where it is, in words."""

    def send(self, command: str, argument: Any) -> None:
        """Sends a command; of an actor that is dead :meth:`receive` tells."""

    def ready(self) -> bool:
        """Whether an answer is there, or none will ever be."""

    def receive(self) -> Any:
        """Returns the next answer, once it is there.

        Raises:
            ActorDiedError: if it died; the message says why.
        """

    def end(self) -> None:
        """Ends it, whatever it is doing."""


class Places(Protocol):
    """Where actors begin."""

    def begin(self) -> Link:
        """Returns a new actor."""

    def close(self) -> None:
        """Ends all actors."""


class Machine:
    """Processes of this machine."""

    def __init__(self) -> None:
        self._nursery = Nursery.shared(_BODY)
        self._links: list[_Process] = []

    def begin(self) -> Link:
        self._links = [link for link in self._links if not link.ended]
        self._links.append(_Process(self._nursery.fork()))
        return self._links[-1]

    def close(self) -> None:
        try:
            for link in self._links:
                link.end()
            for link in self._links:
                link.fork.how_ended()
        finally:
            self._links = []
            self._nursery.close()


class _Process:
    def __init__(self, fork: Fork) -> None:
        self.fork, self._connection = fork, fork.connection
        self.ended = False
        self.where = "a process that is beginning"

    def send(self, command: str, argument: Any) -> None:
        with contextlib.suppress(OSError):
            self._connection.send((command, argument))

    def ready(self) -> bool:
        try:
            return self._connection.poll()
        except OSError:
            return True

    def receive(self) -> Any:
        try:
            while not self._connection.poll(_LOOK):
                if self.fork.has_ended():
                    raise EOFError
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise ActorDiedError(self.fork.how_ended()) from None
        if isinstance(answer, Made):
            self.where = f"process {answer.pid}"
        return answer

    def end(self) -> None:
        self.ended = True
        self._connection.close()  # at which it closes its environment and ends; the nursery sees to it


class Cluster:
    """Actors of a Ray cluster, which this process joins if it has not already.

    Args:
        address: see :func:`~rl_as_inference.clusters.JoinedRay`.

    Raises:
        ValueError: without Ray.
        ValueError: if there is no cluster at the address.
    """

    def __init__(self, address: str) -> None:
        self._joined = JoinedRay(address)
        self._ray = self._joined.ray
        self._kind = self._ray.remote(max_restarts=0)(Actor)
        self._links: list[_RayActor] = []

    def begin(self) -> Link:
        self._links = [link for link in self._links if not link.ended]
        self._links.append(_RayActor(self._ray, self._kind.remote()))
        return self._links[-1]

    def close(self) -> None:
        for link in self._links:
            link.end()
        self._joined.leave()


class _RayActor:
    def __init__(self, ray: Any, handle: Any) -> None:
        self._ray, self._handle = ray, handle
        self._answers: deque[Any] = deque()
        self.where, self.ended = "a Ray actor that is beginning", False

    def send(self, command: str, argument: Any) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._answers.append(self._handle.answer.remote(command, argument))

    def ready(self) -> bool:
        return not self._answers or bool(self._ray.wait([self._answers[0]], timeout=0)[0])

    def receive(self) -> Any:
        if not self._answers:
            raise ActorDiedError("Ray no longer reaches it")
        try:
            answer = self._ray.get(self._answers.popleft())
        except self._ray.exceptions.RayError as error:
            raise ActorDiedError(" ".join(str(error).split())[:300]) from None
        if isinstance(answer, Made):
            self.where = f"process {answer.pid} of {answer.host}"
        return answer

    def end(self) -> None:
        self.ended = True
        with contextlib.suppress(Exception):  # of a cluster that is gone
            self._ray.kill(self._handle)
