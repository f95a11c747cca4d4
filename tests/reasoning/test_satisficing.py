"""Satisficing policies and the rationality curve, against convex solvers and limits."""

import math

import numpy as np
import pytest
import torch
from problems import random_mdp
from scipy.optimize import minimize

from rl_as_inference import LinearGaussianMDP, Satisficing, TabularMDP, exact, models, rationality_curve, satisfice
from rl_as_inference.inspect import plots

CASES = {
    "horizon": {"horizon": 4},
    "discounted horizon": {"horizon": 5, "discount": 0.8, "uniform_prior": True},
    "rewards on successors": {"horizon": 3, "reward_on_successor": True},
    "no horizon": {"horizon": None, "discount": 0.9, "uniform_prior": True},
    "no horizon, ends": {"horizon": None, "terminal": True},
    "horizon, ends": {"horizon": 5, "terminal": True, "discount": 0.9},
}


def shifted(mdp, amount):
    return mdp.replace(reward=mdp.reward_table + amount)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("epsilon", [1e-6, 0.05, 0.4])
def test_the_constraint_is_active_and_the_answer_is_the_maxent_policy(case, epsilon):
    for seed in range(3):
        for shift in (2.0, -4.0):
            mdp = shifted(random_mdp(seed, num_states=4, num_actions=3, **CASES[case]), shift)
            answer = satisfice(mdp, epsilon)
            if answer.temperature == math.inf:
                continue
            assert abs(answer.expected_return - answer.target_return) < 1e-8
            assert abs(float(exact.expected_return(mdp, answer.policy)) - answer.target_return) < 1e-8
            plan = exact.plan(mdp.at_temperature(answer.temperature))
            torch.testing.assert_close(answer.policy, plan.policy, rtol=0, atol=1e-12)
            assert answer.multiplier == 1 / answer.temperature
            assert answer.rule == ("fraction" if answer.best_return > 0 else "range")
            # the ELBO is return/α - information
            elbo = float(exact.elbo(mdp.at_temperature(answer.temperature), answer.policy))
            assert elbo == pytest.approx(answer.expected_return / answer.temperature - answer.information, abs=1e-8)


def occupancy_program(mdp, target):
    """Least information subject to the return, over occupancy measures, by a general solver."""
    S, A, steps = mdp.num_states, mdp.num_actions, mdp.horizon or 1
    p, prior = mdp.kernel.probabilities.numpy(), mdp.action_prior.numpy()
    reward, gamma = mdp.expected_reward().numpy(), float(mdp.discount)
    ends = mdp.terminal.numpy()
    flow = np.zeros((steps, S, steps, S, A))
    for t in range(steps):
        for s in range(S):
            flow[t, s, t, s] += 1.0
            source = 0 if mdp.horizon is None else t - 1
            if source >= 0:
                flow[t, s, source] -= gamma * p[:, :, s] * ~ends[:, None]
    start = np.zeros((steps, S))
    start[0] = mdp.initial_probabilities.numpy()
    alive = np.broadcast_to(~ends[:, None], (steps, S, A)).ravel().astype(float)
    matrix = flow.reshape(steps * S, -1)

    def information(x):
        y = np.maximum(x, 1e-300).reshape(steps, S, A)
        log_odds = np.log(y / y.sum(-1, keepdims=True) / prior)
        return float((alive * (y * log_odds).ravel()).sum()), alive * log_odds.ravel()

    earned = alive * np.broadcast_to(reward, (steps, S, A)).ravel()
    table = mdp.action_prior if mdp.horizon is None else mdp.action_prior.expand(steps, S, A)
    states = exact.occupancy(mdp, table).numpy()
    states = states[None] if mdp.horizon is None else states[:-1] * gamma ** np.arange(steps)[:, None]
    x0 = np.maximum((states[..., None] * table.numpy().reshape(steps, S, A)).ravel(), 1e-9)
    # As close as rounding lets the line search come, which is not the same on every processor.
    for tolerance in (1e-13, 1e-11, 1e-9):
        answer = minimize(
            information,
            x0,
            jac=True,
            bounds=[(1e-12, None)] * len(x0),
            constraints=[
                {"type": "eq", "fun": lambda x: matrix @ x - start.ravel(), "jac": lambda x: matrix},
                {"type": "ineq", "fun": lambda x: earned @ x - target, "jac": lambda x: earned},
            ],
            method="SLSQP",
            options={"ftol": tolerance, "maxiter": 500},
        )
        if answer.success:
            break
    assert answer.success, answer.message
    y = answer.x.reshape(steps, S, A)
    policy = torch.as_tensor(y / y.sum(-1, keepdims=True))
    return answer.fun, policy[0] if mdp.horizon is None else policy


@pytest.mark.parametrize("case", ["horizon", "no horizon", "no horizon, ends", "rewards on successors"])
def test_a_convex_solver_on_the_occupancy_measures_agrees(case):
    for seed in range(3):
        mdp = random_mdp(seed, num_states=4, num_actions=3, **CASES[case])
        answer = satisfice(mdp, 0.3)
        information, policy = occupancy_program(mdp, answer.target_return)
        assert information == pytest.approx(answer.information, abs=1e-5)
        visited = mdp.initial_probabilities > 0
        alive = visited & ~mdp.terminal
        ours = answer.policy if mdp.horizon is None else answer.policy[0]
        theirs = policy if mdp.horizon is None else policy[0]
        torch.testing.assert_close(ours[alive], theirs[alive], rtol=0, atol=2e-4)


def test_plain_entropy_is_what_is_maximised_under_a_uniform_prior():
    mdp = random_mdp(3, num_states=4, num_actions=3, horizon=4, uniform_prior=True)
    answer = satisfice(mdp, 0.2)
    assert answer.entropy == pytest.approx(4 * math.log(3) - answer.information, abs=1e-10)
    # Any mixture with another policy of at least that return has no more entropy.
    generator = torch.Generator().manual_seed(0)
    tried = 0
    for _ in range(300):
        logits = answer.policy.log() + 0.3 * torch.randn(answer.policy.shape, generator=generator, dtype=torch.float64)
        policy = logits.softmax(-1)
        if float(exact.expected_return(mdp, policy)) >= answer.target_return:
            tried += 1
            assert (
                float(exact.elbo(shifted(mdp, 0).replace(reward=0 * mdp.reward_table), policy)) <= -answer.information
            )
    assert tried > 20


@pytest.mark.parametrize("case", CASES)
def test_no_slack_gives_the_least_determined_optimal_policy(case):
    for seed in range(3):
        mdp = random_mdp(seed, num_states=4, num_actions=3, **CASES[case])
        answer = satisfice(mdp, 0.0)
        assert answer.temperature == 0
        assert answer.multiplier == math.inf
        assert answer.expected_return == pytest.approx(answer.best_return, abs=1e-10)
        cold = mdp.at_temperature(1e-3)
        assert float(exact.expected_return(mdp, exact.plan(cold))) <= answer.best_return + 1e-9
        # α max ELBO lies between best - α information and best
        largest = 1e-3 * float(exact.optimal_elbo(cold))
        assert answer.best_return - 1e-3 * answer.information - 1e-9 <= largest <= answer.best_return + 1e-9


@pytest.mark.parametrize(("horizon", "discount"), [(3, 1.0), (None, 0.9)])
def test_ties_are_shared_as_the_limit_of_low_temperatures_shares_them(horizon, discount):
    # Action 0 and 1 pay the same now; 1 leads to a state with two equally good ways on, 0 to one with one.
    to = torch.tensor([[1, 2, 0], [1, 0, 0], [2, 2, 0]])
    transition = torch.zeros(3, 3, 3, dtype=torch.float64).scatter_(2, to[..., None], 1.0)
    reward = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    mdp = TabularMDP(transition, reward, torch.tensor([1.0, 0.0, 0.0]), horizon=horizon, discount=discount)
    answer = satisfice(mdp, 0.0)
    limit = exact.plan(mdp.to(torch.float64).at_temperature(0.01)).policy
    torch.testing.assert_close(answer.policy, limit, rtol=0, atol=1e-8)
    first = answer.policy if horizon is None else answer.policy[0]
    assert 0.6 < float(first[0, 1]) < 1 - 1e-3


def test_a_prior_that_is_good_enough_is_left_alone():
    mdp = shifted(random_mdp(1, horizon=3), 50.0)
    answer = satisfice(mdp, 0.5)
    assert (answer.temperature, answer.multiplier, answer.information) == (math.inf, 0.0, 0.0)
    torch.testing.assert_close(answer.policy, mdp.action_prior.expand(3, -1, -1))
    assert answer.expected_return > answer.target_return


def test_negative_returns_forgo_a_share_of_the_range():
    mdp = shifted(random_mdp(2, horizon=3), -5.0)
    answer = satisfice(mdp, 0.1)
    worst = -satisfice(mdp.replace(reward=-mdp.reward_table), 0.0).best_return
    assert answer.rule == "range"
    assert answer.target_return == pytest.approx(answer.best_return - 0.1 * (answer.best_return - worst))


def test_float32_processes_are_solved_in_float64():
    mdp = random_mdp(2, horizon=3, dtype=torch.float32)
    answer = satisfice(mdp, 0.1)
    assert answer.policy.dtype == torch.float64
    assert abs(answer.expected_return - answer.target_return) < 1e-10
    assert float(exact.expected_return(mdp, answer.policy)) == pytest.approx(answer.target_return, abs=1e-5)


def test_the_answer_is_a_policy():
    mdp = random_mdp(2, horizon=3)
    answer = satisfice(mdp, 0.1)
    assert isinstance(answer, Satisficing)
    torch.manual_seed(0)
    returns = mdp.rollout(answer, 40_000).rewards.sum(0)
    z = (returns.mean() - answer.expected_return) / (returns.std() / 200)
    assert abs(float(z)) < 4


def test_return_falls_with_temperature_and_information_with_it():
    for case in CASES.values():
        mdp = random_mdp(0, num_states=4, num_actions=3, **case)
        assert len(rationality_curve(mdp).temperature) == 41
        curve = rationality_curve(mdp, 10.0 ** torch.arange(-3, 4))
        assert bool((curve.temperature.diff() > 0).all())
        assert bool((curve.expected_return.diff() <= 1e-10).all())
        assert bool((curve.information.diff() <= 1e-10).all())
        assert float(curve.expected_return[0]) == pytest.approx(curve.best_return, abs=0.01)
        assert float(curve.expected_return[-1]) == pytest.approx(curve.prior_return, abs=0.02)
        torch.testing.assert_close(curve.bits * math.log(2), curve.information)


def test_the_slope_of_the_curve_is_the_temperature():
    mdp = random_mdp(0, num_states=4, num_actions=3, horizon=4)
    curve = rationality_curve(mdp, torch.tensor([0.9999, 1.0001]))
    slope = curve.expected_return.diff() / curve.information.diff()
    assert float(slope) == pytest.approx(1.0, abs=1e-6)


def test_the_curve_of_a_linear_gaussian_process():
    mdp = models.double_integrator()
    assert isinstance(mdp, LinearGaussianMDP)
    curve = rationality_curve(mdp)
    assert bool((curve.expected_return.diff() <= 1e-6).all())
    assert bool((curve.entropy.diff() >= -1e-6).all())
    assert curve.best_return is None


def test_the_plot_shows_the_curve():
    curve = rationality_curve(random_mdp(0, horizon=4))
    ax = plots.plot_rationality(curve)
    assert "bits" in ax.get_xlabel()
    points = ax.collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 0], curve.bits)
    np.testing.assert_allclose(points[:, 1], curve.expected_return)


@pytest.mark.parametrize("epsilon", [-0.1, 1.0, 2, float("nan"), "a", True, None])
def test_a_bad_epsilon_is_refused(epsilon):
    with pytest.raises(ValueError, match=r"epsilon must be a number in \[0, 1\)"):
        satisfice(random_mdp(0), epsilon)


def test_processes_without_an_answer_are_refused():
    with pytest.raises(ValueError, match=r"satisfice needs a TabularMDP.*rationality_curve"):
        satisfice(models.double_integrator(), 0.1)
    with pytest.raises(ValueError, match="needs a TabularMDP, got str"):
        satisfice("corridor", 0.1)
    with pytest.raises(ValueError, match="mdp must be a TabularMDP, a LinearGaussianMDP"):
        rationality_curve(None)
    with pytest.raises(ValueError, match="temperatures must be a finite number > 0"):
        rationality_curve(random_mdp(0), [1.0, -1.0])
    with pytest.raises(ValueError, match="no fixed point"):
        satisfice(random_mdp(0, horizon=None), 0.1)


def test_an_unbounded_range_is_refused():
    # One state to stay in at -1 a step, or to leave at -1: the worst return is -inf, the best -1.
    transition = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    mdp = TabularMDP(
        transition, torch.full((2, 2), -1.0), torch.tensor([1.0, 0.0]), terminal=torch.tensor([False, True])
    )
    with pytest.raises(ValueError, match=r"its smallest return is infinite.*horizon"):
        satisfice(mdp, 0.1)
    assert satisfice(mdp, 0.0).expected_return == -1
    with pytest.raises(ValueError, match="its largest return is infinite"):
        satisfice(mdp.replace(reward=-mdp.reward_table), 0.1)


@pytest.mark.parametrize("scale", [1e-100, 1e-11, 3.7e-3, 1e6, 1e100])
def test_the_scale_of_rewards_is_only_a_unit(scale):
    for case in ("horizon", "no horizon, ends"):
        mdp = random_mdp(1, num_states=4, num_actions=3, **CASES[case])
        scaled = mdp.replace(reward=mdp.reward_table * scale)
        for epsilon in (0.0, 0.2):
            ours, theirs = satisfice(scaled, epsilon), satisfice(mdp, epsilon)
            torch.testing.assert_close(ours.policy, theirs.policy, rtol=0, atol=1e-7)
            assert ours.temperature == pytest.approx(scale * theirs.temperature, rel=1e-7)
            assert ours.expected_return == pytest.approx(scale * theirs.expected_return, rel=1e-7)
            assert ours.target_return == pytest.approx(scale * theirs.target_return, rel=1e-12)
            assert ours.multiplier * ours.temperature == pytest.approx(1) or epsilon == 0
        ours, theirs = rationality_curve(scaled), rationality_curve(mdp)
        torch.testing.assert_close(ours.bits, theirs.bits, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.temperature, scale * theirs.temperature, rtol=1e-9, atol=0)


def test_rewards_that_differ_by_rounding_are_tied():
    bandit = TabularMDP(torch.ones(1, 2, 1).double(), torch.tensor([[1e10, 1e10 + 1]]).double(), [1.0], horizon=1)
    assert satisfice(bandit, 0.25e-10).policy.tolist() == [[[0.5, 0.5]]]


@pytest.mark.parametrize("bad", ["a", ["a"], [[1.0], [1.0, 2.0]], {}])
def test_temperatures_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="temperatures must be numbers > 0, got"):
        rationality_curve(random_mdp(0), bad)


@pytest.mark.parametrize("order", [(0.1, 0.2, -0.3), (-0.3, 0.2, 0.1)])
def test_a_best_return_of_zero_is_told_from_rounding(order):
    """0.1 + 0.2 - 0.3 is 2.8e-17 in one order and -2.8e-17 in the other; the answer is one, by the range of returns."""
    moves = torch.zeros(4, 2, 4, dtype=torch.float64)
    for state in range(4):
        moves[state, :, min(state + 1, 3)] = 1
    reward = torch.tensor([*order, 0.0], dtype=torch.float64)[:, None].repeat(1, 2)
    reward[1, 1] -= 1
    mdp = TabularMDP(moves, reward, torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), horizon=3)
    answer = satisfice(mdp, 0.1)
    assert 0 < abs(answer.best_return) < 1e-16
    assert answer.rule == "range"
    assert answer.target_return == pytest.approx(-0.1, abs=1e-12)
    assert answer.policy[1, 1, 1] == pytest.approx(0.1, abs=1e-8)  # which costs 1 with probability 0.1
    assert answer.temperature == pytest.approx(1 / math.log(9), abs=1e-6)


def test_a_small_best_return_is_not_taken_for_rounding():
    bandit = TabularMDP(
        torch.ones(1, 2, 1, dtype=torch.float64),
        torch.tensor([[1e-9, -1.0]], dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
        horizon=1,
    )
    assert satisfice(bandit, 0.5).rule == "fraction"
