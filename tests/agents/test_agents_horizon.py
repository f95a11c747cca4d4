"""Learners in a process with a horizon of its own: reaching it is an ending, and policy and critics see the time."""

import gymnasium
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from small_agents import F64, batch_of, constant, networks, sac, set_targets, sql, targets
from torch import nn

from rl_as_inference import MarkovDecisionProcess, TabularMDP, exact, to_gymnasium
from rl_as_inference.agents import Replay
from rl_as_inference.agents.evaluation import mode_of
from rl_as_inference.guides import CategoricalPolicy, TabularPolicy

QUICK = {
    "hidden_sizes": (32,),
    "batch_size": 64,
    "learning_rate": 0.01,
    "learning_starts": 200,
    "num_envs": 10,
    "updates_per_step": 0.25,
    "target_average": 0.05,
    "buffer_size": 5000,
}


def buying(**options):
    """An investment of 1 that pays 0.05 a step from then on: it repays in 20 steps, and there are 10."""
    transition = torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [0, 1]]])
    reward, initial = torch.tensor([[0, -1.0], [0.05, 0.05]]), torch.tensor([1.0, 0])
    return TabularMDP(transition, reward, initial, **{"horizon": 10, "temperature": 0.05, **options})


def largest_elbo():
    """Of the process above, by the recursion on paper: waiting and having bought, from the last step back."""
    wait = have = 0.0
    for _ in range(10):
        buy = -1 / 0.05 + have
        wait, have = np.log(0.5 * np.exp(wait) + 0.5 * np.exp(buy)), 0.05 / 0.05 + have
    return float(wait)


@pytest.mark.parametrize("make", [sac, sql])
def test_a_learner_reckons_with_the_horizon(make):
    """200 updates, seed 0: within 0.1 nats of the largest ELBO, -6.92. One that bootstraps past the end buys: -11.5."""
    mdp = buying()
    agent = make(mdp, seed=0, **QUICK)
    agent.learn(1000)
    assert largest_elbo() == pytest.approx(-6.921, abs=1e-3)
    assert exact.elbo(mdp, agent.policy).item() == pytest.approx(largest_elbo(), abs=0.1)
    assert agent.act(0, deterministic=True, t=9) == 0


@pytest.mark.parametrize("make", [sac, sql])
def test_undiscounted_values_are_those_of_the_steps_that_are_left(make):
    """A reward of -1 a step for 5 steps and γ = 1: V_t = -(5 - t), where it fell without bound."""
    mdp = TabularMDP(torch.ones(1, 2, 1), torch.full((1, 2), -1.0), torch.ones(1), horizon=5, temperature=0.1)
    agent = make(mdp, **QUICK)
    agent.learn(1600)
    values = agent.critic(torch.zeros(5, dtype=torch.int64), torch.arange(5))
    torch.testing.assert_close(values, torch.arange(-5.0, 0.0), rtol=0, atol=0.15)
    assert not agent.critic.stationary


def test_the_end_is_stored_as_an_ending_and_every_state_with_its_time():
    agent = sac(buying(), num_envs=2)
    agent.learn(60)
    replay = agent.replay
    assert replay.time.tolist() == [step // 2 % 10 for step in range(60)]
    assert torch.equal(replay.terminated, replay.time == 9)
    assert not replay.truncated.any()
    assert [row[3] for row in agent.episodes] == [10] * 6


def test_the_time_limit_of_an_environment_stays_a_truncation():
    """The same process as an environment: its end cuts off, and nobody sees the time."""
    agent = sac(lambda: to_gymnasium(buying()))
    agent.learn(40)
    assert agent.replay.truncated.nonzero()[:, 0].tolist() == [9, 19, 29, 39]
    assert not agent.replay.terminated.any()
    assert agent.critic.stationary
    assert agent.act(0, True, t=99) in (0, 1)  # not looked at
    with pytest.raises(ValueError, match="replay holds no times: the model has no horizon"):
        _ = agent.replay.time


def test_batches_have_the_times_of_states_and_successors():
    """Segments of three steps from every row of an episode of four: at the end there is nothing after."""
    replay = Replay(gymnasium.spaces.Discrete(9), gymnasium.spaces.Discrete(2), capacity=4, horizon=4)
    for t in range(4):
        arrays = np.array([t]), np.array([0]), np.array([1.0]), np.array([t + 1])
        replay.add(*arrays, np.array([t == 3]), np.array([False]), time=np.array([t]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: (torch.arange(4, dtype=F64) + 0.5) / 4)
        batch = replay.batch(replay.storage[0], replay.size, replay.position, 4, 3)
    assert batch.time.tolist() == [0, 1, 2, 3]
    alive = batch.alive.bool()
    assert torch.equal(batch.next_times[alive], (batch.next_states[alive]).clamp(max=3))
    assert alive.sum(0).tolist() == [3, 3, 2, 1]


class ByTime(nn.Module):
    """Critics whose value of every action is ten times the time, ``(2, *batch, A)``."""

    def forward(self, state, action=None, t=0):
        return (10.0 * torch.as_tensor(t, dtype=F64)).expand(state.shape)[None, ..., None].expand(2, *state.shape, 2)


@pytest.mark.parametrize("make", [sac, sql])
def test_targets_ask_for_the_next_states_time_and_end_at_the_horizon(make):
    """r + γ · 10 (t + 1) of the uniform policy, whose divergence from the prior is 0; r alone at the last step."""
    agent = make(buying(), dtype=F64, discount=0.9)
    own = networks(agent)
    own.modules = {**agent.modules[0], "critics": ByTime()}
    own.tree["critics"] = {}
    time = torch.tensor([0, 4, 9])
    batch = batch_of(agent, [[1.0] * 3], terminated=[[0.0, 0.0, 1.0]])
    batch = batch._replace(time=time, next_times=(time + 1).clamp(max=9)[None])
    found = agent.algorithm.target(own.frozen(), own, batch)
    torch.testing.assert_close(found, torch.tensor([1 + 9.0, 1 + 45.0, 1.0], dtype=F64))


def test_a_stationary_policy_of_the_users_is_asked_with_the_time_all_the_same():
    """A table of steps: the mode of each step by act(), and whole episodes by evaluate()."""
    mdp = buying()
    policy = TabularPolicy(2, 2, horizon=10)
    with torch.no_grad():
        policy.logits[:, 0, 1] = -9.0
        policy.logits[3, 0, 1] = 9.0  # buys at step 3, which costs 1 and brings 6 · 0.05
    agent = sac(mdp, policy=policy)
    assert [int(agent.act(0, True, t=t)) for t in range(10)] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert agent.act(np.zeros(10, int), True, t=np.arange(10)).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert agent.evaluate(3).returns.tolist() == pytest.approx([-1 + 6 * 0.05] * 3, abs=1e-6)
    agent.learn(40)
    assert agent.policy.logits.isfinite().all()
    for wrong in (10, -1, 0.5):
        with pytest.raises(ValueError, match="t must be an integer from 0 to 9"):
            agent.act(0, t=wrong)


class Glide(MarkovDecisionProcess):
    """A point that is pushed towards 0."""

    state_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self):
        super().__init__(horizon=4, temperature=0.5)

    def initial(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def transition(self, state, action):
        return dist.Normal(state + action, 0.1).to_event(1)

    def reward(self, state, action, next_state):
        return -next_state.square().sum(-1)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (sac, {"seeds": 2, "num_envs": 2}),
        (sac, {"policy_components": 3}),
        (sac, {"value_network": True}),
        (sac, {"n_step": 3}),
        (sql, {"seeds": 2}),
        (sql, {"sampler": "resampling"}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_continuous_policies_and_critics_see_the_time_too(make, options):
    """Every update moves what reads the time; batches of states and steps are answered at once."""
    agent = make(Glide(), **options)
    agent.learn(60)
    assert agent.replay.terminated.any()
    state, times = torch.randn(4, 5, 2), torch.arange(4)[:, None].expand(4, 5)
    values = agent.critic(state, times)
    assert values.shape == (4, 5)
    critics = agent.modules[0]["critics"]
    action = torch.zeros(5, 2)
    assert not torch.equal(critics(state[0], action, 0), critics(state[0], action, 3))
    if make is sac:
        first, last = (mode_of(agent.policy(state[0], t)) for t in (0, 3))
        assert not torch.equal(first, last)
    assert agent.act(np.zeros((6, 2)), t=np.arange(6) % 4).shape == (6, 2)
    assert agent.evaluate(3).lengths.flatten().tolist() == [4] * (3 * agent.num_seeds)


def test_the_targets_of_the_value_network_end_too():
    agent = sac(buying(), value_network=True, dtype=F64, discount=0.9)
    constant(agent.modules[0]["value"], ("network.layers.1.bias", [7.0]))
    set_targets(agent)
    batch = batch_of(agent, [[1.0, 1.0]], terminated=[[0.0, 1.0]])
    batch = batch._replace(time=torch.tensor([3, 9]), next_times=torch.tensor([[4, 9]]))
    own = networks(agent)
    found = agent.algorithm.target(own.frozen(), targets(agent), batch)
    assert found.tolist() == pytest.approx([1 + 0.9 * 7, 1.0])


def test_a_checkpoint_of_another_horizon_is_refused(tmp_path):
    sac(buying()).save(tmp_path / "a")
    for other in (buying(horizon=9), buying(horizon=None, discount=1.0)):
        with pytest.raises(ValueError, match="another horizon: it has 10, and this agent"):
            sac(other).restore(tmp_path / "a")


def test_spaces_given_as_a_number_are_told():
    with pytest.raises(ValueError, match=r"state_space must be a gymnasium space such as Discrete\(4\), got 4"):
        CategoricalPolicy(4, 2)
