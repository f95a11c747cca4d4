"""Simulation-based calibration of the samplers that claim to draw from the posterior itself.

Draw a trajectory from the prior and data given the trajectory; then the trajectory is itself a draw
from the posterior given those data, and the rank of any summary of it among posterior draws is
uniform (Talts et al. 2018, arXiv:1804.06788, theorem 1). The data here are the optimality variables
of Levine (2018): where ``r/α ≤ 0`` they are coins that come up with probability ``exp(r/α)``.
"""

import math

import numpy as np
import pyro
import pytest
import torch
from problems import random_mdp
from scipy import stats
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import LinearGaussianMDP, TabularMDP, Trajectories
from rl_as_inference.sampling import nuts, surviving_rollout

F64 = torch.float64
LEAST_P = 1e-3
"""Of a chi-square test of ranks; seeds are fixed, so that a test passes always or never."""


def ranks(prior: Tensor, posterior: Tensor) -> Tensor:
    """Ranks ``(M,)``, 0 … L, of summaries ``(M,)`` among posterior ones ``(M, L)``; ties fall at random."""
    prior, posterior = prior.round(decimals=9), posterior.round(decimals=9)  # sums of one path may round apart
    ties = (posterior == prior[:, None]).sum(1)
    return (posterior < prior[:, None]).sum(1) + (torch.rand(len(prior)) * (ties + 1)).long()


def p_uniform(found: Tensor, levels: int) -> float:
    """The p-value of a chi-square test that ranks ``0 … levels - 1`` are equally frequent."""
    return float(stats.chisquare(np.bincount(found.numpy(), minlength=levels)).pvalue)


def summaries(draws: Trajectories) -> dict[str, Tensor]:
    """Numbers of a trajectory, ``(N,)`` each: of its rewards, its dynamics and its actions."""
    return {
        "return": draws.rewards.sum(0).double(),
        "length": draws.mask.sum(0).double(),
        "last state": draws.states[-1].reshape(draws.num_trajectories, -1)[:, 0].double(),
        "middle state": draws.states[len(draws.states) // 2].reshape(draws.num_trajectories, -1)[:, 0].double(),
        "actions": draws.actions.reshape(draws.horizon, draws.num_trajectories, -1)[..., 0].double().sum(0),
    }


def accepted(process: rlai.MarkovDecisionProcess, count: int) -> Trajectories:
    """Prior trajectories whose every optimality coin came up, by tossing them; rewards must be ≤ 0."""
    parts: list[Trajectories] = []
    while sum(part.num_trajectories for part in parts) < count:
        draws = surviving_rollout(process, None, 20 * count)
        assert bool((draws.log_factors <= 0).all())
        parts.append(draws.select((torch.rand_like(draws.log_factors).log() < draws.log_factors).all(0)))
    return Trajectories.joined(parts).select(torch.arange(count))


def with_costs(discount: float, *, terminal: bool = True, horizon: int = 5) -> TabularMDP:
    """A random process whose rewards are ≤ 0."""
    base = random_mdp(3, num_states=4, horizon=horizon, discount=discount, terminal=terminal)
    return TabularMDP(
        base.kernel.probabilities,
        base.reward_table - base.reward_table.max(),
        base.initial_probabilities,
        horizon=horizon,
        discount=discount,
        temperature=2.0,
        action_prior=base.action_prior,
        terminal=base.terminal,
    )


class TestGivenOptimality:
    """All coins came up: prior trajectories kept by rejection, each ranked among its own block of draws."""

    @pytest.mark.parametrize("discount", [1.0, 0.7])
    def test_exact_draws_of_a_finite_process(self, discount: float) -> None:
        """4,000 accepted trajectories, 9 posterior draws each, seed 0; five summaries, chi-square of ten ranks."""
        mdp, count, draws = with_costs(discount), 4_000, 9
        pyro.set_rng_seed(0)
        prior = summaries(accepted(mdp, count))
        posterior = summaries(rlai.exact.sample_posterior(mdp, count * draws))
        for name, values in prior.items():
            found = ranks(values, posterior[name].reshape(count, draws))
            assert p_uniform(found, draws + 1) > LEAST_P, name

    def test_exact_draws_of_a_linear_gaussian_process(self) -> None:
        """4,000 accepted trajectories, 9 posterior draws each, seed 0."""
        system, count, draws = walk(), 4_000, 9
        pyro.set_rng_seed(0)
        prior = summaries(accepted(system, count))
        posterior = summaries(rlai.exact.sample_posterior(system, count * draws))
        for name, values in prior.items():
            found = ranks(values, posterior[name].reshape(count, draws))
            assert p_uniform(found, draws + 1) > LEAST_P, name

    def test_nuts_on_a_linear_gaussian_process(self) -> None:
        """One chain of 160 draws, every second of them among 19 accepted trajectories of its own, seed 0.

        Draws of the posterior are exchangeable, so that either may be ranked among the other, and
        trajectories are cheaper than the chain; neighbours two apart are nearly independent here.
        """
        system, draws = walk(), 19
        pyro.set_rng_seed(0)
        (chain,) = nuts(system, 160, num_warmup=60, num_chains=1)
        few = summaries(chain.select(torch.arange(0, 160, 2)))
        prior = summaries(accepted(system, 80 * draws))
        for name, values in few.items():
            found = ranks(values, prior[name].reshape(80, draws))
            assert p_uniform(found // 4, 5) > LEAST_P, name

    def test_the_ranks_find_a_posterior_that_is_wrong(self) -> None:
        """The causal posterior leaves the dynamics alone, and is not the posterior: power of the test above."""
        mdp, count, draws = with_costs(1.0), 4_000, 9
        pyro.set_rng_seed(0)
        prior = summaries(accepted(mdp, count))
        posterior = summaries(rlai.exact.sample_posterior(mdp, count * draws, "causal"))
        found = ranks(prior["return"], posterior["return"].reshape(count, draws))
        assert p_uniform(found, draws + 1) < 1e-6


def test_exact_draws_given_coins_that_differ() -> None:
    """Whole calibration: 3,000 times a trajectory, its coins, and 9 draws of ``posterior`` given them, seed 0.

    A step whose coin fell has the factor ``1 - e^{r/α}`` instead of ``e^{r/α}``. The coins differ by
    step, so that the process that is conditioned carries the step in its state. Four steps have
    sixteen patterns of coins, and the trajectories of a pattern share a call.
    """
    base, count, draws = with_costs(1.0, terminal=False, horizon=4), 3_000, 9
    pyro.set_rng_seed(0)
    paths = base.rollout(None, count)
    coins = (torch.rand_like(paths.log_factors).log() < paths.log_factors).T  # (trajectory, step)
    patterns, which = coins.unique(dim=0, return_inverse=True)
    assert len(patterns) == 16
    found: dict[str, list[Tensor]] = {}
    for index, pattern in enumerate(patterns.tolist()):
        own = paths.select(which == index)
        size = own.num_trajectories
        data = rlai.posterior(conditioned(base, pattern), method="exact", num_draws=size * draws)
        state = torch.as_tensor(data.posterior["state"].values[0]) % base.num_states  # (draw, time)
        final = torch.as_tensor(data.posterior["final_state"].values[0]) % base.num_states
        action = torch.as_tensor(data.posterior["action"].values[0])
        earned = base.reward_table[own.states[:-1], own.actions].T, base.reward_table[state, action]
        for name, value, others in (
            ("return", *(rewards.sum(1) for rewards in earned)),
            ("middle state", own.states[2], state[:, 2]),
            ("last state", own.states[-1], final),
            ("actions", own.actions.sum(0), action.sum(1)),
        ):
            ranked = ranks(value.double(), others.double().reshape(size, draws))
            found.setdefault(name, []).append(ranked)
    for name, values in found.items():
        assert p_uniform(torch.cat(values), draws + 1) > LEAST_P, name


def conditioned(base: TabularMDP, coins: list[bool]) -> TabularMDP:
    """The process given which steps' coins came up; state ``s`` at step ``t`` is ``t S + s``."""
    S, A, T = base.num_states, base.num_actions, len(coins)
    transition = torch.zeros((T + 1) * S, A, (T + 1) * S, dtype=F64)
    reward = torch.zeros((T + 1) * S, A, dtype=F64)
    log_p = base.reward_table / base.temperature
    for t, came_up in enumerate(coins):
        here, after = slice(t * S, (t + 1) * S), slice((t + 1) * S, (t + 2) * S)
        transition[here, :, after] = base.kernel.probabilities
        # A factor of zero is a reward of minus infinity; -1000 nats is as good.
        factor = log_p if came_up else (-torch.expm1(log_p)).log().clamp(min=-1e3)
        reward[here] = base.temperature * factor
    transition[T * S :, :, T * S :] = torch.eye(S, dtype=F64)[:, None].expand(-1, A, -1)
    initial = torch.zeros((T + 1) * S, dtype=F64)
    initial[:S] = base.initial_probabilities
    return TabularMDP(
        transition,
        reward,
        initial,
        horizon=T,
        temperature=base.temperature,
        action_prior=base.action_prior.repeat(T + 1, 1),
        terminal=base.terminal.repeat(T + 1),
    )


def walk() -> LinearGaussianMDP:
    """A walk on a line in three steps; a third of the trajectories are optimal."""
    one = torch.ones(1, 1, dtype=F64)
    return LinearGaussianMDP(
        0.9 * one, one, 0.2 * one, 0.5 * one, 0.3 * one, one[0], 0.5 * one, 0.5 * one, horizon=3, temperature=1.0
    )


def test_ranks_of_ties_are_uniform() -> None:
    """10,000 coins among 4 coins, seed 0: all are ties or not, and the five ranks are equally frequent."""
    torch.manual_seed(0)
    coins = torch.randint(2, (10_000, 5))
    found = ranks(coins[:, 0].double(), coins[:, 1:].double())
    assert p_uniform(found, 5) > LEAST_P
    assert math.isclose(float(found.double().mean()), 2.0, abs_tol=4 * math.sqrt(2 / 10_000))
