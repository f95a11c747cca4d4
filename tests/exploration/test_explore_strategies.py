"""The strategies' mathematics: against closed forms, generic solvers, brute force, and each other."""

import math
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import torch

import rl_as_inference as rlai
from rl_as_inference import exact, models
from rl_as_inference.exploration.layers import greedy
from rl_as_inference.exploration.strategies import KLearning, PosteriorSampling, SoftQ, Vapor
from rl_as_inference.exploration.strategies.k_learning import _beta_cumulant
from rl_as_inference.exploration.table_beliefs import TableBeliefs
from rl_as_inference.models import families

F64 = torch.float64


def arms(means, deviations):
    """A machine whose arms pay unknown amounts, with one state and one step."""
    means, deviations = torch.tensor(means, dtype=F64), torch.tensor(deviations, dtype=F64)

    def family():
        worth = pyro.sample("worth", dist.Normal(means[None], deviations[None]).to_event(2))
        return rlai.TabularMDP(torch.ones(1, len(means), 1, dtype=F64), worth, torch.ones(1, dtype=F64), horizon=1)

    return TableBeliefs(rlai.ConjugatePosterior.exactly(family), 1)


def tree(seed=0, known=False):
    """Two layers of two states: everything of the first step's outcome and of all rewards unknown."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(4, 2, 2, generator=generator, dtype=F64) * 2 + 0.3
    means = torch.randn(4, 2, generator=generator, dtype=F64) / 2
    successors = torch.tensor([2, 3]).repeat(2, 2, 1)
    successors = torch.cat([successors, torch.tensor([0, 1]).repeat(2, 2, 1)])
    fixed = weights / weights.sum(-1, keepdim=True)

    def family():
        rows = fixed if known else pyro.sample("rows", dist.Dirichlet(weights).to_event(2))
        worth = pyro.sample("worth", dist.Normal(means, 0.7).to_event(2))
        start = torch.tensor([0.4, 0.6, 0, 0], dtype=F64)
        return rlai.TabularMDP.from_successors(successors, rows, worth, start, horizon=2)

    return family


def beliefs_of(family, runs=1):
    return TableBeliefs(rlai.ConjugatePosterior.exactly(family), runs)


# What is believed.


@pytest.mark.parametrize("noise", [0.0, 0.6])
def test_batched_beliefs_are_those_of_each_run_alone(noise):
    """With a row that two states share, a known row, and a terminal state."""

    def family():
        row = pyro.sample("row", dist.Dirichlet(torch.tensor([0.5, 1.5, 1.0], dtype=F64)))
        other = pyro.sample("other", dist.Beta(torch.tensor([2.0], dtype=F64), 1.0).to_event(1))[0]
        worth = pyro.sample("worth", dist.Normal(torch.ones(4, dtype=F64), 0.5).to_event(1))
        known = torch.tensor([0.25, 0.75, 0.0], dtype=F64)
        split = torch.stack([other, torch.zeros_like(other), 1 - other])
        rows = torch.stack(
            [torch.stack([row, split]), torch.stack([known, row]), torch.eye(3, dtype=F64)[2:].repeat(2, 1)]
        )
        table = torch.stack([worth[:2], worth[2:], torch.zeros(2, dtype=F64)])
        ends = torch.tensor([False, False, True])
        return rlai.TabularMDP(rows, table, torch.tensor([0.5, 0.5, 0], dtype=F64), horizon=4, terminal=ends)

    prior = rlai.ConjugatePosterior.exactly(family, reward_noise=noise)
    beliefs = TableBeliefs(prior, 3)
    pyro.set_rng_seed(1)
    truth = family()
    alone = [prior] * 3
    for _ in range(3):
        walks = truth.rollout(None, 3)
        if noise:
            walks = rlai.Trajectories(
                **{**vars(walks), "rewards": walks.rewards + noise * torch.randn(4, 3, dtype=F64)}
            )
        beliefs.seen(walks)
        for run in range(3):
            steps = walks.mask[:, run]
            parts = (walks.states[:-1, run], walks.actions[:, run], walks.rewards[:, run], walks.states[1:, run])
            alone[run] = alone[run].updated(*(part[steps] for part in parts))
    transition = beliefs.transition()
    mean, variance = beliefs.reward(transition)
    for run, belief in enumerate(alone):
        dense = torch.zeros(3, 2, 3, dtype=F64).scatter_add(-1, beliefs.indices, transition[run])
        live = slice(0, 2)
        torch.testing.assert_close(dense[live], belief.transition_mean[live], rtol=0, atol=1e-12)
        torch.testing.assert_close(mean[run][live], belief.reward_mean[live], rtol=0, atol=1e-12)
        torch.testing.assert_close(variance[run][live], belief.reward_variance[live], rtol=0, atol=1e-12)
    assert beliefs.counts.sum((1, 2)).tolist() == [float(belief.num_seen) for belief in alone]


def test_worlds_are_drawn_from_what_is_believed():
    """Means and variances of 5,000 draws of the prior, in standard errors."""
    pyro.set_rng_seed(0)
    beliefs = beliefs_of(tree(), 5000)
    drawn, mean = beliefs.draw(), beliefs.transition()[0]
    total = beliefs.totals()[0][..., None]
    spread = mean * (1 - mean) / (total + 1)
    z = (drawn.transition.mean(0) - mean) / (spread / 5000).sqrt()
    assert float(z.abs().max()) < 4.5
    own, variance = beliefs.own_reward()
    z = (drawn.reward.mean(0) - own[0]) / (variance[0] / 5000).sqrt()
    assert float(z.abs().max()) < 4.5
    torch.testing.assert_close(drawn.transition.sum(-1), torch.ones(5000, 4, 2, dtype=F64))
    torch.testing.assert_close(drawn.reward.var(0), variance[0], rtol=0.1, atol=0)


def test_worlds_are_drawn_where_next_to_nothing_is_known():
    """Weights of 1e-4: each of 3,000 draws is one of the successors, as often as its weight says (z-scores)."""
    weights = torch.tensor([1e-4, 3e-4, 0.0], dtype=F64)

    def family():
        row = pyro.sample("row", dist.Dirichlet(weights[:2]))
        rows = torch.cat([row, torch.zeros(1, dtype=F64)]).expand(3, 1, 3)
        return rlai.TabularMDP(rows, torch.zeros(3, 1, dtype=F64), torch.eye(3, dtype=F64)[2], horizon=2)

    pyro.set_rng_seed(0)
    drawn = beliefs_of(family, 3000).draw().transition[:, 0, 0]
    assert bool(drawn.isfinite().all())
    share = drawn.mean(0)
    z = (share[:2] - weights[:2] / 4e-4) / math.sqrt(0.25 * 0.75 / 3000)
    assert float(z.abs().max()) < 4
    assert float(drawn.amax(-1).mean()) > 0.99


def test_posterior_sampling_takes_each_arm_as_often_as_it_is_best():
    """40,000 draws of three arms, against integrals over their densities."""
    means, deviations = [0.2, 0.0, -0.3], [0.3, 1.0, 0.7]
    pyro.set_rng_seed(0)
    prior = arms(means, deviations)
    beliefs = TableBeliefs(rlai.ConjugatePosterior.exactly(lambda: _machine(means, deviations)), 40_000)
    chosen = PosteriorSampling().policy(beliefs).tables[0].argmax(-1).squeeze(-1)
    assert prior.num_runs == 1
    for arm in range(3):

        def density(x, arm=arm):
            logs = [math.erfc((m - x) / (s * math.sqrt(2))) / 2 for m, s in zip(means, deviations, strict=True)]
            others = math.prod(p for a, p in enumerate(logs) if a != arm)
            return (
                others
                * math.exp(-(((x - means[arm]) / deviations[arm]) ** 2) / 2)
                / (deviations[arm] * math.sqrt(2 * math.pi))
            )

        chance = scipy.integrate.quad(density, -8, 8)[0]
        share = float((chosen == arm).double().mean())
        assert abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / 40_000)


def _machine(means, deviations):
    worth = pyro.sample(
        "worth", dist.Normal(torch.tensor([means], dtype=F64), torch.tensor([deviations], dtype=F64)).to_event(2)
    )
    return rlai.TabularMDP(torch.ones(1, len(means), 1, dtype=F64), worth, torch.ones(1, dtype=F64), horizon=1)


# K-learning.


def test_k_learning_of_a_bandit_is_its_closed_form():
    """``min_τ τ log Σ_a exp(m_a/τ + v_a/2τ²)``: the search's τ against a solver's, the policy against the formula."""
    means, deviations = [0.2, 0.0, -0.3], [0.1, 1.0, 0.7]
    beliefs, strategy = arms(means, deviations), KLearning()
    m, v = np.array(means), np.array(deviations) ** 2

    def bound(tau):
        return tau * np.logaddexp.reduce(m / tau + v / (2 * tau**2))

    best = scipy.optimize.minimize_scalar(bound, bounds=(0.01, 10), method="bounded")
    for _ in range(12):  # the search goes on around the last temperature
        policy = strategy.policy(beliefs)
    tau = float(strategy.found)
    assert float(strategy.bound(beliefs)) == pytest.approx(bound(tau), abs=1e-12)
    assert bound(tau) - best.fun < 1e-3
    logits = m / tau + v / (2 * tau**2)
    expected = np.exp(logits - np.logaddexp.reduce(logits))
    np.testing.assert_allclose(policy.tables[0][0, 0].exp().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_strategies_do_not_hang_on_the_unit_of_rewards(unit):
    """K-learning's temperature by scipy's search, and both policies against those of rewards of order 1."""
    mean, deviation = np.array([0.0, 1.0, 0.5]), np.array([2.0, 0.1, 1.0])
    beliefs = arms(list(mean * unit), list(deviation * unit))
    learner = KLearning()
    policy = learner.policy(beliefs).tables[0].exp()[0, 0]

    def bound(log_tau):
        tau = np.exp(log_tau)
        return tau * scipy.special.logsumexp((mean + deviation**2 / (2 * tau)) / tau)

    best = scipy.optimize.minimize_scalar(bound, bounds=(-3, 3), method="bounded")
    assert float(learner.bound(beliefs)[0]) / unit == pytest.approx(best.fun, rel=1e-3)
    shares = scipy.special.softmax((mean + deviation**2 / (2 * np.exp(best.x))) / np.exp(best.x))
    np.testing.assert_allclose(policy, shares, atol=0.01)


def test_k_learning_is_a_soft_plan_with_another_reward():
    """The messages of exact.plan at temperature τ with the cumulant as reward; counting actions adds τ log A a step."""
    beliefs = beliefs_of(tree())
    strategy = KLearning(0.8)
    policy = strategy.policy(beliefs)
    dense = torch.zeros(4, 2, 4, dtype=F64).scatter_add(-1, beliefs.indices, beliefs.transition()[0])
    mean, variance = beliefs.own_reward()
    start = torch.tensor([0.4, 0.6, 0, 0], dtype=F64)
    mdp = rlai.TabularMDP(dense, (mean + variance / 1.6)[0], start, horizon=2, temperature=0.8)
    plan = exact.plan(mdp)
    for t, states in enumerate(beliefs.layers.states[:2]):
        torch.testing.assert_close(policy.tables[t][0].exp(), plan.policy[t, states], rtol=0, atol=1e-9)
    value = 0.8 * (plan.objective + 2 * math.log(2))
    torch.testing.assert_close(strategy.bound(beliefs)[0], value, rtol=0, atol=1e-9)


def test_the_beta_cumulant_is_the_integral_and_below_its_sub_gaussian_bound():
    for low, high, share, weight, tau in (
        (-1.0, 2.0, 0.3, 2.5, 0.4),
        (0.0, 1.0, 0.9, 0.4, 0.1),
        (0.0, 5.0, 0.02, 9.0, 1.0),
    ):
        a, b = weight * share, weight * (1 - share)
        beta = scipy.stats.beta(a, b)
        # By its quantiles, as the density has no bound at the ends.
        integral = scipy.integrate.quad(
            lambda u, beta=beta, c=(high - low) / tau: math.exp(c * beta.ppf(u)), 0, 1, limit=500
        )
        mean = low + share * (high - low)
        values = [torch.tensor(x, dtype=F64) for x in (mean, low, high, weight, tau)]
        found = float(_beta_cumulant(*values))
        assert found == pytest.approx(low + tau * math.log(integral[0]), rel=1e-4)
        assert mean < found < mean + (high - low) ** 2 / (8 * tau * (weight + 1)) + 1e-12
    # Far out it is a bound, and what is sure is its mean.
    far = float(_beta_cumulant(*(torch.tensor(x, dtype=F64) for x in (0.5, 0.0, 1.0, 3.0, 1e-3))))
    assert 0.9 < far < 1.0
    sure = _beta_cumulant(*(torch.tensor(x, dtype=F64) for x in (0.5, 0.0, 1.0, torch.inf, 0.1)))
    assert float(sure) == 0.5


@pytest.mark.parametrize("tau", [0.3, 1.0, None])
@pytest.mark.parametrize("seen", [0, 5])
def test_k_learning_with_transitions_cumulant_bounds_the_best_return(tau, seen):
    """``E V* <= E V_0`` at any temperature: 20,000 worlds drawn, before and after some episodes."""
    pyro.set_rng_seed(2)
    family = tree(3)
    prior = rlai.ConjugatePosterior.exactly(family, reward_noise=0.5)
    truth = family()
    few = TableBeliefs(prior, 1)
    for _ in range(seen):
        few.seen(truth.rollout(None, 1))
    strategy = KLearning(tau, "dirichlet")
    strategy.policy(few)
    many = TableBeliefs(prior, 20_000)
    many.concentration, many.mean, many.precision = (
        x.expand(20_000, -1).clone() for x in (few.concentration, few.mean, few.precision)
    )
    worlds, layers = many.draw(), many.layers
    value, _ = layers.backward(
        lambda onward, t: layers.at(worlds.reward, t) + layers.expect(onward, layers.at(worlds.transition, t), t),
        greedy,
        20_000,
    )
    best = value @ layers.start
    assert float(best.mean()) < float(strategy.bound(few)) + 4 * float(best.std()) / math.sqrt(20_000)


def test_a_reward_range_gives_the_papers_form():
    beliefs = beliefs_of(tree())
    strategy = KLearning(0.5, "dirichlet", 2.0)
    strategy.policy(beliefs)
    mean, variance = beliefs.own_reward()
    last = 0.5 * torch.logsumexp((mean + variance) / 0.5, -1)[0]
    first = mean[0, :2] + variance[0, :2] + (beliefs.transition()[0, :2] * last[2:]).sum(-1)
    first = first + 4 / (8 * 0.5 * (beliefs.totals()[0, :2] + 1))
    expected = (0.5 * torch.logsumexp(first / 0.5, -1)) @ torch.tensor([0.4, 0.6], dtype=F64)
    torch.testing.assert_close(strategy.bound(beliefs)[0], expected, rtol=0, atol=1e-12)


# Soft Q-learning.


def test_soft_q_learning_is_the_soft_plan_of_the_mean_world_and_does_not_see_ignorance():
    beliefs = beliefs_of(tree())
    policy = SoftQ(0.7).policy(beliefs)
    mean = rlai.ConjugatePosterior.exactly(tree()).process.at_temperature(0.7)
    plan = exact.plan(mean)
    for t, states in enumerate(beliefs.layers.states[:2]):
        torch.testing.assert_close(policy.tables[t][0].exp(), plan.policy[t, states], rtol=0, atol=1e-9)
    # Two arms of one mean, one of them unknown: it does not care, K-learning and VAPOR do.
    machine = arms([0.0, 0.0], [1e-3, 1.0])
    torch.testing.assert_close(SoftQ(0.1).policy(machine).tables[0].exp(), torch.full((1, 1, 2), 0.5, dtype=F64))
    for strategy in (KLearning(), Vapor()):
        assert float(strategy.policy(machine).tables[0][0, 0, 1].exp()) > 0.6


# VAPOR.


def test_vapor_of_a_bandit_is_what_a_generic_solver_finds():
    means, deviations = np.array([0.2, 0.0, -0.3]), np.array([0.1, 1.0, 0.7])

    def loss(z):
        share = np.exp(z - np.logaddexp.reduce(z))
        return -float(share @ (means + deviations * np.sqrt(-2 * np.log(share))))

    best = scipy.optimize.minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
    expected = np.exp(best.x - np.logaddexp.reduce(best.x))
    policy = Vapor().policy(arms(means.tolist(), deviations.tolist()))
    np.testing.assert_allclose(policy.tables[0][0, 0].exp().numpy(), expected, atol=1e-4)


def test_vapor_of_a_tree_is_what_a_generic_solver_finds_and_bounds_the_best_return():
    """Known transitions; the bound against 20,000 draws."""
    beliefs = beliefs_of(tree(1, known=True))
    policy = Vapor().policy(beliefs)
    rows, (mean, variance) = beliefs.transition()[0].numpy(), beliefs.own_reward()
    mean, deviation, start = mean[0].numpy(), variance[0].sqrt().numpy(), np.array([0.4, 0.6])

    def value(share):
        first = start[:, None] * share[:2]
        second = np.einsum("sa,sak->k", first, rows[:2])[:, None] * share[2:]
        flow = np.concatenate([first, second])
        return float((flow * (mean + deviation * np.sqrt(-2 * np.log(flow)))).sum())

    def loss(z):
        return -value(np.stack([1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))], -1))

    best = scipy.optimize.minimize(
        loss, np.zeros(4), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000}
    )
    found = np.concatenate([policy.tables[t][0].exp().numpy() for t in (0, 1)])
    assert value(found) == pytest.approx(-best.fun, abs=1e-6)
    np.testing.assert_allclose(found[:, 0], 1 / (1 + np.exp(-best.x)), atol=1e-3)

    pyro.set_rng_seed(0)
    many = beliefs_of(tree(1, known=True), 20_000)
    worlds, layers = many.draw(), many.layers
    values, _ = layers.backward(
        lambda onward, t: layers.at(worlds.reward, t) + layers.expect(onward, layers.at(worlds.transition, t), t),
        greedy,
        20_000,
    )
    returns = values @ layers.start
    assert float(returns.mean()) < value(found) + 4 * float(returns.std()) / math.sqrt(20_000)


def test_vapor_never_does_what_is_forbidden():
    """Not even where its occupancy is 0 to rounding, so that nothing there is chosen over anything else."""
    pytest.importorskip("clarabel")
    one = torch.eye(2, dtype=F64)

    def family():
        worth = pyro.sample("worth", dist.Normal(torch.tensor([[0.0, 0.0, 0.0], [-1e3, -1e3, 9.0]], dtype=F64), 1e-3)
                            .to_event(2))  # fmt: skip
        rows = torch.stack([one, one.flip(0)])
        rows = torch.cat([rows, one[1].expand(2, 1, 2)], 1)
        prior = torch.tensor([[0.4, 0.3, 0.3], [0.5, 0.5, 0.0]], dtype=F64)
        return rlai.TabularMDP(rows, worth, one[0], horizon=2, action_prior=prior)

    beliefs = TableBeliefs(rlai.ConjugatePosterior.exactly(family), 1)
    policy = Vapor().policy(beliefs)
    step = policy.tables[1][0, int(policy.layers.position[1][1])].exp()
    assert float(step[2]) == 0.0
    assert float(step.sum()) == pytest.approx(1.0)


def test_vapor_solves_a_sea():
    found = rlai.explore(
        families.deep_sea(4, dtype=F64),
        models.deep_sea(4, mapping_seed=1, dtype=F64),
        strategy="vapor",
        num_episodes=40,
        num_seeds=2,
        stop_when_solved=True,
    )
    assert max(found.solved_after) <= 40


def test_vapor_without_its_packages_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match=r"pip install 'rl-as-inference\[vapor\]'"):
        Vapor()
