"""Draws of several runs, of which no more are kept than a resampling of all can ask for."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from rl_as_inference.randomness import forked
from rl_as_inference.sampling.importance import WeightedDraws, apart, mean_evidence, resample
from rl_as_inference.trajectories import Trajectories

__all__ = ["Keep", "Pool"]

Keep: TypeAlias = Callable[[Tensor, float], Tensor | None]
"""Log weights ``(N,)`` and the log evidence of a run to the index of the particles that are kept; None for all."""


class Pool:
    """The pooled draws of independent runs, as :meth:`WeightedDraws.pooled` has them, in the memory of ``num_draws``.

    ``num_draws`` are to be resampled of all, by weights in which a run counts as much as its evidence. A run's share
    of the evidence only falls as others come, and with it the number of its draws that can be asked for. So a run's
    draws are thinned to that number, by systematic resampling, when it comes and whenever another does. Every draw
    keeps its expected number of copies; evidence, effective sample size and ancestors are those of all.

    Args:
        num_draws: how many will be resampled.
    """

    def __init__(self, num_draws: int) -> None:
        self.num_draws = num_draws
        self._generator = forked()  # so that the runs draw what they would without a pool
        self._runs: list[WeightedDraws] = []  # of each what is kept, its log_chance sums to one
        self._weights: list[Tensor] = []
        self._ancestors: list[Tensor] = []
        self._index: Tensor | None = None

    def wanted(self, log_weight: Tensor, log_evidence: float) -> Tensor | None:
        """Returns which particles of the run that comes next are kept, an index; None for all."""
        count = self._most(log_evidence, [*(run.log_evidence for run in self._runs), log_evidence])
        self._index = resample(log_weight, count, self._generator) if count < len(log_weight) else None
        return self._index

    def add(self, run: WeightedDraws) -> None:
        """Takes a run, whose trajectories may be those of the particles that :meth:`wanted` asked for."""
        index, self._index = self._index, None
        chance = run.log_weight - torch.logsumexp(run.log_weight, 0)
        told = chance + run.log_evidence
        self._weights.append(told)
        if run.ancestors is not None:
            self._ancestors.append(run.ancestors)
        if index is not None:
            told, chance = told[index], _alike(chance, len(index))
        self._runs.append(replace(run, log_weight=told, log_chance=chance))
        evidences = [each.log_evidence for each in self._runs]
        self._runs = [self._thinned(each, self._most(each.log_evidence, evidences)) for each in self._runs]

    def draws(self) -> WeightedDraws:
        """Returns what is kept of all runs."""
        evidence = mean_evidence([run.log_evidence for run in self._runs])
        return WeightedDraws(
            Trajectories.joined([run.trajectories for run in self._runs]),
            torch.cat([run.log_weight for run in self._runs]),
            evidence.mean,
            evidence.standard_error,
            apart(self._ancestors),
            torch.cat([_chance(run) + run.log_evidence for run in self._runs]),
            torch.cat(self._weights),
        )

    def _thinned(self, run: WeightedDraws, count: int) -> WeightedDraws:
        chance = _chance(run)
        if count >= len(chance):
            return run
        index = resample(chance, count, self._generator)
        return replace(
            run,
            trajectories=run.trajectories.select(index),
            log_weight=run.log_weight[index],
            log_chance=_alike(chance, count),
        )

    def _most(self, log_evidence: float, of: list[float]) -> int:
        """Returns how many draws of a run can be asked for at most, given the evidences so far."""
        share = math.exp(log_evidence - float(torch.logsumexp(torch.tensor(of, dtype=torch.float64), 0)))
        return math.ceil(self.num_draws * share) + 1


def _chance(run: WeightedDraws) -> Tensor:
    return run.log_weight if run.log_chance is None else run.log_chance


def _alike(like: Tensor, count: int) -> Tensor:
    return like.new_full((count,), -math.log(count))
