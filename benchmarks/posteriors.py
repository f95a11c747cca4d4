"""A testbed of trajectory posteriors: every method on problems whose evidence and marginals are known.

    python -m benchmarks.posteriors        four minutes; prints the table, writes results/posteriors.json

Errors of the log evidence are in nats and in the method's own standard errors, where an error below
10⁻⁶ nats is rounding. A marginal's error is the largest over time and state, of the probability of a
finite state, and of the posterior mean over the posterior standard deviation of a continuous one. The
effective sample size (ESS) is measured, not read off the weights: how many independent posterior draws
would have the same mean squared error of the marginals, by independent repeats against the exact
answer. So it counts bias, and the ancestors that particles share. Times are of drawing alone; plans
and look-aheads are made before. Everything is in float64.

"Causal plan" is ``exact.plan(mdp, "causal")`` as proposal, and "look-ahead" the soft value of
``exact.plan(mdp, "posterior")``; "twisted" filters have that, and that plan's policy as proposal.
"""

import argparse
import datetime
import itertools
import math
import platform
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import Advance, Claim, Row, Section
from rl_as_inference import LinearGaussianMDP, MarkovDecisionProcess, TabularMDP, Trajectories, exact, models, survival
from rl_as_inference.critics import TableCritic
from rl_as_inference.sampling import annealing, importance_sampling, nuts, repeated_filters
from rl_as_inference.sampling.importance import mean_evidence

__all__ = ["STAGES", "DoubleWell", "PosteriorRow", "Problem", "main", "measure", "problems"]

F64 = torch.float64
_RESULTS = Path(__file__).parent / "results"
_ROUNDING = 1e-6
"""Errors in nats below this are not the sampler's: some proposals leave weights that are all alike."""


@dataclass(frozen=True)
class Sizes:
    """How much work a method may do: independent repeats, and particles in each."""

    repeats: int
    particles: int
    annealed_repeats: int
    annealed_particles: int
    exact_draws: int
    """In all; as a draw costs a pass over the tables, fewer of them than of particles."""
    chains: int
    chain_draws: int
    warmup: int


FULL = Sizes(20, 5_000, 8, 500, 10_000, 2, 60, 100)
QUICK = Sizes(4, 50, 2, 30, 200, 2, 10, 10)


@dataclass(frozen=True)
class Answer:
    """A log evidence and the moments of the states given optimality.

    Attributes:
        route: how they were had.
        log_evidence: in nats.
        mean: ``(F,)``, probabilities of finite states or means of continuous ones, over time and state;
            None for a route that gives the evidence alone.
    """

    route: str
    log_evidence: float
    mean: Tensor | None = None


Estimator = Callable[[Trajectories, Tensor], Tensor]
"""Moments ``(F,)`` of trajectories under normalised weights ``(N,)``."""


@dataclass(frozen=True)
class Problem:
    """A process with a known posterior.

    Attributes:
        name: what tables call it, with its size.
        process: what the methods are given.
        answer: the exact one.
        variance: ``(F,)``, posterior variances of what ``answer.mean`` holds the means of.
        unit: ``(F,)``, what an error of a mean is counted in: 1, or the posterior standard deviation.
        estimate: the same moments from weighted trajectories.
        checks: the answer by independent routes.
        causal: the exact causal plan, where there is one.
        plan: the exact plan of the posterior's own action rule, likewise.
        look_ahead: the soft value of exact conditioning, ``(state, t) -> V`` in reward units.
        chains: whether the No-U-Turn sampler is affordable.
        horizon: the number of steps.
    """

    name: str
    process: Any
    answer: Answer
    variance: Tensor
    unit: Tensor
    estimate: Estimator
    horizon: int
    checks: tuple[Answer, ...] = ()
    causal: Any = None
    plan: Any = None
    look_ahead: Any = None
    chains: bool = True


@dataclass(frozen=True)
class PosteriorRow(Row):
    """A method on a problem; what a method does not give, or one that does not fit, is None."""

    evidence_error: float | None = None
    """Estimated minus exact log evidence, in nats."""
    standard_error: float | None = None
    """As the method tells it, in nats."""
    z: float | None = None
    """The first over the second."""
    marginal_error: float | None = None
    """Largest error of a marginal over time and state; see the module."""
    effective_sample_size: float | None = None
    """Measured; see the module."""
    per_second: float | None = None
    """Effective draws a second."""
    seconds: float | None = None
    remark: str = ""
    """What is not a number; ``note`` tells the numbers too, for tables without these columns."""
    chain_z: float | None = None
    """Largest error of a mean in Monte Carlo standard errors by the chains' own effective sample size."""


@dataclass(frozen=True)
class _Draws:
    """Independent repeats of a sampler: trajectories, log weights ``(N,)``, and the evidence of each."""

    parts: list[tuple[Trajectories, Tensor]]
    log_evidence: float | None = None
    standard_error: float | None = None
    shares: Tensor | None = None
    """How much each repeat counts in the pooled answer, ``(R,)``; None for equally."""
    chain_z: float | None = None
    note: str = ""
    seconds: float = field(default=math.nan)


class DoesNotFit(Exception):
    """Says why a method is not run on a problem."""


# Problems ------------------------------------------------------------------------------------------


def problems(quick: bool = False) -> list[Callable[[], Problem]]:
    """Returns the makers of the problems; ``quick`` shortens the horizons."""
    hundred, fifty, twenty = (20, 12, 8) if quick else (100, 50, 20)
    rate = 0.1 if quick else 0.005
    walls = [(0, 2), (1, 2), (2, 2), (4, 1), (4, 2), (4, 3)]
    lakes = [
        lambda name=name: tabular(
            f"frozen lake {name}, {hundred} steps", models.frozen_lake(name, hundred, temperature=rate, dtype=F64)
        )
        for name in ("4x4", "8x8")
    ]
    return [
        lambda: tabular("random, 10 states", models.random_mdp(10, 3, twenty, 1.0, dtype=F64)),
        lambda: tabular("random, 25 states, γ = 0.9", models.random_mdp(25, 4, twenty, 0.9, seed=1, dtype=F64)),
        corridor,
        lambda: tabular(f"cliff, {fifty} steps", models.cliff(fifty, dtype=F64)),
        *lakes,
        lambda: tabular("maze, certain moves", models.gridworld(6, 6, 2 * twenty, slip=0.0, walls=walls, dtype=F64)),
        lambda: linear_gaussian("linear-Gaussian, 1-d", _system(1, 1, 3 if quick else 5)),
        lambda: linear_gaussian("double integrator, 2-d", models.double_integrator(8, dtype=F64), chains=not quick),
        lambda: linear_gaussian("linear-Gaussian, 4-d", _system(4, 2, 4), chains=not quick),
        lambda: linear_gaussian("linear-Gaussian, 8-d, long", _system(8, 3, fifty), chains=False),
        lambda: double_well(DoubleWell(horizon=5), points=501 if quick else 1001, chains=not quick),
        hidden_goal,
    ]


def tabular(name: str, mdp: TabularMDP, *checks: Answer) -> Problem:
    """Returns a finite process with its exact answers, and the same by powers of a matrix and by Pyro."""
    plan = exact.plan(mdp, "posterior")
    marginals = exact.posterior_occupancy(mdp)
    mean = marginals.flatten()
    # Pyro eliminates one step after the other where it is told that each depends on the one before alone.
    enumerated = _enumerated("Pyro's enumeration", lambda: mdp(1, markov=True))
    return Problem(
        name,
        mdp,
        Answer("exact.plan", float(plan.objective), mean),
        variance=mean * (1 - mean),
        unit=torch.ones_like(mean),
        estimate=lambda draws, share: shares_of_states(draws.states, share, mdp.num_states).flatten(),
        horizon=mdp.finite_horizon("a posterior"),
        checks=(transfer_matrices(mdp), enumerated, *checks),
        causal=exact.plan(mdp),
        plan=plan,
        look_ahead=TableCritic(plan.soft_v),  # type: ignore[arg-type]
    )


def corridor() -> Problem:
    """Returns ``models.corridor`` as tables, checked against Pyro's enumeration of the program itself."""
    length, horizon, slip = 5, 8, 0.1
    cells = torch.arange(length)
    step = torch.nn.functional.one_hot(torch.stack([cells - 1, cells + 1], 1).clamp(0, length - 1), length).to(F64)
    mdp = TabularMDP(
        (1 - slip) * step + slip * step.flip(1),
        (cells == length - 1).to(F64)[:, None].expand(-1, 2),
        (cells == 0).to(F64),
        horizon=horizon,
        discount=0.95,
        temperature=0.5,
    )
    program = models.corridor(length, horizon, 0.95, 0.5, slip, dtype=F64)
    return tabular("corridor, γ = 0.95", mdp, _enumerated("Pyro's enumeration of the program", program))


def linear_gaussian(name: str, system: LinearGaussianMDP, *, chains: bool = True) -> Problem:
    """Returns a linear-Gaussian process with its exact answers, and the same by dense Gaussian algebra."""
    plan = exact.plan(system, "posterior")
    means, covariances = exact.linear_gaussian.posterior_marginals(system)
    variance = covariances.diagonal(dim1=-2, dim2=-1).flatten()
    return Problem(
        name,
        system,
        Answer("exact.plan", float(plan.objective), means.flatten()),
        variance=variance,
        unit=variance.sqrt(),
        estimate=_mean_state,
        horizon=system.finite_horizon("a posterior"),
        checks=(dense_gaussian(system),),
        causal=exact.plan(system),
        plan=plan,
        look_ahead=plan.soft_v,
        chains=chains,
    )


class DoubleWell(MarkovDecisionProcess):
    """A particle on a line that is paid for lying in one of two wells, the right one a little deeper.

        s_0 ~ N(0, 0.5²),   a uniform on [-1, 1]
        s'  = s + a / 2 + N(0, 0.3²)
        r   = -2 (s'² - 1)² + s' / 10

    A trajectory picks a well at its start and keeps to it: given success there are two modes.
    """

    state_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), dtype=np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), dtype=np.float64)
    push, noise, spread = 0.5, 0.3, 0.5

    def initial(self) -> Any:
        return dist.Normal(torch.zeros(1, dtype=F64), self.spread).to_event(1)

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.Normal(state + self.push * action, self.noise).to_event(1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return self.payoff(next_state[..., 0])

    @staticmethod
    def payoff(x: Tensor) -> Tensor:
        """Returns the reward of arriving at ``x``, of its shape."""
        return -2 * (x.square() - 1).square() + x / 10


def double_well(well: DoubleWell, points: int, *, chains: bool = True) -> Problem:
    """Returns the double well with its answers by messages on a grid, and those of a grid twice as fine."""
    grid, answer, variance, values = grid_messages(well, points)
    _, finer, _, _ = grid_messages(well, 2 * points - 1)
    spacing = float(grid[1] - grid[0])

    def look_ahead(state: Tensor, t: int) -> Tensor:
        place = ((state[..., 0] - grid[0]) / spacing).clamp(0, len(grid) - 1.001)
        below = place.long()
        part = place - below
        return float(well.temperature) * ((1 - part) * values[t][below] + part * values[t][below + 1])

    return Problem(
        "double well",
        well,
        answer,
        variance=variance,
        unit=variance.sqrt(),
        estimate=_mean_state,
        horizon=well.finite_horizon("a posterior"),
        checks=(finer,),
        look_ahead=look_ahead,
        chains=chains,
    )


def hidden_goal() -> Problem:
    """Returns ``models.hidden_goal`` with its answers by writing out every case, checked by Pyro.

    The state is the position before each step; the last moment is the probability of the right goal.
    """
    length, start, horizon, temperature, accuracy = 7, 2, 8, 0.5, 0.8
    program = models.hidden_goal(length, start, horizon, 1.0, temperature, accuracy, dtype=F64)
    ends, total = (0, length - 1), 0.0
    cells, right = torch.zeros(horizon, length, dtype=F64), 0.0
    # The note says nothing to uniform actions: summed over, it leaves a factor of one.
    for goal, *actions in itertools.product((0, 1), *[(0, 1)] * horizon):
        path = [start]
        for action in actions:
            path.append(min(max(path[-1] + 2 * action - 1, 0), length - 1))
        weight = 0.5 ** (1 + horizon) * math.exp(path[1:].count(ends[goal]) / temperature)
        total += weight
        right += weight * goal
        for t, cell in enumerate(path[:-1]):
            cells[t, cell] += weight
    mean = torch.cat([cells.flatten(), torch.tensor([right], dtype=F64)]) / total

    def estimate(draws: Trajectories, share: Tensor) -> Tensor:
        cell = ((draws.states[:horizon, :, 0] + 1) * (length - 1) / 2).round().long()
        goal = draws.latents["goal"].to(F64) @ share
        return torch.cat([shares_of_states(cell, share, length).flatten(), goal[None]])

    return Problem(
        "hidden goal (a program)",
        program,
        Answer("all 512 cases", math.log(total), mean),
        variance=mean * (1 - mean),
        unit=torch.ones_like(mean),
        estimate=estimate,
        horizon=horizon,
        checks=(_enumerated("Pyro's enumeration", program),),
    )


def _system(ds: int, da: int, horizon: int) -> LinearGaussianMDP:
    """Returns a stable system drawn at random, started away from where it is cheap to be."""
    g = torch.Generator().manual_seed(10 * ds + da)
    turn, _ = torch.linalg.qr(torch.randn(ds, ds, generator=g, dtype=F64))
    noise = torch.randn(ds, ds, generator=g, dtype=F64) / ds**0.5
    return LinearGaussianMDP(
        0.95 * turn,
        torch.randn(ds, da, generator=g, dtype=F64) / ds**0.5,
        0.05 * (noise @ noise.mT + torch.eye(ds, dtype=F64)),
        torch.eye(ds, dtype=F64),
        0.1 * torch.eye(da, dtype=F64),
        torch.ones(ds, dtype=F64),
        0.1 * torch.eye(ds, dtype=F64),
        torch.eye(da, dtype=F64),
        horizon=horizon,
        temperature=1.0,
    )


# Exact answers by other routes -----------------------------------------------------------------------


def transfer_matrices(mdp: TabularMDP) -> Answer:
    """Returns the answers by products of ``M = Σ_a p(a|s) p(s'|s,a) e^{r/α}``, in probabilities, not logarithms."""
    states = torch.arange(mdp.num_states)[:, None, None].expand(-1, mdp.num_actions, mdp.num_states)
    actions = torch.arange(mdp.num_actions)[None, :, None].expand_as(states)
    # Asked of the process's parts, one triple at a time, so that no table of the solvers is used.
    weights = mdp.transition(states, actions).log_prob(torch.arange(mdp.num_states).expand_as(states)).exp()
    earned = mdp.reward(states, actions, torch.arange(mdp.num_states).expand_as(states))
    prior = mdp.prior(torch.arange(mdp.num_states)).probs
    M = torch.einsum("sa,sab->sb", prior, weights * (earned / mdp.temperature).exp()).numpy()
    ends = mdp.terminated(torch.arange(mdp.num_states))
    if ends is not None:
        M[ends.numpy()] = np.eye(mdp.num_states)[ends.numpy()]
    horizon, gamma = mdp.finite_horizon("a posterior"), float(mdp.discount)
    going = [gamma] * (horizon - 1) + [1.0]  # after the last step there is nothing to survive into
    backward = [np.ones(mdp.num_states)]
    for goes in reversed(going):
        # In this order: before the 1 is taken off again, small messages would round away.
        backward.append(M @ (goes * backward[-1] + (1 - goes)))
    backward.reverse()
    alive, gone = mdp.initial().probs.numpy(), np.zeros(mdp.num_states)
    total = float(alive @ backward[0])
    rows = [alive * backward[0]]
    for goes, later in zip(going, backward[1:], strict=True):
        arrived = alive @ M
        alive, gone = goes * arrived, gone + (1 - goes) * arrived
        rows.append(alive * later + gone)
    return Answer("products of matrices", math.log(total), torch.as_tensor(np.concatenate(rows)) / total)


def dense_gaussian(system: LinearGaussianMDP) -> Answer:
    """Returns the answers by conditioning the joint distribution of all draws at once.

    With white noise ``ε`` for every draw, states and actions are ``x = m + F ε`` and the factors
    ``exp(-x'Kx/2)``; given them ``ε`` has precision ``I + F'KF``.
    """
    horizon, ds, da = system.finite_horizon("a posterior"), system.state_size, system.action_size
    size = ds + horizon * (da + ds)
    state = torch.zeros(ds, size, dtype=F64)
    state[:, :ds] = torch.linalg.cholesky(system.initial_cov)
    mean, at = system.initial_mean, ds
    factors, means = [state], [mean]
    precision = torch.eye(size, dtype=F64)
    pull, constant = torch.zeros(size, dtype=F64), torch.zeros((), dtype=F64)
    Q, R = system.state_cost / system.temperature, system.action_cost / system.temperature
    for _ in range(horizon):
        action = torch.zeros(da, size, dtype=F64)
        action[:, at : at + da] = torch.linalg.cholesky(system.action_prior_cov)
        precision = precision + state.mT @ Q @ state + action.mT @ R @ action
        pull, constant = pull - state.mT @ Q @ mean, constant - mean @ Q @ mean / 2
        state, mean = system.A @ state + system.B @ action, system.A @ mean + system.drift
        at += da
        state = state.clone()
        state[:, at : at + ds] += torch.linalg.cholesky(system.noise_cov)
        at += ds
        factors.append(state)
        means.append(mean)
    best = torch.linalg.solve(precision, pull)
    log_evidence = constant + pull @ best / 2 - torch.logdet(precision) / 2
    found = torch.cat([m + F @ best for m, F in zip(means, factors, strict=True)])
    return Answer("dense Gaussian algebra", float(log_evidence), found)


def grid_messages(well: DoubleWell, points: int) -> tuple[Tensor, Answer, Tensor, list[Tensor]]:
    """Returns the grid, the answers, posterior variances ``(T+1,)`` and log backward messages, by quadrature.

    Forward filtering and backward smoothing. The action is integrated out exactly: its uniform
    distribution and the noise add to a difference of two normal distribution functions. Sums over
    an even grid converge faster than any power of its spacing for smooth functions that vanish at both ends.
    """
    grid = torch.linspace(-5, 5, points, dtype=F64)
    width = grid[1] - grid[0]
    apart = (grid[None] - grid[:, None]) / well.noise
    reach = well.push / well.noise
    step = torch.special.ndtr(apart + reach) - torch.special.ndtr(apart - reach)
    step = width * step / (2 * well.push) * (well.payoff(grid) / well.temperature).exp()
    forward = [width * torch.distributions.Normal(0.0, well.spread).log_prob(grid).exp()]
    backward = [torch.ones_like(grid)]
    for _ in range(well.finite_horizon("messages")):
        forward.append(forward[-1] @ step)
        backward.append(step @ backward[-1])
    backward.reverse()
    evidence = forward[0] @ backward[0]
    marginals = torch.stack(forward) * torch.stack(backward) / evidence
    mean = marginals @ grid
    variance = marginals @ grid.square() - mean.square()
    # Far out, where the message underflows, nothing goes on.
    values = [message.clamp(min=1e-300).log() for message in backward]
    return grid, Answer(f"a grid of {points}", float(evidence.log()), mean), variance, values


def _enumerated(route: str, program: Callable[[], Any]) -> Answer:
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(survival(program)), lambda: None)
    return Answer(route, -float(loss))


# Moments ---------------------------------------------------------------------------------------------


def shares_of_states(states: Tensor, share: Tensor, num_states: int) -> Tensor:
    """Returns the weighted share of each state at each time, ``(T, S)``, of states ``(T, N)``."""
    return torch.stack([torch.bincount(row, weights=share, minlength=num_states) for row in states])


def _mean_state(draws: Trajectories, share: Tensor) -> Tensor:
    return torch.einsum("tnd,n->td", draws.states.to(F64), share).flatten()


# Methods ---------------------------------------------------------------------------------------------


def _exact_draws(problem: Problem, sizes: Sizes) -> _Draws:
    draws = exact.sample_posterior(problem.process, sizes.exact_draws)
    return _Draws(_split(draws, torch.zeros(draws.num_trajectories, dtype=F64), sizes.repeats))


def _importance(problem: Problem, sizes: Sizes, guided: bool) -> _Draws:
    guide = _needed(problem.causal, "no exact causal plan") if guided else None
    found = importance_sampling(problem.process, guide, sizes.repeats * sizes.particles)
    parts = _split(found.trajectories, found.log_weight, sizes.repeats)
    shares = _shares(parts)
    return _Draws(parts, found.log_evidence, found.standard_error, shares)


def _filters(problem: Problem, sizes: Sizes, proposal: Any, look_ahead: Any) -> _Draws:
    found = repeated_filters(problem.process, proposal, sizes.particles, critic=look_ahead, num_repeats=sizes.repeats)
    parts = _split(found.trajectories, found.log_weight, sizes.repeats)
    shares = _shares(parts)
    return _Draws(parts, found.log_evidence, found.standard_error, shares)


def _bootstrap(problem: Problem, sizes: Sizes) -> _Draws:
    return _filters(problem, sizes, None, None)


def _guided(problem: Problem, sizes: Sizes) -> _Draws:
    return _filters(problem, sizes, _needed(problem.causal, "no exact causal plan"), None)


def _guided_with_look_ahead(problem: Problem, sizes: Sizes) -> _Draws:
    look_ahead = _needed(problem.look_ahead, "no exact soft value")
    return _filters(problem, sizes, _needed(problem.causal, "no exact causal plan"), look_ahead)


def _twisted(problem: Problem, sizes: Sizes) -> _Draws:
    found = _filters(problem, sizes, problem.plan, _needed(problem.look_ahead, "no exact soft value"))
    return found if problem.plan is not None else replace(found, note="proposes from the action prior")


def _annealed(problem: Problem, sizes: Sizes) -> _Draws:
    # As estimate_log_evidence does: one ladder, placed by the first run's pilot.
    first = annealing(problem.process, sizes.annealed_particles)
    ladder = first.inverse_temperatures
    again = (
        annealing(problem.process, sizes.annealed_particles, inverse_temperatures=ladder)
        for _ in range(sizes.annealed_repeats - 1)
    )
    runs = [run.draws for run in (first, *again)]
    logs = [run.log_evidence for run in runs]
    estimate = mean_evidence(logs)
    return _Draws(
        [(run.trajectories, run.log_weight) for run in runs],
        estimate.mean,
        estimate.standard_error,
        torch.softmax(torch.tensor(logs, dtype=F64), 0),
        note=f"{len(ladder)} temperatures",
    )


def _nuts(problem: Problem, sizes: Sizes) -> _Draws:
    if not problem.chains:
        raise DoesNotFit("not run: too slow at this size")
    with torch.enable_grad():
        chains = nuts(
            problem.process, sizes.chains * sizes.chain_draws, num_warmup=sizes.warmup, num_chains=sizes.chains
        )
    import arviz

    draws = torch.stack([chain.states.to(F64).movedim(1, 0).flatten(1) for chain in chains])  # (chain, draw, F)
    own = torch.as_tensor([float(arviz.ess(column.numpy())) for column in draws.unbind(-1)], dtype=F64)
    r_hat = max(float(arviz.rhat(column.numpy())) for column in draws.unbind(-1))
    error = (draws.mean((0, 1)) - _mean_of(problem)).abs()
    z = float((error / (problem.variance / own).sqrt()).max())
    return _Draws(
        [(chain, torch.zeros(chain.num_trajectories, dtype=F64)) for chain in chains],
        chain_z=z,
        note=f"R̂ ≤ {r_hat:.2f}; means |z| ≤ {z:.1f} by the chains' own ESS ≥ {float(own.min()):.0f}",
    )


_METHODS: dict[str, Callable[[Problem, Sizes], _Draws]] = {
    "exact draws": _exact_draws,
    "importance, prior": lambda problem, sizes: _importance(problem, sizes, guided=False),
    "importance, causal plan": lambda problem, sizes: _importance(problem, sizes, guided=True),
    "SMC, bootstrap": _bootstrap,
    "SMC, causal plan": _guided,
    "SMC, causal plan + look-ahead": _guided_with_look_ahead,
    "SMC, twisted": _twisted,
    "annealed": _annealed,
    "NUTS": _nuts,
}
STAGES = len(problems())
_EXACT, _TWISTED = "exact", "SMC, twisted"


def _needed(thing: Any, missing: str) -> Any:
    if thing is None:
        raise DoesNotFit(f"does not fit: {missing}")
    return thing


def _shares(parts: list[tuple[Trajectories, Tensor]]) -> Tensor:
    """Returns how much of all the weight each repeat has, ``(R,)``."""
    return torch.softmax(torch.stack([torch.logsumexp(weight, 0) for _, weight in parts]), 0)


def _split(draws: Trajectories, log_weight: Tensor, repeats: int) -> list[tuple[Trajectories, Tensor]]:
    """Returns equal shares of the draws, in their order: those of each repeat."""
    blocks = torch.arange(draws.num_trajectories).chunk(repeats)
    return [(draws.select(slice(int(b[0]), int(b[-1]) + 1)), log_weight[b]) for b in blocks]  # type: ignore[arg-type]


# The table -------------------------------------------------------------------------------------------


def measure(quick: bool, advance: Advance) -> Section:
    """Returns the table of posteriors."""
    sizes = QUICK if quick else FULL
    rows: list[PosteriorRow] = []
    horizons = {}
    lake: Problem | None = None
    for index, make in enumerate(problems(quick)):
        pyro.set_rng_seed(0)
        with torch.no_grad():
            problem = make()
        horizons[problem.name] = problem.horizon
        rows.append(_exact_row(problem))
        for count, (name, method) in enumerate(_METHODS.items()):
            pyro.set_rng_seed(100 * index + count)  # each has its own: one bad draw should not fail several
            rows.append(_row(problem, name, method, sizes))
        if "8x8" in problem.name:
            lake = problem
        advance(problem.name)
    assert lake is not None
    seconds = [row.seconds for row in rows if row.what == lake.name and row.reading == _TWISTED]
    if not quick:  # the machine's other work slows a run, never speeds it up
        for _ in range(3):
            seconds.append(_timed(lambda: _twisted(lake, sizes)).seconds)
    settings = {
        "repeats": sizes.repeats,
        "particles a repeat": sizes.particles,
        "exact draws": sizes.exact_draws,
        "annealed": f"{sizes.annealed_repeats} × {sizes.annealed_particles}",
        "NUTS": f"{sizes.chains} chains of {sizes.chain_draws} after {sizes.warmup}",
        "horizons": horizons,
        "seeds": "100 × problem + method",
        "threads": torch.get_num_threads(),
    }
    claims = _claims(rows, min(s for s in seconds if s is not None), judged=not quick)
    return Section("trajectory posteriors", "", settings, list(rows), claims)


def _claims(rows: Iterable[PosteriorRow], seconds: float, judged: bool) -> list[Claim]:
    def largest(name: str, column: str) -> float:
        values = [getattr(row, column) for row in rows if row.reading == name]
        return max((abs(value) for value in values if value is not None), default=math.nan)

    linear = [row.chain_z for row in rows if row.chain_z is not None and "well" not in row.what]
    exact_rows = [row for row in rows if row.reading == _EXACT]
    furthest = max(max(abs(row.evidence_error or 0.0), row.marginal_error or 0.0) for row in exact_rows)
    texts = (
        ("exact answers against independent routes, evidence and marginals", furthest, 1e-9),
        (f"{_TWISTED}: largest error of a log evidence, in standard errors", largest(_TWISTED, "z"), 3.0),
        (f"{_TWISTED}: largest standard error of a log evidence, nats", largest(_TWISTED, "standard_error"), 0.05),
        (f"{_TWISTED}: seconds of 10⁵ particles on the frozen lake 8x8 of 100 steps", seconds, 5.0),
        ("NUTS, linear-Gaussian: largest error of a mean, in standard errors", max(linear, default=math.nan), 4.0),
    )
    return [Claim(text, value, limit, judged=judged) for text, value, limit in texts]


def _exact_row(problem: Problem) -> PosteriorRow:
    """Returns the furthest that the exact answer is from any independent route."""
    evidence = max((check.log_evidence - problem.answer.log_evidence for check in problem.checks), key=abs)
    marginals = [
        float((check.mean - _mean_of(problem)).abs().max()) for check in problem.checks if check.mean is not None
    ]
    row = PosteriorRow(
        problem.name,
        _EXACT,
        evidence_error=evidence,
        marginal_error=max(marginals, default=None),
        remark=f"{problem.answer.route}, against {' and '.join(check.route for check in problem.checks)}",
    )
    return _noted(row)


def _row(problem: Problem, name: str, method: Callable[[Problem, Sizes], _Draws], sizes: Sizes) -> PosteriorRow:
    try:
        with torch.no_grad():
            draws = _timed(lambda: method(problem, sizes))
    except DoesNotFit as why:
        return _noted(PosteriorRow(problem.name, name, remark=str(why)))
    except ValueError as refusal:  # what is wrong, without the mend
        return _noted(PosteriorRow(problem.name, name, remark=f"refused: {re.split('[;:] ', str(refusal))[0]}"))
    truth = _mean_of(problem)
    found = torch.stack([problem.estimate(part, torch.softmax(weight.to(F64), 0)) for part, weight in draws.parts])
    shares = torch.full((len(found),), 1 / len(found), dtype=F64) if draws.shares is None else draws.shares.to(F64)
    squared = float((found - truth).square().sum(1).mean())
    size = len(found) * float(problem.variance.sum()) / max(squared, 1e-300)
    error = None if draws.log_evidence is None else draws.log_evidence - problem.answer.log_evidence
    z = None
    if error is not None and draws.standard_error is not None:
        z = 0.0 if abs(error) < _ROUNDING else error / max(draws.standard_error, _ROUNDING)
    row = PosteriorRow(
        problem.name,
        name,
        milliseconds=1e3 * draws.seconds,
        remark=draws.note,
        evidence_error=error,
        standard_error=draws.standard_error,
        z=z,
        marginal_error=float(((shares @ found - truth).abs() / problem.unit.clamp(min=1e-300)).max()),
        effective_sample_size=size,
        per_second=size / draws.seconds,
        seconds=draws.seconds,
        chain_z=draws.chain_z,
    )
    return _noted(row)


def _noted(row: PosteriorRow) -> PosteriorRow:
    """Returns the row with its numbers told in the note."""
    told = (
        ("evidence {} nats off", row.evidence_error, "+.2g"),
        ("± {}", row.standard_error, ".2g"),
        ("marginals {} off", row.marginal_error, ".2g"),
        ("ESS {} a second", row.per_second, ",.0f"),
    )
    parts = [text.format(format(value, spec)) for text, value, spec in told if value is not None]
    return replace(row, note=", ".join([*parts, *filter(None, [row.remark])]))


def _timed(run: Callable[[], _Draws]) -> _Draws:
    start = time.perf_counter()
    draws = run()
    return replace(draws, seconds=time.perf_counter() - start)


def _mean_of(problem: Problem) -> Tensor:
    assert problem.answer.mean is not None
    return problem.answer.mean


def table(section: Section) -> Table:
    """Returns the section as a table of methods by problem."""
    answer = Table(title="Trajectory posteriors against exact answers")
    for header in ("problem", "method"):
        answer.add_column(header, no_wrap=True)
    for header in ("error, nats", "se, nats", "z", "marginal", "ESS", "ESS/s", "s"):
        answer.add_column(header, justify="right", no_wrap=True)
    answer.add_column("note")
    before = None
    for row in section.rows:
        assert isinstance(row, PosteriorRow)
        if row.what != before:
            answer.add_section()
        cells = (
            (row.evidence_error, "+.1e" if row.reading == _EXACT else "+.4f"),
            (row.standard_error, ".4f"),
            (row.z, "+.1f" if abs(row.z or 0.0) < 1e4 else "+.0e"),
            (row.marginal_error, ".1e" if row.reading == _EXACT else ".4f"),
            (row.effective_sample_size, ",.0f"),
            (row.per_second, ",.0f"),
            (row.seconds, ",.2f"),
        )
        shown = ["" if value is None else format(value, spec) for value, spec in cells]
        answer.add_row("" if row.what == before else row.what, row.reading, *shown, row.remark)
        before = row.what
    return answer


def main(arguments: list[str] | None = None) -> int:
    """Runs the testbed from the command line; returns 1 if a requirement does not hold, else 0."""
    from benchmarks.run import write  # which imports this module
    from rl_as_inference.progress import progress_bar

    parser = argparse.ArgumentParser(prog="python -m benchmarks.posteriors", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short form, in which nothing is judged")
    parser.add_argument("--out", type=Path, default=_RESULTS, help="folder for the results (default: %(default)s)")
    options = parser.parse_args(arguments)
    with progress_bar("posteriors", STAGES) as bar:
        start = time.perf_counter()
        section = measure(options.quick, bar.advance)
        seconds = time.perf_counter() - start
    console = Console(width=None if Console().is_terminal else 180)
    console.print(table(section))
    for claim in section.claims:
        console.print(str(claim), style="bold red" if claim.judged and not claim.holds else None, highlight=False)
    path = options.out / ("posteriors_quick.json" if options.quick else "posteriors.json")
    results = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "seconds": round(seconds, 1),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("rl-as-inference", "torch", "pyro-ppl", "arviz")},
        "sections": [section],
    }
    write(results, path)
    console.print(f"Written to {path}", highlight=False, soft_wrap=True)
    return int(any(claim.judged and not claim.holds for claim in section.claims))


if __name__ == "__main__":
    raise SystemExit(main())
