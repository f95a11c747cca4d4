"""Target entropies where a mask forbids actions: each state is asked for what it allows, and what runs away is told."""

import math
import warnings

import gymnasium
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from small_agents import F64, batch_of, constant, networks, sac, small_mdp, sql, targets
from torch import nn

from rl_as_inference import TabularMDP
from rl_as_inference.agents.entropy import TargetEntropy, TemperatureWatch

EIGHT = torch.cat([torch.full((1, 8), 1 / 8), torch.eye(8)[:1].expand(7, 8)])
"""An action prior: every action in the first state, one alone in the seven others."""


def ring(**options):
    """Eight states in a ring, walked through one by one; in the first the first action pays 1, and the others less."""
    transition = torch.eye(8).roll(1, 1)[:, None].expand(8, 8, 8)
    reward = torch.zeros(8, 8)
    reward[0] = torch.linspace(1, 0, 8)
    return TabularMDP(
        transition, reward, torch.ones(8) / 8, **{"horizon": None, "discount": 0.9, "action_prior": EIGHT, **options}
    )


QUICK = {
    "hidden_sizes": (32,),
    "batch_size": 64,
    "learning_rate": 0.01,
    "learning_starts": 100,
    "num_envs": 8,
    "updates_per_step": 0.125,
    "buffer_size": 4000,
    "temperature": "auto",
}


@pytest.mark.parametrize("make", [sac, sql])
def test_the_default_target_follows_what_each_state_allows(make):
    """625 updates, seed 0: α settles where the free state's entropy is half log 8; it was 1.04 nats of every state,
    of which a mean of 0.26 is possible, and α grew without bound.
    """
    agent = make(ring(), **QUICK)
    agent.learn(2500)
    at_half = agent.temperature
    agent.learn(2500)
    assert agent.temperature < 2 * at_half
    assert agent.temperature < 1
    entropy = agent.policy(torch.tensor(0), 0).entropy().item()
    assert entropy == pytest.approx(0.5 * math.log(8), abs=0.25)
    assert agent.policy(torch.arange(1, 8), 0).probs[:, 0].tolist() == pytest.approx([1.0] * 7)


@pytest.mark.parametrize("make", [sac, sql])
def test_the_slope_of_the_temperature_by_hand(make):
    """dL/dlog α = α (mean H - mean target): H is log 8 and 0 of an even policy, the targets half of that."""
    agent = make(ring(), temperature="auto", initial_temperature=0.3, dtype=F64, hidden_sizes=(4,))
    constant(agent.modules[0]["critics"])
    if make is sac:
        constant(agent.policy)
    batch = batch_of(agent, [[0.0] * 4])._replace(state=torch.tensor([0, 1, 2, 3]))
    own = networks(agent)
    own.tree["temperature"]["log_temperature"].requires_grad_()
    loss, _ = agent.algorithm.loss(own, targets(agent), batch)
    (slope,) = torch.autograd.grad(loss, own.tree["temperature"]["log_temperature"])
    assert slope.item() == pytest.approx(0.3 * (math.log(8) / 4 - 0.5 * math.log(8) / 4))


def test_a_target_that_no_state_allows_is_refused():
    """The most that the small process's prior allows is log 3; of the ring without its free state, nothing."""
    with pytest.raises(ValueError, match=r"target_entropy is 1\.1 nats, .* log 3 = 1\.099 nats"):
        sac(small_mdp(), temperature="auto", target_entropy=1.1)
    two = torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0]).expand(8, 8)
    with pytest.raises(ValueError, match=r"target_entropy is 0\.7 nats.*log 2, of the actions that the prior allows"):
        sac(ring(action_prior=two), temperature="auto", target_entropy=0.7)


def test_a_target_above_what_the_states_visited_allow_is_told_once():
    """1.04 nats, where the mean over the ring is log(8)/8 = 0.26: each of 8 environments goes round in 8 steps."""
    agent = sac(ring(), **{**QUICK, "learning_starts": 1000}, target_entropy=1.04)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        agent.learn(256, report_every=64)
    said = [str(each.message) for each in said if "target_entropy" in str(each.message)]
    assert len(said) == 1
    assert "target_entropy is 1.04 nats, and in the states visited the action prior allows 0.2599 on average" in said[0]


def test_an_alpha_that_runs_away_is_told_once():
    """A target that follows nothing, in states of which nobody knows what they allow."""
    watch = TemperatureWatch(TargetEntropy(1.04, given=False), 0.5, None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for alpha in (0.5, 4e5, 6e5, 1e17):
            watch.look([0.1, alpha], torch.zeros(3))
    assert [str(each.message)[:46] for each in said] == ["α has grown from 0.5 to 6e+05 reward units per"]
    assert "lower target_entropy, or fix temperature" in str(said[0].message)


class Masked(gymnasium.Env):
    """What is observed begins with which of three actions are allowed: all, or the second alone."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,))
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self):
        self.resets = 0

    def _observation(self):
        mask = [1, 1, 1] if self.time % 2 else [0, 1, 0]
        return np.array([*mask, 0.1], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets, self.time = self.resets + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.time += 1
        return self._observation(), float(action == 2), False, self.time == 6, {}


class ReadsTheMask(nn.Module):
    """A policy that fails where nothing is allowed, as where the observation is zeros."""

    def __init__(self, forbidden=-torch.inf):
        super().__init__()
        self.forbidden, self.logits, self.asked = forbidden, nn.Parameter(torch.zeros(3)), []

    def forward(self, state, t):
        allowed = state[..., :3] > 0
        if not self.asked:  # later it is traced, where values are not to be looked at
            self.asked.append(state.clone())
            assert allowed.any(-1).all(), "nothing is allowed"
        return dist.Categorical(logits=torch.where(allowed, self.logits, self.forbidden))


@pytest.mark.parametrize("forbidden", [-torch.inf, -1e8])
def test_a_mask_of_the_users_policy_lowers_the_target_too(forbidden):
    """Of one state of each kind the targets are half log 3 and 0."""
    agent = sac(Masked, policy=ReadsTheMask(forbidden), temperature="auto", dtype=F64)
    state = torch.tensor([[1.0, 1, 1, 0.1], [0, 1, 0, 0.1]], dtype=F64)
    less = agent.algorithm.shortfall(agent.policy(state, 0))
    torch.testing.assert_close(less, torch.tensor([0.0, -0.5 * math.log(3)], dtype=F64))
    assert agent.target_entropy == pytest.approx(0.5 * math.log(3))


def test_a_policy_that_reads_a_mask_is_asked_with_a_real_observation():
    """Zeros allow nothing, and no episode begins so. The episode of that observation is the first to be learned."""
    made = []

    def make():
        made.append(Masked())
        return made[-1]

    agent = sac(make, policy=ReadsTheMask(), temperature=0.1)
    assert agent.policy.asked[0].tolist() == [pytest.approx([0, 1, 0, 0.1])] * 2
    agent.learn(5)
    assert [env.resets for env in made] == [1]
    assert agent.replay.state[0].tolist() == pytest.approx([0, 1, 0, 0.1])
