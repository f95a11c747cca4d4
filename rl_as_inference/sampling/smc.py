"""Sequential Monte Carlo over the steps of a process."""

import math
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.distributed import ALONE, Ranks
from rl_as_inference.histories import History
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import Policy, Problem, SoftV
from rl_as_inference.processes.mdp import MarkovDecisionProcess, unvalidated
from rl_as_inference.processes.programs import ProgramProcess, as_process
from rl_as_inference.program.readings import survival
from rl_as_inference.randomness import seeded
from rl_as_inference.sampling.importance import WeightedDraws, check_conditions, effective_sample_size, resample
from rl_as_inference.sampling.islands import islands
from rl_as_inference.sampling.pool import Keep, Pool
from rl_as_inference.trajectories import Genealogy, Rows

__all__ = ["repeated_filters", "sequential_monte_carlo"]


@in_turn
@torch.no_grad()
def sequential_monte_carlo(
    mdp: Problem,
    policy: Policy | None,
    num_particles: int,
    *,
    critic: SoftV | None = None,
    threshold: float = 0.5,
    keep: Keep | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> WeightedDraws:
    """Returns whole trajectories from a particle filter over time, with its evidence estimate.

    Particles move by ``policy`` and the dynamics, are weighed by ``exp(r/α) p(a|s)/π(a|s)`` and
    resampled systematically when the effective sample size falls below ``threshold``; ancestors are
    traced back, so that what is returned are whole trajectories with equal or nearly equal weights.
    Doucet & Johansen (2011), algorithm for particle filtering; Piché et al. (2019) for control.

    With a critic the filter is twisted: particles are resampled by what they are expected to earn yet,
    ``exp(V_t(s)/α)``, which later weights take back, so that the evidence stays unbiased for *any*
    critic (Whiteley & Lee 2014, arXiv:1210.0220; Heng et al. 2020, arXiv:1708.08396). The best one is the soft value
    of exact conditioning, ``exact.plan(mdp, "posterior").soft_v``; a learned critic serves.

    Args:
        mdp: a Markov decision process with a horizon, or a program that runs in a plate
            (:class:`rl_as_inference.processes.programs.ProgramProcess`), which is run anew for every step.
        policy: the proposal; None for the action prior (the bootstrap filter).
        num_particles: ``N``.
        critic: look-ahead, ``(state, t) -> V`` in reward units; None looks at what was earned alone. Particles
            where it is -∞ are given up, which is right only where nothing can come of them.
        threshold: resample when the effective sample size is below this fraction of ``N``.
        keep: of the log weights ``(N,)`` and the log evidence, the index of the particles whose trajectories are made,
            of processes in parts; None for all. Weights are those of all.
        seed: of what is drawn; None follows PyTorch's generator, from where it is.
        generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.

    Raises:
        ValueError: if the process is not one in parts, has no horizon, every particle dies out, or the
            critic is NaN or +∞.

    One filter cannot tell its own standard error, so that is NaN; see :func:`repeated_filters`.
    """
    process = as_process(mdp)
    if isinstance(process, ProgramProcess) and process.is_vectorized():
        if critic is not None:
            raise ValueError("critic needs a process in parts, whose states it looks at; leave it out for a program")
        return _program_filter(process, policy, num_particles, threshold)
    if not isinstance(process, MarkovDecisionProcess):
        raise ValueError(
            "method='smc' needs a MarkovDecisionProcess, or a program that runs in a plate, to be run step by step; "
            "use 'importance'"
        )
    horizon = process.finite_horizon("sequential Monte Carlo")
    with unvalidated():
        return _filter(process, policy, num_particles, horizon, critic, threshold, keep)


def _program_filter(
    process: ProgramProcess, policy: Policy | None, num_particles: int, threshold: float
) -> WeightedDraws:
    """Returns a filter's particles over the steps of a program.

    A program cannot go on from its middle. So each step runs it anew, with what its particles have drawn so far, and
    leaves it before the next action: T (T+1) / 2 steps in all.
    """
    process = ProgramProcess(survival(process.program), vectorized=True)
    process.check_sites(2)
    horizon, log_evidence = process.horizon, 0.0
    values: dict[str, Tensor] = {}
    passed: Tensor | float = 0.0  # what the particles' weights were when they were last resampled
    ancestors: Tensor | None = None
    for t in range(horizon):
        trajectories, values = process.first_steps(policy, num_particles, t + 1, values)
        total = trajectories.log_weight()
        log_weight = total - passed
        if not bool(torch.logsumexp(log_weight, 0).isfinite()):
            check_conditions(process, policy, num_particles)
            raise ValueError(f"every particle's weight is zero at step {t}; use another policy or more particles")
        if ancestors is None:
            ancestors = torch.arange(num_particles, device=total.device)
        if t < horizon - 1 and effective_sample_size(log_weight) < threshold * num_particles:
            log_evidence += float(torch.logsumexp(log_weight, 0)) - math.log(num_particles)
            index = resample(log_weight, num_particles)
            values = {name: value[index] for name, value in values.items()}
            passed, ancestors = total[index], ancestors[index]
    log_evidence += float(torch.logsumexp(log_weight, 0)) - math.log(num_particles)
    return WeightedDraws(trajectories, log_weight, log_evidence, math.nan, ancestors)


def _filter(
    mdp: MarkovDecisionProcess,
    policy: Policy | None,
    num_particles: int,
    horizon: int,
    critic: SoftV | None,
    threshold: float,
    keep: Keep | None,
) -> WeightedDraws:
    gamma = float(mdp.discount)

    def ahead(state: Tensor, t: int, alive: Tensor | None) -> Tensor | float:
        """Returns what the critic expects of particles from step ``t`` on, nats; nothing of those that have ended."""
        if critic is None or t == horizon:
            return 0.0
        value = critic(mdp.as_seen(state), t)
        if value.shape != (num_particles,):
            raise ValueError(
                f"critic must give one value a state, of shape ({num_particles},), got {tuple(value.shape)} at step {t}"
            )
        value = value / mdp.temperature
        for ended in (mdp.has_ended(state), None if alive is None else ~alive):
            value = value if ended is None else torch.where(ended, 0.0, value)
        if bool((value.isnan() | value.isposinf()).any()):
            raise ValueError(f"critic is NaN or infinite at step {t}; it must be a number below infinity")
        return value

    state = mdp.begin(num_particles)
    seen = mdp.view(state)
    rows = Rows(horizon)
    resampled: list[Tensor | None] = []  # who the particles after a step descend from; None: each from itself
    kind = torch.int32 if num_particles < 2**31 else torch.int64
    alive: Tensor | None = None
    expected: Tensor | float = 0.0  # of the present states, in the weights already
    log_weight: Tensor | None = None
    log_evidence = 0.0
    everyone = first = torch.arange(num_particles, device=state.device)
    for t in range(horizon):
        action, log_p, log_q = mdp.decide(policy, seen, t)
        step = mdp.advance(state, action, t, alive)
        alive = step.alive
        rows.add(state, action, step.reward, alive, log_p, log_q)
        gain = step.reward / mdp.temperature + rows.log_ratio()
        if gamma < 1 and t < horizon - 1:
            survives = torch.rand(num_particles, device=state.device) < gamma
            alive = survives if alive is None else alive & survives
        expected_after = ahead(step.next_state, t + 1, alive)
        # Where the critic saw nothing to come, it stays so: -inf less -inf would be no number.
        increment = gain + expected_after - expected
        if isinstance(expected, Tensor):
            increment = torch.where(expected.isneginf(), -math.inf, increment)
        log_weight = increment if log_weight is None else log_weight + increment
        if not bool(torch.logsumexp(log_weight, 0).isfinite()):
            raise ValueError(f"every particle's weight is zero at step {t}; use another policy or more particles")
        index: Tensor | None = None
        if t < horizon - 1 and effective_sample_size(log_weight) < threshold * num_particles:
            log_evidence += float(torch.logsumexp(log_weight, 0)) - math.log(num_particles)
            index = resample(log_weight, num_particles)
            log_weight = torch.zeros_like(log_weight)
        seen, state, expected = mdp.view(step.next_state, action, seen), step.next_state, expected_after
        if index is not None:
            seen, state, first = _selected(seen, index), state[index], first[index]
            alive = None if alive is None else alive[index]
            expected = expected[index] if isinstance(expected, Tensor) else expected
        resampled.append(None if index is None else index.to(kind))
    assert log_weight is not None
    log_evidence += float(torch.logsumexp(log_weight, 0)) - math.log(num_particles)

    wanted = None if keep is None else keep(log_weight, log_evidence)
    if wanted is not None:
        seen, state = _selected(seen, wanted), state[wanted]
    lines = Genealogy(everyone if wanted is None else wanted, resampled)
    trajectories = mdp.told(rows.trajectories(state, mdp.temperature, 1.0, lines, seen))
    return WeightedDraws(trajectories, log_weight, log_evidence, math.nan, first)


def _selected(seen: Any, index: Tensor) -> Any:
    """Returns the views of the particles at ``index``."""
    return seen.select(index) if isinstance(seen, History) else seen[index]


@in_turn
def repeated_filters(
    mdp: Problem,
    policy: Policy | None,
    num_particles: int,
    *,
    critic: SoftV | None = None,
    num_repeats: int = 8,
    num_draws: int | None = None,
    ranks: Ranks = ALONE,
) -> WeightedDraws:
    """Returns the pooled trajectories of independent particle filters, weighed by each one's evidence.

    The evidence is the filters' mean, and its standard error is from their spread. The filters are
    :func:`~rl_as_inference.sampling.islands.islands`: each has its own random numbers, wherever it runs.

    Args:
        mdp, policy, num_particles, critic: as in :func:`sequential_monte_carlo`, for each filter.
        num_repeats: how many filters, ≥ 2.
        num_draws: how many draws will be resampled of them: then no more trajectories are kept than these can ask for
            (:class:`~rl_as_inference.sampling.pool.Pool`), so that memory is that of one filter. None keeps all.
        ranks: over which the filters are spread.
    """
    if num_repeats < 2:
        raise ValueError(f"num_repeats must be >= 2 for a standard error, got {num_repeats}")

    process = as_process(mdp)
    if isinstance(process, ProgramProcess):
        with seeded(0):  # found out once, by running it, which must not move the stream of the first island on a rank
            process.is_vectorized()

    def run(pool: Pool, island: int) -> None:
        pool.add(sequential_monte_carlo(process, policy, num_particles, critic=critic, keep=pool.wanted))

    return islands(run, num_repeats, num_draws, ranks)
