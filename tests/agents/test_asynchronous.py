"""Environments in processes of their own: what they give, how fast, and that none is left behind."""

import multiprocessing
import os
import signal
import time

import gymnasium
import numpy as np
import pytest
import torch
from problems import random_mdp
from small_agents import Line, sac

from rl_as_inference.processes.asynchronous import in_processes
from rl_as_inference.processes.environments import Environments


class Slow(Line):
    """A walk whose every step takes 5 ms."""

    def step(self, action):
        time.sleep(0.005)
        return super().step(action)


class Failing(Line):
    def step(self, action):
        if self.time == 7:
            raise OSError("the simulator is gone")
        return super().step(action)


def both(make, num_envs, **options):
    yield Environments.make(in_processes(make, num_envs, options), seed=3)
    yield Environments.make(make, num_envs=num_envs, seed=3, **options)


def left():
    return [child for child in multiprocessing.active_children() if child.name.startswith("Worker<EnvironmentsIn")]


@pytest.fixture(autouse=True)
def _none_is_left():
    yield
    assert not left()


@pytest.mark.parametrize(
    ("make", "options"), [("CartPole-v1", {"max_episode_steps": 9}), (lambda: Line(ends_at=6), {})], ids=["id", "own"]
)
def test_they_give_what_they_give_one_after_the_other(make, options):
    """40 steps of three environments over the ends of episodes, bit for bit; also the names and limits."""
    apart, together = both(make, 3, **options)
    assert (apart.name, apart.max_episode_steps, apart.state_space) == (
        together.name,
        together.max_episode_steps,
        together.state_space,
    )
    assert np.array_equal(apart.reset(), together.reset())
    generator = np.random.default_rng(0)
    ends = 0
    for _ in range(40):
        if isinstance(apart.action_space, gymnasium.spaces.Discrete):
            action = generator.integers(0, 2, 3)
        else:
            action = generator.uniform(-1, 1, (3, 1)).astype(np.float32)
        steps = [envs.step(action) for envs in (apart, together)]
        assert steps[0].own_reward is steps[1].own_reward is None  # nothing is normalised
        for one, other in zip(steps[0][:-1], steps[1][:-1], strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)
        ends += int((steps[0].terminated | steps[0].truncated).sum())
    assert ends >= 12
    assert apart.num_steps == together.num_steps == 120
    apart.close()


def test_learning_is_the_same():
    """Four environments for each of two seeds, bit for bit."""
    agents = []
    for asynchronous in (True, False):
        agents.append(sac(lambda: Line(ends_at=7), num_envs=2, seeds=2, asynchronous=asynchronous))
        agents[-1].learn(40)
    for name, tensor in agents[0]._update.tensors.items():
        assert torch.equal(tensor, agents[1]._update.tensors[name]), name
    assert torch.equal(agents[0].replay.state, agents[1].replay.state)
    agents[0].close()


def test_slow_simulators_step_at_the_same_time():
    """8 environments of 5 ms a step: the quickest step of 20, as others delay it least."""
    quickest = []
    for asynchronous in (True, False):
        agent, seconds = sac(Slow, num_envs=8, asynchronous=asynchronous, learning_starts=1000), []
        for _ in range(20):
            start = time.perf_counter()
            agent._loop.step()
            seconds.append(time.perf_counter() - start)
        quickest.append(min(seconds))
        agent.close()
    assert quickest[1] > 2 * quickest[0]


def test_evaluation_runs_in_processes_too():
    agents = [sac("CartPole-v1", asynchronous=asynchronous) for asynchronous in (True, False)]
    evaluations = [agent.evaluate(4) for agent in agents]
    assert torch.equal(evaluations[0].returns, evaluations[1].returns)
    agents[0].close()


def test_a_restored_run_begins_new_episodes_and_says_so(tmp_path):
    agent, other = (sac(lambda: Line(ends_at=6), num_envs=2, asynchronous=True) for _ in range(2))
    agent.learn(40)
    agent.save(tmp_path / "a")
    with pytest.warns(UserWarning, match="new episodes begin"):
        other.restore(tmp_path / "a")
    assert (other.num_steps, len(other.replay)) == (40, 40)
    assert (other.envs.state[:, 1] == 0).all()
    # Others than those that were begun before.
    assert not np.isin(other.envs.state[:, 0], agent.replay.state[:, 0].numpy()).any()
    other.learn(20)
    for each in (agent, other):
        each.close()


def test_an_error_ends_all_processes():
    agent = sac(Failing, num_envs=2, asynchronous=True)
    with pytest.raises(OSError, match="the simulator is gone"):
        agent.learn(40)
    assert not left()


def test_ctrl_c_reaches_the_learner_alone(tmp_path):
    """Sent to the whole group, as a terminal does: the step is finished, and learning goes on from there."""
    agent = sac(Line, num_envs=2, asynchronous=True)

    def interrupt(row):
        for process in left():
            os.kill(process.pid, signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        agent.learn(60, report_every=30, on_report=interrupt)
    assert (agent.num_steps, agent.is_whole, len(left())) == (30, True, 2)
    agent.learn(10)
    agent.close()


def test_an_interrupted_step_can_be_restored_from(tmp_path):
    """A second Ctrl-C inside a step stops the processes; a checkpoint begins others."""
    agent = sac(Slow, num_envs=2, asynchronous=True)
    agent.learn(10)
    agent.save(tmp_path / "a")
    step = agent.envs._vector.step_wait

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    agent.envs._vector.step_wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        agent.learn(10)
    assert step is not None
    assert not left()
    with pytest.warns(UserWarning, match="new episodes begin"):
        agent.restore(tmp_path / "a")
    agent.learn(10)
    assert agent.num_steps == 20
    agent.close()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (lambda: random_mdp(0), "a process in parts steps all its environments in one call already"),
        (lambda: gymnasium.make("CartPole-v1"), "pass the environment's id, or a factory"),
        (lambda: "NoSuch-v0", "NoSuch-v0"),
        (
            lambda: lambda: gymnasium.wrappers.NormalizeObservation(gymnasium.make("CartPole-v1")),
            "NormalizeObservation",
        ),
        (lambda: lambda: 3, "factory that returns int"),
    ],
)
def test_what_cannot_be_in_processes_is_refused(env, message):
    with pytest.raises(ValueError, match=message):
        sac(env(), asynchronous=True)
