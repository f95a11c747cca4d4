"""The actors of a learner: told what to do in turns, and begun anew where one dies."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rl_as_inference.agents.actor import Block, Failure, Making, Turn
from rl_as_inference.agents.actor_links import ActorDiedError, Cluster, Link, Machine, Places
from rl_as_inference.processes.snapshots import episode_seed

__all__ = ["ActorPool", "Gathered"]

Array = np.ndarray[Any, Any]

_AHEAD = 2
"""Blocks that an actor is told of before their turn: one that it lives through, and one that waits to be learned from.
So neither waits for the other where both are as fast."""
_MOST_DEATHS = 3
"""In a row, of one that gave nothing in between."""
_LOOK = 0.005
"""Seconds between looks for an actor that begins, where nothing else can be done."""


class Gathered(NamedTuple):
    """One transition of every actor that is there."""

    rows: Array
    """As replay holds them, ``(count, width)``."""
    reward: Array
    """``(num_actors,)`` float64, reward units; 0 of those that are not there."""
    valid: Array
    """``(num_actors,)`` bool: who is there."""
    lag: Array
    """``(count,)``: updates since the parameters that acted."""


@dataclass
class _Seat:
    """An actor's place, which another takes when it dies."""

    link: Link
    begun: int
    """Actors that have had it."""
    made: bool = False
    due: deque[int] = field(default_factory=deque)
    """Rounds that it was told to live through, and has not answered of."""
    next: int = 0
    """The first round that it was not told of."""
    version: int = -1
    """Of the parameters that it has."""
    deaths: int = 0


class ActorPool:
    """Actors that live through rounds of ``actor_steps`` steps each, two rounds ahead of the learner at most.

    Rounds are taken in their order, and which parameters act in a round depends on nothing but how far the learner had
    come when the one before the last was learned from. So a run is the same whatever the processes' pace. An actor that
    dies is begun anew at once, and until it is there the others go on without it; or wait, if rows of all are needed.

    Args:
        making: what they are made of, but for their seeds.
        num_actors: how many.
        actor_steps: of each in a round.
        parameters_every: steps of the learner after which parameters go out anew.
        seed: of everything random in them.
        needs_all: whether a step needs a transition of every actor.
        ray: address of a Ray cluster; None for processes of this machine.

    Attributes:
        died: who died since :meth:`step` was last called: the seat, and a sentence.
    """

    def __init__(
        self,
        making: Making,
        *,
        num_actors: int,
        actor_steps: int,
        parameters_every: int,
        seed: int,
        needs_all: bool,
        ray: str | None,
    ) -> None:
        self._making, self.num_actors, self.actor_steps = making, num_actors, actor_steps
        self.parameters_every, self.seed, self.needs_all, self.ray = parameters_every, seed, needs_all, ray
        self.begun = [0] * num_actors
        self.died: list[tuple[int, str]] = []
        self._places: list[Places] = []
        self._seats: list[_Seat] = []
        self._blocks: list[Block | None] = []
        self._cursor, self._round = actor_steps, -1
        self._sent_at: int | None = None
        self._version, self._parameters = -1, dict[str, Array]()
        self._finalizer = weakref.finalize(self, _close, self._places, os.getpid())

    @property
    def where(self) -> list[str]:
        """Where each actor is, in words; empty while there are none."""
        return [seat.link.where for seat in self._seats]

    @property
    def is_running(self) -> bool:
        """Whether there are actors."""
        return bool(self._seats)

    def connect(self) -> None:
        """Makes ready what actors begin in.

        Raises:
            ValueError: without Ray, where it is asked for.
            ValueError: if there is no cluster at the address, or no processes to be had.
        """
        if not self._places:
            self._places.append(Machine() if self.ray is None else Cluster(self.ray))

    def start(self) -> None:
        """Begins the actors, and waits until all are there."""
        if self._seats:
            return
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self.connect()
        self._round, self._cursor, self._blocks = -1, self.actor_steps, []
        self._sent_at, self._version = None, -1
        self._seats = [self._seat(index, 0) for index in range(self.num_actors)]
        for index in range(self.num_actors):
            while not self._seats[index].made:
                self._welcome(index, 0, at_first=True)

    def step(self, num_steps: int, num_updates: int, parameters: Callable[[], Mapping[str, Array]]) -> Gathered:
        """Returns the next transition of every actor, once it is there.

        Args:
            num_steps, num_updates: how far the learner is.
            parameters: by which to act, as of now.

        Raises:
            Exception: what an environment raised; all actors are then ended.
            ValueError: if one dies again and again.
        """
        self.start()
        try:
            if self._cursor == self.actor_steps:
                self._gather(num_steps, num_updates, parameters)
        except BaseException:  # an interruption may have cut a message off
            self.stop()
            raise
        there = [block for block in self._blocks if block is not None]
        valid = np.array([block is not None for block in self._blocks])
        reward = np.zeros(self.num_actors)
        reward[valid] = [block.rewards[self._cursor] for block in there]
        rows = np.stack([block.rows[self._cursor] for block in there])
        lag = np.array([num_updates - block.version for block in there])
        self._cursor += 1
        return Gathered(rows, reward, valid, lag)

    def stop(self) -> None:
        """Ends the actors; :meth:`step` begins others."""
        if self._seats:
            self.died += [(index, "") for index in range(self.num_actors)]
        self._seats, self._blocks, self._cursor = [], [], self.actor_steps
        _close(self._places, os.getpid())

    def snapshot(self) -> list[int]:
        """Returns how many actors each seat has had."""
        return list(self.begun)

    def restore(self, begun: list[int]) -> None:
        """Has others begin, which repeat nothing of those that had begun."""
        self.stop()
        self.died.clear()
        self.begun = [max(pair) for pair in zip(self.begun, begun, strict=True)]
        warnings.warn(
            "actors cannot be brought back to where a checkpoint was written: new episodes begin", stacklevel=2
        )

    def _gather(self, num_steps: int, num_updates: int, parameters: Callable[[], Mapping[str, Array]]) -> None:
        """Takes in the next round."""
        self._round += 1
        self._publish(num_steps, num_updates, parameters)
        for index, seat in enumerate(self._seats):
            if not seat.made and seat.link.ready():
                self._welcome(index, self._round + (0 if self.needs_all else 1))
        for seat in self._seats:
            self._tell(seat, num_steps)
        blocks: list[Block | None] = [None] * self.num_actors
        while True:
            for index, seat in enumerate(self._seats):
                if seat.due and seat.due[0] == self._round:
                    blocks[index] = self._block(index)
            missing = [index for index, block in enumerate(blocks) if block is None]
            if not missing or (len(missing) < self.num_actors and not self.needs_all):
                break
            self._wait(missing, num_steps)
        self._blocks, self._cursor = blocks, 0

    def _publish(self, num_steps: int, num_updates: int, parameters: Callable[[], Mapping[str, Array]]) -> None:
        """Takes parameters down that go out from now on, where it is time."""
        due = self._sent_at is None or num_steps - self._sent_at >= self.parameters_every
        if due and num_updates != self._version:
            self._sent_at, self._version, self._parameters = num_steps, num_updates, dict(parameters())

    def _tell(self, seat: _Seat, num_steps: int) -> None:
        """Tells an actor of the rounds that it may live through."""
        while seat.made and seat.next < self._round + _AHEAD:
            ahead = seat.next - self._round
            news = None if seat.version == self._version else self._parameters
            step = num_steps + ahead * self.actor_steps * self.num_actors
            turn = Turn(step, self.num_actors, self.actor_steps, self._version, news)
            seat.link.send("act", turn)
            seat.due.append(seat.next)
            seat.version, seat.next = self._version, seat.next + 1

    def _block(self, index: int) -> Block | None:
        """Returns what an actor lived through; None of one that died, which is begun anew."""
        seat = self._seats[index]
        try:
            answer = seat.link.receive()
        except ActorDiedError as death:
            self._replace(index, str(death))
            return None
        if isinstance(answer, Failure):
            raise answer.told(f"actor {index}, {seat.link.where}")
        assert isinstance(answer, Block)
        seat.due.popleft()
        seat.deaths = 0
        return answer

    def _wait(self, missing: list[int], num_steps: int) -> None:
        """Waits until one of the missing has begun, and tells it of this round."""
        missing = [index for index in missing if not self._seats[index].made]
        while not any(self._seats[index].link.ready() for index in missing):
            time.sleep(_LOOK)
        for index in missing:
            if self._seats[index].link.ready():
                self._welcome(index, self._round)
                self._tell(self._seats[index], num_steps)

    def _seat(self, index: int, deaths: int) -> _Seat:
        """Returns a seat with a new actor, which begins."""
        link = self._places[0].begin()
        seed = episode_seed(self.seed, index, self.begun[index])
        self.begun[index] += 1
        link.send("make", self._making._replace(seed=seed))
        return _Seat(link, self.begun[index], deaths=deaths)

    def _welcome(self, index: int, first_round: int, *, at_first: bool = False) -> None:
        """Takes in whether an actor could be made, which acts from a round on."""
        seat = self._seats[index]
        try:
            answer = seat.link.receive()
        except ActorDiedError as death:
            self._replace(index, str(death), says=not at_first)
            return
        if isinstance(answer, Failure):
            if at_first:
                raise answer.told(f"actor {index}")
            self._replace(index, f"{type(answer.error).__name__}: {answer.error}")
            return
        seat.made, seat.next = True, first_round

    def _replace(self, index: int, why: str, *, says: bool = True) -> None:
        """Has another take the place of an actor that died.

        Raises:
            ValueError: if that has been in vain.
        """
        seat = self._seats[index]
        where, deaths = seat.link.where, seat.deaths + 1
        seat.link.end()
        if deaths >= _MOST_DEATHS:
            raise ValueError(
                f"env: actor {index} died {deaths} times before it took a step (the last: {why}); see whether its "
                f"environment runs in a process of its own"
            )
        self._seats[index] = self._seat(index, deaths)
        if says:
            self.died.append(
                (
                    index,
                    f"actor {index} ({where}) died: {why}; another takes its place, and its running "
                    f"episode ends, truncated, where replay has it",
                )
            )


def _close(places: list[Places], home: int) -> None:
    while places and os.getpid() == home:  # and not in a fork that comes to its end
        with contextlib.suppress(Exception):
            places.pop().close()
