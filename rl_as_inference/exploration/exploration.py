"""What came of an exploration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from rl_as_inference.data_frames import Frame, frame
from rl_as_inference.exploration.table_beliefs import TableBeliefs

__all__ = ["Belief", "Exploration"]


@dataclass(frozen=True)
class Belief:
    """What was believed after some episodes. Without an axis of runs for a single one.

    Attributes:
        episode: after how many episodes.
        counts: how often each action had been tried, ``(num_seeds, S, A)``; None of a linear-Gaussian family.
        transition: the mean of ``p(s'|s,a)`` of successors ``(S, A, K)``, ``(num_seeds, S, A, K)``; None likewise.
        reward_mean, reward_variance: of ``E r(s,a)``, ``(num_seeds, S, A)`` in reward units and their square; where
            rewards are known ``r(s,a,s')``, a bound of the variance; None likewise.
        sites: of a linear-Gaussian family each site's mean and variance, ``(2, num_seeds, *site)``; else empty.
    """

    episode: int
    counts: Tensor | None = None
    transition: Tensor | None = None
    reward_mean: Tensor | None = None
    reward_variance: Tensor | None = None
    sites: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(beliefs: TableBeliefs) -> Belief:
        """Returns what is believed now."""
        transition = beliefs.transition()
        return Belief(beliefs.episodes, beliefs.counts.clone(), transition, *beliefs.reward(transition))

    def alone(self) -> Belief:
        """Returns the first run's, without an axis of runs."""
        values = {name: getattr(self, name) for name in ("counts", "transition", "reward_mean", "reward_variance")}
        single: dict[str, Any] = {name: None if value is None else value[0] for name, value in values.items()}
        return replace(self, **single, sites={name: value[:, 0] for name, value in self.sites.items()})


@dataclass(frozen=True)
class Exploration:
    """What an agent earned, lost and believed, episode by episode. A single run has no axis of runs.

    Attributes:
        returns: what each episode paid, discounted, ``(num_seeds, episodes)`` in reward units.
        regret: ``V* - V^π`` of each episode's policy, exactly, likewise; None where truth has no tables to evaluate it.
        best: ``V*``, the best expected return, in reward units; None likewise.
        prior: the expected return of the action prior; None likewise.
        beliefs: what was believed before the first episode, after 1, 2, 4, 8, … and after the last.
        strategy: by which it acted.
    """

    threshold: ClassVar[float] = 0.9

    returns: Tensor
    regret: Tensor | None
    best: float | None
    prior: float | None
    beliefs: list[Belief]
    strategy: str = ""

    @property
    def solved_after(self) -> int | list[int | None] | None:
        """The first episode by which the problem counts as solved; None if it never does. A list, of several runs.

        It is the first ``n`` whose average regret over episodes ``1 … n`` is below 0.9 of what the action prior loses,
        ``V* - V^prior``: of DeepSea, that fewer than nine in ten dives so far missed the treasure, as bsuite's plots
        count (Osband et al. 2020, arXiv:1908.03568, "episodes until < 90 % bad episodes"; its code takes 80 %). Regret
        is of policies and not of what they happened to earn, so that luck solves nothing.

        Raises:
            ValueError: if regret is not known.
        """
        if self.regret is None or self.best is None or self.prior is None:
            raise ValueError("solved_after needs regret, which is known only where truth is a TabularMDP")
        rows = self.regret if self.regret.dim() == 2 else self.regret[None]
        average = rows.cumsum(1) / torch.arange(1, rows.shape[1] + 1)
        solved = average < self.threshold * (self.best - self.prior)
        first = [int(row.int().argmax()) + 1 if bool(row.any()) else None for row in solved]
        return first if self.regret.dim() == 2 else first[0]

    def to_frame(self) -> Frame:
        """Returns a row for each episode of each run: ``seed``, ``episode`` from 1, ``return`` and ``regret``.

        Both are in reward units; regret is not there where it is not known. See :mod:`rl_as_inference.data_frames`.
        """
        returns = torch.atleast_2d(self.returns)
        runs, episodes = returns.shape
        columns: dict[str, Any] = {
            "seed": torch.arange(runs).repeat_interleave(episodes),
            "episode": torch.arange(1, episodes + 1).repeat(runs),
            "return": returns.flatten(),
        }
        if self.regret is not None:
            columns["regret"] = self.regret.flatten()
        return frame(columns)

    def alone(self) -> Exploration:
        """Returns the first run, without an axis of runs."""
        regret = None if self.regret is None else self.regret[0]
        return replace(
            self, returns=self.returns[0], regret=regret, beliefs=[belief.alone() for belief in self.beliefs]
        )
