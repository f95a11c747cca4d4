"""What a learner has done so far: steps, updates, episodes, and rows of history."""

from __future__ import annotations

from typing import Any

import numpy as np

from rl_as_inference.processes.environments import Step

__all__ = ["Ledger"]


class Ledger:
    """Counts of a learner.

    Args:
        num_seeds: learners.
        num_envs: environments of each.

    Attributes:
        num_steps: environment steps taken so far, by each seed.
        num_updates: gradient steps taken so far, by each seed.
        history: one row for every report.
        episodes: ``(step, seed index, return, length)`` of every finished episode.
        returns: of the running episodes so far, in the environment's own reward units, ``(num_seeds · num_envs,)``.
        lengths: of the running episodes so far: the times of the present states, likewise.
    """

    def __init__(self, num_seeds: int, num_envs: int) -> None:
        self.num_envs = num_envs
        self.num_steps = self.num_updates = 0
        self.history: list[dict[str, float]] = []
        self.episodes: list[tuple[int, int, float, int]] = []
        self.returns = np.zeros(num_seeds * num_envs)
        self.lengths = np.zeros(num_seeds * num_envs, int)

    def add(self, step: Step, count: int | None = None) -> None:
        """Takes in a step of every environment, which counts as many steps if nothing else is said."""
        self.num_steps += self.num_envs if count is None else count
        self.returns += step.earned * step.valid
        self.lengths += step.valid
        ended = step.terminated | step.truncated
        if ended.any():
            for index in np.flatnonzero(ended).tolist():
                earned, length = float(self.returns[index]), int(self.lengths[index])
                self.episodes.append((self.num_steps, index // self.num_envs, earned, length))
            self.returns[ended], self.lengths[ended] = 0.0, 0

    def restart(self, which: Any = slice(None)) -> None:
        """Forgets the running episodes, or which of them, in whose place new ones begin."""
        self.returns[which], self.lengths[which] = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Returns all of it, as JSON holds it."""
        return {
            "num_steps": self.num_steps,
            "num_updates": self.num_updates,
            "history": self.history,
            "episodes": self.episodes,
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self.num_steps, self.num_updates = state["num_steps"], state["num_updates"]
        self.history, self.episodes = state["history"], [tuple(row) for row in state["episodes"]]
        self.returns, self.lengths = np.array(state["returns"]), np.array(state["lengths"])
