"""Data in every form: read to the same transitions, written to Minari and back, and refused where it is wrong."""

import gymnasium
import numpy as np
import pytest
import torch
from small_agents import Line, sac, small_mdp, sql

from rl_as_inference.agents.episodes import Episode, chained
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.offline import read_dataset

FIELDS = ("state", "action", "reward", "next_state", "terminated")


@pytest.fixture
def minari(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()
    return pytest.importorskip("minari")


def rows(replay):
    """The transitions as a set of rows, in any order, bit for bit."""
    columns = [getattr(replay, name).reshape(len(replay), -1).double() for name in FIELDS]
    return sorted(map(tuple, torch.cat(columns, 1).tolist()))


def equal(one, other):
    return (
        np.array_equal(one.states, other.states)
        and np.array_equal(one.actions, other.actions)
        and np.array_equal(one.rewards, other.rewards)
        and (one.terminated, one.truncated) == (other.terminated, other.truncated)
    )


ENVIRONMENTS = {
    "pendulum": lambda: sac("Pendulum-v1", num_envs=3),
    "cartpole": lambda: sql("CartPole-v1", num_envs=2),
    "seeds": lambda: sac("Pendulum-v1", seeds=2),
    "cut off": lambda: sac(lambda: gymnasium.wrappers.TimeLimit(Line(), 7), num_envs=2),
    "ends": lambda: sac(lambda: Line(ends_at=5)),
    "finite": lambda: sql(small_mdp(), num_envs=2),
    "skips": lambda: sac(gymnasium.make_vec("Pendulum-v1", 2, vectorization_mode="sync")),
    "windows": lambda: sac("Pendulum-v1", history=2),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_episodes_of_replay_are_those_that_were_lived(name):
    agent = ENVIRONMENTS[name]()
    agent.learn(450 if name == "skips" else 120)
    episodes = agent.replay.episodes()
    assert sum(map(len, episodes)) == len(agent.replay) * agent.num_seeds
    whole = sorted(len(episode) for episode in episodes if episode.terminated or episode.truncated)
    assert whole == sorted(length for *_, length in agent.episodes)
    running = [episode for episode in episodes if not (episode.terminated or episode.truncated)]
    assert len(running) <= agent.envs.num_envs
    returns = sorted(float(e.rewards.sum()) for e in episodes if e.terminated or e.truncated)
    assert returns == pytest.approx(sorted(earned for _, _, earned, _ in agent.episodes), rel=1e-4)
    if agent.num_seeds == 1:
        assert rows(read_dataset(agent.replay).replay(device=torch.device("cpu"), dtype=torch.float32)) == rows(
            agent.replay
        )


def test_a_ring_that_wrote_over_its_oldest_rows_begins_in_mid_episode():
    agent = sac(lambda: gymnasium.wrappers.TimeLimit(Line(), 7), num_envs=2, buffer_size=40)
    agent.learn(90)
    lengths = [len(episode) for episode in agent.replay.episodes()]
    assert sum(lengths) == 40
    assert max(lengths) == 7
    assert rows(read_dataset(agent.replay).replay(device=torch.device("cpu"), dtype=torch.float32)) == rows(
        agent.replay
    )


def test_times_of_a_horizon_go_along():
    agent = sql(small_mdp(horizon=4, discount=1.0), num_envs=3, buffer_size=30)
    agent.learn(60)
    data = read_dataset(agent.replay)
    assert data.horizon == 4
    again = data.replay(device=torch.device("cpu"), dtype=torch.float32)
    one, other = (
        sorted(torch.stack([each.time, each.state, each.action], 1).tolist()) for each in (again, agent.replay)
    )
    assert one == other


def test_two_environments_in_the_same_state_are_not_mixed_up():
    """Both walk 0, 1, 2 at the same time, with other actions: each keeps its own."""
    state = np.array([0, 0, 1, 1, 2, 2])
    action = np.array([7, 8] * 3)
    ends = np.array([False] * 4 + [True] * 2)
    found = chained(state, action, np.zeros(6), state + 1, ends, ~ends & False, None, num_envs=2)
    assert [set(episode.actions.tolist()) for episode in found] == [{7}, {8}]


@pytest.mark.parametrize("name", ["pendulum", "cartpole", "cut off", "ends", "finite"])
def test_to_minari_and_back_is_exact(name, minari):
    agent = ENVIRONMENTS[name]()
    agent.learn(120)
    written = agent.replay.to_minari("mine/mixed-v0", algorithm_name="ours")
    assert written.total_steps == len(agent.replay)
    for dataset in ("mine/mixed-v0", written):
        data = read_dataset(dataset)
        episodes = agent.replay.episodes()
        assert len(data.episodes) == len(episodes)
        assert all(equal(one, other) for one, other in zip(data.episodes, episodes, strict=True))
        assert rows(data.replay(device=torch.device("cpu"), dtype=torch.float32)) == rows(agent.replay)
    named = name in ("pendulum", "cartpole")
    assert (data.env_spec is not None) == named
    if named:
        assert data.env_spec.id == agent.envs.name


def test_minari_holds_actions_in_the_environments_units(minari):
    agent = sac("Pendulum-v1")
    agent.learn(40)
    written = agent.replay.to_minari("mine/units-v0")
    assert written.action_space == gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)
    actions = np.concatenate([episode.actions for episode in written.iterate_episodes()])
    np.testing.assert_array_equal(actions, 2 * agent.replay.action.numpy())


def test_a_minari_dataset_written_by_others_is_written_again_the_same(minari):
    """Made by Minari's own collector; read, put into replay's form, and written by us."""
    space = gymnasium.spaces.Box(np.array([0.0, -3.0]), np.array([1.0, 5.0]), dtype=np.float64)
    generator = np.random.default_rng(0)
    buffers = []
    for length, ended in ((4, True), (6, False)):
        flags = np.zeros((2, length), bool)
        flags[0 if ended else 1, -1] = True
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                observations=generator.normal(size=(length + 1, 3)),
                actions=np.stack([generator.uniform(space.low, space.high) for _ in range(length)]),
                rewards=generator.normal(size=length),
                terminations=flags[0],
                truncations=flags[1],
                infos={},
            )
        )
    theirs = minari.create_dataset_from_buffers(
        "theirs/random-v0", buffers, action_space=space, observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (3,))
    )
    data = read_dataset(theirs)
    assert [(e.terminated, e.truncated) for e in data.episodes] == [(True, False), (False, True)]
    for episode, buffer in zip(data.episodes, buffers, strict=True):
        np.testing.assert_allclose(data.to_environment(episode.actions), buffer.actions, atol=1e-6)
        np.testing.assert_allclose(episode.states, buffer.observations, rtol=1e-6)
        assert np.abs(episode.actions).max() <= 1


def test_trajectories_end_where_their_mask_does():
    process = small_mdp(horizon=6, discount=1.0)
    trajectories = process.rollout(TabularPolicy(4, 3), 50)
    data = read_dataset(
        trajectories, observation_space=process.state_space, action_space=process.action_space, horizon=6
    )
    lengths = trajectories.lengths()
    assert [len(episode) for episode in data.episodes] == lengths[lengths > 0].tolist()
    assert all(episode.terminated for episode in data.episodes)
    assert data.has_log_policy()
    cut = read_dataset(trajectories, action_space=process.action_space)
    assert [e.truncated for e in cut.episodes] == [len(e) == 6 for e in cut.episodes]


GOOD = {
    "observations": np.zeros((4, 2), np.float32),
    "actions": np.zeros((3, 1), np.float32),
    "rewards": np.ones(3, np.float32),
    "terminations": np.array([False, False, True]),
    "truncations": np.zeros(3, bool),
}


def changed(**changes):
    return [GOOD, {name: value for name, value in {**GOOD, **changes}.items() if value is not None}]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "dataset is empty: it has no episodes"),
        (changed(rewards=None), r"dataset\[1\] lacks rewards: it has observations, actions"),
        (changed(terminations=None, truncations=None), r"dataset\[1\] lacks terminations and truncations"),
        (changed(rewards=np.array([0, np.nan, 0])), r"dataset\[1\]: rewards is nan at \[1\]"),
        (changed(observations=np.full((4, 2), np.inf)), r"dataset\[1\]: observations is inf at \[0, 0\]"),
        (changed(observations=np.zeros((3, 2))), r"dataset\[1\]: observations must be of 4 rows for 3 rewards"),
        (changed(actions=np.zeros((4, 1))), r"dataset\[1\]: actions must be of 3 rows"),
        (changed(rewards=np.zeros((3, 1))), r"dataset\[1\]: rewards must have shape \(T,\)"),
        (changed(observations=np.zeros((4, 3))), "observations of different shapes"),
        (changed(actions=np.full((3, 1), 2.0)), r"actions outside \[-1, 1\]; say action_space"),
        (changed(terminations=np.array([True, False, False])), r"says that it ended at step 0 of 3; give each episode"),
        (changed(truncations=np.zeros(2, bool)), r"truncations must have shape \(3,\)"),
        (changed(log_policy=np.zeros(2)), r"log_policy must have shape \(3,\)"),
        (changed(rewards=np.array(["a", "b", "c"])), "rewards holds <U1, and numbers are needed"),
        (
            changed(rewards=np.zeros(0), observations=np.zeros((1, 2)), actions=np.zeros((0, 1))),
            "is empty: it has no steps",
        ),
    ],
)
def test_data_that_are_wrong_are_named(dataset, message):
    with pytest.raises(ValueError, match=message):
        read_dataset(dataset)


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        (
            {"action_space": gymnasium.spaces.Discrete(2)},
            r"actions have shape \(1,\) each, and the space Discrete\(2\)",
        ),
        ({"action_space": gymnasium.spaces.Box(1, 2, (1,))}, r"actions are outside Box.*say the action_space"),
        ({"action_space": gymnasium.spaces.Box(-np.inf, 2, (1,))}, "Box with unbounded sides"),
        ({"observation_space": gymnasium.spaces.Box(-1, 1, (3,))}, r"observations have shape \(2,\) each"),
        ({"observation_space": gymnasium.spaces.Dict({})}, "Box or Discrete are supported"),
        ({"horizon": 2}, "has 3 steps, and the horizon is 2"),
    ],
)
def test_data_that_do_not_fit_their_spaces_are_named(spaces, message):
    with pytest.raises(ValueError, match=message):
        read_dataset([GOOD], **spaces)


def test_discrete_data_outside_their_space_are_named():
    walk = {"observations": [1, 2, 3], "actions": [0, 1], "rewards": [0.0, 1.0], "terminations": True}
    read_dataset([walk])
    with pytest.raises(ValueError, match=r"dataset\[0\]: an observation must be in Discrete\(3\)"):
        read_dataset([walk], observation_space=gymnasium.spaces.Discrete(3))
    shifted = gymnasium.spaces.Discrete(3, start=1)
    assert read_dataset([walk], observation_space=shifted).episodes[0].states.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"actions are outside Discrete\(1\), first 1 at \[1\]"):
        read_dataset([walk], action_space=gymnasium.spaces.Discrete(1))


@pytest.mark.parametrize("dataset", [3, None, [3], b"abc"])
def test_what_is_no_data_is_refused(dataset):
    with pytest.raises(TypeError, match="dataset must be Trajectories, a list of episodes, a replay"):
        read_dataset(dataset)


def test_an_empty_replay_is_refused(minari):
    replay = sac().replay
    with pytest.raises(ValueError, match="dataset is an empty replay"):
        read_dataset(replay)
    with pytest.raises(ValueError, match="replay is empty: there is nothing to write"):
        replay.to_minari("mine/empty-v0")


def test_minari_ids_that_are_none_or_not_here_are_named(minari):
    with pytest.raises(
        ValueError, match=r"'D4RL/door/human-v2' is not among .* \(there is none\); download it first: minari"
    ):
        read_dataset("D4RL/door/human-v2")
    agent = sac("Pendulum-v1")
    agent.learn(25)
    with pytest.raises(ValueError, match="dataset_id must be a name and a version, such as"):
        agent.replay.to_minari("no version")
    agent.replay.to_minari("mine/here-v0")
    with pytest.raises(ValueError, match=r"there are mine/here-v0"):
        read_dataset("mine/there-v0")
    with pytest.raises(ValueError, match="dataset_id 'mine/here-v0' is taken"):
        agent.replay.to_minari("mine/here-v0")


def test_an_episode_is_taken_as_it_is():
    episode = Episode(np.zeros((3, 2), np.float32), np.zeros((2, 1), np.float32), np.ones(2, np.float32), False, True)
    assert equal(read_dataset([episode]).episodes[0], episode)
