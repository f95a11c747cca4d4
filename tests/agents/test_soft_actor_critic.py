"""Soft actor-critic: targets and losses by hand, its variants, its fixed point, and policies of one's own."""

import math

import gymnasium
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp
from pyro.distributions.torch_distribution import TorchDistribution
from small_agents import (
    EASY,
    F64,
    Wide,
    actor,
    batch_of,
    constant,
    networks,
    sac,
    set_targets,
    small_mdp,
    stirred,
    targets,
)
from torch import nn
from torch.nn.functional import softplus

from rl_as_inference import exact
from rl_as_inference.agents.functional import Networks
from rl_as_inference.agents.parameters import FlatParameters
from rl_as_inference.guides import CategoricalPolicy, GaussianPolicy, TanhGaussianMixturePolicy, TanhGaussianPolicy
from rl_as_inference.objectives import soft_actors

ALPHA, GAMMA = 0.5, 0.9
PI = torch.tensor([0.25, 0.75], dtype=F64)


def target_of(agent, batch, *, online=None):
    """The critics' target, by the present networks and the targets."""
    online = networks(agent) if online is None else online
    return agent.algorithm.target(online.frozen(), targets(agent), batch)


def gradient_of(agent, batch, module):
    """The gradient of the whole loss in one module's parameters, by name."""
    tree = FlatParameters.tree(agent.modules[0])
    for value in tree[module].values():
        value.requires_grad_()
    loss, _ = agent.algorithm.loss(Networks(agent.modules[0], tree), targets(agent), batch)
    return dict(zip(tree[module], torch.autograd.grad(loss, list(tree[module].values())), strict=True))


def discrete(**options):
    """π = (1/4, 3/4) everywhere; target critics (1, 2) and (3, 0), whose least is (1, 0); online critics 10 and 20."""
    agent = sac("CartPole-v1", **{"temperature": ALPHA, "discount": GAMMA, "dtype": F64, **options})
    constant(agent.modules[0]["critics"], ("biases.1", [[1.0, 2.0], [3.0, 0.0]]))
    set_targets(agent)
    constant(agent.modules[0]["critics"], ("biases.1", [[10.0, 10.0], [20.0, 20.0]]))
    constant(agent.policy, ("network.layers.1.bias", PI.log()))
    return agent


def continuous(**options):
    """π = tanh N(0.3, e⁻¹) everywhere; target critics 2a + 1 and 5 - a, online critics 3a and 4a."""
    agent = sac("Pendulum-v1", **{"temperature": ALPHA, "discount": GAMMA, "dtype": F64, "hidden_sizes": (), **options})
    slopes = torch.zeros(2, 4, 1)
    slopes[:, -1, 0] = torch.tensor([2.0, -1.0])
    constant(agent.modules[0]["critics"], ("weights.0", slopes), ("biases.0", [[1.0], [5.0]]))
    set_targets(agent)
    slopes[:, -1, 0] = torch.tensor([3.0, 4.0])
    constant(agent.modules[0]["critics"], ("weights.0", slopes))
    constant(agent.policy, ("network.state_layer.bias", [0.3, -1.0]))
    return agent


def log_tanh_normal(before):
    """The log density of ``tanh`` of ``before`` under that policy, by the textbook formula."""
    return torch.distributions.Normal(0.3, math.exp(-1)).log_prob(before) - (1 - before.tanh() ** 2).log()


# Targets by hand.

KL = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)  # of PI to the uniform prior
TARGETS = {
    "maxent": 0.25 - ALPHA * KL,
    "flat": 0.25 - ALPHA * (KL - math.log(2)),
    "one_step_entropy": 0.25,
    "svg0": 0.25,
}


@pytest.mark.parametrize("variant", TARGETS)
def test_targets_of_discrete_actions(variant):
    options = {"action_prior": "flat"} if variant == "flat" else {"objective": variant}
    agent = discrete(**options)
    batch = batch_of(agent, [[1.0, -2.0, 3.0]], terminated=[[0.0, 0.0, 1.0]])
    next_value = GAMMA * TARGETS[variant]
    torch.testing.assert_close(target_of(agent, batch).tolist(), [1 + next_value, -2 + next_value, 3.0])


def test_the_wrong_target_has_the_present_entropy():
    agent = discrete(objective="wrong_bellman")
    batch = batch_of(agent, [[1.0, 1.0]], action=[0, 1], terminated=[[0.0, 1.0]])
    expected = [1 - ALPHA * math.log(0.25 / 0.5) + GAMMA * 0.25, 1 - ALPHA * math.log(0.75 / 0.5)]
    torch.testing.assert_close(target_of(agent, batch).tolist(), expected)


@pytest.mark.parametrize("objective", ["maxent", "one_step_entropy", "svg0", "ddpg", "wrong_bellman"])
def test_targets_of_continuous_actions(objective):
    agent = continuous(objective=objective)
    batch = batch_of(agent, [[1.0] * 50], terminated=[[0.0] * 49 + [1.0]])
    torch.manual_seed(1)
    found = target_of(agent, batch)
    torch.manual_seed(1)
    before = 0.3 + math.exp(-1) * torch.randn(1, 50, 1, dtype=F64)[0, :, 0]
    if objective == "ddpg":
        before = torch.full((50,), 0.3, dtype=F64)
    value = torch.minimum(2 * before.tanh() + 1, 5 - before.tanh())
    reward = torch.ones(50, dtype=F64)
    if objective == "maxent":
        value = value - ALPHA * (log_tanh_normal(before) + math.log(2))
    if objective == "wrong_bellman":
        reward = reward - ALPHA * (log_tanh_normal(batch.action[:, 0].atanh()) + math.log(2))
    value[-1] = 0
    torch.testing.assert_close(found, reward + GAMMA * value)


def test_the_value_network_gives_the_target_and_learns_the_soft_value():
    agent = discrete(value_network=True)
    constant(agent.modules[0]["value"], ("network.layers.1.bias", [7.0]))
    set_targets(agent)
    constant(agent.modules[0]["value"], ("network.layers.1.bias", [-3.0]))
    batch = batch_of(agent, [[1.0, -2.0]], terminated=[[0.0, 1.0]])
    torch.testing.assert_close(target_of(agent, batch).tolist(), [1 + GAMMA * 7, -2.0])
    # The online critics' least is 10 of both actions, so V should be 10 less α times the divergence.
    gradient = gradient_of(agent, batch, "value")["network.layers.1.bias"]
    assert gradient.item() == pytest.approx(-3 - (10 - ALPHA * KL))
    assert agent.targeted == ("value",)
    assert agent._update.tensors["targets"].shape[1] == agent._update.layout.spans["value"].stop - (
        agent._update.layout.spans["value"].start
    )


@pytest.mark.parametrize("n_step", [1, 2, 3, 5])
def test_targets_over_episode_ends(n_step, monkeypatch):
    """Episodes of 5 steps that terminate, of 3 that are cut off, and one of 4 that goes on; V(s) = s₀ + α h."""
    agent = sac("CartPole-v1", n_step=n_step, hidden_sizes=(), temperature=ALPHA, discount=GAMMA, dtype=F64)
    slopes = torch.zeros(2, 4, 2)
    slopes[:, 0] = 1.0
    constant(agent.modules[0]["critics"], ("weights.0", slopes))
    set_targets(agent)
    constant(agent.policy, ("network.state_layer.bias", PI.log()))
    bonus, rows = -ALPHA * KL, []
    for length, end in ((5, "terminated"), (3, "truncated"), (4, None)):
        for step in range(length):
            number, last = float(len(rows)), step == length - 1
            rows.append((number, step, last and end == "terminated", last and end == "truncated", last))
            agent.replay.add(
                np.full((1, 4), number),
                np.array([1]),
                np.array([10.0 + number]),
                np.full((1, 4), number + 0.5),
                np.array([rows[-1][2]]),
                np.array([rows[-1][3]]),
            )
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: (torch.arange(12, dtype=F64) + 0.5) / 12)
        batch = agent.replay.batch(agent.replay.storage[0], agent.replay.size, agent.replay.position, 12, n_step)
    found, expected = target_of(agent, batch), []
    for first in range(12):
        total, k = 0.0, 0
        while True:
            number, _, terminated, _, last = rows[first + k]
            total += GAMMA**k * (10 + number)
            k += 1
            if last or k == n_step:
                total += GAMMA**k * (0.0 if terminated else number + 0.5 + bonus)
                break
            total += GAMMA**k * bonus
        expected.append(total)
    torch.testing.assert_close(found.tolist(), expected)


def test_truncation_bootstraps_and_termination_does_not():
    """The same step with either end: they differ by the discounted value of the next state."""
    agent = stirred(sac("CartPole-v1", temperature=ALPHA, discount=GAMMA, dtype=F64), seed=1)
    state, action, reward, next_state = np.ones((1, 4)), np.array([1]), np.array([2.0]), np.full((1, 4), 0.5)
    for terminated, truncated in ((True, False), (False, True), (True, True), (False, False)):
        agent.replay.add(state, action, reward, next_state, np.array([terminated]), np.array([truncated]))
    draws = (torch.arange(4, dtype=F64) + 0.5) / 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: draws)
        batch = agent.replay.batch(agent.replay.storage[0], agent.replay.size, agent.replay.position, 4)
    ended, cut, both, on = target_of(agent, batch).tolist()
    own = Networks(agent.modules[0], {**networks(agent).tree, **targets(agent).tree})
    log_policy = agent.policy(torch.full((4,), 0.5, dtype=F64), 0).logits
    q = own("critics", torch.full((4,), 0.5, dtype=F64)).amin(0)
    value = (log_policy.exp() * (q - ALPHA * (log_policy + math.log(2)))).sum().item()
    assert (ended, both) == (2.0, 2.0)
    assert cut == on == pytest.approx(2 + GAMMA * value)
    assert abs(value) > 0.05


# The actor and the temperature.


@pytest.mark.parametrize("objective", ["maxent", "one_step_entropy", "wrong_bellman", "svg0"])
def test_actor_losses_of_discrete_actions(objective):
    """Online critics (1, 2) and (3, 0): with entropy Σπ(log π - log p - Q/α), without it -ΣπQ."""
    agent = discrete(objective=objective)
    constant(agent.modules[0]["critics"], ("biases.1", [[1.0, 2.0], [3.0, 0.0]]))
    batch = batch_of(agent, [[1.0] * 4])
    loss, entropy, value = actor(agent, networks(agent), batch.state)
    expected = KL - 0.25 / ALPHA if objective in ("maxent", "one_step_entropy") else -0.25
    assert loss.item() == pytest.approx(expected)
    torch.testing.assert_close(entropy, torch.full((4,), math.log(2) - KL, dtype=F64))
    torch.testing.assert_close(value, torch.full((4,), 0.25 - ALPHA * KL, dtype=F64))


def by_the_book(agent, own, chosen, state):
    """The actor's loss by the function of objectives that its name stands for, with draws of its own."""
    task, alpha = agent.task, own("temperature").detach()

    def least(state, action):
        return own.frozen()("critics", state, action, 0).amin(0)

    if agent.algorithm.acting == "exact_sum":
        q, log_policy = own.frozen()("critics", state, None, 0).amin(0), chosen.logits.log_softmax(-1)
        return soft_actors.exact_sum_actor_loss(q, log_policy, task.log_prior(state), alpha)
    if agent.algorithm.acting == "mean":
        return soft_actors.deterministic_actor_loss(least(state, chosen.base_dist.loc.tanh()))
    if agent.algorithm.acting == "components":
        action = chosen.rsample_components()
        log_policy = torch.stack([chosen.log_prob(a) for a in action.unbind(-2)], -1)
        states = state[:, None].expand(*action.shape[:2], 3)
        terms = least(states, action), log_policy, task.log_prior(states, action), chosen.log_weights
        return soft_actors.weighted_actor_loss(*terms, alpha)
    pathwise = agent.algorithm.acting == "pathwise"
    action = chosen.rsample() if pathwise else chosen.sample()
    terms = least(state, action), chosen.log_prob(action), task.log_prior(state, action)
    return (soft_actors.pathwise_actor_loss if pathwise else soft_actors.score_actor_loss)(*terms, alpha)


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("CartPole-v1", {}),
        ("Pendulum-v1", {}),
        ("Pendulum-v1", {"actor_gradient": "score"}),
        ("Pendulum-v1", {"policy_components": 3}),
        ("Pendulum-v1", {"objective": "ddpg"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_every_way_of_taking_the_expectation_is_the_loss_of_its_name(env, options):
    """In value and in gradient, with the same draws, to rounding."""
    agent = stirred(sac(env, dtype=F64, temperature=0.3, **options))
    own = networks(agent)
    for value in own.tree["policy"].values():
        value.requires_grad_()
    parameters = list(own.tree["policy"].values())
    batch = batch_of(agent, [[1.0] * 9])
    torch.manual_seed(3)
    found = agent.algorithm.loss(own, targets(agent), batch)[1]["actor_loss"]
    torch.manual_seed(3)
    agent.algorithm.target(own.frozen(), targets(agent), batch)  # which draws first
    expected = by_the_book(agent, own, own("policy", batch.state, 0), batch.state)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)
    assert any(slope is not None and bool(slope.abs().max() > 1e-3) for slope in slopes[0])


@pytest.mark.parametrize("objective", ["maxent", "svg0"])
def test_the_score_function_has_the_gradient_of_the_exact_sum(objective):
    """400 batches of 50 actions, seed 0: |z| < 4.5 for both logits."""
    exactly = discrete(objective=objective)
    scored = discrete(objective=objective, actor_gradient="score")
    for agent in (exactly, scored):
        constant(agent.modules[0]["critics"], ("biases.1", [[1.0, 2.0], [3.0, 0.0]]))
    batch = batch_of(exactly, [[1.0] * 50])
    (expected,) = (gradient_of(exactly, batch, "policy")["network.layers.1.bias"],)
    rows = torch.stack([gradient_of(scored, batch, "policy")["network.layers.1.bias"] for _ in range(400)])
    z = (rows.mean(0) - expected) / (rows.std(0) / math.sqrt(400))
    assert expected.abs().min() > 0.1
    assert z.abs().max() < 4.5


def test_ddpg_climbs_the_critic_at_its_own_action():
    """d/dloc of -min Q(tanh loc) = -3a for a = tanh 0.3 > 0, whose least critic is 3a; the spread has no gradient."""
    agent = continuous(objective="ddpg")
    gradient = gradient_of(agent, batch_of(agent, [[1.0] * 7]), "policy")["network.state_layer.bias"]
    assert gradient.tolist() == pytest.approx([-3 * (1 - math.tanh(0.3) ** 2), 0.0])


def test_ddpg_explores_with_noise_within_the_box():
    """4,000 actions, seed 0: mean and spread within 4 standard errors, and never outside the box."""
    agent = continuous(objective="ddpg", exploration_noise=0.1)
    state = torch.zeros(4000, 3, dtype=F64)
    action = agent.algorithm.draw(networks(agent), state, 0)[:, 0]
    assert abs(float(action.mean()) - math.tanh(0.3)) / (0.1 / math.sqrt(4000)) < 4
    assert abs(float(action.std()) - 0.1) / (0.1 / math.sqrt(8000)) < 4
    agent.algorithm.exploration_noise = 5.0
    action = agent.algorithm.draw(networks(agent), state, 0)
    assert action.abs().max() == 1
    agent.algorithm.exploration_noise = 0.0
    torch.testing.assert_close(
        agent.algorithm.draw(networks(agent), state, 0), torch.full((4000, 1), math.tanh(0.3), dtype=F64)
    )


@pytest.mark.parametrize(("target", "sign"), [(0.1, 1), (0.6, -1)])
def test_the_temperature_grows_where_entropy_is_too_low(target, sign):
    """dL/dlog α = α (H - target), H = 0.562 nats of (1/4, 3/4)."""
    agent = discrete(temperature="auto", initial_temperature=0.2, target_entropy=target)
    gradient = gradient_of(agent, batch_of(agent, [[1.0] * 3]), "temperature")["log_temperature"]
    assert gradient.item() == pytest.approx(0.2 * (math.log(2) - KL - target))
    assert math.copysign(1, gradient.item()) == sign


def test_the_temperature_neither_diverges_nor_collapses():
    """CartPole, 2,000 steps, seed 0: α stays within [0.05, 2] and ends within 0.1 nats of half log 2."""
    agent = sac(
        "CartPole-v1",
        hidden_sizes=(32,),
        batch_size=32,
        learning_rate=3e-3,
        learning_starts=200,
        buffer_size=5000,
        target_average=0.01,
    )
    agent.learn(2000, report_every=250)
    temperatures = [row["temperature"] for row in agent.history]
    entropies = [row["entropy"] for row in agent.history[-2:]]
    assert 0.05 < min(temperatures) < max(temperatures) < 2
    assert sum(entropies) / 2 == pytest.approx(0.5 * math.log(2), abs=0.1)
    assert entropies[-1] < agent.history[0].get("entropy", math.log(2)) - 0.2


# The fixed point.


@pytest.mark.parametrize("prior", ["own", "uniform"])
def test_learning_ends_at_the_exact_plan(prior):
    """550 updates on a deterministic process: soft values and policy to 1e-3 of the exact fixed point."""
    mdp = small_mdp() if prior == "own" else small_mdp(action_prior=None)
    agent, plan, states = sac(mdp, **EASY), exact.plan(mdp), torch.arange(3)
    agent.learn(1200)
    torch.testing.assert_close(agent.critic(states, 0), plan.soft_v[:3], rtol=0, atol=1e-3)
    torch.testing.assert_close(agent.policy(states, 0).probs, plan.policy[:3], rtol=0, atol=1e-3)
    q = agent.critic.action_values(states)
    possible = mdp.action_prior[:3] > 0
    torch.testing.assert_close(q[possible], plan.soft_q[:3][possible], rtol=0, atol=1e-3)
    assert exact.elbo(mdp, agent.policy).item() == pytest.approx(float(plan.objective), abs=1e-4)


def test_a_process_is_explored_by_its_own_prior():
    """3,000 steps, seed 0: every action's share within 4.5 standard errors of its prior, the impossible one never."""
    mdp = small_mdp()
    agent = sac(mdp, learning_starts=10_000, num_envs=10, buffer_size=3000)
    agent.learn(3000)
    for state in range(3):
        taken = agent.replay.action[agent.replay.state == state]
        p = mdp.action_prior[state]
        share = torch.bincount(taken, minlength=3) / len(taken)
        error = (p * (1 - p) / len(taken)).sqrt()
        assert ((share - p).abs() <= 4.5 * error).all()
        assert len(taken) > 300


def test_the_wrong_target_is_relative_to_the_actions_own_prior():
    mdp = small_mdp()
    agent = sac(mdp, objective="wrong_bellman", dtype=F64, hidden_sizes=(4,))
    constant(agent.policy, ("network.layers.1.bias", [0.0, 1.0, 2.0]))
    constant(agent.modules[0]["critics"])
    set_targets(agent)
    state, action = torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1])
    batch = batch_of(agent, [[1.0] * 3], action=action)._replace(state=state)
    # The policy is the prior times e^f: log π - log p = f_a - log Σ p e^f.
    f = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    normaliser = (mdp.log_action_prior[state] + f).logsumexp(-1)
    torch.testing.assert_close(target_of(agent, batch), 1 - 0.5 * (f[action] - normaliser))


def test_priors_of_continuous_actions_are_used_in_their_own_units():
    agent = sac(Wide(1), learning_starts=200, dtype=F64)
    agent.learn(100)
    assert agent.replay.action.max() <= 0.5
    assert agent.replay.action.max() > 0.4
    prior = agent.task.log_prior(torch.zeros(4, 1, dtype=F64), torch.zeros(4, 1, dtype=F64))
    torch.testing.assert_close(prior, torch.full((4,), -math.log(1.5), dtype=F64))
    with pytest.raises(ValueError, match=r"action_space of Wide is Box\(-1.0, 2.0.*must have Box\(-1, 1, \(d,\)\)"):
        sac(Wide(2))


# The critic that users get.


def test_the_critic_of_continuous_actions_is_the_soft_value():
    """Of 400 states alike, 64 draws each, against quadrature of E[min Q - α (log π - log p)]: |z| < 4.5."""
    agent = continuous()
    values = agent.critic(torch.zeros(400, 3, dtype=F64), 0)
    x = torch.linspace(0.3 - 9 * math.exp(-1), 0.3 + 9 * math.exp(-1), 20_001, dtype=F64)
    density = torch.distributions.Normal(0.3, math.exp(-1)).log_prob(x).exp()
    q = torch.minimum(3 * x.tanh(), 4 * x.tanh())
    expected = torch.trapezoid(density * (q - ALPHA * (log_tanh_normal(x) + math.log(2))), x)
    assert abs(float(values.mean() - expected) / (values.std() / 20)) < 4.5
    critic = agent.critic
    assert (critic.temperature, critic.discount, critic.action_prior) == (pytest.approx(ALPHA), GAMMA, "uniform")


# Policies of one's own.


class Bounded(nn.Module):
    """A rescaled distribution of the unit interval: one with plain draws, or PyTorch's Beta."""

    def __init__(self, family, states=3):
        super().__init__()
        self.family, self.network = family, nn.Linear(states, 2)
        nn.init.normal_(self.network.weight, std=0.1, generator=torch.Generator().manual_seed(0))

    def forward(self, state, t):
        a, b = (1 + softplus(self.network(state))).chunk(2, -1)
        stretch = torch.distributions.AffineTransform(-1.0, 2.0)
        return dist.TransformedDistribution(self.family(a, b), [stretch]).to_event(1)


@pytest.mark.parametrize(
    ("family", "options", "gradient"),
    [
        (dist.Kumaraswamy, {}, "pathwise"),
        (dist.Kumaraswamy, {"seeds": 2}, "pathwise"),
        (dist.Beta, {}, "pathwise"),
        (dist.Beta, {"actor_gradient": "score"}, "score"),
    ],
    ids=["Kumaraswamy", "two seeds", "Beta", "Beta by score"],
)
def test_a_policy_of_the_users(family, options, gradient):
    policy = Bounded(family)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    agent = sac(policy=policy, **options)
    agent.learn(40)
    assert agent.actor_gradient == gradient
    assert (agent.policy is policy) == ("seeds" not in options)
    for each in agent.policies:
        for name, value in each.state_dict().items():
            assert value.isfinite().all()
            assert not torch.equal(value, before[name])
    assert agent.act([1.0, 0.0, 0.0]).shape == (1,)
    assert agent.critic(torch.zeros(3), 0).isfinite()
    with pytest.raises(ValueError, match=r"policy: .* has no mean, so no best action; .* deterministic=False"):
        agent.act([1.0, 0.0, 0.0], deterministic=True)


class Odd(TorchDistribution):
    """A categorical that tells its log probabilities one by one, and nothing else."""

    arg_constraints = {}  # noqa: RUF012
    support = torch.distributions.constraints.nonnegative_integer

    def __init__(self, own):
        self.own = own
        super().__init__(own.batch_shape, validate_args=False)

    def sample(self, sample_shape=()):
        return self.own.sample(sample_shape)

    def log_prob(self, value):
        return self.own.log_prob(value)


class OddPolicy(nn.Module):
    def __init__(self, num_actions=2):
        super().__init__()
        self.own = CategoricalPolicy(gymnasium.spaces.Box(-1, 1, (4,)), num_actions)

    def forward(self, state, t):
        return Odd(self.own(state, t))


@pytest.mark.parametrize("actor_gradient", [None, "score"])
def test_discrete_policies_need_only_a_log_prob(actor_gradient):
    """With the exact sum it learns what the categorical itself does; by the score function it learns too."""
    policies = [OddPolicy(), OddPolicy().own]
    for policy in policies:
        generator = torch.Generator().manual_seed(0)
        for parameter in policy.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    agents = [sac("CartPole-v1", policy=policy, actor_gradient=actor_gradient) for policy in policies]
    for agent in agents:
        agent.learn(60)
    assert agents[0].actor_gradient == (actor_gradient or "exact_sum")
    for name in agents[0]._update.tensors:
        torch.testing.assert_close(agents[0]._update.tensors[name], agents[1]._update.tensors[name])
    state = torch.randn(5, 4)
    torch.testing.assert_close(agents[0].critic(state, 0), agents[1].critic(state, 0))
    assert agents[0].act(state, True).tolist() == agents[1].act(state, True).tolist()


def test_parameters_that_ask_for_no_gradient_stay():
    policy = TanhGaussianPolicy(gymnasium.spaces.Box(-1, 1, (3,)), 1)
    policy.network.state_layer.requires_grad_(False)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    sac(policy=policy).learn(40)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name]) == ("state_layer" in name)


class Answers(nn.Module):
    """A policy that answers with anything."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.parameter = answer, nn.Parameter(torch.zeros(1))

    def forward(self, state, t):
        return self.answer(state)


BOX3, BOX4 = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Box(-1, 1, (4,))


@pytest.mark.parametrize(
    ("env", "policy", "message"),
    [
        ("Pendulum-v1", lambda state, t: None, "policy has no parameters to train; pass a module"),
        ("Pendulum-v1", nn.Identity(), "policy has no parameters to train"),
        ("Pendulum-v1", Answers(lambda s: s), "policy must return a Distribution .* returned Tensor"),
        (
            "Pendulum-v1",
            Answers(lambda s: dist.Uniform(s[:, :1] - 1, s[:, :1] + 1)),
            r"policy gives batch shape \(2, 1\) and event shape \(\) .* use \.to_event\(1\)",
        ),
        ("Pendulum-v1", TanhGaussianPolicy(BOX3, 2), r"event shape \(2,\) .* want \(2,\) and \(1,\)"),
        ("Pendulum-v1", CategoricalPolicy(BOX3, 3), r"event shape \(\) for two states"),
        ("Pendulum-v1", TanhGaussianPolicy(BOX4, 1), r"policy fails for two states, \(2, 3\) float32, at t = 0"),
        ("Pendulum-v1", GaussianPolicy(BOX3, 1), "draws outside the unit box of normalised actions; squash it"),
        ("CartPole-v1", TanhGaussianPolicy(BOX4, 1), r"event shape \(1,\) for two states, .* want \(2,\) and \(\)"),
        ("CartPole-v1", OddPolicy(5), r"probabilities of Discrete\(2\) that sum to 0\.4"),
        ("CartPole-v1", CategoricalPolicy(BOX4, 5), r"probabilities of Discrete\(2\) that sum to 0\.4"),
    ],
)
def test_policies_that_do_not_fit_are_refused(env, policy, message):
    with pytest.raises(ValueError, match=message):
        sac(env, policy=policy)


def test_draws_that_cannot_be_batched_are_refused_with_several_seeds():
    with pytest.raises(ValueError, match=r"policy: draws of .* cannot be batched over seeds; make one agent a seed"):
        sac(policy=Bounded(dist.Beta), seeds=2)


# Configurations that do not go together.


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        ("Pendulum-v1", {"objective": "reinforce"}, "objective must be one of maxent, one_step_entropy, .*'reinforce'"),
        ("Pendulum-v1", {"actor_gradient": "best"}, "actor_gradient must be one of pathwise, exact_sum, .*'best'"),
        ("Pendulum-v1", {"actor_gradient": "exact_sum"}, "'exact_sum' does not go with Independent; use 'pathwise'"),
        ("Pendulum-v1", {"actor_gradient": "components"}, "'components' does not go with .*; use 'pathwise'"),
        ("CartPole-v1", {"actor_gradient": "pathwise"}, "'pathwise' does not go with Categorical; use 'exact_sum'"),
        (
            "Pendulum-v1",
            {"actor_gradient": "pathwise", "policy_components": 2},
            "'pathwise' does not go with TanhNormalMixture; use 'components'",
        ),
        ("Pendulum-v1", {"policy_components": 0}, "policy_components must be an integer >= 1, got 0"),
        ("CartPole-v1", {"policy_components": 2}, "policy_components > 1 needs continuous actions; leave it out"),
        (
            "Pendulum-v1",
            {"policy_components": 2, "policy": TanhGaussianMixturePolicy(BOX3, 1)},
            "policy_components is for the policy made here",
        ),
        ("CartPole-v1", {"objective": "ddpg"}, "objective='ddpg' needs continuous actions; use 'maxent' or 'svg0'"),
        ("Pendulum-v1", {"exploration_noise": -0.1}, "exploration_noise must be a finite number > 0, got -0.1"),
        ("Pendulum-v1", {"exploration_noise": math.nan}, "exploration_noise must be a finite number"),
        ("Pendulum-v1", {"exploration_noise": "much"}, "exploration_noise must be a finite number"),
        (
            "Pendulum-v1",
            {"value_network": True, "n_step": 2},
            "value_network goes with objective='maxent' and n_step=1",
        ),
        ("Pendulum-v1", {"temperature": "auto", "objective": "svg0"}, "temperature='auto' tunes an entropy"),
        ("Pendulum-v1", {"value_network": True, "objective": "svg0"}, "value_network goes with objective='maxent'"),
        ("Pendulum-v1", {"objective": "wrong_bellman", "n_step": 2}, "objective='wrong_bellman' goes with n_step=1"),
        ("Pendulum-v1", {"objective": "ddpg", "policy": Bounded(dist.Beta)}, "has no mean, so no best action"),
    ],
)
def test_configurations_that_do_not_go_together_are_refused(env, options, message):
    with pytest.raises(ValueError, match=message):
        sac(env, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "one_step_entropy"},
        {"objective": "wrong_bellman"},
        {"objective": "svg0"},
        {"objective": "ddpg", "policy_components": 2},
        {"actor_gradient": "score", "objective": "svg0"},
        {"n_step": 3, "action_prior": "flat"},
    ],
)
def test_every_variant_learns_with_finite_numbers(options):
    agent = sac(seeds=2, **options)
    before = agent._update.tensors["parameters"].clone()
    agent.learn(40)
    after = agent._update.tensors["parameters"]
    assert after.isfinite().all()
    for module, span in agent._update.layout.spans.items():
        assert (after[:, span] != before[:, span]).any() or span.start == span.stop, module
    assert all(math.isfinite(agent.history[-1][name]) for name in agent.metrics)


def test_a_stochastic_process_is_learned():
    """A random process, 500 updates, seed 0: the ELBO within 0.1 nats of the largest."""
    mdp = random_mdp(2, num_states=3, num_actions=3, horizon=None, discount=0.7, temperature=0.7)
    agent = sac(mdp, **EASY)
    agent.learn(1100)
    best = float(exact.plan(mdp).objective)
    assert best - 0.1 < exact.elbo(mdp, agent.policy).item() <= best + 1e-9
    assert exact.elbo(mdp, None).item() < best - 0.3
