"""Planning with one Gaussian over action sequences, held to linear-Gaussian control and to the pendulum."""

import math

import numpy as np
import pytest
import torch
from test_smc_planner import F64, Slope, linear_gaussian

import rl_as_inference as rlai
from rl_as_inference import MPPIPlanner, SMCPlanner, exact, models
from rl_as_inference.guides.modes import mode_of


def quiet(**changes):
    """Linear-Gaussian control with next to no luck, where the posterior over sequences is a Gaussian."""
    return linear_gaussian(noise_cov=1e-12 * torch.eye(1, dtype=F64), horizon=2, **changes)


def test_importance_steps_end_at_the_posterior_of_the_first_action():
    mdp = quiet()
    state = torch.tensor([[1.5], [-0.5]], dtype=F64)
    truth = exact.plan(mdp)(state, 0)
    torch.manual_seed(0)
    planner = MPPIPlanner(mdp, look_ahead=2, num_samples=20_000, iterations=4, num_kept=2)
    answer = planner(state, 0)
    # 20,000 draws whose weights are worth about two thirds of them; 4 standard errors.
    torch.testing.assert_close(answer.mean, truth.mean, rtol=0, atol=4 * float(truth.stddev.max()) / 110)
    torch.testing.assert_close(answer.stddev, truth.stddev, rtol=4 / 110, atol=0)


@pytest.mark.parametrize("iterations", [1, 3])
def test_on_the_box_weights_count_the_slope_of_squashing(iterations):
    grid = torch.linspace(-1, 1, 4001, dtype=F64)[1:-1]
    log = -4 * (-0.7 + grid - 0.3).square()
    weight = log.softmax(0)
    before = grid.atanh()  # the Gaussian is fitted there
    mean = float((weight * before).sum())
    spread = math.sqrt(float((weight * before.square()).sum()) - mean**2)
    torch.manual_seed(0)
    planner = MPPIPlanner(Slope(horizon=1), look_ahead=1, num_samples=40_000, iterations=iterations, num_kept=2)
    answer = planner(torch.tensor([[-0.7]], dtype=F64), 0).base_dist
    assert float(answer.loc) == pytest.approx(mean, abs=8 * spread / 200)
    assert float(answer.scale) == pytest.approx(spread, rel=0.08)


def test_futures_are_averaged_before_they_are_exponentiated():
    # One step of luck: with its mean in the exponent the answer is the causal one, with single walks the posterior's.
    mdp = linear_gaussian(horizon=2, noise_cov=torch.eye(1, dtype=F64))
    state = torch.tensor([[1.5]], dtype=F64)
    answers = {}
    for futures in (1, 200):
        torch.manual_seed(0)
        planner = MPPIPlanner(mdp, look_ahead=2, num_samples=2000, num_futures=futures, iterations=3, num_kept=2)
        answers[futures] = planner(state, 0)
    causal, posterior = (exact.plan(mdp, dynamics)(state, 0) for dynamics in ("causal", "posterior"))
    assert abs(float(causal.mean - posterior.mean)) > 0.2
    # 2,000 sequences: 4 standard errors, and a little for the walks' own noise within the exponent.
    assert float(answers[200].mean - causal.mean) == pytest.approx(0, abs=0.08)
    assert float(answers[1].mean - posterior.mean) == pytest.approx(0, abs=0.12)


def test_elites_are_the_cross_entropy_method():
    torch.manual_seed(0)
    planner = MPPIPlanner(Slope(horizon=2), look_ahead=2, num_samples=1000, iterations=8, elites=50)
    answer = planner(torch.full((1, 1), -0.2, dtype=F64), 0)
    assert float(answer.mean) == pytest.approx(0.5, abs=0.02)  # where it pays most, and nowhere else


def test_what_has_no_weight_gets_none():
    class Gate(Slope):
        def reward(self, state, action, next_state):
            return torch.where(action[..., 0] > 0.9, 0.0, -math.inf)

    torch.manual_seed(0)
    for options in ({}, {"num_kept": 200}, {"elites": 200}):
        planner = MPPIPlanner(Gate(horizon=1), look_ahead=1, num_samples=256, **options)
        assert float(planner(torch.zeros(1, 1, dtype=F64), 0).mean) > 0.9


def test_a_plan_is_moved_on_by_a_step_and_only_then():
    process = models.pendulum(dtype=F64)
    planner = MPPIPlanner(process, look_ahead=5, num_samples=16)
    torch.manual_seed(0)
    state = process.begin(3)
    planner(state, 0)
    step, plan = planner._last
    assert step == 0
    torch.testing.assert_close(planner._beginning(state, 1, 5)[:4], plan[1:])
    assert not planner._beginning(state, 1, 5)[4].any()
    for other, t in ((state, 0), (state, 2), (state[:2], 1)):
        assert not planner._beginning(other, t, 5).any()
    planner.forget()
    assert not planner._beginning(state, 1, 5).any()


def test_a_proposal_is_followed_where_it_is_good():
    process = models.pendulum(dtype=F64)

    def right(state, t):
        return rlai.guides.TanhNormal(torch.full((*state.shape[:-1], 1), 2.0, dtype=F64), torch.tensor(0.1)).to_event(1)

    upright_far = lambda state, t: 50 * state[..., 2]  # turning fast is all that counts  # noqa: E731
    options = {"look_ahead": 10, "num_samples": 32, "critic": upright_far, "scale": 0.1}
    state = torch.tensor([[-1.0, 0.0, 0.0]], dtype=F64)
    torch.manual_seed(0)
    alone = float(mode_of(MPPIPlanner(process, **options)(state, 0)))
    helped = float(mode_of(MPPIPlanner(process, **options, proposal=right)(state, 0)))
    assert alone < 0.3
    assert helped > 0.9


def test_the_pendulum_is_swung_up():
    process = models.pendulum()
    planner = MPPIPlanner(process, look_ahead=30, num_samples=256)
    torch.manual_seed(0)
    state, total = process.begin(20), torch.zeros(20)
    for t in range(200):
        step = process.advance(state, mode_of(planner(state, t)), t)
        state, total = step.next_state, total + step.reward
    assert float(total.mean()) > -250
    assert float(state[:, 0].min()) > 0.95, "all stand upright at the end"


def test_readings_take_it():
    process = models.pendulum(horizon=4)
    torch.manual_seed(0)
    found = rlai.compare(process, MPPIPlanner(process, look_ahead=4, num_samples=64), num_trajectories=50)
    assert math.isfinite(found.elbo)
    assert found.elbo > rlai.compare(process, None, num_trajectories=500).elbo


def test_states_may_be_arrays():
    """As environments give them, of whichever type and one or many; the plan is the tensor's, draw by draw."""
    for planner, states in (
        (MPPIPlanner(models.pendulum(), look_ahead=3, num_samples=64), np.array([[0.6, 0.8, 0.1], [1.0, 0.0, -0.2]])),
        (MPPIPlanner(quiet(), look_ahead=2, num_samples=64), np.array([[1.5], [-0.5]], np.float32)),
        (SMCPlanner(models.frozen_lake("4x4"), look_ahead=3, num_particles=8), np.array([3, 5], np.int32)),
    ):
        start = planner.process.begin(1)
        planner(start, 0)  # the first plan draws once more than others, to see of which type log probabilities are
        for given in (states, states[0], states.tolist()):
            answers = []
            for state in (given, torch.as_tensor(np.asarray(given)).to(start)):
                torch.manual_seed(0)
                answers.append(mode_of(planner(state, 0)))
            assert torch.equal(*answers)
    for outside in (-1, torch.tensor([3, 16])):
        with pytest.raises(ValueError, match=r"asked about is state (-1|16), and .* holds integers from 0 to 15"):
            planner(outside, 0)
    with pytest.raises(ValueError, match=r"state must hold integers, .* got torch.float64"):
        planner(np.array([0.5]), 0)
    with pytest.raises(ValueError, match=r"with states of shape \(3,\), got .*2"):
        MPPIPlanner(models.pendulum(), look_ahead=3, num_samples=64)(np.zeros(2), 0)
    with pytest.raises(ValueError, match="state must be a tensor or an array of numbers, got 'upright'"):
        planner("upright", 0)


def test_mistakes_are_named():
    process = models.pendulum()
    for changes, message in (
        ({"num_samples": 0}, "num_samples must be >= 2, got 0"),
        ({"look_ahead": 0}, "look_ahead must be >= 1"),
        ({"iterations": 0}, "iterations must be >= 1"),
        ({"num_futures": 0}, "num_futures must be >= 1"),
        ({"scale": 0.0}, "scale must be a finite number > 0"),
        ({"elites": 65}, "elites must be <= num_samples = 64, got 65"),
        ({"num_kept": 1}, "num_kept must be >= 2"),
    ):
        with pytest.raises(ValueError, match=message):
            MPPIPlanner(process, **{"look_ahead": 3, "num_samples": 64, **changes})
    with pytest.raises(ValueError, match="use SMCPlanner"):
        MPPIPlanner(models.frozen_lake("4x4"), look_ahead=3, num_samples=64)
    with pytest.raises(ValueError, match="cannot be set to a state"):
        MPPIPlanner(rlai.GymnasiumProcess("Pendulum-v1"), look_ahead=3, num_samples=64)
