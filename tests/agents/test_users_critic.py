"""Critics of the user's own in soft actor-critic, and target entropies said as a standard deviation."""

import math

import gymnasium
import pytest
import torch
from scipy import stats
from small_agents import F64, checkpoint, mpo, networks, sac, same, sql, targets
from torch import nn

from rl_as_inference.agents import SoftActorCritic
from rl_as_inference.agents.entropy import entropy_of_scale
from rl_as_inference.critics import QEnsemble

BOX3, BOX4 = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Box(-1, 1, (4,))
UNIT, TWO = gymnasium.spaces.Box(-1, 1, (1,)), gymnasium.spaces.Discrete(2)


class Bilinear(nn.Module):
    """Three critics, ``s W a + b``; of discrete actions every value at once."""

    def __init__(self, states, actions, *, discrete=False):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, states, actions)), nn.Parameter(torch.zeros(3))
        self.discrete = discrete

    def forward(self, state, action=None, t=0):
        values = state @ self.weight  # (3, *batch, actions)
        if self.discrete:
            assert action is None
            return values + self.bias[:, None, None]
        return (values * action).sum(-1) + self.bias[:, None]


# Critics.


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_a_critic_of_ones_own_is_learned_and_has_a_target_average(env):
    """After one update the targets have moved by their share towards what was learned."""
    torch.manual_seed(0)
    discrete = env == "CartPole-v1"
    own = Bilinear(4, 2, discrete=True) if discrete else Bilinear(3, 1)
    before = own.weight.detach().clone()
    agent = sac(env, critic=own, dtype=F64, target_average=0.1)
    assert agent.num_critics == 3
    agent.learn(20)
    assert agent.num_updates == 1
    learned = own.weight.detach()
    assert not torch.equal(learned, before.double())
    state = torch.randn(5, 4 if discrete else 3, dtype=F64)
    action = () if discrete else (torch.rand(5, 1, dtype=F64),)
    at = (state, *(action or (None,)), 0)
    expected = 0.9 * Q(before.double(), own, 0, *at) + 0.1 * Q(learned, own, own.bias, *at)
    torch.testing.assert_close(targets(agent)("critics", *at), expected)
    torch.testing.assert_close(networks(agent)("critics", *at), own(*at))


def Q(weight, like, bias, *at):
    """The values of given weights."""
    other = Bilinear(*weight.shape[1:], discrete=like.discrete).double()
    with torch.no_grad():
        other.weight.copy_(weight)
        other.bias.copy_(torch.as_tensor(bias))
        return other(*at)


def test_the_update_values_actions_by_it():
    agent = sac(critic=Bilinear(3, 1), dtype=F64)
    state, action = torch.randn(4, 3, dtype=F64), torch.rand(4, 1, dtype=F64)
    value = agent.critic.action_values(state, action)
    assert torch.equal(value, agent.modules[0]["critics"](state, action).amin(0))


def test_it_is_given_again_when_a_file_is_loaded(tmp_path):
    one = sac("CartPole-v1", critic=Bilinear(4, 2, discrete=True), seeds=2)
    one.learn(30)
    one.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"critic: the agent in .* has a Bilinear of the user's"):
        SoftActorCritic.load(tmp_path / "agent")
    other = SoftActorCritic.load(tmp_path / "agent", critic=Bilinear(4, 2, discrete=True))
    for each in (one, other):
        each.learn(10)
    assert same(checkpoint(one, tmp_path / "a"), checkpoint(other, tmp_path / "b"))


class Running(Bilinear):
    """A critic that counts how often it was called."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, state, action=None, t=0):
        self.calls += 1
        return super().forward(state, action, t)


class OneValue(nn.Linear):
    def forward(self, state, action, t):
        return super().forward(torch.cat([state, action], -1))


@pytest.mark.parametrize(
    ("env", "critic", "message"),
    [
        ("Pendulum-v1", nn.Identity(), "critic has no parameters to train"),
        ("Pendulum-v1", lambda s, a, t: a, "critic has no parameters to train"),
        (
            "Pendulum-v1",
            QEnsemble(BOX4, UNIT),
            r"critic fails for two states, \(2, 3\) float32, called as \(state, act",
        ),
        ("Pendulum-v1", OneValue(4, 1), r"critic must return \(num_critics, 2\) for two states .* returned \(2, 1\)"),
        ("Pendulum-v1", Running(3, 1), r"critic changes its buffer calls when it is called"),
        (
            "CartPole-v1",
            QEnsemble(BOX4, gymnasium.spaces.Discrete(5)),
            r"\(num_critics, 2, 2\) .* returned \(2, 2, 5\)",
        ),
    ],
)
def test_critics_that_do_not_fit_are_refused(env, critic, message):
    with pytest.raises(ValueError, match=message):
        sac(env, critic=critic)


def test_what_does_not_go_with_it_is_refused():
    own = QEnsemble(BOX3, UNIT)
    with pytest.raises(ValueError, match="num_critics is for the critics made here"):
        sac(critic=own, num_critics=3)
    with pytest.raises(ValueError, match="critic is a critic on states, and with memory these are made here"):
        sac(critic=own, memory="gru")


# The scale of actions.


@pytest.mark.parametrize("sigma", [0.05, 0.15, 0.4])
@pytest.mark.parametrize("size", [1, 6])
def test_the_target_is_the_entropy_of_that_gaussian(sigma, size):
    box = gymnasium.spaces.Box(-1, 1, (size,))
    assert entropy_of_scale(sigma, box) == pytest.approx(size * float(stats.norm(scale=sigma).entropy()), rel=1e-12)


def test_learners_take_a_scale_for_a_target():
    expected = float(stats.norm(scale=0.15).entropy())
    assert sac(action_scale=0.15).target_entropy == pytest.approx(expected)
    assert sql("Pendulum-v1", action_scale=0.15).target_entropy == pytest.approx(expected)
    usual = math.exp(-1.5) / math.sqrt(2 * math.pi)  # 0.089, where the usual target -d lies
    assert sac(action_scale=usual).target_entropy == pytest.approx(sac().target_entropy, abs=1e-9)


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        ("Pendulum-v1", {"action_scale": 0.49}, r"no policy on \[-1, 1\] can hold .* 0\.484 .* choose less, 0\.15 say"),
        ("Pendulum-v1", {"action_scale": 0.0}, "action_scale must be a finite number > 0"),
        ("Pendulum-v1", {"action_scale": 0.1, "target_entropy": -1.0}, "say the same thing twice; give one of them"),
        ("Pendulum-v1", {"action_scale": 0.1, "target_return": -200.0}, "target_return and action_scale both tune"),
        ("Pendulum-v1", {"action_scale": 0.1, "temperature": 0.2}, r"fixed at 0\.2 .* say temperature='auto'"),
        ("CartPole-v1", {"action_scale": 0.1}, r"these are Discrete\(2\); give target_entropy in nats, 0\.347 say"),
    ],
)
def test_scales_that_cannot_be_are_refused(env, options, message):
    with pytest.raises(ValueError, match=message):
        sac(env, **options)


def test_a_scale_just_below_the_uniform_density_is_taken():
    assert sac(action_scale=0.483).target_entropy < math.log(2)


def test_mpo_has_no_such_target():
    with pytest.raises(ValueError, match="action_scale tunes the temperature of an entropy that MPO does not count"):
        mpo(action_scale=0.1)
