"""Importance sampling of trajectories, and what its weights are worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.estimate import Estimate
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import Policy, Problem
from rl_as_inference.processes.programs import ProgramProcess, as_process
from rl_as_inference.program.readings import survival
from rl_as_inference.trajectories import Trajectories

__all__ = [
    "WeightedDraws",
    "apart",
    "check_conditions",
    "check_weights",
    "check_whole_plates",
    "effective_sample_size",
    "evidence_of",
    "importance_sampling",
    "mean_evidence",
    "pointed_at",
    "resample",
    "survive",
    "surviving_rollout",
    "weighted_rollout",
]


@dataclass(frozen=True)
class WeightedDraws:
    """Trajectories with weights, and the evidence they estimate.

    Attributes:
        trajectories: the proposals, ``N`` of them.
        log_weight: their log weights, ``(N,)`` in nats, not normalised.
        log_evidence: ``log p(O)`` by the mean weight, in nats; unbiased before the logarithm.
        standard_error: of the log evidence in nats: of independent draws by the delta method, of pooled runs by
            :func:`mean_evidence`.
        ancestors: which particle at the start each particle descends from, ``(N,)``; None where they are
            independent.
        log_chance: what trajectories are to be resampled by, nats, where some were left out; None for ``log_weight``.
        all_log_weight: the log weights of all particles, where some were left out; None where ``log_weight`` is.
    """

    trajectories: Trajectories
    log_weight: Tensor
    log_evidence: float
    standard_error: float
    ancestors: Tensor | None = None
    log_chance: Tensor | None = None
    all_log_weight: Tensor | None = None

    @property
    def effective_sample_size(self) -> float:
        """``(Σ w)² / Σ w²``: how many independent posterior draws the weights are worth."""
        return effective_sample_size(self.log_weight if self.all_log_weight is None else self.all_log_weight)

    @property
    def effective_ancestors(self) -> float | None:
        """``(Σ_a W_a)² / Σ_a W_a²``, with ``W_a`` the weight of all descendants of ancestor ``a``; None without any.

        At most the number of distinct ancestors. Resampled weights are equal, whatever they descend from.
        """
        if self.ancestors is None:
            return None
        share = torch.softmax((self.log_weight if self.all_log_weight is None else self.all_log_weight).double(), 0)
        return float(1 / torch.bincount(self.ancestors, share).square().sum())

    @staticmethod
    def pooled(runs: "list[WeightedDraws]") -> "WeightedDraws":
        """Returns the trajectories of independent runs, each weighed by its evidence.

        The evidence is that of :func:`mean_evidence`.
        """
        evidence = mean_evidence([run.log_evidence for run in runs])
        weights = [run.log_weight - torch.logsumexp(run.log_weight, 0) + run.log_evidence for run in runs]
        return WeightedDraws(
            Trajectories.joined([run.trajectories for run in runs]),
            torch.cat(weights),
            evidence.mean,
            evidence.standard_error,
            apart([run.ancestors for run in runs if run.ancestors is not None]),
        )


def apart(ancestors: list[Tensor]) -> Tensor | None:
    """Returns the ancestors of several runs as those of one, numbered on; None of none."""
    lines, count = [], 0
    for line in ancestors:
        lines.append(line + count)
        count = int(lines[-1].max()) + 1
    return torch.cat(lines) if lines else None


def mean_evidence(logs: Sequence[float]) -> Estimate:
    """Returns the logarithm of the mean of ``n`` independent evidences, nats, with a standard error from their spread.

    The error is that of the delta method, ``std/(mean √n)``, times ``√((n-1)/(n-3))``. A spread of few runs is itself
    uncertain: what the mean is off by, over that spread, follows a t distribution, whose root mean square is this
    factor (1.18 for eight runs). With it the mean is off by one standard error, in root mean square. Below four runs
    that moment is infinite, and the factor is that of four.

    Evidences whose logarithms spread by more than half a nat are heavy-tailed, most means of eight miss the tail, and
    the spread of what was seen does not know it. But the logarithms are nearly normal (Bérard, Del Moral & Doucet
    2014, arXiv:1307.0181), and of a normal ``s`` wide the mean's logarithm is ``s²/2`` above the middle. So how far
    that lies from the answer, and how uncertain ``s²/2`` is, ``s⁴ (n-1)/(2 (n-3) (n-5))``, are added in squares. Of
    lognormal evidences the means of eight are then off by 0.97 to 1.06 standard errors up to a spread of 2 nats, and
    by 1.3 at 5; the delta method alone would have them off by 2.4 and 10.

    Where the logarithms are skewed to the left there is no such tail, and the error is too wide, up to twice: blind
    filters of 30 particles on a process where their logarithms are 1.3 nats wide, with a skewness of -1.1, have means
    of eight off by 0.65 standard errors, of which the part of ``s²/2`` is most; those of 100 (0.55 nats, -0.4) by 0.91.
    Eight numbers do not tell such a sample from a lognormal one: with the spread of those above the mean alone it would
    be 0.73, and that of lognormal ones of 2 nats 1.19 in place of 1.08. So it stays on the safe side; more particles
    are what makes it narrow.

    Args:
        logs: log evidences in nats, two or more.

    Example:
        >>> print(mean_evidence([0.0, 0.0, 0.2, 0.2]))
        0.105 ± 0.1
    """
    values = torch.as_tensor(logs, dtype=torch.float64)
    number, shares = len(values), (values - values.max()).exp()
    freedom = max(number, 4) - 1
    error = float(shares.std() / shares.mean()) / math.sqrt(number) * math.sqrt(freedom / (freedom - 2))
    mean = float(torch.logsumexp(values, 0)) - math.log(number)
    if bool(values.isfinite().all()):
        spread, freedom = float(values.var()), max(number, 6) - 1
        missed = float(values.mean()) + spread / 2 - mean
        error = math.hypot(error, missed, spread * math.sqrt(freedom / (2 * (freedom - 2) * (freedom - 4))))
    return Estimate(mean, error)


def effective_sample_size(log_weight: Tensor) -> float:
    """Returns ``(Σ w)² / Σ w²``.

    Example:
        >>> effective_sample_size(torch.zeros(8))
        8.0
    """
    return float((2 * torch.logsumexp(log_weight, 0) - torch.logsumexp(2 * log_weight, 0)).exp())


@torch.no_grad()
def survive(trajectories: Trajectories) -> Trajectories:
    """Returns the trajectories with their survival coins tossed, and a discount of 1.

    Tossing them after the fact is the survival rendering, since the coins depend on nothing else: what
    comes after a fall counts nothing, and the trajectory stays where it was. Log evidence and
    posteriors need it where γ < 1.
    """
    gamma = float(trajectories.discount)
    if gamma == 1.0:
        return trajectories
    coins = torch.rand(trajectories.rewards.shape, device=trajectories.rewards.device) < gamma
    coins[0] = True  # the first step is always taken
    alive = coins.cumprod(0).bool()
    states = trajectories.states.clone()
    for t in range(1, len(states)):
        # The state at t was reached by the step before it, if that step was taken.
        stays = ~alive[t - 1].reshape(-1, *(1,) * (states.dim() - 2))
        states[t] = torch.where(stays, states[t - 1], states[t])
    silenced: dict[str, Any] = {
        name: torch.where(alive, getattr(trajectories, name), 0.0)
        for name in ("rewards", "log_prior", "log_policy", "log_factors")
    }
    return replace(trajectories, states=states, mask=trajectories.mask & alive, discount=1.0, **silenced)


@in_turn
@torch.no_grad()
def surviving_rollout(process: Problem, policy: Policy | None, num_trajectories: int) -> Trajectories:
    """Returns rollouts with discount as survival: a program runs with its coins, others toss them after."""
    process = as_process(process)
    if isinstance(process, ProgramProcess):
        with_coins = ProgramProcess(survival(process.program), vectorized=process.vectorized)
        return with_coins.rollout(policy, num_trajectories)
    return survive(process.rollout(policy, num_trajectories))


@in_turn
@torch.no_grad()
def importance_sampling(
    process: Problem,
    policy: Policy | None,
    num_draws: int,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> WeightedDraws:
    """Returns ``num_draws`` trajectories of ``policy`` with their weights under the posterior.

    Args:
        process: a process or a Pyro program.
        policy: the proposal, ``(state, t) -> Distribution``; None for the action prior.
        num_draws: how many proposals.
        seed: of what is drawn; None follows PyTorch's generator, from where it is.
        generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.

    Raises:
        ValueError: if every weight is zero.
    """
    process = as_process(process)
    check_whole_plates(process)
    found = weighted_rollout(process, policy, num_draws)
    check_weights(found.log_weight, process, policy)
    return found


def weighted_rollout(process: Problem, policy: Policy | None, num_draws: int) -> WeightedDraws:
    """Returns trajectories with their weights, which may all be zero."""
    draws = surviving_rollout(process, policy, num_draws)
    log_weight = draws.log_weight()
    evidence = evidence_of(log_weight)
    return WeightedDraws(draws, log_weight, evidence.mean, evidence.standard_error)


def check_weights(log_weight: Tensor, process: Problem, policy: Policy | None) -> None:
    """Raises ValueError if all weights are zero, or one is infinite."""
    if not bool(torch.logsumexp(log_weight, 0).isfinite()):
        check_conditions(process, policy, len(log_weight))
        raise ValueError(
            f"all {len(log_weight)} importance weights are zero (or one is infinite): the proposal never meets the "
            f"conditions of the program; use another policy or more draws"
        )


def evidence_of(log_weight: Tensor) -> Estimate:
    """Returns the logarithm of the mean of independent weights, nats, with its standard error by the delta method."""
    count, share = len(log_weight), (log_weight - log_weight.max()).exp()
    relative = share.std() / share.mean() / count**0.5
    return Estimate(float(torch.logsumexp(log_weight, 0)) - torch.tensor(float(count)).log().item(), float(relative))


def check_conditions(process: Problem, policy: Policy | None, num_draws: int) -> None:
    """Raises ValueError naming the sites whose conditions no run of a program meets; other processes have none."""
    never = process.conditions_never_met(policy) if isinstance(process, ProgramProcess) else []
    if never:
        raise ValueError(
            f"all {num_draws} importance weights are zero: the program never meets the condition on site "
            f"{' and '.join(map(repr, never))}; check its value, or use another policy or more draws"
        )


def check_whole_plates(process: Problem) -> None:
    """Raises ValueError naming the plates of a program that draw a subsample: no posterior weight comes of a part.

    The scaled terms of a part are right on average. Their exponential is not, so that its mean is no evidence.
    """
    plates = process.subsampled_plates() if isinstance(process, ProgramProcess) else []
    if plates:
        raise ValueError(
            f"plate {plates[0]!r} draws a subsample: its ELBO is right on average, its evidence and posterior are not; "
            f"leave out subsample_size"
        )


def resample(log_weight: Tensor, num_draws: int, generator: torch.Generator | None = None) -> Tensor:
    """Returns indices in proportion to the weights, systematically, ``(*batch, num_draws)`` of weights ``(*batch, N)``.

    One uniform number a row places ``num_draws`` evenly spaced pointers on the cumulative weights: less noise
    than independent draws, and unbiased (Douc, Cappé & Moulines 2005). It comes from ``generator``, by default
    PyTorch's own.
    """
    cumulative = torch.softmax(log_weight.double(), -1).cumsum(-1)
    where = log_weight.device if generator is None else generator.device
    start = torch.rand(*log_weight.shape[:-1], 1, dtype=torch.float64, device=where, generator=generator)
    start = start.to(log_weight.device)
    pointers = (torch.arange(num_draws, device=log_weight.device) + start) / num_draws
    return torch.searchsorted(cumulative / cumulative[..., -1:], pointers).clamp(max=log_weight.shape[-1] - 1)


def pointed_at(log_weight: Tensor, num_draws: int, start: float) -> Tensor:
    """Returns indices in proportion to the weights ``(N,)``, ``(num_draws,)``, of which any first few are so too.

    As :func:`resample`, but the pointers are ``start + j φ`` modulo 1, ``φ`` the golden section, which lie nearly
    evenly however many there are (Niederreiter 1992, Random Number Generation and Quasi-Monte Carlo Methods, section
    3.1). With ``start`` uniform on the unit interval each points to a particle as often as its weight says, so that it
    is unbiased (Cranley & Patterson 1976, SIAM Journal on Numerical Analysis 13).

    Example:
        >>> log_weight = torch.tensor([0.5, 0.25, 0.25]).log()
        >>> pointed_at(log_weight, 8, 0.3).tolist(), pointed_at(log_weight, 4, 0.3).tolist()
        ([0, 2, 1, 0, 2, 0, 0, 1], [0, 2, 1, 0])
    """
    cumulative = torch.softmax(log_weight.double(), -1).cumsum(-1)
    pointers = (start + torch.arange(num_draws, dtype=torch.float64, device=log_weight.device) * _GOLDEN_SECTION) % 1
    return torch.searchsorted(cumulative / cumulative[-1], pointers).clamp(max=len(log_weight) - 1)


_GOLDEN_SECTION = (5**0.5 - 1) / 2
