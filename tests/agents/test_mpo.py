"""MPO: its update against a naive one, its fixed point, masks, and what it shares with every learner."""

import math
from itertools import product

import pytest
import torch
from small_agents import EASY, F64, batch_of, mpo, networks, small_mdp, stirred, targets
from torch.distributions import Categorical, Normal, kl_divergence

import rl_as_inference as rlai
from rl_as_inference.agents import MPO
from rl_as_inference.agents.functional import Multiplier, Networks

GAMMA = 0.9
DIVERGENCES = {"kl_improvement": 0.2, "kl_policy": 0.03, "kl_mean": 0.04, "kl_scale": 0.05}


def learning(agent):
    """The networks, with gradients, and what these are of."""
    tree = {
        module: {name: value.detach().requires_grad_() for name, value in parameters.items()}
        for module, parameters in networks(agent).tree.items()
    }
    return Networks(agent.modules[0], tree), [p for parameters in tree.values() for p in parameters.values()]


def critics_loss(own, agent, batch, value):
    """½ (Q_i(s, a) - y)², one transition and one critic after the other."""
    total = torch.zeros((), dtype=F64)
    for i, row in product(range(agent.num_critics), range(len(batch.state))):
        y = batch.rewards[0, row] + GAMMA * (1 - batch.terminated[0, row]) * value[row].detach()
        if agent.is_discrete:
            q = own("critics", batch.state[row], None, 0)[i, batch.action[row]]
        else:
            q = own("critics", batch.state[row], batch.action[row], 0)[i]
        total = total + 0.5 * (q - y) ** 2 / len(batch.state)
    return total


def lagrangian(multiplier, divergence, bound):
    """Descended by the policy, ascended by the multiplier."""
    return (multiplier.detach() * divergence - multiplier * (divergence.detach() - bound)).sum()


def naive_discrete(agent, own, batch):
    old = targets(agent)
    with torch.no_grad():
        after = old("policy", batch.next_states[0], 0).probs
        value = (after * old("critics", batch.next_states[0], None, 0).amin(0)).sum(-1)
        before = old("policy", batch.state, 0).probs
        q = old("critics", batch.state, None, 0).amin(0)
    eta, rows = own("temperature"), len(batch.state)
    loss = critics_loss(own, agent, batch, value) + eta * DIVERGENCES["kl_improvement"]
    divergence = torch.zeros((), dtype=F64)
    for row in range(rows):
        loss = loss + eta * sum(before[row, a] * (q[row, a] / eta).exp() for a in range(2)).log() / rows
        weight = before[row] * (q[row] / eta.detach()).exp()
        weight = weight / weight.sum()
        new = own("policy", batch.state[row], 0)
        loss = loss - (weight * new.probs.log()).sum() / rows
        divergence = divergence + kl_divergence(Categorical(before[row]), new) / rows
    return loss + lagrangian(own("multiplier_policy"), divergence, DIVERGENCES["kl_policy"])


def naive_continuous(agent, own, batch):
    old = targets(agent)
    count, rows = agent.num_action_draws, len(batch.state)

    def gaussian(networks, state):
        chosen = networks("policy", state, 0).base_dist
        return chosen.loc, chosen.scale

    with torch.no_grad():
        loc, scale = gaussian(old, batch.next_states[0])
        value = old("critics", batch.next_states[0], (loc + scale * torch.randn(rows, 1, dtype=F64)).tanh(), 0).amin(0)
        loc, scale = gaussian(old, batch.state)
        before = loc[:, None] + scale[:, None] * torch.randn(rows, count, 1, dtype=F64)
        q = torch.stack([old("critics", batch.state, before[:, k].tanh(), 0).amin(0) for k in range(count)], 1)
    eta = own("temperature")
    loss = critics_loss(own, agent, batch, value) + eta * DIVERGENCES["kl_improvement"]
    new_loc, new_scale = gaussian(own, batch.state)
    divergences = [torch.zeros(1, dtype=F64), torch.zeros(1, dtype=F64)]
    for row in range(rows):
        loss = loss + eta * (q[row] / eta).exp().mean().log() / rows
        weight = (q[row] / eta.detach()).softmax(-1)
        moved = Normal(new_loc[row], scale[row]), Normal(loc[row], new_scale[row])
        for each, policy in enumerate(moved):
            # The constant of the density is no part of the loss.
            log_policy = policy.log_prob(before[row]).sum(-1) + 0.5 * math.log(2 * math.pi)
            loss = loss - (weight * log_policy).sum() / rows
            divergences[each] = divergences[each] + kl_divergence(Normal(loc[row], scale[row]), policy) / rows
    for name, divergence in zip(("mean", "scale"), divergences, strict=True):
        loss = loss + lagrangian(own(f"multiplier_{name}"), divergence, DIVERGENCES[f"kl_{name}"])
    return loss


@pytest.mark.parametrize(("env", "naive"), [("CartPole-v1", naive_discrete), ("Pendulum-v1", naive_continuous)])
def test_the_loss_and_its_gradient_are_those_of_a_naive_update(env, naive):
    """In float64, with the same random numbers, every parameter's gradient to 1e-9."""
    agent = stirred(mpo(env, dtype=F64, discount=GAMMA, num_action_draws=7, **DIVERGENCES))
    for module in agent.modules[0].values():
        if isinstance(module, Multiplier):  # whose logarithms move faster
            module.slow_log.detach().fill_(0.02)
    batch = batch_of(agent, torch.randn(1, 5, dtype=F64), terminated=[[0.0, 1.0, 0.0, 0.0, 0.0]])
    own, leaves = learning(agent)
    torch.manual_seed(4)
    loss, metrics = agent.algorithm.loss(own, targets(agent), batch)
    gradients = torch.autograd.grad(loss, leaves)
    torch.manual_seed(4)
    expected = naive(agent, own, batch)
    wanted = torch.autograd.grad(expected, leaves)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    for gradient, reference in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-9)
    assert set(metrics) == {*agent.metrics, "td_error"}
    assert metrics["kl_improvement"].item() > 0


def test_the_entropy_reported_is_that_of_the_old_policy():
    """2,000 draws a state, seed 0, against 100,000 of the squashed distribution itself: |z| < 4."""
    agent = stirred(mpo(dtype=F64, num_action_draws=2000))
    batch = batch_of(agent, torch.zeros(1, 4, dtype=F64))
    entropy = agent.algorithm.loss(networks(agent), targets(agent), batch)[1]["entropy"]
    old = targets(agent)("policy", batch.state, 0)
    draws = -old.log_prob(old.sample((100_000,)))
    error = draws.std(0).mean() * math.sqrt(1 / 8_000 + 1 / 400_000)
    assert abs(float((entropy - draws.mean()) / error)) < 4


def test_it_finds_the_best_return_of_a_finite_process_within_its_prior():
    """Seed 0, 2,000 updates: the mode is the optimal policy by value iteration over what the prior allows."""
    process = small_mdp()
    agent = mpo(process, **{**EASY, "num_envs": 4, "updates_per_step": 0.5})
    agent.learn(4000)
    prior = process.action_prior
    q = torch.zeros(4, 3, dtype=F64)
    for _ in range(300):
        value = q.masked_fill(prior == 0, -torch.inf).amax(-1)
        value[3] = 0.0
        q = process.reward_table + process.discount * process.kernel.dense() @ value
    best = q.masked_fill(prior == 0, -torch.inf)
    policy = agent.policy(torch.arange(4), 0)
    assert policy.probs[:3].argmax(-1).tolist() == best[:3].argmax(-1).tolist()
    assert policy.probs[1, 2].item() < 1e-6  # of prior probability 0
    learned = agent.critic(torch.arange(3), 0)
    torch.testing.assert_close(learned, best[:3].amax(-1), atol=0.15, rtol=0.0)


def test_its_critic_is_of_the_return_and_compare_says_so():
    agent = stirred(mpo(horizon := small_mdp(horizon=5, discount=1.0), dtype=F64))
    state = torch.arange(3)
    value = (agent.policy(state, 0).probs * agent.critic.action_values(state, t=0)).sum(-1)
    torch.testing.assert_close(agent.critic(state, 0), value)  # no entropy, whatever η
    with pytest.raises(ValueError, match="critic was learned with objective='return', whose values are not those of"):
        rlai.compare(horizon, agent.policy, critic=agent.critic)
    assert rlai.compare(horizon, agent.policy).elbo <= rlai.exact.optimal_elbo(horizon) + 1e-9


def test_multipliers_stay_where_they_can_be_used_again():
    """100 updates from just outside their bounds: one constraint never binds, and one cannot be met."""
    agent = mpo(kl_mean=1e6, kl_scale=1e-12, learning_starts=20)
    modules = agent.modules[0]
    multipliers = {name: modules[f"multiplier_{name}"] for name in ("mean", "scale")}
    for name, bound, further in (("mean", 0, -0.5), ("scale", 1, 0.5)):
        module = multipliers[name]
        module.slow_log.detach().fill_((module.bounds[bound] + further) / module.pace)
    agent.learn(120)
    assert multipliers["mean"]().min().item() == pytest.approx(1e-2, rel=0.5)
    assert multipliers["scale"]().max().item() == pytest.approx(10 * math.sqrt(0.1 / 1e-12), rel=0.5)
    for module in multipliers.values():
        log = module.pace * module.slow_log.detach()
        assert float((log - log.clamp(*module.bounds)).abs().max()) < 0.4


def test_the_temperature_is_that_of_the_e_step_unless_it_is_given():
    assert mpo(small_mdp()).learns_temperature  # though the process brings an α
    assert mpo(small_mdp()).temperature == pytest.approx(1.0)
    fixed = mpo(temperature=0.3)
    fixed.learn(25)
    assert fixed.temperature == pytest.approx(0.3)


@pytest.mark.parametrize(
    "options", [{"n_step": 3}, {"history": 2}, {"memory": "gru", "sequence_length": 3, "burn_in": 1}, {"seeds": 2}]
)
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_it_takes_what_every_learner_takes(env, options, tmp_path):
    agent = mpo(env, **options)
    agent.learn(40)
    agent.save(tmp_path / "agent")
    again = MPO.load(tmp_path / "agent")
    again.learn(5)
    agent.learn(5)
    assert torch.equal(again._update.tensors["parameters"], agent._update.tensors["parameters"])
    assert agent.history[-1]["kl_improvement"] >= 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_entropy": -1.0}, "target_entropy tunes the temperature of an entropy that MPO does not count"),
        ({"target_return": 10.0}, "target_return tunes the temperature of an entropy"),
        ({"kl_improvement": 0.0}, "kl_improvement must be"),
        ({"kl_mean": -0.1}, "kl_mean must be"),
        ({"num_action_draws": 1}, "num_action_draws must be"),
        ({"temperature": "tuned"}, "temperature must be 'auto' or a number"),
    ],
)
def test_options_that_may_not_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        mpo(**options)


def test_an_option_of_another_learner_is_not_taken():
    with pytest.raises(TypeError, match="MPO has no option 'value_network'"):
        mpo(value_network=True)
