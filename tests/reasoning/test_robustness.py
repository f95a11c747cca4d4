"""The worst case against the theorems, a general optimiser and random adversaries."""

import itertools
import math

import numpy as np
import pytest
import torch
from problems import random_mdp
from scipy.optimize import minimize

from rl_as_inference import TabularMDP, exact, models, worst_case

F64 = {"dtype": torch.float64}

REWARD_CASES = {
    "horizon": {"horizon": 4, "discount": 0.9},
    "successors": {"horizon": 3, "reward_on_successor": True},
    "no horizon": {"horizon": None, "discount": 0.9},
    "no horizon, ends": {"horizon": None, "terminal": True},
    "ends": {"horizon": 5, "terminal": True},
}


def stationary(mdp, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(mdp.num_states, mdp.num_actions, generator=generator, dtype=torch.float64).softmax(-1)


def positive(mdp):
    return mdp.replace(reward=mdp.reward_table.abs() + 0.1)


def reward_cost(mdp, policy, rewards):
    """The constraint's left side, by its definition, for a perturbed table ``(S, A)``."""
    exponent = (mdp.expected_reward() - rewards) / mdp.temperature
    per_state = torch.logsumexp(mdp.log_action_prior + exponent, -1)
    return float(exact.expected_return(mdp.replace(reward=per_state[:, None].expand_as(exponent)), policy))


@pytest.mark.parametrize("case", REWARD_CASES)
@pytest.mark.parametrize("budget", [0.0, 0.7])
def test_the_maxent_objective_is_the_return_under_the_worst_reward(case, budget):
    for seed in range(4):
        mdp = random_mdp(seed, num_states=4, num_actions=3, **REWARD_CASES[case])
        policy = stationary(mdp, seed)
        worst = worst_case(mdp, policy, reward_budget=budget)
        objective = float(mdp.temperature) * (float(exact.elbo(mdp, policy)) - budget)
        assert worst.robust_return == pytest.approx(objective, abs=1e-9)
        assert worst.bound == pytest.approx(objective, abs=1e-12)
        assert float(exact.expected_return(worst.process, policy)) == pytest.approx(worst.robust_return, abs=1e-9)
        if mdp.reward_table.dim() == 2:
            assert reward_cost(mdp, policy, worst.process.reward_table) == pytest.approx(budget, abs=1e-9)


def test_a_general_optimiser_finds_no_worse_reward():
    for seed in range(3):
        mdp = random_mdp(seed, num_states=3, num_actions=2, horizon=3, discount=0.9)
        for policy in (stationary(mdp), exact.plan(mdp).policy):
            shape = (3, 2)
            occupied = exact.occupancy(mdp, policy)[:-1] * 0.9 ** torch.arange(3)[:, None]
            taken = (occupied[..., None] * policy).sum(0).numpy()
            visited, prior = taken.sum(-1), mdp.action_prior.numpy()
            reward, alpha = mdp.reward_table.numpy(), float(mdp.temperature)

            def spent(x, shape=shape, reward=reward, alpha=alpha, prior=prior, visited=visited):
                return visited @ np.log((prior * np.exp((reward - x.reshape(shape)) / alpha)).sum(-1))

            found = minimize(
                lambda x, taken=taken: taken.ravel() @ x,
                reward.ravel(),
                constraints={"type": "ineq", "fun": lambda x, spent=spent: 0.5 - spent(x)},
                method="SLSQP",
                options={"ftol": 1e-12, "maxiter": 300},
            )
            worst = worst_case(mdp, policy, reward_budget=0.5)
            assert found.fun == pytest.approx(worst.robust_return, abs=1e-6)


def test_a_policy_that_changes_over_time_earns_no_less_than_the_bound():
    for seed in range(6):
        mdp = random_mdp(seed, num_states=4, num_actions=3, horizon=4)
        worst = worst_case(mdp, exact.plan(mdp), reward_budget=0.3)
        assert worst.bound <= worst.robust_return + 1e-12
        assert worst.robust_return < worst.nominal_return


def test_an_action_never_taken_needs_no_infinite_reward():
    mdp = random_mdp(0, num_states=3, num_actions=2, horizon=3)
    policy = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    worst = worst_case(mdp, policy, reward_budget=0.2)
    assert bool(worst.process.reward_table.isfinite().all())
    assert worst.robust_return == pytest.approx(0.7 * (float(exact.elbo(mdp, policy)) - 0.2), abs=1e-12)


def enumerated(mdp, policy, kernel):
    """Return and nominal visits by writing out every path, in numpy."""
    reward, start = mdp.reward_table.numpy(), mdp.initial_probabilities.numpy()
    total, visits = 0.0, np.zeros(mdp.num_states)
    states, actions = range(mdp.num_states), range(mdp.num_actions)
    for path in itertools.product(states, *([actions, states] * mdp.horizon)):
        weight, earned = start[path[0]], 0.0
        seen = np.zeros(mdp.num_states)
        for t in range(mdp.horizon):
            s, a, after = path[2 * t : 2 * t + 3]
            weight *= policy[s, a] * kernel[s, a, after]
            earned += reward[s, a]
            seen[s] += 1
        total += weight * earned
        visits += weight * seen
    return total, visits


def spent_on(mdp, visits, kernel):
    p, prior = mdp.kernel.probabilities.numpy(), mdp.action_prior.numpy()
    ratio = np.where(p > 0, p / np.maximum(kernel, 1e-300), 0.0).sum(-1) / (p > 0).sum(-1)
    return visits @ np.log((prior * ratio).sum(-1))


def test_a_general_optimiser_finds_no_worse_dynamics():
    for seed in range(2):
        mdp = positive(random_mdp(seed, num_states=2, num_actions=2, horizon=3))
        policy, shape = stationary(mdp, seed), (2, 2, 2)
        nominal = mdp.kernel.probabilities.numpy()
        _, visits = enumerated(mdp, policy.numpy(), nominal)
        worst = worst_case(mdp, policy, dynamics_budget=0.4)
        kernel = worst.process.kernel.probabilities.numpy()
        assert enumerated(mdp, policy.numpy(), kernel)[0] == pytest.approx(worst.robust_return, abs=1e-10)
        assert spent_on(mdp, visits, kernel) == pytest.approx(worst.dynamics_cost, abs=1e-9)
        assert worst.dynamics_cost <= 0.4 + 1e-9
        rng = np.random.default_rng(seed)
        lowest = math.inf
        for start in (nominal, *(rng.dirichlet(np.ones(2), (2, 2)) for _ in range(4))):
            found = minimize(
                lambda x, mdp=mdp, policy=policy, shape=shape: enumerated(mdp, policy.numpy(), x.reshape(shape))[0],
                np.maximum(start, 1e-3).ravel(),
                bounds=[(1e-9, 1.0)] * 8,
                constraints=[
                    {"type": "eq", "fun": lambda x, shape=shape: x.reshape(shape).sum(-1).ravel() - 1},
                    {
                        "type": "ineq",
                        "fun": lambda x, mdp=mdp, v=visits, shape=shape: 0.4 - spent_on(mdp, v, x.reshape(shape)),
                    },
                ],
                method="SLSQP",
                options={"ftol": 1e-10, "maxiter": 100},
            )
            if found.success:
                lowest = min(lowest, found.fun)
        assert worst.robust_return == pytest.approx(lowest, abs=1e-5)


@pytest.mark.parametrize("budget", [0.0, 0.5])
def test_the_relaxation_is_tight_where_mass_can_go_to_an_end(budget):
    for seed in range(2):
        mdp = positive(random_mdp(seed, num_states=4, num_actions=2, horizon=5, terminal=True, uniform_prior=True))
        worst = worst_case(mdp, exact.plan(mdp), dynamics_budget=budget)
        assert worst.robust_return == pytest.approx(worst.relaxed_return, abs=1e-5)
        assert worst.robust_return < worst.nominal_return


@pytest.mark.parametrize(
    "options", [{"horizon": 4}, {"horizon": 4, "discount": 0.7}, {"horizon": None, "discount": 0.6}]
)
def test_the_bound_holds_and_the_robust_return_does_what_it_says(options):
    for seed in range(2):
        mdp = positive(random_mdp(seed, num_states=3, num_actions=2, **options))
        policy = exact.plan(mdp)
        worst = worst_case(mdp, policy, dynamics_budget=0.3)
        assert 0 < worst.bound <= worst.relaxed_return + 1e-6 <= worst.robust_return + 2e-6
        assert worst.robust_return < worst.nominal_return
        assert float(exact.expected_return(worst.process, policy)) == pytest.approx(worst.robust_return, abs=1e-9)
        assert worst.dynamics_cost <= 0.3 + 1e-9


def test_the_bound_is_that_of_the_theorem_on_a_uniform_problem():
    # Dynamics uniform over S, so that all entropies are known: J = E (1/T) Σ log r - KL(π || μ), Z = T.
    mdp = positive(random_mdp(0, num_states=3, num_actions=2, horizon=3, uniform_prior=True))
    uniform = type(mdp)(
        torch.full((3, 2, 3), 1 / 3, **F64), mdp.reward_table, torch.full((3,), 1 / 3, **F64), horizon=3
    )
    policy = stationary(uniform)
    divergence = (policy * (2 * policy).log()).sum(-1).mean()
    logs = (policy * mdp.reward_table.log()).sum(-1).mean()
    expected = 3 * math.exp(float(logs - 3 * divergence) - 0.2)
    assert worst_case(uniform, policy, dynamics_budget=0.2).bound == pytest.approx(expected)


def test_more_budget_is_worse_at_the_rate_of_the_multiplier():
    mdp = positive(random_mdp(1, num_states=3, num_actions=2, horizon=4))
    policy, step = exact.plan(mdp), 0.02
    below, at, above = (worst_case(mdp, policy, dynamics_budget=0.5 + k * step) for k in (-1, 0, 1))
    slope = (below.robust_return - above.robust_return) / (2 * step)
    assert slope == pytest.approx(at.dynamics_multiplier, rel=2e-3)


def test_both_budgets_do_more_than_either():
    mdp = positive(random_mdp(2, num_states=3, num_actions=2, horizon=4))
    policy = stationary(mdp)
    one, other = worst_case(mdp, policy, reward_budget=0.2), worst_case(mdp, policy, dynamics_budget=0.4)
    both = worst_case(mdp, policy, reward_budget=0.2, dynamics_budget=0.4)
    assert both.robust_return < min(one.robust_return, other.robust_return)
    assert both.bound is None
    # One after the other is a choice the adversary has too.
    second = worst_case(other.process, policy, reward_budget=0.2)
    assert both.robust_return <= second.robust_return + 1e-6


def test_bad_input_is_refused():
    mdp = random_mdp(0)
    with pytest.raises(ValueError, match="worst_case needs reward_budget or dynamics_budget"):
        worst_case(mdp, None)
    for name in ("reward_budget", "dynamics_budget"):
        for bad in (-0.1, math.inf, math.nan, "a", True):
            with pytest.raises(ValueError, match=f"{name} must be a finite number of nats >= 0"):
                worst_case(mdp, None, **{name: bad})
    with pytest.raises(ValueError, match="mdp must be a TabularMDP, got LinearGaussianMDP"):
        worst_case(models.double_integrator(), None, reward_budget=1.0)
    with pytest.raises(ValueError, match="rows sum to one"):
        worst_case(mdp, torch.ones(3, 2), reward_budget=1.0)


def test_successors_that_stand_in_two_slots_of_a_row_are_attacked_as_one():
    once = positive(random_mdp(5, num_states=3, horizon=3, reward_on_successor=True))
    once = once.replace(reward=torch.where(once.kernel.dense() > 0, once.reward_table, 0.0))
    policy = stationary(once)
    everywhere = torch.arange(3).expand(3, 2, 3)
    twice = TabularMDP.from_successors(
        torch.cat([everywhere, everywhere], -1),
        torch.cat([0.25 * once.kernel.dense(), 0.75 * once.kernel.dense()], -1),
        torch.cat([once.reward_table, once.reward_table], -1),
        once.initial_probabilities,
        horizon=once.horizon,
        temperature=once.temperature,
        action_prior=once.action_prior,
    )
    one, other = (worst_case(mdp, policy, dynamics_budget=0.5) for mdp in (once, twice))
    assert other.nominal_return == pytest.approx(one.nominal_return, abs=1e-12)
    assert other.robust_return == pytest.approx(one.robust_return, abs=1e-6)
    assert other.bound == pytest.approx(one.bound, abs=1e-12)
