"""Windows of observations as states: what is in them, and that everything on learners goes on working with them."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from command_line import refused, rlai
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from small_agents import F64, Line, checkpoint, sac, same, small_mdp, sql, stirred

from rl_as_inference import TabularPOMDP
from rl_as_inference.agents import perturb, record_videos
from rl_as_inference.agents.evaluation import mode_of
from rl_as_inference.agents.identity import identity_of
from rl_as_inference.processes.environments import Environments
from rl_as_inference.records import RunRecord

LENGTHS = (3, 1, 6, 2, 1, 4)
"""Of the episodes of a diary, one after the other and over again; every second one is cut off."""


class Diary(gymnasium.Env):
    """Shows who it is, the episode and the step, and writes down what it showed and what was done."""

    books: dict[tuple[int, int], tuple[list[Any], list[Any]]]

    def __init__(self, books: Any, who: int, *, integers: bool) -> None:
        self.books, self.who, self.episode, self.integers = books, who, -1, integers
        self.observation_space = Discrete(600, start=7) if integers else Box(-1000, 1000, (3, 1))
        self.action_space = Discrete(3, start=2) if integers else Box(-2, 2, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        self.seen, self.done = self.books.setdefault((self.who, self.episode), ([], []))
        return self._show(), {}

    def step(self, action: Any) -> Any:
        self.done.append(np.eye(3)[action - 2] if self.integers else np.array(action, float) / 2)
        self.time += 1
        ends = self.time == LENGTHS[self.episode % len(LENGTHS)]
        return self._show(), 1.0, ends and self.episode % 2 == 0, ends and self.episode % 2 == 1, {}

    def _show(self) -> Any:
        code = (self.who * 28 + self.episode) * 7 + self.time
        numbers = np.array([self.who, self.episode, self.time], np.float32)
        self.seen.append(np.eye(600)[code] if self.integers else numbers)
        return np.int64(code + 7) if self.integers else numbers[:, None]


def window_of(books: Any, who: int, episode: int, time: int, length: int) -> list[float]:
    """What the state must be, told from the diary alone."""
    seen, done = books[who, episode]
    steps = range(time - length + 1, time + 1)
    observations = [seen[t] if t >= 0 else np.zeros_like(seen[0]) for t in steps]
    actions = [done[t] if t >= 0 else np.zeros(3 if len(seen[0]) == 600 else 2) for t in steps[:-1]]
    return np.concatenate([*observations, *actions, [float(t >= 0) for t in steps[:-1]]]).tolist()


@pytest.mark.parametrize("integers", [False, True], ids=["box", "discrete"])
@pytest.mark.parametrize("mode", [None, *AutoresetMode], ids=str)
def test_windows_are_those_of_the_environments_own_diary(mode: Any, integers: bool) -> None:
    """Through ends and cuts of episodes, some of one step; in two environments, whoever resets them."""
    books: Any = {}
    length = 4
    who = iter(range(3))
    make = lambda: Diary(books, next(who), integers=integers)  # noqa: E731
    if mode is None:
        agent = sac(make, num_envs=2, history=length, learning_starts=10, updates_per_step=0.1)
    else:
        agent = sac(SyncVectorEnv([make, make], autoreset_mode=mode), history=length, learning_starts=10)
    agent.learn(50)
    replay, width = agent.replay, 600 if integers else 3
    latest = {
        "state": replay.state[:, (length - 1) * width : length * width],
        "next_state": replay.next_state[:, (length - 1) * width : length * width],
    }
    rows = []
    for name, states in (("state", replay.state), ("next_state", replay.next_state)):
        for state, last in zip(states, latest[name], strict=True):
            numbers = last.tolist()
            if integers:
                code = int(last.argmax())
                numbers = [code // 7 // 28, code // 7 % 28, code % 7]
            who_is, episode, time = (int(number) for number in numbers)
            np.testing.assert_allclose(state, window_of(books, who_is, episode, time, length), atol=1e-6)
            rows.append((name, who_is, episode, time))
    made = [(book, t) for book, (_, done) in books.items() for t in range(len(done))]
    steps = {("state", *book, t) for book, t in made} | {("next_state", *book, t + 1) for book, t in made}
    ignored = mode is AutoresetMode.NEXT_STEP  # whose resets are steps that the diary does not get
    assert set(rows) == steps
    assert len(rows) == 2 * len(made) < (100 if ignored else 101)


def test_one_observation_is_the_learner_as_it_was(tmp_path: Any) -> None:
    agents = [sac(num_envs=2, **options) for options in ({}, {"history": 1})]
    for agent in agents:
        agent.learn(60)
        assert type(agent.envs) is Environments
        agent.begin_episode()  # changes nothing
    assert same(*(checkpoint(agent, tmp_path / "a") for agent in agents))
    assert "history" not in identity_of(agents[0])  # so that earlier files are taken


def hidden() -> TabularPOMDP:
    """The light is seen once, and three steps later the action that fits it earns 1; the other one -1."""
    steps, transition = 3, torch.zeros(8, 2, 8)
    for light in (0, 1):
        for t in range(steps):
            transition[4 * light + t, :, 4 * light + t + 1] = 1
        transition[4 * light + steps, :, 4 * light + steps] = 1
    observation, reward = torch.zeros(8, 3), torch.zeros(8, 2)
    for light in (0, 1):
        observation[4 * light, light] = 1
        observation[4 * light + 1 : 4 * light + 4, 2] = 1
        reward[4 * light + steps - 1] = torch.tensor([1.0, -1.0]) * (1 - 2 * light)
    initial = torch.zeros(8)
    initial[[0, 4]] = 0.5
    return TabularPOMDP(transition, reward, initial, observation, horizon=steps, temperature=0.1)


@pytest.mark.parametrize(
    ("make", "env", "options"),
    [
        (sac, "Pendulum-v1", {"seeds": 2, "num_envs": 2, "n_step": 2}),
        (sql, "CartPole-v1", {"num_envs": 2, "n_step": 3}),
        (sac, hidden, {"num_envs": 3}),
        (sac, lambda: gymnasium.wrappers.NormalizeObservation(gymnasium.make("CartPole-v1")), {"num_envs": 2}),
    ],
    ids=["sac-pendulum", "sql-cartpole", "process", "running-statistics"],
)
def test_a_run_that_was_saved_goes_on_bit_for_bit(make: Any, env: Any, options: Any, tmp_path: Any) -> None:
    env = hidden() if env is hidden else env
    options = {**options, "history": 3, "buffer_size": 40, "updates_per_step": 0.3}
    agent = make(env, **options)
    agent.learn(47)
    agent.save(tmp_path / "a")
    windows = np.array(agent.envs.state)
    agent.learn(40)
    other = make(env, **options)
    other.restore(tmp_path / "a")
    assert np.array_equal(other.envs.state, windows)
    other.learn(40)
    assert same(checkpoint(other, tmp_path / "b"), checkpoint(agent, tmp_path / "c"))
    if isinstance(env, str):
        assert type(agent).load(tmp_path / "a").options["history"] == 3
    for wrong in ({}, {"history": 2}):
        with pytest.raises(ValueError, match="was written with another"):
            make(env, **{**options, "history": 1, **wrong}).restore(tmp_path / "a")


def test_where_an_episode_cannot_be_repeated_its_window_begins_anew(tmp_path: Any) -> None:
    class Noisy(Line):
        def step(self, action: Any) -> Any:
            self.place += np.random.default_rng().normal()
            return super().step(action)

    for env in (Noisy, Line):
        agent, other = sac(env, history=3), sac(env, history=3)
        agent.learn(30)
        agent.save(tmp_path / "a")
        other.restore(tmp_path / "a")
        assert other.envs.state[0, -2:].tolist() == ([0, 0] if env is Noisy else [1, 1])
        assert other.envs.state[0, 5] == pytest.approx(0 if env is Noisy else 3.0)
        other.learn(5)


# Acting.


def test_acting_keeps_the_window_until_an_episode_begins() -> None:
    agent = stirred(sac(history=3, seed=1))
    window = agent.arena.window
    assert window is not None

    def best(*seen: Any, done: Any = ()) -> Any:
        """By the policy, on a window put together by hand; two equal observations at the start are not one."""
        blank = 3 - len(seen)
        actions = [[0.0]] * blank + [np.array(action) / 2 for action in done]
        marks = [0.0] * blank + [1.0] * len(done)
        state = np.concatenate([*[np.zeros(3)] * blank, *seen, *actions, marks]).astype(np.float32)
        return 2 * mode_of(agent.policy(torch.tensor(state), 0)).detach().numpy()

    a, b, c, d = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    for _ in range(2):
        seen: list[Any] = []
        acts: list[Any] = []
        for observation in (a, b, c, d):
            seen.append(observation)
            expected = best(*seen[-3:], done=acts[-2:])
            acts.append(agent.act(observation, deterministic=True))
            np.testing.assert_allclose(acts[-1], expected, rtol=1e-5, atol=1e-6)
        agent.begin_episode()
    # Of a batch, some begin anew.
    first = agent.act(np.stack([a, a]), deterministic=True)
    with pytest.raises(ValueError, match=r"running episodes are of \(2,\); say begin_episode\(\)"):
        agent.act(a)
    with pytest.raises(ValueError, match="observation must have shape"):
        agent.act(np.zeros((2, 4)))
    agent.begin_episode(np.array([True, False]))
    second = agent.act(np.stack([b, b]), deterministic=True)
    np.testing.assert_allclose(second[0], best(b), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second[1], best(a, b, done=first[1:]), rtol=1e-5, atol=1e-6)
    for wrong in ([True], [0, 1], True):
        with pytest.raises(ValueError, match="which must be bool of shape"):
            agent.begin_episode(wrong)


def test_acting_in_an_environment_of_ones_own_is_evaluation() -> None:
    agent = stirred(sql("CartPole-v1", history=4, seed=3))
    wanted = agent.evaluate(1, seed=5)
    envs = Environments.make("CartPole-v1", seed=5)
    observation, length, ended = envs.reset()[0], 0, False
    agent.begin_episode()
    while not ended:
        step = envs.step(np.array([agent.act(observation, deterministic=True)]))
        observation, length, ended = step.next_state[0], length + 1, bool(step.terminated[0] | step.truncated[0])
    assert wanted.lengths.tolist() == [length]


def test_perturbing_and_filming_see_windows_too(tmp_path: Any) -> None:
    agent = stirred(sac(history=2, seed=3))
    plain = agent.evaluate(3, seed=5).returns[None]
    for name in ("observation", "action", "l"):
        answer = perturb(agent, name, [1.0 if name == "l" else 0.0], num_episodes=3, seed=5)
        torch.testing.assert_close(answer.returns[0], plain)
    pytest.importorskip("moviepy")
    assert record_videos(stirred(sql("CartPole-v1", history=2)), tmp_path)[0].exists()


# Learning.


@pytest.mark.parametrize("make", [sac, sql])
def test_what_was_seen_earlier_is_remembered_by_a_window_alone(make: Any) -> None:
    """The light earns 1 to whoever remembers it, and on average 0 to whoever does not."""
    options = {"hidden_sizes": (32,), "batch_size": 64, "learning_rate": 0.01, "learning_starts": 100, "num_envs": 10}
    returns = {}
    for length in (1, 3):
        agent = make(hidden(), history=length, updates_per_step=0.25, target_average=0.05, **options)
        agent.learn(1000)
        returns[length] = agent.evaluate(100).mean
    assert returns[3] == 1
    assert abs(returns[1]) < 0.5


def test_the_action_prior_is_asked_with_the_last_observation() -> None:
    process = small_mdp()
    agent = sql(process, history=2, dtype=F64)
    agent.learn(40)
    states = agent.replay.state
    found = agent.task.log_prior(states)
    torch.testing.assert_close(found, process.log_action_prior[states[:, 4:8].argmax(-1)])
    assert not ((agent.replay.action == 2) & (states[:, 5] == 1)).any()  # which the prior forbids


def test_a_hidden_process_with_an_action_prior_of_its_own() -> None:
    """More observations than states, none of which may be taken for one."""
    observation = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])
    transition, prior = torch.full((2, 3, 2), 0.5), torch.tensor([0.5, 0.5, 0.0])
    process = TabularPOMDP(
        transition,
        torch.ones(2, 3),
        torch.ones(2) / 2,
        observation,
        horizon=5,
        action_prior=prior,
        terminal=[False] * 2,
    )
    agent = sql(process, history=2, temperature="auto", target_entropy=0.5)
    agent.learn(40)
    assert agent.replay.action.max() == 1


# What is refused, and the command line.


@pytest.mark.parametrize("length", [0, -1, 2.0, True, "2"])
@pytest.mark.parametrize("make", [sac, sql])
def test_a_window_is_a_number_of_observations(make: Any, length: Any) -> None:
    with pytest.raises(ValueError, match="history must be an integer >= 1, got"):
        make("CartPole-v1", history=length)


def test_windows_from_the_command_line(tmp_path: Any) -> None:
    out, few = tmp_path / "run", ["--evaluate-every", "40", "--evaluate-episodes", "2", "--no-compile"]
    small = ["--hidden-sizes", "8", "--batch-size", "8", "--learning-starts", "20", "--num-steps", "40"]
    assert rlai("train", "CartPole-v1", "--history", "3", *small, *few, "--out", out)[0] == 0
    assert RunRecord.read(out, "out", ("train",)).settings["history"] == 3
    assert rlai("train", "--resume", "--out", out, "--num-steps", "60")[0] == 0
    assert rlai("evaluate", out, "--num-episodes", "2")[0] == 0
    assert rlai("robustness", out, "--perturb", "observation=0,0.1", "--num-episodes", "2")[0] == 0
    assert "rlai evaluate" in refused("inspect", out)
