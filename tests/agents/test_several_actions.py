"""Several discrete actions at once: sums over all of them, sums factor by factor, and what is learned by each."""

import itertools
import math

import gymnasium
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from small_agents import F64, mpo, networks, sac, sql, stirred, targets
from torch import nn

from rl_as_inference import ModelBasedAgent
from rl_as_inference.agents.expectation import expectation
from rl_as_inference.agents.functional import Networks
from rl_as_inference.agents.parameters import FlatParameters
from rl_as_inference.factored import FactoredCategorical, JointCategorical
from rl_as_inference.guides import FactoredCategoricalPolicy

ALPHA = 0.5


class Panel(gymnasium.Env):
    """One state and one step; what is done at once pays what a table of all joint actions says."""

    observation_space = Box(-1, 1, (1,))

    def __init__(self, space, table):
        self.action_space, self.table = space, np.asarray(table)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        counted = (np.asarray(action) - getattr(self.action_space, "start", 0)).reshape(-1)
        reward = self.table[tuple(counted)] if self.table.ndim == len(counted) else self.table @ counted
        return np.zeros(1, np.float32), float(reward), True, False, {}


TABLE = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
SHIFTED = MultiDiscrete([3, 2, 2], start=[1, -1, 0])
QUICK = {
    "dtype": F64,
    "hidden_sizes": (16,),
    "batch_size": 64,
    "learning_rate": 0.03,
    "learning_starts": 100,
    "num_envs": 4,
    "temperature": ALPHA,
    "buffer_size": 2000,
    "updates_per_step": 0.5,
    "num_critics": 1,
}


def panel(**options):
    return sac(lambda: Panel(SHIFTED, TABLE), **{"dtype": F64, "temperature": ALPHA, **options})


def loss_gradient(agent, state, how, value=None):
    """The gradient of the actor's loss, by the sum that ``how`` says, in all of the policy's parameters."""
    tree = FlatParameters.tree(agent.modules[0])
    for parameter in tree["policy"].values():
        parameter.requires_grad_()
    own = Networks(agent.modules[0], tree)
    pi = expectation(agent.task, own("policy", state, 0), state, 0, how)
    least = agent.algorithm.least(own.frozen(), pi) if value is None else torch.zeros_like(pi.relative)
    loss = pi.mean(pi.relative - least / ALPHA)
    found = torch.autograd.grad(loss.mean(), list(tree["policy"].values()))
    return loss.detach(), torch.cat([gradient.flatten() for gradient in found]), pi.entropy


@pytest.mark.parametrize("how", ["factors", "score"])
def test_sums_by_factor_are_unbiased(how):
    """40 means of 50 draws in one state, z-scores of every coordinate that moves, against the sum over all 12."""
    agent = stirred(panel(actor_gradient=how))
    assert agent.actor_gradient == how
    state = torch.full((1, 1), 0.3, dtype=F64)
    exact_loss, exact, entropy = loss_gradient(agent, state, "exact_sum")
    torch.manual_seed(0)
    losses, gradients = [], []
    for _ in range(40):
        loss, gradient, found = loss_gradient(agent, state.expand(50, 1), how)
        losses.append(loss.mean())
        gradients.append(gradient)
        if how == "factors":  # which no draw is needed for
            torch.testing.assert_close(found, entropy.expand(50))
    for found, wanted in ((torch.stack(losses)[:, None], exact_loss), (torch.stack(gradients), exact)):
        error = found.std(0) / math.sqrt(40)
        moves = error > 1e-12
        z = ((found.mean(0) - wanted) / error)[moves]
        assert z.abs().max() < 4.5
        torch.testing.assert_close(found.mean(0)[~moves], wanted.expand_as(error)[~moves])


def test_sums_by_factor_have_less_variance_than_the_score():
    agent, spread = stirred(panel()), {}
    state = torch.full((50, 1), 0.3, dtype=F64)
    for how in ("factors", "score"):
        torch.manual_seed(0)
        spread[how] = torch.stack([loss_gradient(agent, state, how)[1] for _ in range(30)]).var(0).sum()
    assert spread["factors"] < 0.4 * spread["score"]


def test_the_gradient_of_entropy_needs_no_draw():
    """With a critic that is the same everywhere, one draw gives the gradient of the exact sum to the last digits."""
    agent = stirred(panel())
    state = torch.full((3, 1), 0.3, dtype=F64)
    found, wanted = (loss_gradient(agent, state, how, value=0) for how in ("factors", "exact_sum"))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("how", ["factors", "draw"])
def test_the_value_that_follows_by_one_draw(how):
    """20,000 draws of the soft value of one state; the entropy in it is exact."""
    agent = stirred(panel())
    own = networks(agent)
    state = torch.full((20_000, 1), 0.3, dtype=F64)
    values = []
    for each, where in ((how, state), ("exact_sum", state[:1])):
        torch.manual_seed(0)
        pi = expectation(agent.task, own("policy", where, 0), where, 0, each)
        values.append(pi.mean(agent.algorithm.least(own, pi) - ALPHA * pi.relative).detach())
    found, wanted = values
    assert abs(found.mean() - wanted) < 4 * found.std() / math.sqrt(len(found))


def additive(sizes):
    """Rewards of three factors that add up, and the log probabilities of each factor's values at the optimum."""
    parts = [torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=F64) for size in sizes]
    table = sum(part.reshape([-1 if i == j else 1 for j in range(len(sizes))]) for i, part in enumerate(parts))
    return table, torch.cat([(part / ALPHA).log_softmax(-1) for part in parts])


def test_what_adds_up_is_learned_factor_by_factor():
    """350 updates; the optimum is a product, softmax by softmax, and so are its entropies."""
    table, wanted = additive((3, 2, 2))
    agent = sac(lambda: Panel(SHIFTED, table), **QUICK)
    agent.learn(800)
    chosen = agent.policy(torch.zeros(1, dtype=F64), 0)
    assert isinstance(chosen, FactoredCategorical)
    found = chosen.factors.in_row(chosen.log_factors).detach()
    torch.testing.assert_close(found.exp(), wanted.exp(), atol=0.03, rtol=0)
    entropy = -sum((part.exp() * part).sum() for part in wanted.split([3, 2, 2]))
    assert chosen.entropy().item() == pytest.approx(entropy.item(), abs=0.05)
    best = np.array([int(part.argmax()) for part in wanted.split([3, 2, 2])]) + SHIFTED.start
    assert agent.act(np.zeros(1), deterministic=True).tolist() == best.tolist()
    assert SHIFTED.contains(agent.act(np.zeros(1)))
    assert agent.act(np.zeros((5, 1))).shape == (5, 3)


@pytest.mark.parametrize("make", ["sql", "sac"])
def test_what_hangs_together_is_learned_by_a_table(make):
    """Soft Q-learning, and a guide with joint logits: the optimum is the softmax of all twelve joint actions."""
    env, options = lambda: Panel(SHIFTED, TABLE), dict(QUICK)
    if make == "sac":
        options["policy"] = FactoredCategoricalPolicy(Box(-1, 1, (1,)), (3, 2, 2), hidden_sizes=(16,), joint=True)
    agent = (sac if make == "sac" else sql)(env, **options)
    agent.learn(800)
    chosen = agent.policy(torch.zeros(1, dtype=F64), 0)
    assert isinstance(chosen, JointCategorical)
    wanted = (TABLE.flatten() / ALPHA).softmax(-1)
    torch.testing.assert_close(chosen.joint_logits.exp().detach(), wanted, atol=0.03, rtol=0)
    value = ALPHA * (TABLE / ALPHA).exp().mean().log()
    assert agent.critic(torch.zeros(1, dtype=F64), 0).item() == pytest.approx(value.item(), abs=0.05)


def test_too_many_joint_actions_are_learned_factor_by_factor():
    """Nine switches, 512 joint actions: each is on with the probability of its own reward, 350 updates."""
    worth = torch.linspace(-0.6, 0.6, 9, dtype=F64)
    agent = sac(lambda: Panel(MultiBinary(9), worth), **QUICK)
    assert agent.actor_gradient == "factors"
    assert agent.modules[0]["critics"](torch.zeros(2, 1, dtype=F64), torch.zeros(2, 9, dtype=torch.int64)).shape == (
        1,
        2,
    )
    agent.learn(800)
    chosen = agent.policy(torch.zeros(1, dtype=F64), 0)
    torch.testing.assert_close(chosen.probs[:, 1].detach(), (worth / ALPHA).sigmoid(), atol=0.06, rtol=0)
    best = agent.act(np.zeros(1), deterministic=True)
    assert np.delete(best, 4).tolist() == [0] * 4 + [1] * 4  # the one in the middle pays nothing either way
    assert agent.replay.action.dtype == torch.int64
    assert set(agent.replay.action.unique().tolist()) == {0, 1}


def test_default_targets_are_half_of_what_is_possible():
    for space, joint in ((SHIFTED, 12), (MultiBinary(3), 8), (MultiBinary([3, 4]), 2**12)):
        agent = sac(lambda space=space: Panel(space, np.zeros(12)), temperature="auto")
        assert agent.target_entropy == pytest.approx(0.5 * math.log(joint))


def test_the_exact_target_by_hand():
    """The critics' target is the sum over all twelve joint actions."""
    agent = stirred(panel())
    own, state = networks(agent), torch.full((1, 1), 0.3, dtype=F64)
    chosen = own("policy", state, 0)
    q = targets(agent)("critics", state, None, 0).amin(0)[0]
    wanted = 0.0
    for place, action in enumerate(itertools.product(range(3), range(2), range(2))):
        log = chosen.log_prob(torch.tensor(action))[0]
        wanted = wanted + log.exp() * (q[place] - ALPHA * (log + math.log(12)))
    pi = expectation(agent.task, chosen, state, 0, "exact_sum")
    found = pi.mean(agent.algorithm.least(targets(agent), pi) - ALPHA * pi.relative)
    torch.testing.assert_close(found[0], wanted)


class Wrong(nn.Module):
    def __init__(self, chosen):
        super().__init__()
        self.chosen, self.weight = chosen, nn.Parameter(torch.zeros(()))

    def forward(self, state, t):
        return self.chosen(state.new_zeros(len(state)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sql(lambda: Panel(MultiBinary(9), np.zeros(9))), "512 joint actions, and SoftQLearning sums .* 256"),
        (lambda: mpo(lambda: Panel(MultiBinary(9), np.zeros(9))), "MPO sums over all.*use SoftActorCritic"),
        (lambda: ModelBasedAgent(lambda: Panel(MultiBinary(3), np.zeros(3))), "takes Box and Discrete actions"),
        (lambda: panel(policy_components=2), "policy_components > 1 needs continuous actions"),
        (lambda: panel(objective="ddpg"), "objective='ddpg' needs continuous actions"),
        (lambda: panel(actor_gradient="pathwise"), "actor_gradient='pathwise' does not go with .* use 'exact_sum'"),
        (lambda: panel(target_entropy=math.log(12), temperature="auto"), "has log 12 = 2.485 nats"),
        (lambda: panel(policy=Wrong(lambda zeros: dist.Categorical(logits=torch.zeros(2, 12)))), "event shape"),
        (
            lambda: sac(
                lambda: Panel(MultiBinary(9), np.zeros(9)),
                policy=Wrong(lambda zeros: dist.Bernoulli(logits=torch.zeros(2, 9)).to_event(1)),
            ),
            "too many joint actions to sum over; give a rl_as_inference.factored.FactoredCategorical",
        ),
    ],
)
def test_what_does_not_go_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_policy_of_ones_own_is_summed_over():
    """A distribution that knows nothing of factors is asked for all joint actions."""
    chosen = lambda zeros: dist.Bernoulli(logits=zeros[:, None] + torch.tensor([1.0, -1.0, 0.0])).to_event(1)  # noqa: E731
    agent = sac(lambda: Panel(MultiBinary(3), np.zeros((2, 2, 2))), policy=Wrong(chosen), temperature=ALPHA)
    agent.learn(25)
    pi = expectation(agent.task, agent.policy(torch.zeros(2, 1), 0), torch.zeros(2, 1), 0, "exact_sum")
    torch.testing.assert_close(pi.entropy, chosen(torch.zeros(2)).base_dist.entropy().sum(-1))


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"seeds": 2, "n_step": 3}, (3, 2, 2)),
        ({"history": 3, "value_network": True}, (3, 2, 2)),
        ({"architecture": "batch_norm"}, (2,) * 9),
    ],
)
def test_it_goes_with_other_options(options, sizes):
    agent = sac(lambda: Panel(MultiDiscrete(list(sizes)), np.zeros(sizes)), **options)
    agent.learn(40)
    assert agent._update.tensors["parameters"].isfinite().all()
    assert all(temperature > 0 for temperature in agent.temperatures)


def test_a_saved_agent_goes_on_as_it_would_have(tmp_path):
    agents = [panel(), panel()]
    agents[0].learn(30)
    agents[0].save(tmp_path / "agent")
    agents[1].restore(tmp_path / "agent")
    for agent in agents:
        agent.learn(10)
    assert torch.equal(*(agent._update.tensors["parameters"] for agent in agents))
    assert torch.equal(*(agent.replay.action for agent in agents))


def test_one_factor_is_a_discrete_action():
    """MultiDiscrete([4]) and Discrete(4) have the same critics, entropies and targets."""
    one, other = (sac(lambda s=s: Panel(s, np.zeros(4)), dtype=F64) for s in (MultiDiscrete([4]), Discrete(4)))
    assert one.target_entropy == other.target_entropy
    state = torch.full((1, 1), 0.3, dtype=F64)
    for agent in (one, other):
        stirred(agent)
    values = []
    for agent in (one, other):
        own = networks(agent)
        pi = expectation(agent.task, own("policy", state, 0), state, 0, "exact_sum")
        values.append((pi.entropy, pi.mean(agent.algorithm.least(own, pi))))
    torch.testing.assert_close(*values)
