"""Learned dynamics: what they predict, that they are a process like others, and what they refuse."""

import math
from dataclasses import replace

import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import rl_as_inference as rlai
from rl_as_inference import LearnedDynamics, MarkovDecisionProcess
from rl_as_inference.checkpoints import save_tensors
from rl_as_inference.guides import TanhGaussianPolicy
from rl_as_inference.learned import AnchoredEnsemble, Transitions
from rl_as_inference.learned.transitions import read_transitions


class Wave(MarkovDecisionProcess):
    """A number that is pushed along a wavy slope, with more luck on the right, and ends beyond 2.5."""

    state_space, action_space = Box(-10, 10, (1,)), Box(-1, 1, (1,))
    ends = False

    def initial(self):
        return dist.Normal(torch.zeros(1), 0.7).to_event(1)

    def transition(self, state, action):
        mean = 0.8 * state + 0.5 * (3 * state).sin() + 0.3 * action.reshape(*state.shape)
        return dist.Normal(mean, 0.05 + 0.05 * torch.sigmoid(3 * state)).to_event(1)

    def reward(self, state, action, next_state):
        return -state[..., 0].square()

    def terminated(self, state):
        return state[..., 0] > 1.0 if self.ends else None


@pytest.fixture(scope="module")
def truth():
    return Wave(horizon=10, temperature=0.5)


@pytest.fixture(scope="module")
def data(truth):
    torch.manual_seed(0)
    return truth.rollout(None, 250)


@pytest.fixture(scope="module")
def learned(truth, data):
    torch.manual_seed(0)
    dynamics = LearnedDynamics(
        truth.state_space,
        truth.action_space,
        hidden_sizes=(32, 32),
        horizon=10,
        temperature=0.5,
        initial=truth.initial(),
    )
    dynamics.fit(data, 1000, learning_rate=3e-3, held_out=0.2, batch_size=128)
    return dynamics


def test_intervals_hold_what_they_say_where_data_were_and_widen_elsewhere(truth, learned):
    # 20,000 held-out transitions of 2,000 trajectories; the share in the intervals has standard error 0.003.
    torch.manual_seed(1)
    draws = truth.rollout(None, 2000)
    found = learned.predict(draws.states[:-1], draws.actions)
    low, high = (each[..., :1] for each in found.interval(0.9))
    held = ((draws.states[1:] > low) & (draws.states[1:] < high)).float().mean()
    assert abs(float(held) - 0.9) < 0.03
    near, far = (torch.full((9, 1), x) for x in (0.0, 6.0))
    push = torch.linspace(-1, 1, 9)[:, None]
    there, here = learned.predict(far, push), learned.predict(near, push)
    assert bool((there.ignorance[:, 0] > 10 * here.ignorance[:, 0]).all())
    low, high = there.interval(0.9)
    assert bool((there.cdf(low) - 0.05).abs().max() < 1e-4)
    assert bool((there.cdf(high) - 0.95).abs().max() < 1e-4)


def test_luck_is_told_from_ignorance(truth, learned):
    states, push = torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 1)
    found = learned.predict(states, push)
    left, right = found.luck[:, 0].tolist()
    assert 0.03 < left < 0.1
    assert 1.2 * left < right < 0.15
    assert bool((found.ignorance[:, 0] < found.luck[:, 0]).all())


def test_its_likelihood_is_near_the_truths(truth, learned):
    torch.manual_seed(2)
    draws = truth.rollout(None, 200)
    own = LearnedDynamics(truth.state_space, truth.action_space, reward=truth.reward)
    seen, _ = read_transitions(draws, truth.state_space, truth.action_space, own.like)
    best = float(truth.transition(seen.state, seen.action).log_prob(seen.next_state).mean())
    logs = learned.transition(seen.state, seen.action)
    marginal = torch.logsumexp(
        torch.stack([logs.log_prob(torch.cat([seen.next_state, torch.full((len(seen), 1), k)], 1)) for k in range(5)]),
        0,
    )
    assert best - 0.4 < float(marginal.mean()) < best


def test_a_trajectory_keeps_its_member_and_policies_see_the_state_alone(learned):
    shapes = set()

    def policy(state, t):
        shapes.add(tuple(state.shape))
        return dist.Normal(torch.zeros_like(state), 0.1).to_event(1)

    torch.manual_seed(0)
    draws = learned.rollout(policy, 400)
    assert shapes == {(400, 1)}
    assert draws.states.shape == (11, 400, 1)
    member = draws.latents["member"]
    assert torch.bincount(member, minlength=5).min() > 50
    own = learned.member(member)
    for t in range(10):
        mean = own.transition(draws.states[t], draws.actions[t]).base_dist
        error = (draws.states[t + 1] - mean.loc) / mean.scale
        assert abs(float(error.std()) - 1) < 0.15  # 400 draws: standard error 0.035
        torch.testing.assert_close(draws.rewards[t], own.reward(draws.states[t], draws.actions[t], draws.states[t + 1]))


def test_the_program_has_the_density_of_its_walks(learned):
    torch.manual_seed(0)
    policy = TanhGaussianPolicy(learned.state_space, 1, hidden_sizes=(8,), horizon=10)
    draws = learned.rollout(policy, 30)
    trace = pyro.poutine.trace(pyro.poutine.condition(learned, draws.sites())).get_trace(30)
    trace.compute_log_prob()
    assert trace.nodes["member"]["fn"].batch_shape == (30,)
    own = learned.member(draws.latents["member"])
    logs = math.log(1 / 5) + learned.initial().log_prob(draws.states[0])
    for t in range(10):
        logs = logs + own.transition(draws.states[t], draws.actions[t]).log_prob(draws.states[t + 1])
    total = sum(trace.nodes[name]["log_prob"] for name in ["member", *(f"state_{t}" for t in range(11))])
    torch.testing.assert_close(total, logs)
    factors = sum(trace.nodes[name]["log_prob"] for name in trace.nodes if name.startswith("reward_"))
    torch.testing.assert_close(factors, draws.log_factors.sum(0))


def test_the_posterior_over_trajectories_says_which_member(learned):
    torch.manual_seed(0)
    found = rlai.posterior(learned, None, method="smc", num_draws=200)
    assert found.posterior["member"].dims == ("chain", "draw")
    assert found.posterior["state"].shape[-1] == 1
    assert float(found.sample_stats["return"].mean()) > float(learned.rollout(None, 500).returns().mean())


def test_fit_and_compare_work_in_it_and_come_near_the_truth(truth, learned):
    policy = TanhGaussianPolicy(learned.state_space, 1, hidden_sizes=(16,), horizon=10)
    torch.manual_seed(0)
    rlai.fit(learned, policy, steps=40, num_trajectories=64, seed=0, progress=False)
    believed, true = (rlai.compare(process, policy, num_trajectories=2000) for process in (learned, truth))
    # What was not learned is what a policy that is fitted in it profits from.
    assert believed.elbo > true.elbo
    assert believed.elbo - true.elbo < 0.25 * abs(true.elbo)
    assert true.elbo > rlai.estimate_elbo(truth, None, 2000).mean


def test_planners_give_each_future_a_member_and_the_plan_is_near_the_truths(truth, learned):
    state = torch.tensor([[1.5]])
    torch.manual_seed(0)
    plans = []
    for process, futures in ((learned, 5), (truth, 5)):
        planner = rlai.MPPIPlanner(process, look_ahead=4, num_samples=200, num_futures=futures, iterations=3)
        plans.append(float(planner(state, 0).base_dist.loc))
    assert abs(plans[0] - plans[1]) < 0.5
    lifted = learned.lifted(state.expand(10, 1))
    assert sorted(lifted[:, 1].long().tolist()) == sorted(2 * list(range(5)))
    answer = rlai.SMCPlanner(learned, look_ahead=2, num_particles=12, num_actions=4)(state, 0)
    assert answer.sample().shape == (1, 1)


def test_each_row_is_asked_of_its_own_member(learned):
    torch.manual_seed(0)
    networks, inputs = learned.networks, torch.randn(35, 2)
    every = networks.gaussian_stacked(inputs.expand(5, -1, -1))
    for member in (torch.randint(5, (35,)), (torch.arange(35) + 3) % 5, torch.full((35,), 2)):
        own = networks.by_member(networks.gaussian_stacked, inputs, member)
        torch.testing.assert_close(own, every[member, torch.arange(35)])


def test_a_linear_member_is_the_likeliest_under_its_anchored_prior():
    torch.manual_seed(0)
    networks = AnchoredEnsemble(3, 2, ensemble=4, hidden_sizes=()).double()
    inputs, targets = torch.randn(30, 3).double(), torch.randn(30, 1).double()
    design = torch.cat([inputs, torch.ones(30, 1).double()], 1)
    scales = torch.tensor([1 / math.sqrt(3)] * 3 + [1.0]).double()
    anchors = torch.cat([networks.anchor_weight_0, networks.anchor_bias_0], 1)[..., :1]
    precision = torch.diag(scales**-2)
    # Unit noise: (X'X + Λ)⁻¹ (X'y + Λ θ₀) of each member (Pearce et al. 2020, equation 5).
    exact = torch.linalg.solve(design.T @ design + precision, design.T @ targets + precision @ anchors)
    parameters = {name: value.clone().requires_grad_() for name, value in networks.named_parameters()}
    optimiser = torch.optim.LBFGS(list(parameters.values()), max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def loss():
        optimiser.zero_grad()
        error = targets - networks(inputs.expand(4, -1, -1), parameters)[..., :1]
        value = 0.5 * error.square().sum() + networks.anchor_penalty(parameters).sum()
        value.backward()
        return value

    optimiser.step(loss)
    found = torch.cat([parameters["weight_0"], parameters["bias_0"]], 1)[..., :1]
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-8)


def test_more_data_go_on_from_what_was_learned(truth, data):
    torch.manual_seed(0)
    dynamics = LearnedDynamics(truth.state_space, truth.action_space, hidden_sizes=(16,))
    first = dynamics.fit(data.select(torch.arange(10)), 300)
    early = dynamics.log_likelihood(data)
    second = dynamics.fit(data, 300)
    assert (first.num_transitions, second.num_transitions) == (100, 2500)
    assert second.history[0][2] > first.history[0][2]  # it does not begin anew
    assert dynamics.log_likelihood(data) > early


def test_it_ends_early_when_nothing_held_out_gets_better(truth, data):
    torch.manual_seed(0)
    dynamics = LearnedDynamics(truth.state_space, truth.action_space, hidden_sizes=(32,), ensemble=2)
    found = dynamics.fit(data.select(torch.arange(5)), 3000, patience=1, learning_rate=1e-2)
    assert found.num_updates < 3000
    assert found.held_out_log_likelihood >= max(row[2] for row in found.history) - 1e-4


def test_endings_are_learned_and_a_time_limit_is_none():
    process = Wave(horizon=6)
    process.ends = True
    torch.manual_seed(0)
    draws = process.rollout(None, 150)
    dynamics = LearnedDynamics(process.state_space, process.action_space, hidden_sizes=(16,), horizon=6)
    dynamics.fit(draws, 400, learning_rate=1e-2)
    states = torch.linspace(-1.5, 1.8, 300)[:, None]
    right = dynamics.terminated(states) == (states[:, 0] > 1.0)
    assert float(right.float().mean()) > 0.9
    lengths = dynamics.rollout(None, 500).lengths().float(), process.rollout(None, 500).lengths().float()
    assert abs(float(lengths[0].mean() - lengths[1].mean())) < 0.6
    process.ends = False
    dynamics = LearnedDynamics(process.state_space, process.action_space, hidden_sizes=(8,), horizon=6)
    dynamics.fit(process.rollout(None, 20), 20)
    assert dynamics.terminated(states) is None


def test_numbers_that_never_move_and_double_precision():
    torch.manual_seed(0)
    state = torch.cat([torch.randn(200, 1), torch.full((200, 1), 7.0), torch.zeros(200, 1)], 1).double()
    action = torch.rand(200, 1).double()
    after = state.clone()
    after[:, 0] += 0.1 * action[:, 0]
    seen = Transitions(state, action, torch.zeros(200).double(), after, torch.zeros(200, dtype=torch.bool))
    dynamics = LearnedDynamics(Box(-9, 9, (3,)), Box(-1, 1, (1,)), hidden_sizes=(16,), dtype=torch.float64)
    dynamics.fit(seen, 600, learning_rate=1e-2)
    found = dynamics.predict(state, action)
    assert found.mean.dtype == torch.float64
    assert bool(found.mean.isfinite().all())
    assert float((found.mean[..., 1:3].mean(0) - state[:, 1:]).abs().max()) < 0.05
    assert float((found.mean[..., 0].mean(0) - after[:, 0]).abs().mean()) < 0.02


def test_discrete_actions_are_told_apart():
    torch.manual_seed(0)
    state, action = torch.randn(300, 1), torch.randint(3, (300,))
    after = state + torch.tensor([-1.0, 0.0, 2.0])[action][:, None]
    seen = Transitions(state, action, action.float(), after, torch.zeros(300, dtype=torch.bool))
    dynamics = LearnedDynamics(Box(-9, 9, (1,)), Discrete(3), hidden_sizes=(16,), horizon=3)
    dynamics.fit(seen, 500, learning_rate=1e-2)
    change = dynamics.predict(torch.zeros(3, 1), torch.arange(3)).mean.mean(0)
    torch.testing.assert_close(change[:, 0], torch.tensor([-1.0, 0.0, 2.0]), rtol=0, atol=0.15)
    torch.testing.assert_close(change[:, 1], torch.tensor([0.0, 1.0, 2.0]), rtol=0, atol=0.15)
    assert dynamics.rollout(None, 5).actions.dtype == torch.int64


def test_a_file_holds_all_of_it(tmp_path, learned, truth, data):
    learned.save(tmp_path / "dynamics.safetensors")
    with pytest.raises(ValueError, match="were made with initial, which a file cannot hold"):
        LearnedDynamics.load(tmp_path / "dynamics.safetensors")
    again = LearnedDynamics.load(tmp_path / "dynamics.safetensors", initial=truth.initial())
    assert (again.horizon, again.temperature, again.state_space) == (10, 0.5, truth.state_space)
    draws = []
    for dynamics in (learned, again):
        torch.manual_seed(5)
        draws.append(dynamics.rollout(None, 7))
    assert torch.equal(draws[0].states, draws[1].states)
    assert torch.equal(draws[0].rewards, draws[1].rewards)
    torch.manual_seed(5)
    first = learned.fit(data, 20)
    torch.manual_seed(5)
    assert again.fit(data, 20) == first
    save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="no dynamics written by save"):
        LearnedDynamics.load(tmp_path / "other.safetensors")


BAD_SPACES = {
    "images": (Box(0, 255, (8, 8, 3), dtype="uint8"), Box(-1, 1, (1,)), "images and other arrays are not learned here"),
    "discrete states": (Discrete(4), Box(-1, 1, (1,)), "state_space must be a Box.*learn tables with infer_dynamics"),
    "many switches": (Box(-1, 1, (2,)), gymnasium.spaces.MultiBinary(3), "action_space must be a Box of shape"),
    "actions from 1": (Box(-1, 1, (2,)), Discrete(3, start=1), "action_space must count from 0"),
}


@pytest.mark.parametrize("case", BAD_SPACES)
def test_spaces_that_do_not_fit_are_refused(case):
    states, actions, message = BAD_SPACES[case]
    with pytest.raises(ValueError, match=message):
        LearnedDynamics(states, actions)


def test_bad_data_are_refused(truth, data):
    dynamics = LearnedDynamics(truth.state_space, truth.action_space, hidden_sizes=(8,))
    with pytest.raises(ValueError, match="data has 10 transitions, and 20 are needed to fit 2 inputs"):
        dynamics.fit(data.select(torch.arange(1)))
    with pytest.raises(ValueError, match="reward of transition 500 is NaN"):
        dynamics.fit(replace(data, rewards=data.rewards.index_fill(0, torch.tensor(2), math.nan)))
    seen, _ = read_transitions(data, truth.state_space, truth.action_space, dynamics.like)
    with pytest.raises(ValueError, match=r"action must have shape \(2500, 1\)"):
        dynamics.fit(replace(seen, action=seen.action[:, 0]))
    with pytest.raises(TypeError, match="data must be Trajectories, a learner's replay"):
        dynamics.fit([1, 2])
    with pytest.raises(ValueError, match="held_out must be a share from 0 to"):
        dynamics.fit(data, held_out=0.9)
    with pytest.raises(ValueError, match="index must be below 5"):
        dynamics.member(5)


def test_what_was_never_fitted_says_so(truth):
    dynamics = LearnedDynamics(truth.state_space, truth.action_space, horizon=3, initial=truth.initial())
    for asked in (
        lambda: dynamics.rollout(None, 2),
        lambda: dynamics.predict(torch.zeros(1, 1), torch.zeros(1, 1)),
        lambda: LearnedDynamics(truth.state_space, truth.action_space, horizon=3).rollout(None, 2),
        lambda: rlai.MPPIPlanner(dynamics, look_ahead=2, num_samples=8)(torch.zeros(1, 1), 0),
    ):
        with pytest.raises(
            ValueError, match=r"dynamics were never fitted, and .* needs that; fit\(transitions\) first"
        ):
            asked()


def test_it_is_an_environment_that_shows_states_alone(learned):
    env = rlai.to_gymnasium(learned)
    state, _ = env.reset(seed=0)
    assert state.shape == (1,)
    after, _, terminated, truncated, _ = env.step(env.action_space.sample())
    assert (after.shape, terminated, truncated) == ((1,), False, False)


def test_the_fan_tells_ignorance_from_luck(learned):
    torch.manual_seed(0)
    data = rlai.posterior(learned, None, method="guide", num_draws=100)
    ax = rlai.inspect.plots.plot_fan(data)
    labels = ax.get_legend_handles_labels()[1]
    assert "ignorance: medians of the members" in labels
    paths = data.posterior["state"].values[0, :, :, 0]
    member = data.posterior["member"].values[0]
    lowest = min(float(np.median(paths[member == k, 3])) for k in range(5))
    band = ax.collections[labels.index("ignorance: medians of the members") - sum(x[-6:] == "median" for x in labels)]
    assert min(y for x, y in band.get_paths()[0].vertices if x == 3) == pytest.approx(lowest, abs=1e-6)


@pytest.mark.parametrize("whose", ["all", "member"])
def test_answers_are_not_kept_past_their_gradients(learned, whose):
    """The networks are asked once a step; asked again they answer with gradients, as often as one wants them."""
    process = learned if whose == "all" else learned.member(1)
    with torch.no_grad():
        state = process.begin(4)
    action = torch.zeros(4, 1, requires_grad=True)
    with torch.no_grad():
        silent = process.reward(state, action, state)

    def slope():
        return torch.autograd.grad(process.reward(state, action, state).sum(), action)[0]

    first = slope()
    torch.testing.assert_close(slope(), first, rtol=0, atol=0)
    with torch.no_grad():
        ahead = process.reward(state, action + 1e-2, state)
    assert float(((ahead - silent) / 1e-2 - first[:, 0]).abs().max()) < 0.1 * float(first.abs().max())
    own = process.lifted(state) if whose == "all" else state
    step = process.advance(own, action, 0, pathwise=True)
    assert step.reward.requires_grad
    with torch.inference_mode():
        walks = process.rollout(None, 3)
        assert bool(walks.rewards.isfinite().all())


def test_members_and_functions_that_there_are_not(learned, truth):
    with pytest.raises(ValueError, match="index must hold members from 0 to"):
        learned.member(torch.tensor([0, 99]))
    for name in ("reward", "terminated"):
        with pytest.raises(ValueError, match=f"{name} must be a function, or None to learn it"):
            LearnedDynamics(truth.state_space, truth.action_space, **{name: 3})
