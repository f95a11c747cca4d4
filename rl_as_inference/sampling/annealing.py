"""Annealing over the temperature: from the action prior to the posterior, with the free energy on the way."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.distributed import Ranks
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import Process
from rl_as_inference.processes.mdp import MarkovDecisionProcess, unvalidated
from rl_as_inference.randomness import seeded
from rl_as_inference.sampling.importance import WeightedDraws, effective_sample_size, resample
from rl_as_inference.sampling.islands import islands
from rl_as_inference.sampling.pool import Pool
from rl_as_inference.trajectories import Rows, Trajectories

__all__ = ["Annealing", "annealing", "repeated_annealing", "spread_annealing"]

_LONGEST_LADDER = 200

_FEWEST_RUNGS = 10
"""A pilot that has met no reward would go down in one step, and its moves would find none either."""

_PILOT = 1000
"""Particles of the run that settles the ladder."""

_NUM_MOVES, _KEPT = 4, 0.9
"""Of runs that are not asked for others."""


@dataclass(frozen=True)
class Annealing:
    """A run from infinite temperature down to the process's own.

    Attributes:
        draws: trajectories of the last temperature with their weights, and the log evidence there.
        inverse_temperatures: ``β = 1/α`` of the ladder, from 0, ``(K,)`` in nats per reward unit.
        log_evidence: ``log Z(β) = log E_prior[exp(β Σ r)]`` by the weights, ``(K,)`` in nats.
        mean_return: ``E[Σ r]`` under each temperature's posterior, ``(K,)`` in reward units.
        return_variance: its variance, ``(K,)`` in reward units squared.
        acceptance: the share of moves that were accepted at each temperature, ``(K,)``; NaN at β = 0.
    """

    draws: WeightedDraws
    inverse_temperatures: Tensor
    log_evidence: Tensor
    mean_return: Tensor
    return_variance: Tensor
    acceptance: Tensor

    @property
    def thermodynamic_integral(self) -> Tensor:
        """``∫_0^β E[Σ r] dβ'``, ``(K,)`` in nats: the log evidence again, from returns instead of weights.

        Kirkwood (1935); Gelman & Meng (1998). By the trapezoid rule corrected by its derivative, the
        variance (Friel, Hurn & Wyse 2014, arXiv:1209.3198, equation 11).
        """
        width = self.inverse_temperatures.diff()
        area = width * (self.mean_return[1:] + self.mean_return[:-1]) / 2
        area = area - width.square() * self.return_variance.diff() / 12
        return torch.cat([area.new_zeros(1), area.cumsum(0)])

    @property
    def free_energy(self) -> Tensor:
        """``F(α) = -α log Z(1/α)``, ``(K,)`` in reward units, with ``-E_prior[Σ r]`` at infinite temperature."""
        beta = self.inverse_temperatures[1:]
        return torch.cat([-self.mean_return[:1], -self.log_evidence[1:] / beta])


@in_turn
@torch.no_grad()
def annealing(
    mdp: Process,
    num_particles: int,
    *,
    inverse_temperatures: Tensor | None = None,
    num_moves: int = _NUM_MOVES,
    kept: float = _KEPT,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Annealing:
    """Returns trajectories of the posterior, annealed over the temperature, and the evidence at each.

    A sequential Monte Carlo sampler (Del Moral, Doucet & Jasra 2006) along ``p(τ) exp(β Σ r)``, from the
    action prior (β = 0) to ``β = 1/α``: weigh, resample, then Metropolis moves. A move keeps a trajectory
    up to a random step, draws the rest anew from the prior and is accepted by its gain in return, so
    that it needs no densities and serves discrete and continuous processes alike.

    Args:
        mdp: a Markov decision process with a horizon.
        num_particles: ``N``.
        inverse_temperatures: the ladder, rising from 0 to ``1/α``. By default a first run, whose draws
            are not used, places each rung where ``kept`` of the effective sample size is left; with a
            ladder settled beforehand the evidence is unbiased. There are ten rungs at least.
        num_moves: Metropolis moves after each rung.
        kept: see ``inverse_temperatures``.
        seed: of what is drawn; None follows PyTorch's generator, from where it is.
        generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.

    Raises:
        ValueError: if the process is not one in parts, has no horizon, a ladder does not rise from 0 to
            ``1/α``, or no rung can be placed (returns of -∞ everywhere).

    One run cannot tell the standard error of its evidence, so that is NaN; see
    :func:`repeated_annealing`.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> _ = torch.manual_seed(0)
        >>> bool((annealing(mdp, 4000).draws.log_evidence - torch.tensor(2.4805)).abs() < 0.05)
        True
    """
    return _annealed(mdp, num_particles, 1, inverse_temperatures, num_moves, kept)[0]


@in_turn
@torch.no_grad()
def repeated_annealing(mdp: Process, num_particles: int, *, num_repeats: int = 8) -> Annealing:
    """Returns the last of several runs on one ladder, with the trajectories of all, weighed by their evidence.

    The evidence of the draws is the runs' mean, and its standard error is from their spread.

    Args:
        mdp, num_particles: as in :func:`annealing`, for each run.
        num_repeats: how many runs, ≥ 2.
    """
    if num_repeats < 2:
        raise ValueError(f"num_repeats must be >= 2 for a standard error, got {num_repeats}")
    runs = _annealed(mdp, num_particles, num_repeats)
    return replace(runs[-1], draws=WeightedDraws.pooled([run.draws for run in runs]))


@in_turn
@torch.no_grad()
def spread_annealing(
    mdp: Process, num_particles: int, ranks: Ranks, *, num_repeats: int = 8, num_draws: int | None = None
) -> tuple[WeightedDraws, float]:
    """Returns what :func:`repeated_annealing` does, of runs that are spread over ranks, and the least acceptance.

    The runs are :func:`~rl_as_inference.sampling.islands.islands` on the ladder that the first rank's pilot settles.

    Args:
        mdp, num_particles, num_repeats: as in :func:`repeated_annealing`.
        ranks: over which the runs are spread.
        num_draws: how many draws will be resampled of them; None keeps all.
    """
    process, horizon, last = _in_steps(mdp)
    # The pilot ends when it has seen enough, and what is drawn after it must not depend on that.
    with unvalidated(), seeded(int(torch.randint(2**62, ()))):
        ladder = ranks.broadcast(_ladder(process, horizon, _NUM_MOVES, _KEPT, last))
    acceptances: list[float] = []

    def run(pool: Pool, island: int) -> None:
        (found,) = _annealed(process, num_particles, 1, ladder)
        acceptances.append(float(found.acceptance[1:].min()))
        pool.add(found.draws)

    draws = islands(run, num_repeats, num_draws, ranks)
    return draws, min(ranks.gather_objects(min(acceptances)))


def _annealed(
    mdp: Process,
    num_particles: int,
    num_runs: int,
    inverse_temperatures: Iterable[float | Tensor] | None = None,
    num_moves: int = _NUM_MOVES,
    kept: float = _KEPT,
) -> list[Annealing]:
    mdp, horizon, last = _in_steps(mdp)
    with unvalidated():
        if inverse_temperatures is None:
            ladder = _ladder(mdp, horizon, num_moves, kept, last)
        else:
            ladder = [float(beta) for beta in inverse_temperatures]
            if ladder[0] != 0 or any(b <= a for a, b in pairwise(ladder)):
                raise ValueError("inverse_temperatures must rise from 0 to 1/α, strictly")
            if not math.isclose(ladder[-1], last, rel_tol=1e-6):
                raise ValueError(f"inverse_temperatures must end at 1/α = {last:.6g}, got {ladder[-1]:.6g}")
        ladder_left = iter(ladder[1:])
        return _run(mdp, horizon, num_particles, num_moves, lambda beta, total: next(ladder_left, None), num_runs)


def _in_steps(mdp: Process) -> tuple[MarkovDecisionProcess, int, float]:
    """Returns the process, its horizon and its inverse temperature."""
    if not isinstance(mdp, MarkovDecisionProcess):
        raise ValueError("method='annealed' needs a MarkovDecisionProcess, to be run step by step; use 'importance'")
    return mdp, mdp.finite_horizon("annealing"), 1 / float(mdp.temperature)


def _ladder(mdp: MarkovDecisionProcess, horizon: int, num_moves: int, kept: float, last: float) -> list[float]:
    """Returns rungs between which the effective sample size falls to ``kept``."""

    def next_rung(beta: float, total: Tensor) -> float | None:
        if beta >= last:
            return None
        # A return of -∞ is ruled out at every rung: no closer one would keep those particles.
        least = kept * int((total > -math.inf).sum())
        low, high = beta, last
        high = min(last, beta + last / _FEWEST_RUNGS * (1 + 1e-9))
        if effective_sample_size((high - beta) * total) >= least:
            return high
        for _ in range(50):
            middle = (low + high) / 2
            enough = effective_sample_size((middle - beta) * total) >= least
            low, high = (middle, high) if enough else (low, middle)
        if low <= beta:
            raise ValueError("no temperature leaves enough effective particles: is the return -inf almost everywhere?")
        return low

    (pilot,) = _run(mdp, horizon, _PILOT, num_moves, next_rung)
    return [float(beta) for beta in pilot.inverse_temperatures]


def _run(
    mdp: MarkovDecisionProcess,
    horizon: int,
    num_particles: int,
    num_moves: int,
    next_rung: Callable[[float, Tensor], float | None],
    num_runs: int = 1,
) -> list[Annealing]:
    """Returns independent runs, which walk together: small tensors cost as much as their calls."""
    count = num_runs * num_particles
    draws = _redraw(mdp, horizon, None, torch.full((count,), -1))
    places = torch.arange(count, device=draws.rewards.device)
    ancestors = places
    beta, log_z = 0.0, [0.0] * num_runs
    total = draws.rewards.sum(0)
    log_weight = torch.zeros_like(total).view(num_runs, num_particles)
    betas, log_zs, accepted = [0.0], [log_z], [[math.nan] * num_runs]
    moments = [[_moments(*row) for row in zip(total.view_as(log_weight), log_weight, strict=True)]]
    while (rung := next_rung(beta, total)) is not None:
        if len(betas) > _LONGEST_LADDER:
            raise ValueError(f"annealing needs more than {_LONGEST_LADDER} temperatures; raise the temperature")
        log_weight = log_weight + (rung - beta) * total.view_as(log_weight)
        if not bool(torch.logsumexp(log_weight, 1).isfinite().all()):
            raise ValueError(f"every particle's weight is zero at inverse temperature {rung:.4g}; use more particles")
        index = places.view_as(log_weight).clone()
        log_z = list(log_z)
        for run, weights in enumerate(log_weight):
            if effective_sample_size(weights) < 0.9 * num_particles:
                log_z[run] += _log_mean(weights)
                index[run] = index[run, resample(weights, num_particles)]
                weights.zero_()
        draws, ancestors = draws.select(index.flatten()), ancestors[index.flatten()]
        beta, share = rung, torch.zeros(num_runs, dtype=torch.float64, device=total.device)
        for _ in range(num_moves):
            draws, moved, fresh = _move(mdp, horizon, draws, beta)
            share += moved.view_as(log_weight).double().mean(1) / num_moves
            # What was drawn anew from its first action on descends from nobody.
            ancestors = torch.where(fresh, places + ancestors.max() + 1, ancestors)
        total = draws.rewards.sum(0)
        betas.append(beta)
        log_zs.append([before + _log_mean(weights) for before, weights in zip(log_z, log_weight, strict=True)])
        moments.append([_moments(*row) for row in zip(total.view_as(log_weight), log_weight, strict=True)])
        accepted.append(share.tolist())
    draws = mdp.told(replace(draws, log_factors=draws.rewards / mdp.temperature))
    options: dict[str, Any] = {"dtype": total.dtype, "device": total.device}
    found = []
    for run, (rows, weights) in enumerate(zip(places.view_as(log_weight), log_weight, strict=True)):
        mean, variance = torch.tensor([moment[run] for moment in moments], **options).unbind(1)
        lines = ancestors[rows].unique(return_inverse=True)[1]
        found.append(
            Annealing(
                WeightedDraws(draws.select(rows), weights, log_zs[-1][run], math.nan, lines),
                torch.tensor(betas, **options),
                torch.tensor([each[run] for each in log_zs], **options),
                mean,
                variance,
                torch.tensor([each[run] for each in accepted], **options),
            )
        )
    return found


def _log_mean(log_weight: Tensor) -> float:
    return float(torch.logsumexp(log_weight, 0)) - math.log(len(log_weight))


def _moments(total: Tensor, log_weight: Tensor) -> tuple[float, float]:
    """Returns the mean and variance, of what has any weight."""
    total, share = total[log_weight > -math.inf], torch.softmax(log_weight[log_weight > -math.inf], 0)
    mean = (share * total).sum()
    if not bool(mean.isfinite()):
        return float(mean), math.inf
    return float(mean), float((share * (total - mean).square()).sum())


def _move(
    mdp: MarkovDecisionProcess, horizon: int, draws: Trajectories, beta: float
) -> tuple[Trajectories, Tensor, Tensor]:
    """Returns the trajectories after one Metropolis move, which were accepted, and which of those are wholly new."""
    # From -1 (the first state too) to the last step.
    start = torch.randint(-1, horizon, (draws.num_trajectories,), device=draws.rewards.device)
    proposed = _redraw(mdp, horizon, draws, start)
    gain = beta * (proposed.rewards.sum(0) - draws.rewards.sum(0))
    taken = torch.rand_like(gain).log() < gain

    def chosen(name: str) -> Tensor:
        new, old = getattr(proposed, name), getattr(draws, name)
        return torch.where(taken.reshape(1, -1, *(1,) * (new.dim() - 2)), new, old)

    names = ["states", "actions", "rewards", "mask", "log_prior", "log_policy", "log_factors"]
    names += [] if draws.observations is None else ["observations"]
    changes: dict[str, Any] = {name: chosen(name) for name in names}
    return replace(draws, **changes), taken, taken & (start <= 0)


def _redraw(mdp: MarkovDecisionProcess, horizon: int, old: Trajectories | None, start: Tensor) -> Trajectories:
    """Returns trajectories that are the old ones before step ``start``, and the prior's from there on.

    Survival coins are drawn again with the rest; without old ones everything is drawn.
    """
    gamma = float(mdp.discount)
    state = mdp.begin(len(start))
    if old is not None:
        state = _where(start < 0, state, old.states[0])
    seen = mdp.view(state, kept=_seen_before(old, 0, start))
    rows, alive = Rows(), torch.ones(len(start), dtype=torch.bool, device=state.device)
    for t in range(horizon):
        new = start <= t
        action, log_p, _ = mdp.decide(None, seen, t)
        if old is not None:
            # A coin is kept with the step before it.
            alive = torch.where(start < t, alive, old.mask[t])
            action = _where(new, action, old.actions[t])
            log_p = torch.where(new, log_p, old.log_prior[t])
        step = mdp.advance(state, action, t, alive)
        taken = alive if step.alive is None else step.alive
        after, earned = step.next_state, step.reward
        if old is not None:
            after, earned = _where(new, after, old.states[t + 1]), torch.where(new, earned, old.rewards[t])
        rows.add(state, action, earned, taken, log_p, log_p)
        state, alive = after, taken
        seen = mdp.view(state, action, seen, _seen_before(old, t + 1, start))
        if gamma < 1 and t < horizon - 1:
            alive = alive & (torch.rand(len(start), device=state.device) < gamma)
    return rows.trajectories(state, mdp.temperature, 1.0, seen=seen)


def _seen_before(old: Trajectories | None, t: int, start: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns which trajectories keep their old observation of time ``t``, and the old ones."""
    if old is None or old.observations is None:
        return None
    index = t if old.observed_first else t - 1
    return (start < t, old.observations[index]) if 0 <= index < len(old.observations) else None


def _where(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(condition.reshape(-1, *(1,) * (new.dim() - 1)), new, old)
