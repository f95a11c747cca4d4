"""The mixture policy: its density, its draws, and a gradient that needs no score function."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from scipy import stats
from small_agents import F64, actor, sac
from torch import nn

from rl_as_inference.agents.functional import Networks
from rl_as_inference.agents.parameters import FlatParameters
from rl_as_inference.guides import TanhGaussianMixturePolicy, TanhGaussianPolicy, TanhNormal, TanhNormalMixture

BOX = gymnasium.spaces.Box(-1, 1, (3,))
LOGITS = torch.tensor([0.3, -0.5, 1.1], dtype=F64)
LOC = torch.tensor([[-1.2], [0.1], [0.9]], dtype=F64)
SCALE = torch.tensor([[0.3], [0.8], [0.15]], dtype=F64)


def mixture(**changed):
    parts = {"component_logits": LOGITS, "loc": LOC, "scale": SCALE, **changed}
    return TanhNormalMixture(*parts.values())


def grid(half=9.0, size=40_001):
    """Points before squashing, the actions they become, and the slope of squashing there."""
    x = torch.linspace(-half, half, size, dtype=F64)
    return x, x.tanh(), 1 - x.tanh() ** 2


# The density and its draws.


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_the_density_integrates_to_one(scale):
    """By the trapezoid rule in the unsquashed variable, 40,001 points."""
    x, a, slope = grid()
    density = mixture(scale=scale * SCALE).log_prob(a[:, None]).exp()
    assert float(torch.trapezoid(density * slope, x)) == pytest.approx(1.0, abs=2e-3 if scale == 4 else 1e-8)


def test_the_density_is_the_weighted_sum_of_squashed_gaussians():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator, dtype=F64)
    loc = torch.randn(5, 4, 2, generator=generator, dtype=F64)
    scale = torch.rand(5, 4, 2, generator=generator, dtype=F64) + 0.1
    a = 2 * torch.rand(7, 5, 2, generator=generator, dtype=F64) - 1
    parts = TanhNormal(loc, scale).log_prob(a[..., None, :]).sum(-1).exp()
    expected = (logits.softmax(-1) * parts).sum(-1).log()
    torch.testing.assert_close(TanhNormalMixture(logits, loc, scale).log_prob(a), expected)


def test_one_component_is_the_squashed_gaussian():
    a = torch.linspace(-0.999, 0.999, 101, dtype=F64)[:, None]
    one = TanhNormalMixture(torch.zeros(1, dtype=F64), LOC[:1], SCALE[:1])
    torch.testing.assert_close(one.log_prob(a), TanhNormal(LOC[0], SCALE[0]).log_prob(a)[:, 0])


def test_draws_have_the_density():
    """20,000 draws, seed 0, against the distribution function by quadrature: Kolmogorov-Smirnov p > 0.001."""
    x, a, slope = grid()
    density = mixture().log_prob(a[:, None]).exp() * slope
    below = torch.cat([torch.zeros(1, dtype=F64), torch.cumulative_trapezoid(density, x)]).numpy()
    draws = mixture().sample((20_000,))[:, 0].atanh()
    result = stats.kstest(draws.numpy(), lambda u: np.interp(u, x.numpy(), below))
    assert result.pvalue > 1e-3


def test_components_are_drawn_by_their_weights():
    """30,000 draws of components far apart, seed 0: χ² of the counts, p > 0.001."""
    far = mixture(loc=torch.tensor([[-2.0], [0.0], [2.0]], dtype=F64), scale=torch.full((3, 1), 0.05, dtype=F64))
    draws = far.sample((30_000,))[:, 0].atanh().round()
    counts = [(draws == value).sum().item() for value in (-2, 0, 2)]
    expected = (30_000 * LOGITS.softmax(-1)).tolist()
    assert sum(counts) == 30_000
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_reparameterized_draws_are_one_of_each_component():
    """20,000 at once, seed 0: mean and spread of each component within 4.5 standard errors."""
    draws = mixture().expand([20_000]).rsample_components()
    assert draws.shape == (20_000, 3, 1)
    before = draws.atanh()
    z = (before.mean(0) - LOC) / (SCALE / math.sqrt(20_000))
    spread = (before.std(0) - SCALE) / (SCALE / math.sqrt(40_000))
    assert z.abs().max() < 4.5
    assert spread.abs().max() < 4.5


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_extremes_stay_finite(dtype):
    """Draws far out in the corners of the box, edges and all: finite densities and gradients."""
    loc = torch.tensor([[-30.0], [30.0]], dtype=dtype, requires_grad=True)
    scale = torch.tensor([[1e-3], [5.0]], dtype=dtype, requires_grad=True)
    logits = torch.zeros(2, dtype=dtype, requires_grad=True)
    q = TanhNormalMixture(logits, loc, scale)
    draws = q.rsample_components()
    value = q.log_prob(draws[..., None, 0]).sum() + q.log_prob(torch.tensor([[-1.0], [1.0]], dtype=dtype)).sum()
    assert value.isfinite()
    assert draws.abs().max() < 1
    for gradient in torch.autograd.grad(value, [loc, scale, logits]):
        assert gradient.isfinite().all()


def test_shapes_expand_and_the_best_action_is_that_of_the_heaviest():
    q = mixture().expand([4, 5])
    assert (q.batch_shape, q.event_shape) == ((4, 5), (1,))
    assert q.sample((2,)).shape == (2, 4, 5, 1)
    assert q.log_prob(q.sample((2,))).shape == (2, 4, 5)
    torch.testing.assert_close(q.deterministic, LOC[2].tanh().expand(4, 5, 1))
    with pytest.raises(NotImplementedError, match="no closed form; see deterministic"):
        _ = q.mean


def test_values_and_parameters_out_of_range_are_refused():
    with pytest.raises(ValueError, match="scale"):
        TanhNormalMixture(LOGITS, LOC, -SCALE, validate_args=True)
    with pytest.raises(ValueError, match="support"):
        TanhNormalMixture(LOGITS, LOC, SCALE, validate_args=True).log_prob(torch.tensor([1.5], dtype=F64))
    with pytest.raises(ValueError, match="num_components must be >= 1, got 0"):
        TanhGaussianMixturePolicy(BOX, 1, num_components=0)


# The actor's gradient.


class Fixed(nn.Module):
    """Two critics, ``Q_i(s, a)`` smooth in the action, of which now one and now the other is less."""

    def forward(self, state, action, t=0):
        a = action[..., 0]
        return torch.stack([2 * (3 * a).sin(), 1 - a.square() + a])


class Fast(nn.Module):
    """The mixture's parameters themselves as a policy, the same in every state."""

    def __init__(self):
        super().__init__()
        self.logits, self.loc, self.log_scale = (nn.Parameter(x.clone()) for x in (LOGITS, LOC, SCALE.log()))

    def forward(self, state, t):
        q = TanhNormalMixture(self.logits, self.loc, self.log_scale.exp())
        return q.expand(state.shape[: state.dim() - 1])


def test_the_actors_gradient_is_the_integral_s():
    """Of E_π[log π - log p - min Q/α] by quadrature; 200 batches of 100 states, seed 0: every |z| < 4.5."""
    alpha, policy = 0.7, Fast()
    agent = sac(policy=policy, temperature=alpha, dtype=F64)
    assert agent.actor_gradient == "components"
    parameters = list(policy.parameters())
    x, a, slope = grid()
    log_policy = policy(torch.zeros(1, 3), 0).log_prob(a[:, None])
    q = Fixed()(None, a[:, None]).amin(0)
    integrand = log_policy.exp() * (log_policy + math.log(2) - q / alpha) * slope
    expected = torch.autograd.grad(torch.trapezoid(integrand, x), parameters)
    modules = {**agent.modules[0], "critics": Fixed()}
    tree = {"critics": {}, "policy": dict(policy.named_parameters())}
    own = Networks(modules, FlatParameters.tree(agent.modules[0]) | tree)
    state, rows, values = torch.zeros(100, 3, dtype=F64), [], []
    for _ in range(200):
        loss, entropy, value = actor(agent, own, state)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
        values.append(torch.stack([loss.detach(), entropy.mean().detach(), value.mean().detach()]))
    rows, values = torch.stack(rows), torch.stack(values)
    flat = torch.cat([g.flatten() for g in expected])
    z = (rows.mean(0) - flat) / (rows.std(0) / math.sqrt(200))
    assert flat.abs().max() > 0.1
    assert z.abs().max() < 4.5
    # The loss, the policy's entropy and its soft value are those integrals too.
    with torch.no_grad():
        density = log_policy.exp() * slope
        truth = [
            torch.trapezoid(density * part, x)
            for part in (
                log_policy + math.log(2) - q / alpha,
                -log_policy,
                q - alpha * (log_policy + math.log(2)),
            )
        ]
    z = (values.mean(0) - torch.stack(truth)) / (values.std(0) / math.sqrt(200))
    assert z.abs().max() < 4.5


class Peaks(nn.Module):
    """Four alike peaks of Q in the corners of the square."""

    def forward(self, state, action, t=0):
        return (-12 * (action.abs() - 0.6).square().sum(-1))[None].expand(2, *action.shape[:-1])


def test_the_mixture_keeps_four_modes_where_a_single_gaussian_cannot_fit():
    """500 steps of Adam on the actor's loss at α = 0.5, seed 0; the least loss is -log Σ p exp(Q/α), by quadrature.

    Eight components: each corner has 20 % of 4,000 draws, within 0.25 nats of the least loss. One: 0.75 above it.
    """
    a = torch.linspace(-1, 1, 2001, dtype=F64)
    least = -2 * torch.trapezoid(0.5 * (-12 * (a.abs() - 0.6).square() / 0.5).exp(), a).log().item()
    gaps = {}
    for components in (8, 1):
        agent = sac(Two(), policy_components=components, hidden_sizes=(16,), temperature=0.5)
        policy, losses = agent.policy, []
        modules = {**agent.modules[0], "critics": Peaks()}
        optimiser = torch.optim.Adam(policy.parameters(), lr=5e-3)
        for _ in range(500):
            state = torch.randn(32, 2)
            tree = {"critics": {}, "policy": dict(policy.named_parameters())}
            own = Networks(modules, FlatParameters.tree(agent.modules[0]) | tree)
            loss, _, _ = actor(agent, own, state)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        gaps[components] = sum(losses[-100:]) / 100 - least
        if components > 1:
            draws = policy(torch.randn(4000, 2), 0).sample()
            corner = (draws > 0).long() @ torch.tensor([1, 2])
            assert torch.bincount(corner, minlength=4).min() > 0.2 * 4000
    assert 0 < gaps[8] < 0.25
    assert gaps[1] > 0.75


class Two(gymnasium.Env):
    """Two numbers to see and two to choose."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


# The policy.


@pytest.mark.parametrize("space", [BOX, gymnasium.spaces.Box(-1, 1, (2, 3)), gymnasium.spaces.Discrete(7)])
def test_the_policy_of_any_state(space):
    policy = TanhGaussianMixturePolicy(space, 2, num_components=3, horizon=5)
    discrete = isinstance(space, gymnasium.spaces.Discrete)
    state = torch.arange(4) if discrete else torch.randn(4, *space.shape)
    q = policy(state, 2)
    assert (q.batch_shape, q.event_shape) == ((4,), (2,))
    # It starts as equal weights around centres of its own, which differ.
    torch.testing.assert_close(q.log_weights, torch.full((4, 3), -math.log(3)))
    torch.testing.assert_close(q.loc, policy.centres.expand(4, 3, 2))
    assert torch.pdist(policy.centres.detach()).min() > 0.05


def test_the_scale_stays_within_its_bounds():
    policy = TanhGaussianMixturePolicy(BOX, 1, num_components=2, log_scale_bounds=(-3.0, 1.0))
    with torch.no_grad():
        policy.network.layers[-1].bias[4:] = torch.tensor([-50.0, 50.0])
    scale = policy(torch.zeros(3), 0).scale[:, 0]
    torch.testing.assert_close(scale, torch.tensor([math.exp(-3), math.exp(1)]))


@pytest.mark.parametrize("space", [BOX, gymnasium.spaces.Discrete(4)])
def test_agents_with_mixtures_learn(space):
    """Also from states that are integers, which have no dimensions of their own; two seeds at once."""

    class Env(gymnasium.Env):
        observation_space = space
        action_space = gymnasium.spaces.Box(-1, 1, (2,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), float(action.sum()), False, False, {}

    agent = sac(Env, policy_components=3, seeds=2)
    agent.learn(40)
    assert agent.actor_gradient == "components"
    assert isinstance(agent.policy, TanhGaussianMixturePolicy)
    assert not isinstance(agent.policy, TanhGaussianPolicy)
    assert agent._update.tensors["parameters"].isfinite().all()
    assert agent.act(space.sample(), deterministic=True).shape == (2,)
