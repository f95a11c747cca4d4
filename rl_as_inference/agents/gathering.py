"""What a learner's actors live through, into its replay."""

from __future__ import annotations

from typing import Any

import numpy as np

from rl_as_inference.agents.actor import Making
from rl_as_inference.agents.actor_pool import ActorPool, Gathered
from rl_as_inference.agents.arena import Arena
from rl_as_inference.agents.options import LearnerOptions
from rl_as_inference.agents.replay import Replay
from rl_as_inference.agents.update import Update
from rl_as_inference.processes.step import Step

__all__ = ["Gathering"]

Array = np.ndarray[Any, Any]
_NOT_HERE = np.empty(0)
"""States of a step, which are in replay's rows alone."""


class Gathering:
    """The experience of actors, one transition of each at a time.

    Rows of an actor that is not there are left out of replay; of one that died, the last row is made the end of its
    episode, by truncation, so that nothing that follows it in replay passes for what followed.

    Args:
        making: what actors are made of.
        arena: what is learned in.
        options: the learner's.
        replay: where rows go.

    Attributes:
        pool: the actors.
    """

    def __init__(self, making: Making, arena: Arena, options: LearnerOptions, replay: Replay) -> None:
        num_actors = options["num_actors"]
        assert num_actors is not None
        self.pool = ActorPool(
            making,
            num_actors=num_actors,
            actor_steps=options["actor_steps"],
            parameters_every=options["parameters_every"],
            seed=arena.seed(options["seed"]),
            needs_all=options["n_step"] > 1 or options["memory"] is not None,
            ray=options["ray"],
        )
        self.name, self.replay = arena.envs.name, replay
        self._last = np.full(num_actors, -1)  # where replay has the last row of each actor
        self._lags: list[Array] = []

    def take(self, num_steps: int, update: Update, num_updates: int, *, acts: bool) -> Gathered:
        """Returns the next transitions, once they are there; see :meth:`ActorPool.step`.

        Args:
            num_steps, num_updates: how far the learner is.
            update: whose parameters act.
            acts: whether the policy acted.
        """
        gathered = self.pool.step(num_steps, num_updates, update.acting)
        if acts:
            self._lags.append(gathered.lag)
        return gathered

    def lost(self) -> tuple[list[int], list[str]]:
        """Returns whose running episodes are lost since the last time, and what is to be said of it; ends these."""
        died, self.pool.died = self.pool.died, []
        which = sorted({index for index, _ in died})
        self.replay.cut([int(self._last[index]) for index in which if self._last[index] >= 0])
        self._last[which] = -1
        return which, [text for _, text in died if text]

    def write(self, gathered: Gathered) -> Step:
        """Returns a step of every actor, as it is without its states, after writing it into replay."""
        first = int(self.replay.position)
        self.replay.add_rows(gathered.rows[None])
        self._last[gathered.valid] = (first + np.arange(len(gathered.rows))) % self.replay.capacity
        ends = np.zeros((2, self.pool.num_actors), bool)
        for end, name in zip(ends, ("terminated", "truncated"), strict=True):
            end[gathered.valid] = gathered.rows[:, self.replay.columns[name].start] > 0
        return Step(_NOT_HERE, gathered.reward, ends[0], ends[1], gathered.valid, _NOT_HERE)

    def lags(self) -> dict[str, float]:
        """Returns by how many updates the acting parameters were behind, since the last time; empty if none acted."""
        if not self._lags:
            return {}
        lags, self._lags = np.concatenate(self._lags), []
        return {"policy_lag": float(lags.mean()), "largest_policy_lag": float(lags.max())}

    def snapshot(self) -> dict[str, Any]:
        """Returns what JSON holds of it: what :meth:`restore` needs, and for whom."""
        return {"name": self.name, "num_envs": self.pool.num_actors, "begun": self.pool.snapshot()}

    def restore(self, json: dict[str, Any]) -> None:
        """Has new actors begin, with a warning that their episodes are new."""
        self.pool.restore(json["begun"])
        self._last[:] = -1
        self._lags = []
