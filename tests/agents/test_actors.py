"""Actors: that what they send is true whatever dies, that it is the same at any pace, and that none is left behind."""

import functools
import multiprocessing
import os
import signal
import threading
import time
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from command_line import refused, rlai
from known_dynamics import Known, broken_chains, faults
from problems import random_mdp
from small_agents import mpo, sac, sql

from rl_as_inference.agents import ModelBasedAgent, SoftActorCritic
from rl_as_inference.cli.blame import is_of_users_code
from rl_as_inference.nursery import Nursery
from rl_as_inference.processes.environments import NonFiniteError

LONG = os.environ.get("RLAI_SCALE") == "long"
"""Whether what takes long is looked at, as ``make test-scale`` does."""
long = pytest.mark.skipif(not LONG, reason="takes long; RLAI_SCALE=long, or make test-scale, runs it")


@pytest.fixture(scope="module", autouse=True)
def _nursery():
    """One for all tests here, as the import in it takes seconds."""
    nursery = Nursery.shared("rl_as_inference.agents.actor:serve")
    yield
    nursery.close()


@pytest.fixture
def made():
    """Makes learners with actors, whose processes are gone at the end of a test."""
    agents, places = [], []

    def make(env=Known, *, kind=sac, **options):
        agents.append(kind(env, **{"num_actors": 2, "actor_steps": 4, "buffer_size": 2000, **options}))
        return agents[-1]

    yield make
    for agent in agents:
        places += pids(agent)
        agent.close()
    assert not [pid for pid in places if is_alive(pid)]


def pids(agent):
    return [int(where.split()[1]) for where in agent._loop.actors.pool.where if where.startswith("process")]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def are_gone(pids, within):
    end = time.monotonic() + within
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


def test_steps_updates_and_transitions_are_right(made):
    """300 steps of two actors: every transition is true, rows are in each episode's order, episodes are whole."""
    agent = made(n_step=2)
    agent.learn(150)
    agent.learn(150)
    assert (agent.num_steps, agent.num_updates, len(agent.replay)) == (300, 300 - 20 + 2, 300)
    assert (faults(agent.replay), broken_chains(agent.replay)) == ([], 0)
    ended = (agent.replay.terminated | agent.replay.truncated).sum()
    assert len(agent.episodes) == ended > 15
    episodes = [each for each in agent.replay.episodes() if each.terminated or each.truncated]
    assert sorted(len(each) for each in episodes) == sorted(length for *_, length in agent.episodes)
    earned = sorted(float(each.rewards.sum()) for each in episodes)
    assert np.allclose(earned, sorted(total for _, _, total, _ in agent.episodes), atol=1e-4)
    assert len(np.unique(agent.replay.state[:, 3].numpy())) == len(agent.replay.episodes())  # no episode twice


def test_a_run_is_the_same_at_any_pace(made):
    """Two actors, of which now one and now the other is slow: bit for bit, also learned in parts."""
    pauses = [(), (0.002, 0.0, 0.0, 0.01)]
    agents = [made(functools.partial(Known, pause), seed=4) for pause in pauses]
    agents[0].learn(120)
    agents[1].learn(50)
    agents[1].learn(70)
    for name, tensor in agents[0]._update.tensors.items():
        assert name == "sums" or torch.equal(tensor, agents[1]._update.tensors[name]), name
    assert torch.equal(agents[0].replay.storage[:, :120], agents[1].replay.storage[:, :120])


@pytest.mark.parametrize("n_step", [1, 3])
def test_an_actor_that_is_killed_is_replaced_and_said(made, n_step):
    """SIGKILL in mid-run, of three actors: steps, replay and updates are right, and the others stay."""
    agent, killed = made(num_actors=3, n_step=n_step), []

    def kill(row):
        if row["step"] >= 100 and not killed:
            killed.append((pids(agent)[1], [pids(agent)[0], pids(agent)[2]]))
            os.kill(killed[0][0], signal.SIGKILL)

    with pytest.warns(UserWarning, match=r"actor 1 \(process \d+\) died: killed by SIGKILL") as said:
        agent.learn(900, report_every=50, on_report=kill)
    assert len(said) == 1
    assert str(killed[0][0]) in str(said[0].message)
    assert (pids(agent)[0], pids(agent)[2]) == tuple(killed[0][1])
    assert pids(agent)[1] != killed[0][0]
    steps = agent.num_steps
    assert 900 <= steps < 903
    assert len(agent.replay) == steps
    assert agent.num_updates in range(steps - 20, steps - 20 + 4)
    assert faults(agent.replay, cut=1) == []
    if n_step > 1:
        assert broken_chains(agent.replay) == 0
    ended = agent.replay.terminated | agent.replay.truncated
    assert len(agent.episodes) == int(ended.sum()) - 1  # all but the one that died


@long
def test_all_actors_may_die_at_once(made):
    """With the process that they are forked from, too."""
    agent = made()
    agent.learn(40)
    nursery = agent._loop.actors.pool._places[0]._nursery.pid
    for pid in (nursery, *pids(agent)):
        os.kill(pid, signal.SIGKILL)
    with pytest.warns(UserWarning, match=r"actor [01] .* died") as said:
        agent.learn(60)
    assert len(said) == 2
    assert (agent.num_steps, len(agent.replay), faults(agent.replay, cut=2)) == (100, 100, [])


def test_actors_act_by_the_policy_that_goes_out(made):
    """A policy that is certain of 1: the actor's actions are 1 from when learning has started, and not before."""
    agent = made(learning_rate=1e-12, hidden_sizes=(4,), batch_size=2)
    _certain(agent)
    agent.learn(40)
    action = agent.replay.action[:, 0]
    assert (action[:20] < 0.99).any()
    assert (action[20:] > 0.99).all()


def _certain(agent):
    parameters = dict(agent.modules[0]["policy"].named_parameters())
    bias = [value for name, value in parameters.items() if name.endswith("bias")][-1]
    with torch.no_grad():
        for value in parameters.values():
            value.zero_()
        bias.copy_(torch.tensor([20.0, -5.0]))


def test_the_lag_is_reported(made):
    """Of parameters that go out always, or never again: the mean and the largest, in updates."""
    for every, most in ((1, 3 * 8), (10**6, 200)):
        agent = made(parameters_every=every)
        agent.learn(200, report_every=100)
        first, last = agent.history
        assert 0 <= first["policy_lag"] <= first["largest_policy_lag"]
        assert first["largest_policy_lag"] < last["largest_policy_lag"] if every > 1 else True
        assert last["policy_lag"] > 150 - 20 if every > 1 else last["largest_policy_lag"] <= most
    plain = sac(Known)
    plain.learn(50)
    assert "policy_lag" not in plain.history[-1]


@pytest.mark.parametrize(
    "options",
    [
        {"kind": sql, "env": "CartPole-v1"},
        {"noise_repeats": 4},
        pytest.param({"kind": mpo}, marks=long),
        pytest.param({"history": 2}, marks=long),
        pytest.param({"memory": "gru", "sequence_length": 4, "burn_in": 2, "learning_starts": 24}, marks=long),
        pytest.param({"architecture": "residual", "critic_hidden_sizes": (8,)}, marks=long),
        pytest.param({"target_return": -5.0}, marks=long),
        pytest.param({"priority_exponent": 0.6}, marks=long),
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_learners_and_states_have_actors_too(made, options):
    agent = made(**options)
    agent.learn(30)
    assert agent.num_steps == 30 == len(agent.replay)
    assert agent.num_updates > 0
    assert broken_chains(agent.replay) == 0


def test_an_id_that_is_registered_here_alone(made):
    gymnasium.register("KnownHere-v0", entry_point=lambda **options: Known(**options))
    agent = made("KnownHere-v0", num_actors=1, env_kwargs={"pauses": (0.001,)})
    agent.learn(30)
    assert (agent.envs.name, faults(agent.replay)) == ("KnownHere-v0", [])


class Failing(Known):
    def step(self, action):
        if self.state[2] == 3:
            raise OSError("the simulator is gone")
        return super().step(action)


class Vanishing(Known):
    """Ends its process, where that is not the one given."""

    def __init__(self, home, at_once):
        super().__init__()
        self.home, self.at_once = home, at_once
        self._vanish(at_once)

    def step(self, action):
        self._vanish(True)
        return super().step(action)

    def _vanish(self, now):
        if now and os.getpid() != self.home:
            os._exit(3)


def test_an_error_in_an_environment_is_raised_here(made):
    agent = made(Failing)
    with pytest.raises(OSError, match="the simulator is gone") as caught:
        agent.learn(40)
    assert any("in actor 0" in note for note in caught.value.__notes__)
    assert "raise OSError" in str(caught.value.__cause__)  # where it arose
    assert is_of_users_code(caught.value)
    assert pids(agent) == []


class NotFinite(Known):
    def step(self, action):
        state, _, *ends = super().step(action)
        return state, float("nan"), *ends


def test_what_is_not_finite_is_told_as_without_actors(made):
    agent = made(NotFinite, num_actors=1)
    with pytest.raises(NonFiniteError, match=r"NotFinite.*reward") as caught:
        agent.learn(40)
    assert (caught.value.field, caught.value.env_index) == ("reward", 0)


class Forking(Known):
    """Has a process of its own, which outlives it for a while and holds all that it had open."""

    def __init__(self, home):
        super().__init__()
        if os.getpid() != home and os.fork() == 0:
            time.sleep(15)
            os._exit(0)


def test_an_actor_whose_child_outlives_it_is_seen_to_be_dead(made):
    agent = made(functools.partial(Forking, os.getpid()), num_actors=1)
    agent.learn(30)
    os.kill(pids(agent)[0], signal.SIGKILL)
    with pytest.warns(UserWarning, match="actor 0 .* died: killed by SIGKILL"):
        agent.learn(30)
    assert faults(agent.replay, cut=1) == []


@pytest.mark.parametrize("at_once", [True, False])
def test_an_environment_that_only_dies_is_an_error(made, at_once):
    agent = made(functools.partial(Vanishing, os.getpid(), at_once), num_actors=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="env: actor 0 died 3 times"):
            agent.learn(40)


def test_ctrl_c_is_the_learners_alone(made):
    """Sent to all, as a terminal does: the step is finished, learning goes on from there, and closing ends them."""
    agent = made()

    def interrupt(row):
        for pid in pids(agent):
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        agent.learn(60, report_every=30, on_report=interrupt)
    assert (agent.num_steps, agent.is_whole) == (30, True)
    before = pids(agent)
    agent.learn(10)
    assert pids(agent) == before
    agent.close()
    assert not any(map(is_alive, before))
    agent.learn(10)  # others begin
    assert (faults(agent.replay, cut=2), len(agent.replay)) == ([], 50)


def _learn_for_ever(pipe):
    agent = sac(functools.partial(Known, (0.01,)), num_actors=2)
    agent.learn(4)
    pipe.send([*pids(agent), agent._loop.actors.pool._places[0]._nursery.pid])
    agent.learn(10**6)


def test_a_learner_that_is_killed_leaves_no_process():
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    learner = multiprocessing.get_context("fork").Process(target=_learn_for_ever, args=(theirs,))
    learner.start()
    assert ours.poll(240)
    actors = ours.recv()
    assert len(actors) == 3
    assert all(map(is_alive, actors))
    os.kill(learner.pid, signal.SIGKILL)
    learner.join()
    assert are_gone(actors, within=10)


def test_a_restored_run_begins_new_episodes_and_says_so(made, tmp_path):
    agent, other = made(), made()
    agent.learn(40)
    agent.save(tmp_path / "a")
    with pytest.warns(UserWarning, match="new episodes begin"):
        other.restore(tmp_path / "a")
    other.learn(40)
    assert (other.num_steps, len(other.replay), faults(other.replay, cut=2)) == (80, 80, [])
    first, second = (set(other.replay.state[rows, 3].tolist()) for rows in (slice(40), slice(40, None)))
    assert not first & second
    with pytest.raises(ValueError, match="number of actors"):
        sac(Known, num_envs=2, buffer_size=2000).restore(tmp_path / "a")
    with pytest.warns(UserWarning, match="new episodes begin"):
        played = SoftActorCritic.load(tmp_path / "a", env=Known)
    assert played.evaluate(2).returns.shape == (2,)


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (lambda: random_mdp(0), {}, "num_actors .* say num_envs instead"),
        (lambda: gymnasium.make("CartPole-v1"), {}, "num_actors .* pass its id, or a factory"),
        (lambda: gymnasium.make_vec("CartPole-v1", 2), {}, "num_actors .* pass its id, or a factory"),
        (lambda: _Unsendable(), {}, "env cannot be sent there"),
        (lambda: lambda: gymnasium.wrappers.NormalizeObservation(Known()), {}, "NormalizeObservation"),
        (lambda: Known, {"num_actors": 0}, "num_actors must be an integer >= 1, got 0"),
        (lambda: Known, {"actor_steps": 0}, "actor_steps must be"),
        (lambda: Known, {"num_envs": 2}, "num_envs does not go with num_actors"),
        (lambda: Known, {"distributed": True}, "distributed does not go with num_actors"),
        (lambda: Known, {"asynchronous": True}, "asynchronous does not go with num_actors"),
        (lambda: Known, {"seeds": 2}, "seeds does not go with num_actors"),
        (lambda: Known, {"normalize_rewards": True}, "normalize_rewards does not go with num_actors"),
        (lambda: Known, {"ray": ""}, "ray must be"),
        (lambda: Known, {"num_actors": None, "ray": "auto"}, "say num_actors too"),
        (lambda: Known, {"num_actors": None, "parameters_every": 5}, "say num_actors too"),
    ],
)
def test_what_goes_not_with_actors_is_refused(env, options, message):
    with pytest.raises(ValueError, match=message):
        sac(env(), **{"num_actors": 2, **options})


class _Unsendable:
    """A factory that holds what stays in its process."""

    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self):
        return Known()


def test_plans_have_no_actors():
    with pytest.raises(ValueError, match="num_actors: actors run a policy"):
        ModelBasedAgent("Pendulum-v1", num_actors=2, learning_starts=40)


def test_the_command_line_has_them(tmp_path):
    """On a user's file, whose factory another process has to make again; and a run that is resumed."""
    file = tmp_path / "mine.py"
    file.write_text("import gymnasium\n\ndef problem(g=10.0):\n    return gymnasium.make('Pendulum-v1', g=g)\n")
    small = ("--num-actors", 2, "--hidden-sizes", 8, "--batch-size", 4, "--learning-starts", 20)
    small += ("--evaluate-episodes", 1, "--no-compile", "--no-progress")
    code, out, err = rlai("train", file, "--g", 9.0, "--num-steps", 40, "--out", tmp_path / "run", *small)
    assert (code, "40" in out) == (0, True), err
    with pytest.warns(UserWarning, match="new episodes begin"):
        code, out, err = rlai("train", "--resume", "--out", tmp_path / "run", "--num-steps", 60, "--no-progress")
    assert (code, "60" in out) == (0, True), err
    assert "num_envs does not go" in refused(
        "train", "CartPole-v1", "--num-envs", 2, "--num-actors", 2, "--out", tmp_path / "b"
    )
