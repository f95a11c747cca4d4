"""A recurrent memory: its sequences, its encoder, what reaches it, and that learners go on working with it."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from command_line import rlai
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from small_agents import F64, Line, checkpoint, networks, sac, same, small_mdp, sql, stirred, targets
from test_windows import LENGTHS, Diary, hidden
from torch import nn

from rl_as_inference.agents.evaluation import mode_of
from rl_as_inference.agents.recurrent import GRUEncoder, Recurrent
from rl_as_inference.agents.replay import Batch
from rl_as_inference.guides import TanhGaussianPolicy

GRU: dict[str, Any] = {"memory": "gru", "sequence_length": 5, "burn_in": 3}


@pytest.mark.parametrize("capacity", [500, 36])
def test_sequences_are_successive_steps_of_one_environment(capacity: int) -> None:
    """Across the ends of episodes, in a ring that is not full and in one that is and begins in its middle."""
    books: Any = {}
    who = iter(range(2))
    agent = sac(lambda: Diary(books, next(who), integers=False), num_envs=2, buffer_size=capacity, learning_starts=50)
    agent.learn(50)
    replay = agent.replay
    batch = replay.sequences(replay.storage[0], replay.size, replay.position, 200, 8)
    assert batch.state.shape == (8, 200, 3, 1)
    starts = set()
    for column in range(200):
        who_is, episode, time = (int(number) for number in batch.state[0, column, :, 0])
        starts.add((who_is, episode, time))
        for step in range(8):
            assert batch.state[step, column, :, 0].tolist() == [who_is, episode, time]
            assert batch.next_states[step, column, :, 0].tolist() == [who_is, episode, time + 1]
            np.testing.assert_allclose(batch.action[step, column], books[who_is, episode][1][time], atol=1e-6)
            time += 1
            ends = time == LENGTHS[episode % len(LENGTHS)]
            assert batch.alive[step, column] == (not ends)
            assert batch.terminated[step, column] == (ends and episode % 2 == 0)
            episode, time = (episode + 1, 0) if ends else (episode, time)
    assert len(starts) == 2 * (min(capacity, 50) // 2 - 7)  # every one that there is


def test_the_encoder_is_pytorchs_cell_where_no_episode_begins() -> None:
    encoder, cell = GRUEncoder(3, 4).double(), nn.GRUCell(3, 4).double()
    for own, theirs in ((encoder.inputs, "ih"), (encoder.recurrent, "hh")):
        own.weight.data = getattr(cell, f"weight_{theirs}").data.clone()
        own.bias.data = getattr(cell, f"bias_{theirs}").data.clone()
    seen, done = torch.randn(6, 5, 2, dtype=F64), torch.randn(6, 5, 1, dtype=F64)
    keep = torch.ones(6, 5, 1, dtype=F64)
    keep[3, 2] = 0
    hidden_state, states = torch.zeros(5, 4, dtype=F64), encoder(seen, done, keep)
    for t in range(6):
        hidden_state = hidden_state * keep[t]
        hidden_state = cell(torch.cat([seen[t], done[t] * keep[t]], -1), hidden_state)
        torch.testing.assert_close(states[t], hidden_state)


def test_what_is_learned_from_is_what_acts() -> None:
    """The features of a sequence from an episode's beginning are those of the windows that acting sees there."""
    agent = stirred(sac("CartPole-v1", dtype=F64, **GRU))
    algorithm, window = agent.algorithm, agent.arena.window
    assert isinstance(algorithm, Recurrent)
    assert window is not None
    seen: dict[str, Any] = {}

    class Spy:
        def loss(self, networks: Any, targets: Any, batch: Any) -> Any:
            seen["batch"] = batch
            return algorithm_loss(networks, targets, batch)

    algorithm_loss = algorithm.inner.loss
    algorithm.inner.loss = Spy().loss  # type: ignore[method-assign]
    envs = agent.arena.another(1, seed=3)
    states, rows = [envs.reset()[0]], []
    for step in range(8):
        action = np.array([step % 2])
        taken = envs.step(action)
        rows.append((window.latest(states[-1]), action[0], taken.reward[0], window.latest(taken.next_state[0])))
        states.append(taken.next_state[0])
    assert not taken.terminated.any()
    columns = [torch.as_tensor(np.array(column))[:, None] for column in zip(*rows, strict=True)]
    alive = torch.ones(8, 1, dtype=F64)
    batch = Batch(columns[0].double(), columns[1], columns[2], columns[3].double(), alive, torch.zeros_like(alive))
    algorithm.loss(networks(agent), targets(agent), batch)
    wanted = algorithm._features(agent.modules[0]["encoder"], torch.as_tensor(np.array(states)).double())
    torch.testing.assert_close(seen["batch"].state, wanted[3:8])
    # What follows is encoded by the target average.
    lagging = targets(agent)
    wanted = algorithm._features(lambda *args: lagging("encoder", *args), torch.as_tensor(np.array(states)).double())
    torch.testing.assert_close(seen["batch"].next_states[0, :-1], wanted[4:8])  # a window begins one step later
    # An end within the sequence: what comes after it is the beginning of another episode.
    alive[4] = 0
    algorithm.loss(networks(agent), targets(agent), batch)
    fresh = algorithm._features(agent.modules[0]["encoder"], torch.as_tensor(window.first(rows[5][0])).double())
    torch.testing.assert_close(seen["batch"].state[2], fresh)


@pytest.mark.parametrize("make", [sac, sql])
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_the_critics_alone_move_the_encoder_and_not_through_the_burn_in(make: Any, env: str) -> None:
    agent = stirred(make(env, learning_starts=60, **GRU))
    for _ in range(50):
        agent._loop.step()
    replay, algorithm = agent.replay, agent.algorithm
    batch = algorithm.batch(replay, replay.storage[0], replay.size, replay.position, 20)
    assert batch.state.shape[:2] == (8, 4)
    batch = batch._replace(state=batch.state.requires_grad_())
    own = networks(agent)
    parameters = [parameter.detach().clone().requires_grad_() for parameter in own.tree["encoder"].values()]
    own.tree["encoder"] = dict(zip(own.tree["encoder"], parameters, strict=True))
    with torch.enable_grad():
        total, metrics = algorithm.loss(own, targets(agent), batch)
    one = torch.autograd.grad(total, parameters, retain_graph=True)
    other = torch.autograd.grad(metrics["critic_loss"], [*parameters, batch.state])
    for mine, theirs in zip(one, other[:-1], strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.abs().max() > 0
    assert not other[-1][:3].any()
    assert other[-1][3:].any()


@pytest.mark.parametrize(
    ("make", "env", "options"),
    [(sac, "Pendulum-v1", {"seeds": 2, "num_envs": 2}), (sql, "CartPole-v1", {}), (sac, hidden, {"num_envs": 2})],
    ids=["sac-pendulum", "sql-cartpole", "process"],
)
def test_a_run_that_was_saved_goes_on_bit_for_bit(make: Any, env: Any, options: Any, tmp_path: Any) -> None:
    env = hidden() if env is hidden else env
    options = {**GRU, "sequence_length": 2, "burn_in": 1, **options, "buffer_size": 40, "updates_per_step": 0.3}
    agent = make(env, **options)
    agent.learn(47)
    agent.save(tmp_path / "a")
    agent.learn(20)
    other = make(env, **options)
    other.restore(tmp_path / "a")
    other.learn(20)
    assert same(checkpoint(other, tmp_path / "b"), checkpoint(agent, tmp_path / "c"))
    if isinstance(env, str):
        assert type(agent).load(tmp_path / "a").options["memory"] == "gru"
    for wrong in ({"memory": None}, {"burn_in": 2}):
        with pytest.raises(ValueError, match="was written with another"):
            make(env, **{**options, **wrong}).restore(tmp_path / "a")


def test_what_was_seen_earlier_is_remembered() -> None:
    options = {"hidden_sizes": (32,), "batch_size": 64, "learning_rate": 0.01, "learning_starts": 100, "num_envs": 10}
    agent = sac(hidden(), updates_per_step=0.25, target_average=0.05, **{**GRU, "sequence_length": 4, **options})
    agent.learn(1000)
    assert agent.evaluate(100).mean == 1
    assert agent.critic(torch.as_tensor(agent.envs.state), torch.zeros(10, dtype=torch.long)).shape == (10,)


def test_acting_remembers_until_an_episode_begins() -> None:
    agent = stirred(sac(**GRU))
    observations = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    runs = []
    for _ in range(2):
        runs.append([float(agent.act(observation, deterministic=True)[0]) for observation in observations])
        agent.begin_episode()
    assert runs[0] == runs[1]
    first = torch.as_tensor(agent.arena.window.first(observations[3]))  # type: ignore[union-attr]
    assert runs[0][3] != pytest.approx(2 * float(mode_of(agent.policy(first, 0)).detach()[0]), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "lstm"}, "memory must be one of gru; got 'lstm'"),
        ({**GRU, "history": 4}, "history=4 does not go with memory='gru'; leave one of them out"),
        ({**GRU, "n_step": 3}, "n_step=3 does not go with memory='gru'; leave one of them out"),
        ({**GRU, "sequence_length": 1}, "sequence_length must be an integer >= 2, got 1"),
        ({**GRU, "burn_in": -1}, "burn_in must be an integer >= 0, got -1"),
        ({**GRU, "burn_in": 30}, r"learning_starts must be >= 35, the steps of a whole sequence .* got 20; raise it"),
        ({**GRU, "num_envs": 4}, "learning_starts must be >= 32"),
        ({**GRU, "buffer_size": 7}, "buffer_size must be >= 8"),
    ],
)
@pytest.mark.parametrize("make", [sac, sql])
def test_options_that_do_not_go_together_are_refused(make: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("CartPole-v1", **options)


def test_what_a_memory_cannot_remember_is_refused() -> None:
    with pytest.raises(ValueError, match=r"memory: env is a process with an action prior of its own.* use history=k"):
        sql(small_mdp(), **GRU)
    policy = TanhGaussianPolicy(gymnasium.spaces.Box(-1, 1, (3,)), 1)
    with pytest.raises(ValueError, match=r"policy is a guide on states, and with memory these are made here"):
        sac(policy=policy, **GRU)
    vector = SyncVectorEnv([lambda: Line(ends_at=4)] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(ValueError, match="or memory needs a row of every environment"):
        sac(vector, **GRU)


def test_memory_from_the_command_line(tmp_path: Any) -> None:
    small = ["--hidden-sizes", "8", "--batch-size", "8", "--learning-starts", "20", "--num-steps", "30"]
    small += ["--evaluate-every", "30", "--evaluate-episodes", "1", "--no-compile", "--out", str(tmp_path / "run")]
    words = ["--memory", "gru", "--sequence-length", "4", "--burn-in", "2"]
    assert rlai("train", "CartPole-v1", *words, *small)[0] == 0
    assert rlai("evaluate", tmp_path / "run", "--num-episodes", "1")[0] == 0


def test_rows_that_were_never_written_are_not_read() -> None:
    """As tracing would, before the first step."""
    replay = sac("CartPole-v1", **GRU).replay
    replay.storage[:, 1:] = 1e9
    batch = replay.sequences(replay.storage[0], replay.size, replay.position, 20, 8)
    assert not any(bool(part.any()) for part in (batch.state, batch.action, batch.rewards, batch.next_states))
