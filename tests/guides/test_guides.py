"""Guides: the distributions they answer with, where they start, and what they are asked."""

import math

import gymnasium
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp
from pyro import poutine
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from rl_as_inference import LinearGaussianMDP, MarkovDecisionProcess, TrajectoryELBO, act, estimate_elbo, exact, follow
from rl_as_inference.guides import (
    CategoricalPolicy,
    GaussianPolicy,
    LinearGaussianPolicy,
    TabularPolicy,
    TanhGaussianPolicy,
    TanhNormal,
    amortized_policy,
)
from rl_as_inference.state_time_network import StateTimeNetwork

F64 = torch.float64
DISCRETE = gymnasium.spaces.Discrete(5)
BOX = gymnasium.spaces.Box(-1, 1, (3,))


def stirred(module, seed=0, size=0.5):
    """The module with every parameter random, so that nothing is at its start."""
    g = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = size * torch.randn(parameter.shape, generator=g, dtype=parameter.dtype)
    return module


# The squashed Gaussian.


def test_the_log_density_is_that_of_the_transformed_normal():
    loc, scale = torch.randn(50, dtype=F64), torch.rand(50, dtype=F64) + 0.1
    value = 2 * torch.rand(50, dtype=F64) - 1
    expected = TransformedDistribution(Normal(loc, scale), [TanhTransform()]).log_prob(value)
    torch.testing.assert_close(TanhNormal(loc, scale).log_prob(value), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (1.5, 0.3), (-0.5, 2.0)])
def test_the_density_integrates_to_one(loc, scale):
    """By the midpoint rule in the unsquashed variable, 20,000 points."""
    x = torch.linspace(loc - 12 * scale, loc + 12 * scale, 20_001, dtype=F64)
    x = x[x.abs() < 15]
    value = x.tanh()
    density = TanhNormal(torch.tensor(loc, dtype=F64), torch.tensor(scale, dtype=F64)).log_prob(value).exp()
    total = torch.trapezoid(density * (1 - value.square()), x)
    assert float(total) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("loc", [-40.0, -12.0, -3.0, 0.0, 3.0, 12.0, 40.0])
def test_the_log_density_of_its_own_draws_is_exact_at_extremes(loc):
    """In float32 the value has rounded to ±1, and the density is still that of the draw."""
    q = TanhNormal(torch.full((200,), loc), torch.full((200,), 0.7))
    pyro.set_rng_seed(0)
    value = q.rsample()
    pyro.set_rng_seed(0)
    x = (loc + 0.7 * torch.randn(200)).double()
    log_slope = 2 * (math.log(2) - x - torch.nn.functional.softplus(-2 * x))
    expected = Normal(loc, 0.7).log_prob(x) - log_slope
    assert ((value >= -1) & (value <= 1)).all()
    torch.testing.assert_close(q.log_prob(value).double(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_stay_finite_at_extremes():
    loc = torch.tensor([-50.0, 0.0, 50.0], requires_grad=True)
    scale = torch.tensor([1e-6, 1.0, 1e3], requires_grad=True)
    q = TanhNormal(loc, scale)
    (q.log_prob(q.rsample()).sum() + q.rsample().sum()).backward()
    assert loc.grad.isfinite().all()
    assert scale.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("edge", [-1.0, 1.0])
def test_the_log_density_at_the_edges_is_finite(dtype, edge):
    q = TanhNormal(torch.tensor(0.3, dtype=dtype), torch.tensor(1.0, dtype=dtype))
    assert q.log_prob(torch.tensor(edge, dtype=dtype)).isfinite()


def test_pathwise_draws_differentiate_like_their_definition():
    loc, scale = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.4, 0.8))
    pyro.set_rng_seed(1)
    draw = TanhNormal(loc, scale).rsample()
    pyro.set_rng_seed(1)
    noise = torch.randn((), dtype=F64)
    gradient = torch.autograd.grad(draw, [loc, scale])
    slope = 1 - (loc + scale * noise).tanh().square()
    torch.testing.assert_close(gradient, (slope.detach(), (slope * noise).detach()))
    assert not TanhNormal(loc, scale).sample().requires_grad


def test_draws_have_the_moments_of_the_density():
    """20,000 draws, seed 0: mean and second moment within 4 standard errors of quadrature."""
    q = TanhNormal(torch.tensor(0.5, dtype=F64), torch.tensor(0.9, dtype=F64))
    value = q.sample((20_000,))
    x = torch.linspace(-9, 10, 20_001, dtype=F64)
    density = Normal(0.5, 0.9).log_prob(x).exp()
    for power in (1, 2):
        expected = torch.trapezoid(density * x.tanh() ** power, x)
        sample = value**power
        assert abs(float((sample.mean() - expected) / (sample.std() / math.sqrt(20_000)))) < 4


def test_shapes_broadcast_and_expand():
    q = TanhNormal(torch.zeros(3, 1), torch.ones(2))
    assert q.batch_shape == (3, 2)
    assert q.sample((5,)).shape == (5, 3, 2)
    wide = q.expand([4, 3, 2]).to_event(1)
    assert (wide.batch_shape, wide.event_shape) == ((4, 3), (2,))
    assert wide.log_prob(wide.sample()).shape == (4, 3)
    torch.testing.assert_close(q.mean, torch.zeros(3, 2))


def test_values_outside_the_box_are_refused():
    with pytest.raises(ValueError, match="support"):
        TanhNormal(torch.tensor(0.0), torch.tensor(1.0), validate_args=True).log_prob(torch.tensor(1.5))
    with pytest.raises(ValueError, match="scale"):
        TanhNormal(torch.tensor(0.0), torch.tensor(-1.0), validate_args=True)


class Bang(MarkovDecisionProcess):
    """Actions in the unit box, for policies that push against its edges."""

    state_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, dtype=torch.float32):
        super().__init__(horizon=3, temperature=0.1)
        self.dtype = dtype

    def initial(self):
        return dist.Normal(torch.zeros(1, dtype=self.dtype), 0.1).to_event(1)

    def transition(self, state, action):
        return dist.Normal(state + action, 0.1 + 0 * state).to_event(1)

    def reward(self, state, action, next_state):
        return action.squeeze(-1)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("loc", [0.0, 4.0, 8.0, 15.0])
def test_policies_against_the_edge_keep_their_log_weight(loc, dtype, at_once):
    """600 actions, seed 0: finite weights, and the mean of log π within 5 standard errors of its expectation."""
    mdp = Bang(dtype)
    policy = TanhGaussianPolicy(mdp.state_space, 1, horizon=3).to(dtype)
    policy.network.layers[-1].bias.data[0] = loc
    with torch.no_grad():
        drawn = mdp.rollout(policy if at_once else (lambda state, t: policy(state, t)), 200)
    assert drawn.log_weight().isfinite().all()
    x = torch.linspace(loc - 9, loc + 9, 10_001, dtype=F64)
    normal = Normal(loc, 1.0).log_prob(x)
    values = normal - 2 * (math.log(2) - x - torch.nn.functional.softplus(-2 * x))
    mean = torch.trapezoid(normal.exp() * values, x)
    deviation = torch.trapezoid(normal.exp() * (values - mean) ** 2, x).sqrt()
    assert abs(float((drawn.log_policy.double().mean() - mean) / (deviation / math.sqrt(600)))) < 5


# Where guides start.


def test_categorical_guides_start_at_the_prior():
    probabilities = torch.tensor([[0.2, 0.8, 0.0], [0.6, 0.3, 0.1]])
    prior = lambda state: dist.Categorical(probabilities[state])  # noqa: E731
    states = torch.tensor([0, 1, 1])
    uniform = CategoricalPolicy(gymnasium.spaces.Discrete(2), 3, horizon=4)
    assert uniform(states, 2).probs.allclose(torch.full((3, 3), 1 / 3))
    own = CategoricalPolicy(gymnasium.spaces.Discrete(2), 3, horizon=4, prior=prior)
    assert own(states, 2).probs.allclose(probabilities[states], atol=1e-6)


def test_categorical_guides_never_leave_the_priors_support():
    mdp = random_mdp(0, num_actions=3)
    prior = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [1 / 3, 1 / 3, 1 / 3]], dtype=F64)
    mdp = type(mdp)(
        mdp.kernel.probabilities, mdp.reward_table, mdp.initial_probabilities, horizon=3, action_prior=prior
    )
    policy = stirred(amortized_policy(mdp))
    states = torch.arange(3)
    for t in range(3):
        assert (policy(states, t).probs[prior == 0] < 1e-12).all()
    assert estimate_elbo(mdp, policy, 200).mean > -math.inf
    assert exact.elbo(mdp, policy).isfinite()
    loss = TrajectoryELBO().differentiable_loss(mdp, follow(mdp, policy), 50)
    for gradient in torch.autograd.grad(loss, list(policy.parameters())):
        assert gradient.isfinite().all()


class Picky(MarkovDecisionProcess):
    """A process whose own ``prior`` forbids the last action."""

    state_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(3)

    def initial(self):
        return dist.Categorical(torch.ones(2))

    def transition(self, state, action):
        return dist.Categorical(torch.ones(*state.shape, 2))

    def reward(self, state, action, next_state):
        return action.float()

    def prior(self, state):
        return dist.Categorical(logits=torch.tensor([0.0, 1.0, -math.inf]).expand(*state.shape, 3))


def test_a_guide_chosen_for_a_process_starts_at_its_own_prior():
    mdp = Picky(horizon=2)
    policy = amortized_policy(mdp)
    states = torch.tensor([0, 1])
    assert policy(states, 0).probs.allclose(mdp.prior(states).probs, atol=1e-6)
    assert estimate_elbo(mdp, policy, 100).mean > -math.inf


@pytest.mark.parametrize("hidden_sizes", [(), (8,), (16, 16)])
@pytest.mark.parametrize("horizon", [None, 6])
@pytest.mark.parametrize("space", [DISCRETE, BOX])
def test_networks_start_at_zero_whatever_their_depth(space, horizon, hidden_sizes):
    network = StateTimeNetwork(space, 4, horizon=horizon, hidden_sizes=hidden_sizes)
    state = torch.arange(5) if space is DISCRETE else torch.rand(5, 3)
    for t in (0, 3):
        assert (network(state, t) == 0).all()


def test_gaussian_guides_start_centred():
    state = torch.rand(4, 3)
    for policy, family in (
        (GaussianPolicy(BOX, 2, horizon=5, initial_scale=0.3), Normal),
        (TanhGaussianPolicy(BOX, 2, horizon=5, initial_scale=0.3), TanhNormal),
    ):
        q = policy(state, 1)
        assert (q.batch_shape, q.event_shape) == ((4,), (2,))
        assert isinstance(q.base_dist, family)
        assert (q.base_dist.loc == 0).all()
        assert q.base_dist.scale.allclose(torch.tensor(0.3))


def test_gaussian_guides_keep_their_scale_in_bounds():
    policy = GaussianPolicy(BOX, 1)
    for bias, expected in ((1e6, math.exp(8.0)), (-1e6, math.exp(-20.0))):
        policy.network.layers[-1].bias.data[1] = bias
        assert policy(torch.zeros(3), 0).base_dist.scale.item() == pytest.approx(expected)


def test_linear_gaussian_guides_start_centred_and_are_linear():
    policy = LinearGaussianPolicy(3, 2, horizon=4, initial_scale=0.5, dtype=F64)
    q = policy(torch.rand(6, 3, dtype=F64), 2)
    assert (q.mean == 0).all()
    assert q.covariance_matrix.allclose(0.25 * torch.eye(2, dtype=F64))
    stirred(policy)
    a, b = torch.rand(2, 6, 3, dtype=F64)
    torch.testing.assert_close(policy(a, 1).mean + policy(b, 1).mean, policy(a + b, 1).mean + policy(0 * a, 1).mean)
    assert not torch.allclose(policy(a, 0).mean, policy(a, 1).mean)


# What guides see.


@pytest.mark.parametrize(
    "policy",
    [
        CategoricalPolicy(DISCRETE, 3, horizon=6),
        CategoricalPolicy(DISCRETE, 3),
        TabularPolicy(5, 3, horizon=6),
        TabularPolicy(5, 3),
        CategoricalPolicy(BOX, 3, horizon=6),
        GaussianPolicy(BOX, 2, horizon=6),
        TanhGaussianPolicy(BOX, 2, horizon=6),
        LinearGaussianPolicy(3, 2, horizon=6),
        LinearGaussianPolicy(3, 2),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_guides_answer_for_all_steps_at_once(policy):
    assert policy.batch_steps
    policy = stirred(policy.double(), size=0.1)  # far from ±1, where the draw can be had back from its value
    discrete = isinstance(policy, TabularPolicy) or policy.state_dict().get("network.state_layer.bias") is None
    if isinstance(policy, LinearGaussianPolicy):
        discrete = False
    states = torch.randint(5, (6, 4)) if discrete else torch.rand(6, 4, 3, dtype=F64)
    times = torch.arange(6)[:, None].expand(6, 4)
    at_once = policy(states, times)
    assert at_once.batch_shape == (6, 4)
    action = at_once.sample()
    step_by_step = torch.stack([policy(states[t], t).log_prob(action[t]) for t in range(6)])
    torch.testing.assert_close(at_once.log_prob(action), step_by_step, rtol=1e-9, atol=1e-9)


def test_time_matters_with_a_horizon_and_not_without():
    states = torch.arange(5)
    timed = stirred(CategoricalPolicy(DISCRETE, 3, horizon=6))
    assert not timed(states, 0).probs.allclose(timed(states, 5).probs, atol=1e-3)
    stationary = stirred(CategoricalPolicy(DISCRETE, 3))
    assert torch.equal(stationary(states, 0).probs, stationary(states, 5).probs)


def test_times_may_be_numbers_of_numpy():
    policy, states = stirred(CategoricalPolicy(DISCRETE, 3, horizon=6)), torch.arange(5)
    for t in (np.int64(4), np.array(4), 4.0):
        assert torch.equal(policy(states, t).probs, policy(states, 4).probs)


def test_states_of_any_box_shape_are_flattened():
    """A picture, a vector and a single number are states alike."""
    for shape in ((2, 3), (4,), ()):
        space = gymnasium.spaces.Box(-1, 1, shape)
        policy = stirred(CategoricalPolicy(space, 3, horizon=6))
        for batch in ((), (5,), (7, 5)):
            q = policy(torch.rand((*batch, *shape)), 1)
            assert q.batch_shape == batch


def test_a_table_is_looked_up():
    policy = stirred(TabularPolicy(5, 3, horizon=6))
    states = torch.tensor([4, 0])
    torch.testing.assert_close(policy(states, 2).probs, policy.logits[2, states].softmax(-1))
    stationary = stirred(TabularPolicy(5, 3))
    torch.testing.assert_close(stationary(states, 2).probs, stationary.logits[states].softmax(-1))


def test_guides_act_in_programs_under_plates():
    policy = stirred(TanhGaussianPolicy(BOX, 2))

    def program():
        with pyro.plate("worlds", 2, dim=-2), pyro.plate("agents", 4, dim=-1):
            return act("a", torch.rand(2, 4, 3), dist.Uniform(-torch.ones(2), torch.ones(2)).to_event(1))

    trace = poutine.trace(follow(program, policy)).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["a"]["value"].shape == (2, 4, 2)
    assert trace.nodes["a"]["log_prob"].shape == (2, 4)


# The choice of a guide.


def linear_gaussian(dtype=torch.float32):
    eye = torch.eye(2, dtype=dtype)
    return LinearGaussianMDP(eye, eye, eye, eye, eye, torch.zeros(2, dtype=dtype), eye, 4 * eye, horizon=3)


def with_space(space):
    mdp = Bang()
    mdp.action_space = space
    return mdp


@pytest.mark.parametrize(
    ("process", "kind"),
    [
        (random_mdp(0), CategoricalPolicy),
        (Picky(horizon=2), CategoricalPolicy),
        (Bang(), TanhGaussianPolicy),
        (with_space(gymnasium.spaces.Box(-np.inf, np.inf, (2,))), GaussianPolicy),
        (with_space(gymnasium.spaces.Box(-2, 2, (2,))), GaussianPolicy),
        (linear_gaussian(), LinearGaussianPolicy),
    ],
    ids=["table", "discrete", "unit box", "unbounded", "other box", "linear-Gaussian"],
)
def test_the_guide_fits_the_process(process, kind):
    assert type(amortized_policy(process)) is kind


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("make", [lambda dtype: random_mdp(0, dtype=dtype), linear_gaussian, Bang])
def test_the_guide_has_the_processs_dtype(make, dtype):
    process = make(dtype)
    policy = amortized_policy(process)
    assert all(parameter.dtype == dtype for parameter in policy.parameters())
    assert process.rollout(policy, 3).log_policy.dtype == dtype


def test_the_guide_of_a_linear_gaussian_process_starts_at_its_prior():
    process = linear_gaussian(F64)
    state = torch.rand(5, 2, dtype=F64)
    q, p = amortized_policy(process)(state, 0), process.prior(state)
    action = p.sample()
    torch.testing.assert_close(q.log_prob(action), p.log_prob(action))


def test_hidden_sizes_are_passed_on():
    policy = amortized_policy(random_mdp(0), hidden_sizes=(7,))
    assert policy.network.layers[1].in_features == 7


# Bad input.


def test_processes_without_a_guide():
    with pytest.raises(ValueError, match="process must have state_space and action_space for a policy to be chosen"):
        amortized_policy(object())
    with pytest.raises(ValueError, match=r"a Pyro program has them through .*as_process\(program\)"):
        amortized_policy(lambda: None)
    with pytest.raises(ValueError, match=r"action_space must be .*, got Tuple"):
        amortized_policy(with_space(gymnasium.spaces.Tuple([DISCRETE])))


@pytest.mark.parametrize("horizon", [None, 4])
def test_a_table_that_is_smaller_than_the_problem(horizon):
    policy = TabularPolicy(3, 2, horizon=horizon)
    with pytest.raises(ValueError, match="policy: the table has 3 states, and state 4 was asked"):
        policy(torch.tensor([0, 4]), 1)
    with pytest.raises(ValueError, match=r"a row for each integer state, got torch\.float32; use amortized_policy"):
        policy(torch.zeros(2), 1)


def test_networks_that_cannot_be_built():
    with pytest.raises(ValueError, match=r"state_space must be Discrete or Box, got MultiDiscrete"):
        CategoricalPolicy(gymnasium.spaces.MultiDiscrete([2, 2]), 3)
    for sizes in ((0,), (8, -1)):
        with pytest.raises(ValueError, match=r"hidden_sizes must be >= 1, got"):
            CategoricalPolicy(DISCRETE, 3, hidden_sizes=sizes)


def test_linear_gaussian_guides_that_cannot_be_built():
    with pytest.raises(ValueError, match="state_size must be an integer >= 1, got 0"):
        LinearGaussianPolicy(0, 1)
    with pytest.raises(ValueError, match=r"horizon must be an integer >= 1, or None for no horizon, got 2\.5"):
        LinearGaussianPolicy(2, 1, horizon=2.5)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="initial_scale must be a finite number"):
            LinearGaussianPolicy(2, 1, initial_scale=scale)
    with pytest.raises(ValueError, match="t must be in 0 … 3, got 4"):
        LinearGaussianPolicy(2, 1, horizon=4)(torch.zeros(2), 4)


# Devices.


def test_guides_answer_on_their_device(device):
    for policy, state in (
        (CategoricalPolicy(DISCRETE, 3, horizon=6), torch.tensor([1, 2])),
        (TabularPolicy(5, 3, horizon=6), torch.tensor([1, 2])),
        (TanhGaussianPolicy(BOX, 2, horizon=6), torch.rand(2, 3)),
        (GaussianPolicy(BOX, 2, horizon=6), torch.rand(2, 3)),
        (LinearGaussianPolicy(3, 2, horizon=6), torch.rand(2, 3)),
    ):
        q = policy.to(device)(state.to(device), 1)
        value = q.sample()
        assert value.device.type == device.type
        assert q.log_prob(value).device.type == device.type
