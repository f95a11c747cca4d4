"""Processes that walk on the learner's device: every row is a step of the process, and runs go on bit for bit."""

import gymnasium
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp
from small_agents import F64, checkpoint, sac, same, sql

from rl_as_inference import MarkovDecisionProcess
from rl_as_inference.agents import device_walk
from rl_as_inference.models.pendulum import pendulum
from rl_as_inference.models.point_mass import point_mass
from rl_as_inference.models.tiger import tiger
from rl_as_inference.processes.environments import NonFiniteError


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch):
    monkeypatch.setattr(device_walk, "_FROM", 4)


class Cart(MarkovDecisionProcess):
    """Pushed along a line by up to two units, until it is past 3; a reward for how far, from every start at 0."""

    state_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Box(-1.0, 3.0, (1,))
    horizon = 6
    asks: str | None = None

    def initial(self):
        return dist.Delta(torch.zeros(1), event_dim=1)

    def transition(self, state, action):
        if self.asks == "values" and bool((state > 1).any()):
            action = action / 2
        if self.asks == "numpy":
            action = action / (1 + torch.from_numpy(state.numpy().copy()))
        return dist.Delta(state + action, event_dim=1)

    def reward(self, state, action, next_state):
        return next_state[..., 0] * (torch.nan if self.asks == "nan" else 1.0)

    def terminated(self, state):
        return state[..., 0] > 3

    def prior(self, state):
        return dist.Uniform(-torch.ones_like(state), torch.ones_like(state), validate_args=False).to_event(1)

    has_uniform_prior = True


def rows(agent):
    """Replay by step and environment, ``(steps, num_envs, ...)``."""
    replay, count = agent.replay, agent.num_envs
    names = ("state", "action", "reward", "next_state", "terminated", "time")
    return {name: getattr(replay, name).reshape(-1, count, *getattr(replay, name).shape[1:]) for name in names}


def assert_episodes_are_those_of_replay(agent, found):
    """Returns and lengths, and the steps at which they ended, by adding up rewards environment by environment."""
    running, wanted = torch.zeros(agent.num_envs, dtype=F64), []
    for step, (reward, ended, time) in enumerate(zip(found["reward"], found["terminated"], found["time"], strict=True)):
        running += reward.double()
        for index in ended.nonzero().flatten().tolist():
            wanted.append(((step + 1) * agent.num_envs, 0, float(running[index]), int(time[index]) + 1))
            running[index] = 0
    assert len(agent.episodes) == len(wanted) > 0
    for episode, other in zip(agent.episodes, wanted, strict=True):
        assert episode == pytest.approx(other, rel=1e-5)


def test_every_row_is_a_step_of_the_process():
    """70 steps of five carts, in the process's own units: successors, rewards, ends, times, and new episodes."""
    agent = sac(Cart(), num_envs=5, learning_starts=50)
    agent.learn(5 * 70)
    assert agent._loop.walk.is_traced
    found = rows(agent)
    pushed = found["state"] + 2 * found["action"] + 1  # from [-1, 1] to [-1, 3]
    torch.testing.assert_close(found["next_state"], pushed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["reward"], found["next_state"][..., 0])
    past = found["next_state"][..., 0] > 3
    assert torch.equal(found["terminated"], past | (found["time"] == 5))
    assert past.any()
    assert (~past & found["terminated"]).any()
    going = ~found["terminated"][:-1]
    assert torch.equal(found["state"][1:][going], found["next_state"][:-1][going])
    assert torch.equal(found["time"][1:], torch.where(going, found["time"][:-1] + 1, 0))
    assert not found["state"][1:][~going].any()
    assert_episodes_are_those_of_replay(agent, found)
    assert agent.num_updates == 5 * 70 - 50 + 5
    assert torch.equal(agent._observation[0], torch.where(~found["terminated"][-1:].mT, found["next_state"][-1], 0.0))


def test_finite_states_follow_the_table():
    """8,000 steps of a random process: every transition's frequency within 4.5 standard errors; ends where they are."""
    process = random_mdp(0, terminal=True, horizon=7)
    agent = sql(process, num_envs=200, learning_starts=10**6, buffer_size=8000, hidden_sizes=(4,))
    agent.learn(8000)
    assert agent._loop.walk.is_traced
    found = rows(agent)
    assert torch.equal(found["terminated"], process.terminal[found["next_state"]] | (found["time"] == 6))
    here = found["state"].flatten() * process.num_actions + found["action"].flatten()
    table = process.kernel.dense().reshape(-1, process.num_states).double()
    counts = torch.zeros_like(table).index_put_((here, found["next_state"].flatten()), torch.ones(8000).double(), True)
    total = counts.sum(-1, keepdim=True)
    z = (counts - total * table) / (total * table * (1 - table)).sqrt().clamp(min=1)
    assert float(z.abs().amax()) < 4.5
    assert_episodes_are_those_of_replay(agent, found)


@pytest.mark.parametrize("make", [pendulum, point_mass, Cart])
def test_a_traced_step_is_the_step(make, monkeypatch):
    agents = [sac(make(), num_envs=4, learning_starts=40) for _ in range(2)]
    monkeypatch.setattr(agents[1]._loop.walk, "_prepared", lambda written, read: agents[1]._loop.walk._write)
    for agent in agents:
        agent.learn(100)
    assert agents[0]._loop.walk.is_traced
    assert torch.equal(agents[0].replay.storage[:, :100], agents[1].replay.storage[:, :100])
    assert agents[0].episodes == agents[1].episodes
    assert torch.equal(*(agent._update.tensors["parameters"] for agent in agents))


@pytest.mark.parametrize("asks", ["values", "numpy"])
def test_a_process_that_looks_at_values_is_not_traced(asks):
    process = Cart()
    process.asks = asks
    agent = sac(process, num_envs=4, learning_starts=10**6, buffer_size=400)
    agent.learn(400)
    assert agent._loop.walk.is_traced is False
    found = rows(agent)
    action = 2 * found["action"] + 1
    if asks == "values":
        far = (found["state"] > 1).any(1, keepdim=True)
        action = torch.where(far, action / 2, action)
    else:
        action = action / (1 + found["state"])
    torch.testing.assert_close(found["next_state"], found["state"] + action, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"priority_exponent": 0.5}])
def test_runs_go_on_bit_for_bit(options, tmp_path):
    """From a checkpoint in mid-episode, with two seeds; and seeds have episodes of their own."""
    options = {"num_envs": 4, "seeds": 2, "buffer_size": 60, "updates_per_step": 0.5, **options}
    agents = [sac(Cart(), **options) for _ in range(3)]
    agents[0].learn(120)
    agents[1].learn(72)
    agents[1].save(tmp_path / "a")
    agents[2].restore(tmp_path / "a")
    assert agents[2].episodes == agents[1].episodes
    end = checkpoint(agents[0], tmp_path / "end")
    for agent in agents[1:]:
        agent.learn(48)
        assert same(checkpoint(agent, tmp_path / "other"), end)
        assert agent.episodes == agents[0].episodes
    assert {row[1] for row in agents[0].episodes} == {0, 1}


def test_what_is_not_finite_stops_learning():
    process = Cart()
    process.asks = "nan"
    with pytest.raises(NonFiniteError, match="Cart gave a state or a reward that is NaN"):
        sac(process, num_envs=4).learn(400)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tiger, {}),
        (pendulum, {"history": 2}),
        (pendulum, {"target_return": -500.0}),
        (pendulum, {"num_envs": 2}),
        (lambda: "Pendulum-v1", {}),
    ],
)
def test_others_step_as_they_did(make, options):
    agent = sac(make(), **{"num_envs": 4, **options})
    assert agent._loop.walk is None
    agent.learn(24)
    assert len(agent.replay) == 24
