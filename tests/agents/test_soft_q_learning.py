"""Soft Q-learning: its targets by hand, its fixed point, and the energy-based policies with their Stein sampler."""

import math

import gymnasium
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from small_agents import EASY, F64, Wide, batch_of, constant, networks, set_targets, small_mdp, sql, stirred, targets
from torch import nn

from rl_as_inference import MarkovDecisionProcess, exact, follow
from rl_as_inference.agents.functional import Networks
from rl_as_inference.critics import QEnsemble
from rl_as_inference.guides import EnergyBasedPolicy, SoftmaxPolicy, SteinSampler

ALPHA, GAMMA = 0.5, 0.9


def target_of(agent, batch):
    online = networks(agent)
    return agent.algorithm.target(online.frozen(), targets(agent), batch)


def softmax(*logits):
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def by_hand(**options):
    """Target critics whose least is (1, 0); online critics whose least is (0.5, 1)."""
    agent = sql("CartPole-v1", **{"temperature": ALPHA, "discount": GAMMA, "dtype": F64, "num_critics": 2, **options})
    constant(agent.modules[0]["critics"], ("biases.1", [[1.0, 2.0], [3.0, 0.0]]))
    set_targets(agent)
    constant(agent.modules[0]["critics"], ("biases.1", [[0.5, 1.0], [3.0, 1.0]]))
    return agent


# Targets by hand.

SINGLE = ALPHA * math.log(0.5 * math.exp(1 / ALPHA) + 0.5)
P_SINGLE = softmax(1 / ALPHA, 0)
P_ONLINE = softmax(0.5 / ALPHA, 1 / ALPHA)


def entropy_bonus(p):
    return -ALPHA * sum(x * math.log(x / 0.5) for x in p)


DOUBLE = P_ONLINE[0] * 1.0 + entropy_bonus(P_ONLINE)


@pytest.mark.parametrize(("double", "value"), [(False, SINGLE), (True, DOUBLE)])
def test_targets(double, value):
    """The log-sum-exp of the target critics; or, double, the online softmax valued by them."""
    agent = by_hand(double=double)
    batch = batch_of(agent, [[1.0, -2.0, 3.0]], terminated=[[0.0, 0.0, 1.0]])
    expected = [1 + GAMMA * value, -2 + GAMMA * value, 3.0]
    torch.testing.assert_close(target_of(agent, batch).tolist(), expected)


def test_a_flat_prior_adds_what_the_uniform_one_takes():
    values = [target_of(agent, batch_of(agent, [[0.0]])).item() for agent in (by_hand(), by_hand(action_prior="flat"))]
    assert values[1] - values[0] == pytest.approx(GAMMA * ALPHA * math.log(2))


@pytest.mark.parametrize(("double", "value", "policy"), [(False, SINGLE, P_SINGLE), (True, DOUBLE, P_ONLINE)])
def test_targets_of_several_steps(double, value, policy):
    """A whole segment, one that terminates in its second step, and one that is cut off there."""
    agent = by_hand(double=double, n_step=3)
    batch = batch_of(
        agent,
        [[1.0] * 3, [2.0] * 3, [4.0] * 3],
        alive=[[1.0] * 3, [1.0] * 3, [1.0, 0.0, 0.0]],
        terminated=[[0.0] * 3, [0.0, 1.0, 0.0], [0.0] * 3],
    )
    first = 1 + GAMMA * (entropy_bonus(policy) + 2)
    expected = [
        first + GAMMA**2 * (entropy_bonus(policy) + 4) + GAMMA**3 * value,
        first,
        first + GAMMA**2 * value,
    ]
    torch.testing.assert_close(target_of(agent, batch).tolist(), expected)


def test_the_temperature_follows_the_softmaxs_entropy():
    """The loss's gradient in log α is α (H - target), and H is that of the softmax of the least online critic."""
    agent = by_hand(temperature="auto", initial_temperature=ALPHA, target_entropy=0.4)
    tree = networks(agent).tree
    tree["temperature"]["log_temperature"].requires_grad_()
    loss, metrics = agent.algorithm.loss(
        Networks(agent.modules[0], tree), targets(agent), batch_of(agent, [[1.0, 2.0]])
    )
    (gradient,) = torch.autograd.grad(loss, tree["temperature"]["log_temperature"])
    entropy = -sum(x * math.log(x) for x in P_ONLINE)
    assert metrics["entropy"].item() == pytest.approx(entropy)
    assert gradient.item() == pytest.approx(ALPHA * (entropy - 0.4))


# The policy of discrete actions.


def test_the_policy_is_the_softmax_and_the_critic_its_value():
    agent = stirred(sql("CartPole-v1", temperature=0.3, dtype=F64, num_critics=2), size=1.0)
    state = torch.randn(50, 4, dtype=F64)
    q = agent.modules[0]["critics"](state).amin(0)
    torch.testing.assert_close(agent.policy(state, 0).probs, (q / 0.3).softmax(-1))
    torch.testing.assert_close(agent.critic(state, 0), 0.3 * ((q / 0.3).logsumexp(-1) - math.log(2)))
    torch.testing.assert_close(agent.critic.action_values(state), q)
    assert agent.policy(state[:1], 0).logits.requires_grad


def test_draws_are_those_of_the_softmax():
    """5,000 draws in the loop and by act(), seed 0: |z| < 4."""
    agent = by_hand()
    state = torch.zeros(5000, 4, dtype=F64)
    for drawn in (agent.algorithm.draw(networks(agent), state, 0), torch.as_tensor(agent.act(state))):
        p = P_ONLINE[1]
        assert abs(float(drawn.double().mean()) - p) / math.sqrt(p * (1 - p) / 5000) < 4


@pytest.mark.parametrize("double", [False, True])
def test_learning_ends_at_the_exact_plan(double):
    """550 updates on a deterministic process with a prior of its own: values and policy to 1e-3 of the fixed point."""
    mdp = small_mdp()
    agent, plan, states = sql(mdp, double=double, **EASY), exact.plan(mdp), torch.arange(3)
    agent.learn(1200)
    torch.testing.assert_close(agent.critic(states, 0), plan.soft_v[:3], rtol=0, atol=1e-3)
    torch.testing.assert_close(agent.policy(states, 0).probs, plan.policy[:3], rtol=0, atol=1e-3)
    assert exact.elbo(mdp, agent.policy).item() == pytest.approx(float(plan.objective), abs=1e-4)
    assert not ((agent.replay.state == 1) & (agent.replay.action == 2)).any()


def test_an_impossible_action_leaves_the_reported_numbers_finite():
    agent = sql(small_mdp(temperature=0.2), temperature="auto", dtype=F64)
    agent.learn(40)
    assert all(math.isfinite(agent.history[-1][name]) for name in agent.metrics)
    assert 0 < agent.history[-1]["entropy"] < math.log(3)


# Continuous actions: the energy.


class Wells(nn.Module):
    """Q with wells at ±½ in every dimension, ``(1, *batch)``; in states with s₀ > 0 the right one is deeper."""

    def forward(self, state, action, t=0):
        tilt = 0.2 * (state[..., :1] > 0) * action
        return (tilt - 16 * (action.square() - 0.25).square()).sum(-1)[None]


def well_density(alpha, tilt=0.0, size=20_001):
    """The grid of [-1, 1], and the density exp(Q/α)/Z on it."""
    a = torch.linspace(-1, 1, size, dtype=F64)
    energy = (tilt * a - 16 * (a.square() - 0.25).square()) / alpha
    return a, (energy - torch.trapezoid(energy.exp(), a).log()).exp(), energy


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_the_density_is_the_normalised_energy(shape):
    """Against quadrature: log probabilities to the error of 20,000 draws for the normaliser; the integral likewise."""
    sampler = SteinSampler(gymnasium.spaces.Box(-1, 1, (3,)), 1, hidden_sizes=(4,)).double()
    alpha = torch.tensor(0.4, dtype=F64)
    policy = EnergyBasedPolicy(Wells(), sampler, lambda: alpha, state_dims=1, action_size=1, num_draws=20_000)
    state = -torch.ones(*shape, 3, dtype=F64)
    state[..., 0] = 1.0
    q = policy(state, 0)
    a, density, _ = well_density(0.4, 0.2)
    assert (q.batch_shape, q.event_shape) == (shape, (1,))
    actions = a[::2000, None].reshape(-1, *(1 for _ in shape), 1).expand(-1, *shape, 1)
    found = q.log_prob(actions)
    assert found.shape == (11, *shape)
    expected = density[::2000].log().reshape(-1, *(1 for _ in shape)).expand(found.shape)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_the_importance_estimate_of_the_value_is_unbiased_in_its_exponential():
    """2,000 estimates of 16 draws, seed 0, against quadrature: |z| < 4.5; and the logarithm is low, as it is said."""
    agent = sql("Pendulum-v1", temperature=0.4, dtype=F64, num_value_draws=16)
    fixed = Networks({**agent.modules[0], "critics": Wells()}, networks(agent).tree | {"critics": {}})
    state = -torch.ones(2000, 3, dtype=F64)
    value = agent.algorithm.value(fixed, state, 0, torch.tensor(0.4, dtype=F64))
    a, _, energy = well_density(0.4)
    expected = 0.5 * torch.trapezoid(energy.exp(), a)
    exponential = (value / 0.4).exp()
    assert abs(float((exponential.mean() - expected) / (exponential.std() / math.sqrt(2000)))) < 4.5
    low = float((expected.log() - value.mean() / 0.4) / (exponential.var() / (2 * expected**2)))
    assert 0.7 < low < 1.6


def test_resampled_draws_are_of_the_energy():
    """4,000 draws of 256 candidates, seed 0, against quadrature: share right of 0 and mean square, |z| < 4.5."""
    alpha = torch.tensor(0.4, dtype=F64)
    policy = EnergyBasedPolicy(Wells(), None, lambda: alpha, state_dims=1, action_size=1)
    torch.manual_seed(0)
    draws = policy(torch.ones(3, dtype=F64), 0).sample((4000,))[:, 0]
    a, density, _ = well_density(0.4, 0.2)
    for value in (lambda x: (x > 0).double(), torch.square):
        expected = torch.trapezoid(value(a) * density, a)
        found = value(draws)
        assert abs(float((found.mean() - expected) / (found.std() / math.sqrt(4000)))) < 4.5


def test_the_entropy_of_resampled_draws_is_of_the_energy():
    """The learner's entropy over 2,000 states, seed 0, against quadrature: |error| < 0.05 nats (biased by 1/draws)."""
    agent = sql("Pendulum-v1", temperature=0.4, dtype=F64, num_value_draws=256, sampler="resampling")
    assert set(agent.modules[0]) == {"critics", "temperature"}
    agent.learn(60)
    fixed = Networks({**agent.modules[0], "critics": Wells()}, networks(agent).tree | {"critics": {}})
    batch = agent.replay.batch(agent.replay.storage[0], agent.replay.size, agent.replay.position, 2000)
    batch = batch._replace(state=-torch.ones_like(batch.state))
    _, metrics = agent.algorithm.loss(fixed, fixed, batch)
    a, density, _ = well_density(0.4)
    entropy = -torch.trapezoid(density * density.log(), a)
    assert abs(float(metrics["entropy"] - entropy)) < 0.05


def test_the_best_action_is_the_best_of_the_draws():
    sampler = SteinSampler(gymnasium.spaces.Box(-1, 1, (3,)), 2, hidden_sizes=(4,))
    policy = EnergyBasedPolicy(Wells(), sampler, lambda: torch.tensor(0.4), state_dims=1, action_size=2)
    for state in (torch.zeros(3), torch.zeros(6, 3), torch.zeros(2, 4, 3)):
        q = policy(state, 0)
        torch.manual_seed(3)
        best = q.deterministic
        torch.manual_seed(3)
        draws = q.sample((32,))
        values = Wells()(state.expand(32, *state.shape), draws)[0]
        assert best.shape == (*state.shape[:-1], 2)
        torch.testing.assert_close(Wells()(state, best)[0], values.amax(0))
        assert (draws.abs() <= 1).all()


# The Stein sampler.


@pytest.mark.parametrize(("batch", "fixed", "moved", "size"), [((), 5, 4, 1), ((3,), 6, 6, 2), ((2, 2), 4, 7, 3)])
def test_directions_are_those_of_a_hand_written_loop(batch, fixed, moved, size):
    """Liu & Wang's equation 8, with the median of all squared distances over log(J + 1)."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(*batch, n, size, generator=generator, dtype=F64) for n in (fixed, moved))
    scores = torch.randn(*batch, fixed, size, generator=generator, dtype=F64)
    found = SteinSampler.direction(u, scores, v)
    assert found.shape == v.shape
    for index in np.ndindex(*batch):
        points, grads, here = u[index], scores[index], v[index]
        distances = sorted(float((p - x) @ (p - x)) for p in points for x in here)
        width = distances[len(distances) // 2] / math.log(fixed + 1)
        for i, x in enumerate(here):
            total = torch.zeros(size, dtype=F64)
            for point, grad in zip(points, grads, strict=True):
                own = point.clone().requires_grad_()
                kernel = torch.exp(-(own - x) @ (own - x) / width)
                (slope,) = torch.autograd.grad(kernel, own)
                total += kernel.detach() * grad + slope
            torch.testing.assert_close(found[index][i], total / fixed)


def test_particles_move_apart_and_towards_the_density():
    """300 steps of 40 particles under N(1, 0.5²): mean and spread of the density, by no draw but their own."""
    u = torch.linspace(-3, -2, 40, dtype=F64)[:, None]
    for _ in range(300):
        u = u + 0.05 * SteinSampler.direction(u, -(u - 1) / 0.25, u)
    assert float(u.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(u.std()) == pytest.approx(0.5, abs=0.1)


def test_alike_particles_have_finite_directions():
    u = torch.zeros(3, 8, 2)
    found = SteinSampler.direction(u, torch.ones_like(u), u)
    torch.testing.assert_close(found, torch.ones_like(u))


def surrogate(agent, sampler, state, alpha):
    """The loss that trains the sampler on the fixed Q above, and its entropies."""
    modules = {"critics": Wells(), "sampler": sampler}
    own = Networks(modules, {"critics": {}, "sampler": dict(sampler.named_parameters())})
    return agent.algorithm.sampler_loss(own, own.frozen(), state, 0, torch.tensor(alpha, dtype=agent.dtype))


def test_the_surrogates_gradient_carries_the_directions():
    """d loss = -mean over states and particles of direction · du, with the score of the squashed energy by autograd."""
    agent = stirred(sql("Pendulum-v1", temperature=0.4, dtype=F64, num_particles=5))
    sampler, state = agent.modules[0]["sampler"], torch.randn(4, 3, dtype=F64)
    parameters = list(sampler.parameters())
    torch.manual_seed(2)
    found = torch.autograd.grad(surrogate(agent, sampler, state, 0.4)[0], parameters)
    torch.manual_seed(2)
    states = state[:, None].expand(4, 5, 3)
    u = sampler(states, torch.randn(4, 5, 1, dtype=F64))
    at = u.detach().requires_grad_()
    log_density = Wells()(states, at.tanh())[0] / 0.4 + (1 - at.tanh() ** 2).log().sum(-1)
    (scores,) = torch.autograd.grad(log_density.sum(), at)
    direction = SteinSampler.direction(u.detach(), scores, u.detach())
    expected = torch.autograd.grad(-(direction * u).sum() / 20, parameters)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_sampler_keeps_both_modes():
    """A Q that deepens over 600 steps from α = 2 to 0.2, as one that is learned does: 5 nats between its two wells.

    Of 4,000 draws of two seeds 30 to 70 % are in either well, their distribution function within 0.25 of the exact
    one within each. What is reported as entropy is -log π of the draws, to 0.1 nats.
    """
    for seed in (0, 1):
        agent = sql("Pendulum-v1", seed=seed, temperature=0.2, hidden_sizes=(64,), num_particles=32)
        sampler, entropies = agent.modules[0]["sampler"], []
        optimiser = torch.optim.Adam(sampler.parameters(), lr=3e-3)
        for step in range(600):
            loss, entropy = surrogate(agent, sampler, -torch.rand(8, 3), max(0.2, 2 * 0.1 ** (step / 400)))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            entropies.append(entropy.mean().item())
        with torch.no_grad():
            draws = sampler(-torch.rand(4000, 3), torch.randn(4000, 1)).tanh()[:, 0].double()
        a, density, _ = well_density(0.2)
        for well in (draws[draws > 0], -draws[draws < 0]):
            assert 0.3 < len(well) / 4000 < 0.7
            half = a > 0
            exact_cdf = torch.cumulative_trapezoid(2 * density[half], a[half])
            ranks = exact_cdf[((well.sort().values) * 10_000).long().clamp(max=9_998)]
            assert (ranks - torch.arange(len(well)) / len(well)).abs().max() < 0.25
        surprise = -density.log()[((draws + 1) * 10_000).round().long()].mean()
        assert sum(entropies[-100:]) / 100 == pytest.approx(float(surprise), abs=0.1)


# Continuous actions: the learner.


class Glide(MarkovDecisionProcess):
    """A point that is pushed, with actions in the unit box and a uniform prior."""

    state_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self):
        super().__init__(horizon=4, discount=0.9, temperature=0.5)

    def initial(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def transition(self, state, action):
        return dist.Normal(state + action, 0.1).to_event(1)

    def reward(self, state, action, next_state):
        return -next_state.square().sum(-1)


def test_the_continuous_learner_finds_the_way_and_its_policy_is_a_guide():
    """400 updates, seed 0: half the cost of random pushes; its rollouts by both readings of the process agree."""
    process = Glide()
    agent = sql(
        process, hidden_sizes=(32,), batch_size=32, learning_rate=3e-3, learning_starts=100, target_average=0.02
    )
    before = agent.evaluate(20).mean
    agent.learn(500)
    assert agent.evaluate(20).mean > 0.5 * before
    with torch.no_grad():
        fast = process.rollout(agent.policy, 50)
        trace = follow(process, agent.policy)(50)
    assert fast.log_policy.isfinite().all()
    assert fast.actions.abs().max() <= 1
    assert trace.shape == (50, 2)
    assert agent.critic(torch.zeros(7, 2), 0).shape == (7,)


def test_what_continuous_actions_do_not_have_is_refused():
    for options, message in (
        ({"double": True}, "double=True needs discrete actions; leave it out"),
        ({"n_step": 2}, "n_step > 1 needs discrete actions"),
        ({"num_particles": 1}, "num_particles must be an integer >= 2, got 1"),
        ({"num_value_draws": 1.5}, r"num_value_draws must be an integer >= 2, got 1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            sql("Pendulum-v1", **options)
    with pytest.raises(ValueError, match=r"a process with an action prior of its own, .* use SoftActorCritic"):
        sql(Wide(1))
    with pytest.raises(ValueError, match="state_space must be a Box for a sampler of continuous actions"):
        SteinSampler(gymnasium.spaces.Discrete(3), 1)


def test_the_softmax_policy_alone():
    """The module by itself: the least critic, a prior, and a temperature that is asked each time."""
    critics = QEnsemble(gymnasium.spaces.Discrete(3), gymnasium.spaces.Discrete(2), num_critics=2, hidden_sizes=())
    temperature = [0.5]
    prior = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])
    policy = SoftmaxPolicy(critics, lambda: torch.tensor(temperature[0]), lambda state: prior[state].log())
    states = torch.arange(3)
    for value in (0.5, 2.0):
        temperature[0] = value
        weight = prior * (critics(states).amin(0) / value).exp()
        torch.testing.assert_close(policy(states, 0).probs, weight / weight.sum(-1, keepdim=True))
