"""Draws of several runs, of which no more are kept than a resampling of all can ask for."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from rl_as_inference.distributed import ALONE, Ranks
from rl_as_inference.sampling.importance import WeightedDraws, apart, mean_evidence, pointed_at
from rl_as_inference.trajectories import Trajectories

__all__ = ["Keep", "Pool"]

Keep: TypeAlias = Callable[[Tensor, float], Tensor | None]
"""Log weights ``(N,)`` and the log evidence of a run to the index of the particles that are kept; None for all."""


_Part = TypeVar("_Part", "_Told", Trajectories)


@dataclass(frozen=True)
class _Told:
    """What a run says of itself, whatever is kept of its draws."""

    log_weight: Tensor
    """Of all its particles, ``(N,)`` in nats; they sum to what the run counts."""
    log_evidence: float
    log_sum: float
    start: float
    """Where the sequence begins that its draws are picked along."""
    ancestors: Tensor | None

    def to(self, device: torch.device | str) -> "_Told":
        lines = None if self.ancestors is None else self.ancestors.to(device)
        return replace(self, log_weight=self.log_weight.to(device), ancestors=lines)

    def picked(self, count: int) -> Tensor | None:
        """Returns which particles are kept if so many can be asked for; None for all."""
        return pointed_at(self.log_weight, count, self.start) if count < len(self.log_weight) else None


class Pool:
    """The pooled draws of independent runs, as :meth:`WeightedDraws.pooled` has them, in the memory of ``num_draws``.

    ``num_draws`` are to be resampled of all, by weights in which a run counts as much as its evidence. A run's share
    of the evidence only falls as others come, and with it the number of its draws that can be asked for. So a run's
    draws are thinned to that number when it comes and whenever another does. They are picked along a sequence of which
    any beginning is a resampling (:func:`~rl_as_inference.sampling.importance.pointed_at`), and thinning cuts its end
    off: what is kept in the end depends on the runs alone, not on who came first, nor on which rank had which. Every
    draw keeps its expected number of copies; evidence, effective sample size and ancestors are those of all.

    Args:
        num_draws: how many will be resampled; None keeps all.
    """

    def __init__(self, num_draws: int | None) -> None:
        self.num_draws = num_draws
        self._told: list[_Told] = []
        self._kept: list[Trajectories] = []
        self._start: float | None = None

    def wanted(self, log_weight: Tensor, log_evidence: float) -> Tensor | None:
        """Returns which particles of the run that comes next are kept, an index; None for all."""
        self._start = _start()
        run = _Told(log_weight, log_evidence, log_evidence, self._start, None)
        return run.picked(self._most(run, [*self._told, run]))

    def add(self, run: WeightedDraws, log_size: float = 0.0) -> None:
        """Takes a run, whose trajectories may be those of the particles that :meth:`wanted` asked for.

        Args:
            run: the draws.
            log_size: the logarithm of the number by which the run counts more than its evidence, where runs are of
                several sizes.
        """
        start = _start() if self._start is None else self._start
        log_sum = run.log_evidence + log_size
        total = torch.logsumexp(run.log_weight, 0)
        weight = run.log_weight if total.isneginf() else run.log_weight - total + log_sum
        self._told.append(_Told(weight, run.log_evidence, log_sum, start, run.ancestors))
        self._kept.append(run.trajectories)
        self._start = None
        self._thin(self._told)

    def draws(self, ranks: Ranks = ALONE) -> WeightedDraws:
        """Returns what is kept of all runs, of every rank's in turn; each rank must ask for it."""
        device = self._told[0].log_weight.device
        told = _of_all(ranks, self._told, device)
        self._thin(told)
        trajectories = _of_all(ranks, self._kept, device)
        horizon = max(each.horizon for each in trajectories)
        log_weight, log_chance = [], []
        for run in told:
            index = run.picked(self._most(run, told))
            kept = run.log_weight if index is None else run.log_weight[index]
            log_weight.append(kept)
            log_chance.append(kept if index is None else torch.full_like(kept, run.log_sum - math.log(len(kept) or 1)))
        evidence = mean_evidence([run.log_evidence for run in told])
        return WeightedDraws(
            Trajectories.joined([each.padded(horizon) for each in trajectories]),
            torch.cat(log_weight),
            evidence.mean,
            evidence.standard_error,
            apart([run.ancestors for run in told if run.ancestors is not None]),
            torch.cat(log_chance),
            torch.cat([run.log_weight for run in told]),
        )

    def _thin(self, told: list[_Told]) -> None:
        for place, (run, kept) in enumerate(zip(self._told, self._kept, strict=True)):
            count = self._most(run, told)
            if count < kept.num_trajectories:
                whole = kept.num_trajectories == len(run.log_weight)
                index = run.picked(count) if whole else torch.arange(count, device=run.log_weight.device)
                assert index is not None
                self._kept[place] = kept.select(index)

    def _most(self, run: _Told, told: list[_Told]) -> int:
        """Returns how many draws of a run can be asked for at most, given what was told so far."""
        if self.num_draws is None:
            return len(run.log_weight)
        if run.log_sum == -math.inf:
            return 0
        sums = torch.tensor([each.log_sum for each in told], dtype=torch.float64)
        share = math.exp(run.log_sum - float(torch.logsumexp(sums, 0)))
        return math.ceil(self.num_draws * share) + 1


def _of_all(ranks: Ranks, own: list[_Part], device: torch.device) -> list[_Part]:
    """Returns what every rank has, in order, on this rank's device."""
    if ranks.size == 1:
        return own
    everyone = ranks.gather_objects([part.to("cpu") for part in own])
    return [part.to(device) for parts in everyone for part in parts]


def _start() -> float:
    return float(torch.rand((), dtype=torch.float64))
