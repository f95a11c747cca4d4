"""Flows as guides: their density against quadrature, their draws, their gradients, and what trains them."""

import math
import sys

import gymnasium
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from scipy import stats
from small_agents import F64, checkpoint, sac, same
from torch.distributions import Distribution
from torch.func import functional_call

import rl_as_inference as rlai
from rl_as_inference import MarkovDecisionProcess, TrajectoryELBO, act, fit, follow
from rl_as_inference.agents import SoftActorCritic
from rl_as_inference.guides import FlowPolicy, TanhNormal
from rl_as_inference.spaces import log_tanh_slope

BOX = gymnasium.spaces.Box(-1, 1, (3,))
SMALL = {"hidden_sizes": (8,), "context_size": 4, "transforms": 1, "width": 8}


def flow(size, seed=0, noise=0.15, space=BOX, **options):
    """A policy whose parameters are random, so that nothing is at its start."""
    torch.manual_seed(seed)
    policy = FlowPolicy(space, size, **{**SMALL, "transforms": 2, **options}).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += noise * torch.randn_like(parameter)
    return policy


def distribution(size, seed=0, **options):
    """What it answers in a random state."""
    policy = flow(size, seed, **options)
    return policy(torch.randn(3, dtype=F64), 0)


def before_squashing(q, x):
    """The density before squashing at points ``(..., d)``."""
    with torch.no_grad():
        return (q.log_prob(x.tanh()) + log_tanh_slope(x).sum(-1)).exp()


# The density and its draws.


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_density_integrates_to_one_in_one_dimension(seed):
    """By the trapezoid rule before squashing, 20,001 points."""
    x = torch.linspace(-12, 12, 20_001, dtype=F64)
    total = torch.trapezoid(before_squashing(distribution(1, seed, noise=0.3), x[:, None]), x)
    assert float(total) == pytest.approx(1, abs=1e-5)


def test_the_density_integrates_to_one_in_two_dimensions():
    """By the trapezoid rule before squashing, 201 points each way."""
    x = torch.linspace(-8, 8, 201, dtype=F64)
    density = before_squashing(distribution(2, noise=0.1), torch.stack(torch.meshgrid(x, x, indexing="ij"), -1))
    assert float(torch.trapezoid(torch.trapezoid(density, x), x)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_density_of_draws_is_that_of_their_inverse(size):
    """The remembered density, found on the way out, against passes back; 500 draws each of three states."""
    policy = flow(size, noise=0.1)
    q = policy(torch.randn(3, 3, dtype=F64), 0)
    drawn = q.rsample((500,))
    again = q.log_prob(drawn.detach().clone())
    inside = drawn.abs().amax(-1) < 1 - 1e-9  # nearer to ±1 the inverse of tanh has lost too many digits
    assert inside.double().mean() > 0.95
    torch.testing.assert_close(q.log_prob(drawn)[inside], again[inside], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_draws_fall_as_the_density_says(seed):
    """20,000 draws in 21 bins: chi-squared, p > 0.001, and every count within 4.5 standard errors."""
    q = distribution(1, seed, noise=0.3)
    torch.manual_seed(10 + seed)
    drawn, count = q.sample((20_000,)).squeeze(-1), 20_000
    x = torch.linspace(-12, 12, 24_001, dtype=F64)
    density = before_squashing(q, x[:, None])
    below = torch.cat([torch.zeros(1, dtype=F64), torch.cumulative_trapezoid(density, x)])
    edges = x[torch.searchsorted(below, torch.arange(1, 21, dtype=F64) / 21)]
    expected = torch.diff(below[torch.searchsorted(x, edges)], prepend=below[:1], append=below[-1:])
    found = torch.bincount(torch.bucketize(drawn.atanh(), edges), minlength=21) / count
    z = (found - expected) / (expected * (1 - expected) / count).sqrt()
    assert float(z.abs().max()) < 4.5
    assert stats.chisquare(found * count, expected / expected.sum() * count).pvalue > 1e-3


def test_it_starts_as_a_standard_normal_before_squashing():
    policy = FlowPolicy(BOX, 2, horizon=5)
    a = 2 * torch.rand(50, 2) - 1
    expected = TanhNormal(torch.zeros(2), torch.ones(2)).log_prob(a).sum(-1)
    torch.testing.assert_close(policy(torch.randn(50, 3), 3).log_prob(a), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_edges_of_the_box_have_a_finite_density(dtype):
    q = flow(2, noise=0.05).to(dtype)(torch.zeros(3, dtype=dtype), 0)
    assert q.log_prob(torch.tensor([[1.0, -1.0], [-1.0, 0.0]], dtype=dtype)).isfinite().all()


def test_the_deterministic_action_is_the_likeliest_of_fixed_points():
    q = flow(2)(torch.randn(7, 3, dtype=F64), 0)
    x = q.deterministic.detach().atanh()
    images = q.flow(q.context, q.candidates[:, None].expand(-1, 7, -1), True)[0].detach()
    best = before_squashing(q, images).amax(0)
    torch.testing.assert_close(before_squashing(q, x), best, rtol=1e-6, atol=1e-9)
    assert torch.equal(q.deterministic, q.deterministic)
    assert (FlowPolicy(BOX, 2)(torch.randn(4, 3), 0).deterministic == 0).all()


# Gradients.


def gradients(value, policy):
    return torch.autograd.grad(value, list(policy.parameters()), retain_graph=True)


def test_the_density_differentiates_as_finite_differences_say():
    policy = flow(2)
    state, a = torch.randn(4, 3, dtype=F64), 1.8 * torch.rand(4, 2, dtype=F64) - 0.9
    names = [name for name, _ in policy.named_parameters()]

    def log_density(*parameters):
        return functional_call(policy, dict(zip(names, parameters, strict=True)), (state, 0)).log_prob(a)

    values = tuple(policy.parameters())
    assert torch.autograd.gradcheck(log_density, values, fast_mode=True, eps=1e-6, atol=1e-6)


def test_draws_differentiate_along_their_path():
    """Against finite differences of draws from the same noise."""
    policy = flow(2)
    state, names = torch.randn(4, 3, dtype=F64), [name for name, _ in policy.named_parameters()]

    def draw(*parameters):
        pyro.set_rng_seed(3)
        return functional_call(policy, dict(zip(names, parameters, strict=True)), (state, 0)).rsample()

    assert torch.autograd.gradcheck(draw, tuple(policy.parameters()), fast_mode=True, eps=1e-6, atol=1e-6)


def test_the_remembered_density_has_the_gradient_of_the_inverse():
    """Along the path; and of a draw without gradients the score, which is not remembered."""
    policy = flow(2, noise=0.1)
    q = policy(torch.randn(5, 3, dtype=F64), 0)
    drawn = q.rsample()
    torch.testing.assert_close(
        gradients(q.log_prob(drawn).sum(), policy),
        gradients(q.log_prob(drawn.clone()).sum(), policy),
        rtol=1e-6,
        atol=1e-8,
    )
    fixed = q.sample()
    assert not fixed.requires_grad
    score = gradients(q.log_prob(fixed).sum(), policy)
    torch.testing.assert_close(score, gradients(q.log_prob(fixed.clone()).sum(), policy), rtol=1e-6, atol=1e-8)
    assert max(float(each.abs().max()) for each in score) > 1e-3


def test_a_distribution_keeps_the_parameters_that_it_was_made_with():
    """As update steps make them: by a functional call, and drawn from after it."""
    policy, other = flow(2, 0), flow(2, 1)
    state, a = torch.randn(3, dtype=F64), torch.tensor([0.3, -0.6], dtype=F64)
    q = functional_call(policy, dict(other.named_parameters()), (state, 0))
    assert torch.equal(q.log_prob(a), other(state, 0).log_prob(a))
    assert not torch.equal(q.log_prob(a), policy(state, 0).log_prob(a))


# As a guide.


def test_it_acts_under_plates():
    policy = flow(2)

    def program():
        with pyro.plate("worlds", 2, dim=-2), pyro.plate("agents", 4, dim=-1):
            return act("a", torch.rand(4, 3, dtype=F64), dist.Uniform(-torch.ones(2), torch.ones(2)).to_event(1))

    trace = poutine.trace(follow(program, policy)).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["a"]["value"].shape == (2, 4, 2)
    assert trace.nodes["a"]["log_prob"].shape == (2, 4)


class Ridge(MarkovDecisionProcess):
    """One action, worth most at either end of the box: the optimum has two modes, and its ELBO is known."""

    state_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self):
        super().__init__(horizon=1, temperature=0.25)

    def initial(self):
        return dist.Uniform(-torch.ones(1), torch.ones(1)).to_event(1)

    def transition(self, state, action):
        return dist.Normal(state + 0 * action, 0.1).to_event(1)

    def reward(self, state, action, next_state):
        return -((action.squeeze(-1).abs() - 0.5) ** 2) * 8

    def best(self):
        """``log ∫ ½ e^{r/α} da``, in nats, by quadrature."""
        a = torch.linspace(-1, 1, 20_001, dtype=F64)
        return float(torch.trapezoid(0.5 * (-((a.abs() - 0.5) ** 2) * 32).exp(), a).log())


@pytest.mark.parametrize("estimator", ["pathwise", "score"])
def test_fit_reaches_an_optimum_of_two_modes(estimator):
    """The largest ELBO by quadrature; one mode alone would cost log 2 = 0.69 nats."""
    problem = Ridge()
    torch.manual_seed(0)
    policy = FlowPolicy(problem.state_space, 1, horizon=1, **SMALL)
    fitted = fit(
        problem,
        policy,
        steps=100,
        estimator=estimator,
        num_trajectories=128,
        seed=0,
        learning_rate=0.03,
        progress=False,
    )
    reached = rlai.estimate_elbo(problem, fitted.policy, 20_000)
    assert problem.best() - 0.35 < float(reached.mean) < problem.best() + 4 * float(reached.standard_error)
    with torch.no_grad():
        left = float((policy(torch.zeros(4000, 1), 0).sample() < 0).float().mean())
    assert 0.3 < left < 0.7


def test_pyros_svi_trains_it():
    problem, policy = Ridge(), FlowPolicy(Ridge.state_space, 1, horizon=1, **SMALL)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(problem, follow(problem, policy), pyro.optim.Adam({"lr": 0.02}), TrajectoryELBO())
    losses = [svi.step(64) for _ in range(40)]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.3


# In soft actor-critic.


def agent(seed=0, **options):
    torch.manual_seed(seed)
    return sac(policy=FlowPolicy(BOX, 1, activation="relu", **SMALL), **options)


def test_soft_actor_critic_learns_it_and_goes_on_from_a_file_bit_for_bit(tmp_path):
    one = agent()
    assert one.actor_gradient == "pathwise"
    before = [parameter.detach().clone() for parameter in one.policy.parameters()]
    one.learn(40)
    assert all(bool((p != b).any()) for p, b in zip(one.policy.parameters(), before, strict=True))
    assert all(math.isfinite(one.history[-1][name]) for name in one.metrics)
    one.save(tmp_path / "agent.safetensors")
    own = FlowPolicy(BOX, 1, activation="relu", **SMALL)
    other = SoftActorCritic.load(tmp_path / "agent.safetensors", policy=own)
    one.learn(20)
    other.learn(20)
    assert same(checkpoint(one, tmp_path / "one"), checkpoint(other, tmp_path / "other"))


def test_seeds_are_batched():
    learner = agent(seeds=2, dtype=F64)
    learner.learn(40)
    assert learner.num_updates == 21
    assert not torch.equal(*(next(policy.parameters()) for policy in learner.policies))


# What it stands on.


def test_loading_the_library_leaves_the_checks_of_distributions_on():
    FlowPolicy(BOX, 1)
    assert Distribution._validate_args
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)


def test_without_the_library_the_error_names_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ImportError, match=r"rl-as-inference\[flows\]"):
        FlowPolicy(BOX, 1)


@pytest.mark.parametrize("name", ["transforms", "bins", "width", "context_size", "action_size"])
def test_sizes_that_cannot_be(name):
    with pytest.raises(ValueError, match=name):
        FlowPolicy(BOX, **{"action_size": 1, name: 0})
