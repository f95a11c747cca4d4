"""Rollouts: the fast reading of a process, and the reading of any program, against the Pyro program itself."""

import math
from dataclasses import replace

import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp
from pyro import poutine

from rl_as_inference import (
    Estimate,
    MarkovDecisionProcess,
    TabularMDP,
    Trajectories,
    TrajectoryELBO,
    act,
    estimate_elbo,
    exact,
    follow,
    reward,
    steps,
    survival,
    terminate,
)
from rl_as_inference.guides import TabularPolicy, TanhGaussianPolicy, amortized_policy
from rl_as_inference.processes.programs import ProgramProcess, as_process

F64 = torch.float64


class Glider(MarkovDecisionProcess):
    """A noisy point in the plane pushed by actions in the unit box; beyond the unit circle it has landed."""

    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, dtype=F64, ends=True, device=None, **options):
        super().__init__(**{"horizon": 4, "discount": 0.9, "temperature": 0.5, **options})
        self.state_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        self.zero = torch.zeros(2, dtype=dtype, device=device)
        self.ends = ends

    def initial(self):
        return dist.Normal(self.zero, 0.3).to_event(1)

    def transition(self, state, action):
        return dist.Normal(state + 0.7 * action, 0.1 + self.zero).to_event(1)

    def reward(self, state, action, next_state):
        return -(next_state - 1).square().sum(-1) - 0.1 * action.square().sum(-1)

    def terminated(self, state):
        return state.norm(dim=-1) > 1 if self.ends else None


def as_sparse(mdp):
    return TabularMDP(
        mdp.kernel.probabilities.to_sparse(),
        mdp.reward_table,
        mdp.initial_probabilities,
        horizon=mdp.horizon,
        discount=mdp.discount,
        temperature=mdp.temperature,
        action_prior=mdp.action_prior,
        terminal=mdp.terminal,
    )


def random_policy(mdp, seed=0):
    policy = TabularPolicy(mdp.num_states, mdp.num_actions, horizon=mdp.horizon).to(mdp.action_prior.dtype)
    policy.logits.data = torch.randn(
        policy.logits.shape, generator=torch.Generator().manual_seed(seed), dtype=policy.logits.dtype
    )
    return policy


def log_density(program, sites, count):
    """``log p`` of each trajectory of a program in the plate of all of them, ``(N,)``."""
    trace = poutine.trace(poutine.condition(program, data=sites)).get_trace(count)
    trace.compute_log_prob()
    return sum(site["log_prob"] for site in trace.nodes.values() if "log_prob" in site and site["log_prob"].dim())


def assert_same_draw(mdp, policy, count, tolerance):
    """The rollout's weights are the program's log density less the guide's, on the rollout's own draws."""
    with torch.no_grad():
        drawn = mdp.rollout(policy, count)
        program, guide = (log_density(fn, drawn.sites(), count) for fn in (mdp, follow(mdp, policy)))
    weight = program - guide
    assert weight.shape == drawn.log_weight().shape == (count,)
    scale = 1 + weight.abs()
    assert ((drawn.log_weight() - weight).abs() / scale).max() < tolerance
    return drawn


# The same draws, the same weights.


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("discount", [1.0, 0.9, 0.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (torch.float32, 1e-5)])
def test_rollout_weights_are_the_programs_on_tables(dtype, tolerance, discount, terminal, kind):
    mdp = random_mdp(1, num_states=5, horizon=6, discount=discount, terminal=terminal, dtype=dtype)
    mdp = as_sparse(mdp) if kind == "sparse" else mdp
    drawn = assert_same_draw(mdp, random_policy(mdp), 40, tolerance)
    assert drawn.rewards.dtype == drawn.log_policy.dtype == drawn.log_prior.dtype == dtype
    if terminal:
        assert 0 < int((~drawn.mask).sum()) < drawn.mask.numel()


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-10), (torch.float32, 1e-5)])
def test_rollout_weights_are_the_programs_in_the_unit_box(dtype, tolerance, ends):
    mdp = Glider(dtype, ends)
    policy = lambda state, t: dist.Uniform(-1 + 0 * state, 0.5 + 0 * state).to_event(1)  # noqa: E731
    drawn = assert_same_draw(mdp, policy, 40, tolerance)
    assert drawn.states.dtype == drawn.rewards.dtype == dtype
    assert drawn.states.shape == (5, 40, 2)
    assert drawn.actions.shape == (4, 40, 2)
    assert bool(drawn.mask.all()) != ends


@pytest.mark.parametrize("ends", [False, True])
def test_rollout_weights_under_a_squashed_gaussian(ends):
    mdp = Glider(ends=ends)
    policy = TanhGaussianPolicy(mdp.state_space, 2, horizon=4).double()
    assert_same_draw(mdp, policy, 40, 1e-10)


def test_the_prior_weighs_nothing_but_its_rewards():
    mdp = random_mdp(2, discount=0.9, terminal=True)
    drawn = mdp.rollout(None, 30)
    assert torch.equal(drawn.log_prior, drawn.log_policy)
    assert torch.allclose(drawn.log_weight(), drawn.returns(discounted=True) / mdp.temperature)


@pytest.mark.parametrize("policy_kind", ["prior", "table", "plan"])
def test_rollouts_are_distributed_as_the_exact_occupancy(policy_kind):
    """20,000 trajectories, seed 0: every state's share at every time, |z| < 4.5; the ELBO, |z| < 4."""
    mdp = random_mdp(3, horizon=4, discount=0.9, terminal=True)
    policy = {"prior": None, "table": random_policy(mdp), "plan": exact.plan(mdp)}[policy_kind]
    n = 20_000
    with torch.no_grad():
        drawn, expected = mdp.rollout(policy, n), exact.occupancy(mdp, policy)
        elbo = exact.elbo(mdp, policy)
    shares = torch.stack([(drawn.states == s).double().mean(1) for s in range(3)], -1)
    error = (expected * (1 - expected) / n).sqrt().clamp(min=1e-9)
    assert ((shares - expected) / error).abs().max() < 4.5
    weight = drawn.log_weight()
    assert abs(weight.mean() - elbo) / (weight.std() / math.sqrt(n)) < 4


# Seeds and batching.


@pytest.mark.parametrize("make", [lambda: random_mdp(4, terminal=True), Glider])
def test_the_same_seed_gives_the_same_rollout(make):
    mdp = make()
    policy = amortized_policy(mdp).double()
    first, second, other = [], [], []
    for kept, seed in ((first, 7), (second, 7), (other, 8)):
        pyro.set_rng_seed(seed)
        kept.append(mdp.rollout(policy, 20))
    for name in ("states", "actions", "rewards", "mask", "log_prior", "log_policy"):
        assert torch.equal(getattr(first[0], name), getattr(second[0], name))
    assert not torch.equal(first[0].states, other[0].states)


class OneStepAtATime(torch.nn.Module):
    """A policy that hides its ability to answer for all steps at once."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy
        self.asked = []

    def forward(self, state, t):
        self.asked.append(t)
        return self.policy(state, t)


@pytest.mark.parametrize("policy_kind", ["table", "plan", "network"])
def test_asking_once_for_all_steps_changes_nothing(policy_kind):
    mdp = random_mdp(5, num_states=4, horizon=5, terminal=True)
    policy = {"table": random_policy(mdp), "plan": exact.plan(mdp), "network": amortized_policy(mdp)}[policy_kind]
    if policy_kind == "network":
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    assert policy.batch_steps
    slow = OneStepAtATime(policy)
    drawn = []
    for asked in (policy, slow):
        pyro.set_rng_seed(3)
        drawn.append(mdp.rollout(asked, 25))
    assert slow.asked == list(range(5))
    assert torch.equal(drawn[0].actions, drawn[1].actions)
    assert torch.equal(drawn[0].states, drawn[1].states)
    exactly = policy_kind != "network"  # matrix products of other shapes round otherwise
    torch.testing.assert_close(drawn[0].log_policy, drawn[1].log_policy, rtol=0, atol=0.0 if exactly else 1e-12)
    assert torch.equal(drawn[0].log_prior, drawn[1].log_prior)
    if policy_kind != "plan":
        for parameter in policy.parameters():
            one, other = (
                torch.autograd.grad(x.log_policy.sum(), parameter, retain_graph=True, allow_unused=True)[0]
                for x in drawn
            )
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_actions_in_the_box_asked_once_and_step_by_step():
    mdp = Glider()
    policy = TanhGaussianPolicy(mdp.state_space, 2, horizon=4).double()
    drawn = []
    for asked in (policy, OneStepAtATime(policy)):
        pyro.set_rng_seed(3)
        drawn.append(mdp.rollout(asked, 25))
    assert torch.equal(drawn[0].actions, drawn[1].actions)
    torch.testing.assert_close(drawn[0].log_policy, drawn[1].log_policy, rtol=1e-9, atol=1e-9)


# Endings.


@pytest.mark.parametrize("make", [lambda: random_mdp(6, horizon=6, terminal=True), lambda: Glider(horizon=6)])
def test_what_has_ended_earns_nothing_and_stays(make):
    mdp = make()
    drawn = mdp.rollout(None, 200)
    ended = torch.zeros(200, dtype=torch.bool)
    for t in range(6):
        ended = ended | mdp.terminated(drawn.states[t])
        assert torch.equal(drawn.mask[t], ~ended)
        for name in ("rewards", "log_prior", "log_policy", "log_factors"):
            assert (getattr(drawn, name)[t][ended] == 0).all()
        assert torch.equal(drawn.states[t + 1][ended], drawn.states[t][ended])
    assert ended.any()
    assert not ended.all()
    assert torch.equal(drawn.lengths(), drawn.mask.sum(0))
    assert (drawn.terms()[~drawn.mask] == 0).all()


def test_the_last_reward_before_an_ending_counts():
    step = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]])
    mdp = TabularMDP(
        step, torch.tensor([[2.0], [5.0]]), torch.tensor([1.0, 0.0]), horizon=3, terminal=torch.tensor([False, True])
    )
    drawn = mdp.rollout(None, 4)
    assert torch.equal(drawn.rewards, torch.tensor([[2.0], [0.0], [0.0]]).expand(3, 4))
    assert torch.equal(drawn.lengths(), torch.ones(4, dtype=torch.long))


# Gradients.


def test_log_policy_differentiates_and_draws_do_not():
    mdp = random_mdp(7)
    policy = random_policy(mdp)
    drawn = mdp.rollout(policy, 50)
    assert drawn.log_policy.requires_grad
    assert not drawn.rewards.requires_grad
    (gradient,) = torch.autograd.grad(drawn.log_policy.sum(), policy.logits)
    expected = torch.zeros_like(policy.logits)
    probabilities = policy.logits.detach().softmax(-1)
    for t in range(3):
        for s, a in zip(drawn.states[t].tolist(), drawn.actions[t].tolist(), strict=True):
            expected[t, s] -= probabilities[t, s]
            expected[t, s, a] += 1
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        assert not mdp.rollout(policy, 5).log_policy.requires_grad


def test_pathwise_rollouts_differentiate_through_the_dynamics():
    mdp = Glider(ends=False, horizon=2, discount=1.0)
    push = torch.tensor([0.2, -0.1], dtype=F64, requires_grad=True)
    policy = lambda state, t: dist.Normal(push + 0 * state, 0.01).to_event(1)  # noqa: E731
    drawn = mdp.rollout(policy, 500, pathwise=True)
    (gradient,) = torch.autograd.grad(drawn.rewards.sum(0).mean(), push)
    s1, s2 = drawn.states[1].detach(), drawn.states[2].detach()
    expected = (-2 * (s1 - 1) * 0.7 - 2 * (s2 - 1) * 1.4 - 0.2 * drawn.actions.detach().sum(0)).mean(0)
    torch.testing.assert_close(gradient, expected)


def test_pathwise_is_refused_where_draws_have_no_path():
    with pytest.raises(ValueError, match="pathwise gradients need reparameterized draws, but the initial state is"):
        random_mdp(8).rollout(None, 3, pathwise=True)
    with pytest.raises(ValueError, match=r"but the policy is a .*; use the score estimator"):
        Glider().rollout(lambda state, t: dist.OneHotCategorical(torch.ones(2)), 3, pathwise=True)


# Bad input.


class Broken(Glider):
    def __init__(self, step, **options):
        super().__init__(**options)
        self.step = step
        self.calls = 0

    def reward(self, state, action, next_state):
        value = super().reward(state, action, next_state)
        self.calls += 1
        return torch.where(torch.arange(len(value)) == 2, math.nan, value) if self.calls == self.step + 1 else value


@pytest.mark.parametrize("step", [0, 2])
def test_a_nan_in_the_reward_names_the_step(step):
    with pytest.raises(ValueError, match=rf"reward is NaN at step {step}; check reward\(\) of Broken"):
        Broken(step, ends=False).rollout(None, 5)


def test_a_nan_after_the_ending_does_not_matter():
    class Done(Glider):
        def terminated(self, state):
            return torch.ones(len(state), dtype=torch.bool)

        def reward(self, state, action, next_state):
            return torch.full((len(state),), math.nan, dtype=F64)

    assert (Done().rollout(None, 5).log_weight() == 0).all()


def test_a_nan_in_the_program_names_the_site():
    with pytest.raises(ValueError, match=r"reward\('reward_1'\): the reward is NaN"):
        Broken(1, ends=False)(5)


@pytest.mark.parametrize("count", [0, -3])
def test_no_trajectories(count):
    with pytest.raises(ValueError, match=rf"num_trajectories must be >= 1, got {count}"):
        random_mdp(9).rollout(None, count)


def test_no_horizon():
    mdp = random_mdp(9, horizon=None)
    with pytest.raises(ValueError, match="horizon is None, and rollout needs one: set horizon to a number of steps"):
        mdp.rollout(None, 3)
    with pytest.raises(ValueError, match="horizon is None, and running the program needs one"):
        mdp(3)


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Box(-2, 2, (2,)),
        gymnasium.spaces.Box(-np.inf, np.inf, (2,)),
        gymnasium.spaces.MultiDiscrete([2, 3], start=[1, 0]),
    ],
)
def test_action_spaces_without_a_uniform_prior(space):
    mdp = Glider()
    mdp.action_space = space
    with pytest.raises(ValueError, match=r"action_space .* has no uniform prior here: use Discrete\(n\), Box\(-1, 1"):
        mdp.rollout(None, 3)


def test_parts_that_are_missing():
    class Nothing(MarkovDecisionProcess):
        state_space = gymnasium.spaces.Discrete(1)
        action_space = gymnasium.spaces.Discrete(1)

    with pytest.raises(NotImplementedError, match=r"Nothing must override initial\(\) -> Distribution"):
        Nothing(horizon=1).rollout(None, 1)
    with pytest.raises(NotImplementedError, match=r"Nothing must override transition\(state, action\)"):
        Nothing(horizon=1).transition(None, None)
    with pytest.raises(NotImplementedError, match=r"Nothing must override reward\(state, action, next_state\)"):
        Nothing(horizon=1).reward(None, None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon must be an integer >= 1"),
        ({"discount": 2.0}, r"discount must be in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature must be a finite number > 0"),
    ],
)
def test_bad_numbers_of_a_process(options, message):
    with pytest.raises(ValueError, match=message):
        Glider(**options)


def test_uniform_priors_of_discrete_and_box_actions():
    assert Glider().uniform_log_density == pytest.approx(-2 * math.log(2))
    box = Glider().prior(torch.zeros(3, 2, dtype=F64))
    assert box.batch_shape == (3,)
    assert box.event_shape == (2,)
    for edge in (-1.0, 1.0, 0.0):
        torch.testing.assert_close(
            box.log_prob(torch.full((3, 2), edge, dtype=F64)), torch.full((3,), -2 * math.log(2), dtype=F64)
        )
    mdp = random_mdp(9, num_actions=4, uniform_prior=True)
    assert mdp.uniform_log_density == pytest.approx(-math.log(4))
    assert mdp.prior(torch.zeros(3, dtype=torch.long)).probs.allclose(torch.full((3, 4), 0.25, dtype=F64))


# Batches of trajectories.


def batch():
    return Trajectories(
        states=torch.arange(6).reshape(3, 2),
        actions=torch.zeros(2, 2),
        rewards=torch.tensor([[1.0, 2.0], [4.0, 0.0]]),
        mask=torch.tensor([[True, True], [True, False]]),
        log_prior=torch.tensor([[-1.0, -1.0], [-1.0, 0.0]]),
        log_policy=torch.tensor([[-0.5, -2.0], [-3.0, 0.0]]),
        log_factors=torch.tensor([[0.5, 1.0], [2.0, 0.0]]),
        temperature=2.0,
        discount=0.5,
        latents={"goal": torch.tensor([7, 8])},
    )


def test_weights_returns_and_lengths_by_hand():
    drawn = batch()
    assert (drawn.horizon, drawn.num_trajectories) == (2, 2)
    assert torch.equal(drawn.terms(), torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
    assert torch.equal(drawn.log_weight(), torch.tensor([2.0, 2.0]))
    assert torch.equal(drawn.returns(), torch.tensor([5.0, 2.0]))
    assert torch.equal(drawn.returns(discounted=True), torch.tensor([3.0, 2.0]))
    assert torch.equal(drawn.lengths(), torch.tensor([2, 1]))
    assert set(drawn.sites()) == {"state_0", "state_1", "state_2", "action_0", "action_1", "goal"}


@pytest.mark.parametrize("index", [torch.tensor([False, True]), torch.tensor([1])])
def test_some_of_the_trajectories(index):
    some = batch().select(index)
    assert some.num_trajectories == 1
    assert torch.equal(some.states, torch.tensor([[1], [3], [5]]))
    assert torch.equal(some.log_weight(), torch.tensor([2.0]))
    assert torch.equal(some.latents["goal"], torch.tensor([8]))
    assert (some.temperature, some.discount) == (2.0, 0.5)


def test_shapes_that_do_not_fit():
    drawn = batch()
    with pytest.raises(ValueError, match=r"Trajectories: mask must have the shape of rewards, \(2, 2\).*got \(2, 1\)"):
        replace(drawn, mask=drawn.mask[:, :1])
    with pytest.raises(ValueError, match=r"Trajectories: actions must begin with \(time, trajectory\) = \(2, 2\)"):
        replace(drawn, actions=torch.zeros(1, 2))


def test_trajectories_move_between_devices(device):
    moved = batch().to(device)
    for tensor in (moved.states, moved.actions, moved.rewards, moved.mask, moved.log_weight(), moved.latents["goal"]):
        assert tensor.device.type == device.type


# Estimates.


def test_estimates_come_with_their_standard_error():
    """10 estimates of 1,000 rollouts, seeds 0-9: z-scores against the exact ELBO have size about 1."""
    mdp = random_mdp(10, discount=0.9, terminal=True)
    policy = random_policy(mdp)
    expected = exact.elbo(mdp, policy).item()
    scores = []
    for seed in range(10):
        pyro.set_rng_seed(seed)
        estimate = estimate_elbo(mdp, policy, 1000)
        scores.append((estimate.mean - expected) / estimate.standard_error)
    assert max(map(abs, scores)) < 4
    assert 0.3 < float(torch.tensor(scores).square().mean()) < 3
    assert estimate_elbo(mdp, None, 1000).mean == pytest.approx(float(exact.elbo(mdp, None)), abs=0.3)


def test_an_estimate_of_one_sample_has_no_error():
    one = Estimate.of(torch.tensor([2.0]))
    assert one.mean == 2.0
    assert math.isnan(one.standard_error)
    three = Estimate.of(torch.tensor([1.0, 2.0, 3.0]))
    assert three.standard_error == pytest.approx(1 / math.sqrt(3))
    assert str(three) == "2 ± 0.58"


def test_estimates_of_what_is_no_process():
    with pytest.raises(ValueError, match=r"process must be a process or a Pyro program \(a callable\), got 3"):
        estimate_elbo(3, None)


# Programs as processes.

MOVE = torch.tensor(
    [[[0.7, 0.3], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]],
    dtype=F64,
)
PAYOFF = torch.tensor([[0.3, -0.2], [1.0, 0.4]], dtype=F64)
START = torch.tensor([0.6, 0.4], dtype=F64)


def corridor(horizon=3, discount=1.0, rendering="scaled", terminal=False):
    state = pyro.sample("state_0", dist.Categorical(START))
    for t in steps(horizon, discount, rendering, like=START):
        if terminal:
            terminate(state == 1)
        action = act(f"action_{t}", state, dist.Categorical(torch.ones(2, dtype=F64)))
        reward(f"reward_{t}", PAYOFF[state, action], temperature=0.5)
        state = pyro.sample(f"state_{t + 1}", dist.Categorical(MOVE[state, action]))


def corridor_mdp(horizon=3, discount=1.0, terminal=False):
    ends = torch.tensor([False, terminal])
    return TabularMDP(MOVE, PAYOFF, START, horizon=horizon, discount=discount, temperature=0.5, terminal=ends)


@pytest.mark.parametrize("vectorized", [True, False, None])
@pytest.mark.parametrize(
    ("discount", "rendering", "terminal"), [(1.0, "scaled", True), (0.8, "scaled", False), (0.8, "survival", True)]
)
def test_a_program_as_a_process_has_the_exact_elbo(discount, rendering, terminal, vectorized):
    """3,000 trajectories at once or 200 one by one, seed 0, |z| < 4."""
    process = ProgramProcess(lambda: corridor(3, discount, rendering, terminal), vectorized=vectorized)
    mdp = corridor_mdp(3, discount, terminal)
    policy = random_policy(mdp)
    n = 200 if vectorized is False else 3000
    with torch.no_grad():
        drawn, expected = process.rollout(policy, n), exact.elbo(mdp, policy)
    weight = drawn.log_weight()
    assert abs(weight.mean() - expected) / (weight.std() / math.sqrt(n)) < 4
    assert drawn.states.shape == (4, n)
    assert drawn.actions.shape == drawn.mask.shape == (3, n)
    assert drawn.discount == (0.8 if rendering == "scaled" and discount < 1 else 1.0)
    assert drawn.temperature == 0.5
    assert (drawn.mask[1:] <= drawn.mask[:-1]).all()
    assert bool(drawn.mask.all()) == (not terminal and rendering == "scaled")
    for name in ("rewards", "log_prior", "log_policy", "log_factors"):
        assert (getattr(drawn, name)[~drawn.mask].abs() < 1e-12).all()


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_programs_trajectories_are_its_own_draws(vectorized):
    """The recorded weight is the program's density against the guide's on the recorded sites."""

    def batch_of(count):
        with pyro.plate("n", count):
            corridor(3, 0.8, "scaled", terminal=True)

    policy = random_policy(corridor_mdp())
    with torch.no_grad():
        drawn = ProgramProcess(lambda: corridor(3, 0.8, "scaled", True), vectorized=vectorized).rollout(policy, 20)
        program, guide = (log_density(fn, drawn.sites(), 20) for fn in (batch_of, follow(batch_of, policy)))
    torch.testing.assert_close(drawn.log_weight(), program - guide, rtol=1e-10, atol=1e-10)
    earned = PAYOFF[drawn.states[:-1], drawn.actions]
    torch.testing.assert_close(drawn.rewards, torch.where(drawn.mask, earned, 0.0))


def walk():
    """Python decides when it is over, so it cannot run as a batch."""
    place = torch.tensor(0.0)
    for t in steps(6, 0.9):
        action = act(f"action_{t}", place, dist.Bernoulli(0.5))
        place = place + 2 * action - 1
        reward(f"reward_{t}", place)
        if place >= 2:
            break


def test_programs_of_varying_length_are_filled_up():
    """300 runs, seed 0: P(over after two steps) = 1/4, |z| < 4."""
    process = ProgramProcess(walk)
    drawn = process.rollout(None, 300)
    assert process.vectorized is False
    assert drawn.rewards.shape == (6, 300)
    lengths = drawn.lengths()
    assert set(lengths.tolist()) == {2, 4, 6}
    assert abs(float((lengths == 2).double().mean()) - 0.25) / math.sqrt(0.25 * 0.75 / 300) < 4
    assert (drawn.mask[1:] <= drawn.mask[:-1]).all()
    short = drawn.select(lengths == 2)
    assert (short.rewards.squeeze() == torch.tensor([1.0, 2, 0, 0, 0, 0])[:, None]).all()
    assert (short.returns() == 3).all()
    torch.testing.assert_close(short.returns(discounted=True), torch.full((len(short.returns()),), 1 + 0.9 * 2))
    for name in ("log_prior", "log_policy", "log_factors"):
        assert (getattr(drawn, name)[~drawn.mask] == 0).all()


def test_a_first_look_at_one_trajectory_does_not_decide_for_many():
    """One run in a plate of one says nothing about whether a batch would do."""
    process = ProgramProcess(walk)
    assert process.rollout(None, 1).num_trajectories == 1
    assert process.rollout(None, 5).num_trajectories == 5


def test_variable_lengths_agree_with_the_elbo_of_the_program():
    """200 runs each way, seeds 0 and 1, |z| < 4 for the difference."""
    policy = lambda state, t: dist.Bernoulli(torch.full_like(state, 0.7))  # noqa: E731
    weight = ProgramProcess(walk).rollout(policy, 200).log_weight()
    guide, loss = follow(walk, policy), TrajectoryELBO()
    values = torch.tensor([-loss.loss(walk, guide) for _ in range(200)])
    error = math.sqrt(float(weight.var() + values.var()) / 200)
    assert abs(float(weight.mean() - values.mean())) / error < 4


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_programs_own_plates_are_summed_over(vectorized):
    """Two joints act at each step: a trajectory's terms are sums over both."""

    def robot():
        angle = torch.zeros(2)
        for t in steps(3, 0.5):
            with pyro.plate(f"joints_{t}", 2, dim=-1):
                action = act(f"action_{t}", angle, dist.Normal(torch.zeros(2), 1.0))
                angle = angle + action
                reward(f"reward_{t}", -angle.square())

    policy = lambda state, t: dist.Normal(-0.5 * state, 0.5)  # noqa: E731
    process = ProgramProcess(robot, vectorized=vectorized)
    drawn = process.rollout(policy, 40)
    assert drawn.actions.shape == (3, 40, 2)
    assert drawn.rewards.shape == (3, 40)
    place = drawn.actions.cumsum(0)
    before = torch.cat([torch.zeros(1, 40, 2), place[:-1]])
    torch.testing.assert_close(drawn.states[:3], before)
    torch.testing.assert_close(drawn.rewards, -place.square().sum(-1))
    torch.testing.assert_close(drawn.log_prior, dist.Normal(0.0, 1.0).log_prob(drawn.actions).sum(-1))
    torch.testing.assert_close(drawn.log_policy, dist.Normal(-0.5 * before, 0.5).log_prob(drawn.actions).sum(-1))


@pytest.mark.parametrize("vectorized", [True, False])
def test_latents_come_with_their_trajectories(vectorized):
    def hidden_goal():
        goal = pyro.sample("goal", dist.Categorical(torch.tensor([0.25, 0.75])))
        slip = pyro.sample("slip", dist.Beta(2.0, 3.0))
        place = torch.zeros(goal.shape)
        for t in steps(2):
            action = act(f"action_{t}", place, dist.Bernoulli(0.5 + 0 * slip))
            place = place + action
            reward(f"reward_{t}", (place == goal).float())

    drawn = ProgramProcess(hidden_goal, vectorized=vectorized).rollout(None, 30)
    assert set(drawn.latents) == {"goal", "slip"}
    assert drawn.latents["goal"].shape == drawn.latents["slip"].shape == (30,)
    places = drawn.actions.cumsum(0)
    torch.testing.assert_close(drawn.rewards, (places == drawn.latents["goal"]).float())


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_start_that_is_a_constant_is_everyones(size, count):
    """A constant first state has no batch shape of its own, whatever its size is."""

    def program():
        state = torch.zeros(size)
        for t in steps(2):
            action = act(f"action_{t}", state, dist.Uniform(-torch.ones(size), torch.ones(size)).to_event(1))
            state = pyro.sample(f"state_{t + 1}", dist.Normal(state + action, 0.1).to_event(1))
            reward(f"reward_{t}", -state.square().sum(-1))

    drawn = ProgramProcess(program).rollout(None, count)
    assert drawn.states.shape == (3, count, size)
    assert (drawn.states[0] == 0).all()
    torch.testing.assert_close(drawn.rewards, -drawn.states[1:].square().sum(-1))


def weights_agree(program, policy):
    """A program whose weight no draw changes, read both ways."""
    weight = ProgramProcess(program).rollout(policy, 3).log_weight()
    expected = -TrajectoryELBO().loss(program, follow(program, policy))
    torch.testing.assert_close(weight, torch.full((3,), expected))


def test_a_bonus_after_the_loop_is_not_discounted():
    def program():
        for t in steps(3, 0.5):
            act(f"action_{t}", torch.tensor(0.0), dist.Bernoulli(0.5))
            reward(f"reward_{t}", 1.0)
        reward("bonus", 4.0)

    weights_agree(program, lambda state, t: dist.Bernoulli(torch.tensor(0.5)))


def test_a_reward_before_the_first_action_counts_once():
    def program():
        reward("entry", -1.0)
        for t in steps(3, 0.5):
            act(f"action_{t}", torch.tensor(0.0), dist.Bernoulli(0.5))
            reward(f"reward_{t}", 1.0)

    weights_agree(program, lambda state, t: dist.Bernoulli(torch.tensor(0.5)))


def test_steps_without_an_action_keep_their_discount():
    def program():
        for t in steps(4, 0.5):
            if t % 2 == 0:
                act(f"action_{t}", torch.tensor(0.0), dist.Bernoulli(0.5))
            reward(f"reward_{t}", 1.0)

    weights_agree(program, lambda state, t: dist.Bernoulli(torch.tensor(0.5)))


def test_an_observation_is_a_factor_but_no_reward():
    def program():
        for t in steps(2):
            action = act(f"action_{t}", torch.tensor(0.0), dist.Bernoulli(0.5))
            pyro.sample(f"look_{t}", dist.Normal(action, 1.0), obs=torch.tensor(0.3))

    drawn = ProgramProcess(program).rollout(None, 10)
    assert (drawn.rewards == 0).all()
    torch.testing.assert_close(drawn.log_factors, dist.Normal(drawn.actions, 1.0).log_prob(torch.tensor(0.3)))


def test_survival_is_read_into_the_mask():
    """2,000 trajectories, seed 0: the share alive at the third step is γ², |z| < 4."""
    drawn = ProgramProcess(survival(lambda: corridor(3, 0.6))).rollout(None, 2000)
    assert drawn.discount == 1.0
    assert abs(float(drawn.mask[2].double().mean()) - 0.36) / math.sqrt(0.36 * 0.64 / 2000) < 4
    assert (drawn.rewards[~drawn.mask] == 0).all()


def test_a_process_stays_itself_and_a_program_becomes_one():
    mdp = random_mdp(11)
    assert as_process(mdp) is mdp
    assert isinstance(as_process(corridor), ProgramProcess)


def test_programs_that_cannot_be_read():
    with pytest.raises(ValueError, match=r"the program has no actions: draw them by act\(name, state, prior\)"):
        ProgramProcess(lambda: reward("r", 1.0)).rollout(None, 3)
    with pytest.raises(ValueError, match=r"the program has no actions: .*; if it makes a program, call it"):
        ProgramProcess(lambda: corridor).rollout(None, 3)

    def two_a_step():
        for t in steps(2):
            act(f"first_{t}", torch.tensor(0.0), dist.Bernoulli(0.5))
            act(f"second_{t}", torch.tensor(0.0), dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match=r"act\('second_0'\) is a second action in step 0; "):
        ProgramProcess(two_a_step).rollout(None, 3)

    def opaque():
        act("action_0", {"place": 1}, dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match=r"act\('action_0'\): state must be a tensor .* got dict"):
        ProgramProcess(opaque).rollout(None, 3)

    with pytest.raises(ValueError, match="num_trajectories must be >= 1, got 0"):
        ProgramProcess(corridor).rollout(None, 0)


def test_a_programs_own_error_is_not_swallowed():
    def wrong():
        act("action_0", torch.tensor(0.0), dist.Bernoulli(0.5))
        raise RuntimeError("the bridge is out")

    with pytest.raises(RuntimeError, match="the bridge is out"):
        ProgramProcess(wrong).rollout(None, 3)


# Devices.


def test_rollouts_live_on_the_processs_device(device):
    mdp = random_mdp(12, terminal=True, dtype=torch.float32)
    on_device = TabularMDP(
        mdp.kernel.probabilities.to(device),
        mdp.reward_table.to(device),
        mdp.initial_probabilities.to(device),
        horizon=3,
        terminal=mdp.terminal.to(device),
    )
    glider = Glider(torch.float32, device=device)
    for process in (on_device, glider):
        policy = amortized_policy(process).to(device)
        drawn = process.rollout(policy, 8)
        for tensor in (drawn.states, drawn.actions, drawn.rewards, drawn.mask, drawn.log_policy, drawn.log_weight()):
            assert tensor.device.type == device.type
        assert math.isfinite(estimate_elbo(process, policy, 8).mean)
        assert process(4).device.type == device.type


def test_successors_may_be_given_in_any_integer_type():
    successors = torch.tensor([[[1, 2], [0, 0]], [[2, 0], [1, 1]], [[0, 1], [2, 2]]])
    rows, reward, start = torch.tensor([0.25, 0.75]).expand(3, 2, 2), torch.randn(3, 2), torch.ones(3) / 3
    seen = []
    for kind in (torch.int64, torch.int32):
        mdp = TabularMDP.from_successors(successors.to(kind), rows, reward, start, horizon=5)
        torch.manual_seed(0)
        seen.append((mdp.rollout(None, 50).states, mdp.kernel.dense()))
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))
