"""Environments as learners step them: every transition of an instrumented environment, replays, bad numbers."""

import json
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.utils import RunningMeanStd
from problems import random_mdp

from rl_as_inference import LinearGaussianMDP, TabularMDP, exact, models
from rl_as_inference.processes import Environments, GymnasiumProcess, NonFiniteError, to_gymnasium, to_gymnasium_vector
from rl_as_inference.processes.environments import StepError
from rl_as_inference.processes.programs import ProgramProcess

LOW, HIGH = np.array([[-3.0, 0.0], [5.0, -1.0]], np.float32), np.array([[1.0, 10.0], [7.0, 1.0]], np.float32)
BOX, SPACES = gymnasium.spaces.Box, gymnasium.spaces
ENDS = ("terminated", "truncated", "both")


class Counter(gymnasium.Env):
    """An environment whose observation is ``(which, episode, step)``, and that keeps all it is asked.

    Episode ``e`` of environment ``i`` has ``1 + (3 i + 5 e) % 7`` steps and ends in each way in turn.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gymnasium.spaces.Box(LOW, HIGH)

    def __init__(self, which=0, *, reuses_memory=False, bad=None, noise=0):
        self.which, self.episode, self.time, self.over = which, -1, 0, True
        self.memory = np.zeros(3, np.float32) if reuses_memory else None
        self.bad = bad or {}
        self.noise = np.random.default_rng(noise) if noise else None
        self.records, self.seeds, self.total = [], [], 0

    def length(self):
        return 1 + (3 * self.which + 5 * self.episode) % 7

    def observation(self):
        noise = 0.0 if self.noise is None else self.noise.random()
        values = np.array([self.which, self.episode, self.time + noise], np.float32)
        if self.bad.get("observation") == self.total:
            values[1] = self.bad["value"]
        if self.memory is not None:
            self.memory[:] = values
            return self.memory
        return values

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode, self.time, self.over = self.episode + 1, 0, False
        return self.observation(), {}

    def step(self, action):
        assert not self.over, "stepped after an end without a reset"
        assert isinstance(action, np.ndarray)
        assert (action.dtype, action.shape) == (self.action_space.dtype, self.action_space.shape)
        before = self.observation().copy()
        self.time, self.total = self.time + 1, self.total + 1
        how = ENDS[self.episode % 3] if self.time == self.length() else ""
        self.over = bool(how)
        terminated, truncated = how in ("terminated", "both"), how in ("truncated", "both")
        reward = 1000.0 * self.which + 100.0 * self.episode + self.time
        after = self.observation()
        self.records.append((before, action.copy(), reward, after.copy(), terminated, truncated))
        action[...] = np.nan  # an environment may write into what it is given
        return after, self.bad["value"] if self.bad.get("reward") == self.total else reward, terminated, truncated, {}


def actions_for(envs, rng):
    if isinstance(envs.action_space, gymnasium.spaces.Discrete):
        return rng.integers(int(envs.action_space.n), size=envs.num_envs)
    return rng.uniform(-1, 1, (envs.num_envs, *envs.action_space.shape)).astype(np.float32)


def batch_of(kind, **options):
    """The environments behind a batch, and the batch."""
    made = []

    def make():
        made.append(Counter(len(made), **options))
        return made[-1]

    if kind.startswith("owned"):
        return Environments.make(make, num_envs=int(kind[-1]), seed=1), made
    mode, _, memory = kind.partition("/")
    vector = SyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode[mode], copy=memory != "shared")
    return Environments.make(vector, seed=1), made


KINDS = ["owned 1", "owned 3", *(f"{mode.name}{memory}" for mode in AutoresetMode for memory in ("", "/shared"))]


# An environment that writes over its observations loses the final one in Gymnasium's own vector, before we see it.
REUSING = [kind for kind in KINDS if not kind.startswith("SAME_STEP")]


@pytest.mark.parametrize(
    ("kind", "reuses_memory"), [*((kind, False) for kind in KINDS), *((kind, True) for kind in REUSING)]
)
def test_every_transition_is_one_that_the_environment_made(kind, reuses_memory):
    envs, made = batch_of(kind, reuses_memory=reuses_memory)
    rng = np.random.default_rng(0)
    state = envs.reset()
    assert state.dtype == np.float32
    stored = [[] for _ in made]
    skipped = 0
    for _ in range(200):
        actions = actions_for(envs, rng)
        before, kept = state, state.copy()
        step = envs.step(actions)
        assert np.array_equal(before, kept), "a state changed after it was handed out"
        for i in range(envs.num_envs):
            row = (kept[i], actions[i], step.reward[i], step.next_state[i], step.terminated[i], step.truncated[i])
            if step.valid[i]:
                stored[i].append(tuple(np.copy(value) for value in row))
            else:
                skipped += 1
                assert step.state[i, 2] == 0, "only the start of an episode is skipped"
        state = step.state
        assert envs.state is state
    assert bool(skipped) == kind.startswith("NEXT_STEP")
    assert envs.num_steps == sum(len(rows) for rows in stored) == 200 * envs.num_envs - skipped
    for env, rows in zip(made, stored, strict=True):
        assert len(rows) == len(env.records)
        endings = set()
        for (s, a, r, after, terminated, truncated), record in zip(rows, env.records, strict=True):
            assert np.array_equal(s, record[0])
            assert np.array_equal(after, record[3])
            assert (r, terminated, truncated) == (record[2], record[4], record[5])
            # No transition joins two episodes, and the last observation is the episode's own.
            assert s[0] == after[0] == env.which
            assert (after[1], after[2]) == (s[1], s[2] + 1)
            length = 1 + (3 * env.which + 5 * int(s[1])) % 7
            assert bool(terminated or truncated) == (after[2] == length)
            endings.add((bool(terminated), bool(truncated)))
            exact_action = LOW.ravel() + (HIGH - LOW).ravel().astype(np.float64) * (a.astype(np.float64) + 1) / 2
            assert np.allclose(record[1].ravel(), exact_action, rtol=1e-6, atol=1e-6)
        assert endings == {(False, False), (True, False), (False, True), (True, True)}


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (LOW, HIGH, np.float32),
        (-2.0 * np.ones(3), 2.0 * np.ones(3), np.float32),
        (-np.ones(3), np.ones(3), np.float64),
        (np.array([-1e-8, -1e8, 0.1]), np.array([1e8, 1e-8, 0.7]), np.float32),
        (np.array([0]), np.array([255]), np.uint8),
        (np.array(-0.3), np.array(0.9), np.float64),
    ],
)
def test_the_unit_box_reaches_the_bounds_exactly_and_never_leaves_them(low, high, dtype):
    space = gymnasium.spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
    env = Counter()
    env.action_space = space
    envs = Environments([env])
    size = int(np.prod(low.shape))
    assert envs.action_space == gymnasium.spaces.Box(-1, 1, (size,))
    for sign, bound in ((-1, space.low), (1, space.high)):
        sent = envs.environment_action(np.full(size, sign, np.float32))
        assert sent.dtype == dtype
        assert sent.shape == low.shape
        assert np.array_equal(sent, bound)
    many = envs.environment_action(np.random.default_rng(0).uniform(-1, 1, (1000, size)).astype(np.float32))
    assert many.shape == (1000, *low.shape)
    assert (many >= space.low).all()
    assert (many <= space.high).all()


def test_rescaled_actions_reach_the_environment_exactly():
    envs, (env,) = batch_of("owned 1")
    envs.reset()
    for value, bound in ((-1, LOW), (1, HIGH)):
        envs.step(np.full((1, 4), value, np.float32))
        assert np.array_equal(env.records[-1][1], bound)


class Letters(gymnasium.Env):
    """Integers that do not start at 0: the state counts up from -7, and the action says by how much."""

    observation_space = gymnasium.spaces.Discrete(100, start=-7)
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = -7
        return np.int64(self.at), {}

    def step(self, action):
        assert isinstance(action, np.integer)
        assert action in self.action_space
        self.at += int(action) - 5
        return np.int64(self.at), 0.5, False, self.at > 0, {}


@pytest.mark.parametrize("vector", [False, True])
def test_integers_count_from_zero(vector):
    envs = Environments.make(SyncVectorEnv([Letters] * 2) if vector else Letters, num_envs=2)
    assert envs.state_space == gymnasium.spaces.Discrete(100)
    assert envs.action_space == gymnasium.spaces.Discrete(3)
    assert envs.reset().tolist() == [0, 0]
    assert envs.state.dtype == np.int64
    assert envs.step(np.array([0, 2])).next_state.tolist() == [0, 2]
    assert envs.step(np.array([1, 2])).next_state.tolist() == [1, 4]
    assert envs.environment_action(2) == 7
    step = [envs.step(np.array([1, 2])) for _ in range(2)][-1]
    assert step.next_state.tolist() == [3, 8]
    assert step.truncated.tolist() == [False, True]
    assert step.state.tolist() == [3, 8 if vector else 0]  # the vector starts again in its next step


# Seeds and replays.


def test_every_episode_has_a_seed_of_its_own_and_runs_repeat():
    (first, made), (second, again) = batch_of("owned 3"), batch_of("owned 3")
    for envs in (first, second):
        rng = np.random.default_rng(0)
        envs.reset()
        for _ in range(50):
            envs.step(actions_for(envs, rng))
    seeds = [env.seeds for env in made]
    assert seeds == [env.seeds for env in again]
    flat = [seed for each in seeds for seed in each]
    assert len(set(flat)) == len(flat) > 30
    assert all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in flat)
    other = Environments([Counter()], seed=2)
    other.reset()
    assert other._envs[0].seeds[0] not in flat


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("env_id", "options", "num_envs", "before"),
    [
        ("Pendulum-v1", {}, 1, 337),
        ("Pendulum-v1", {}, 2, 200),  # just where episodes end
        ("CartPole-v1", {}, 3, 101),
        ("FrozenLake-v1", {}, 2, 55),
        ("HalfCheetah-v5", {"max_episode_steps": 70}, 2, 163),
        ("Pendulum-v1", {"max_episode_steps": 2000}, 1, 700),  # longer than a log is at first
    ],
)
def test_a_restored_batch_goes_on_bit_for_bit(env_id, options, num_envs, before):
    envs = Environments.make(env_id, num_envs=num_envs, seed=3, **options)
    rng = np.random.default_rng(0)
    envs.reset()
    for _ in range(before):
        envs.step(actions_for(envs, rng))
    snapshot = envs.snapshot()
    snapshot["json"] = json.loads(json.dumps(snapshot["json"]))
    frozen = {name: array.copy() for name, array in snapshot["arrays"].items()}
    other = Environments.make(env_id, num_envs=num_envs, seed=99, **options)
    other.reset()
    assert other.restore(snapshot) is True
    assert np.array_equal(other.state, envs.state)
    ends = 0
    for t in range(250):
        actions = actions_for(envs, rng)
        one, two = envs.step(actions), other.step(actions)
        assert same(one, two), f"step {t} after the restore differs"
        ends += int((one.terminated | one.truncated).sum())
    assert ends > 0 or options.get("max_episode_steps") == 2000
    assert (envs.num_steps, envs._episodes) == (other.num_steps, other._episodes)
    assert all(np.array_equal(snapshot["arrays"][name], array) for name, array in frozen.items())
    # A batch that was restored can be saved and restored again, and so can one that has run on.
    assert Environments.make(env_id, num_envs=num_envs, **options).restore(other.snapshot())
    assert envs.restore(snapshot)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_process_is_restored_bit_for_bit(num_envs):
    mdp = random_mdp(5, num_states=6, horizon=7, terminal=True)
    envs, other = (Environments.make(mdp, num_envs=num_envs, seed=seed) for seed in (0, 1))
    rng = np.random.default_rng(0)
    envs.reset()
    for _ in range(33):
        envs.step(actions_for(envs, rng))
    assert other.restore(envs.snapshot()) is True
    for _ in range(50):
        actions = actions_for(envs, rng)
        assert same(envs.step(actions), other.step(actions))


def test_what_cannot_be_replayed_starts_a_new_episode_and_says_so():
    envs = Environments([Counter(noise=1)], seed=0)
    envs.reset()
    while envs.step(np.zeros((1, 4), np.float32)).state[0, 2] < 1:
        pass  # into an episode that is not over
    assert envs.snapshot()["arrays"]["actions_0"].shape[0] > 0
    other_env = Counter(noise=2)
    other = Environments([other_env], seed=0)
    assert other.restore(envs.snapshot()) is False
    assert other.num_steps == envs.num_steps
    assert other_env.time == 0
    assert other_env.seeds[-1] not in envs._envs[0].seeds
    assert other.state[0, 2] < 1

    vectors = [Environments.make(SyncVectorEnv([Counter] * 2)) for _ in range(2)]
    vectors[0].reset()
    vectors[0].step(np.zeros((2, 4), np.float32))
    assert vectors[1].restore(vectors[0].snapshot()) is False
    assert vectors[1].num_steps == 2
    assert vectors[1].state[:, 2].tolist() == [0, 0]
    assert vectors[1].step(np.zeros((2, 4), np.float32)).valid.all()


def test_a_wrapper_with_a_memory_of_its_own_is_noticed_by_the_reward():
    class Tired(gymnasium.Wrapper):
        steps = 0

        def step(self, action):
            self.steps += 1
            observation, reward, *rest = super().step(action)
            return observation, reward / self.steps, *rest

    def make():
        return Tired(gymnasium.make("Pendulum-v1"))

    envs, other = Environments.make(make), Environments.make(make)
    envs.reset()
    for _ in range(250):
        envs.step(np.zeros((1, 1), np.float32))
    assert other.restore(envs.snapshot()) is False


# Running statistics.


class OwnScaler(gymnasium.ObservationWrapper):
    """A user's wrapper, which knows no freezing."""

    def __init__(self, env):
        super().__init__(env)
        self.seen = RunningMeanStd(shape=env.observation_space.shape)

    def observation(self, observation):
        self.seen.update(observation[None])
        return (observation - self.seen.mean).astype(np.float32)


def scaled(inner=lambda: gymnasium.make("Pendulum-v1")):
    return lambda: gymnasium.wrappers.NormalizeReward(OwnScaler(gymnasium.wrappers.NormalizeObservation(inner())))


def stepped(envs, steps, seed=0):
    rng = np.random.default_rng(seed)
    if envs.state is None:
        envs.reset()
    return [envs.step(actions_for(envs, rng)) for _ in range(steps)]


def test_running_statistics_are_those_of_what_was_seen():
    seen = []

    def make():
        return gymnasium.wrappers.NormalizeObservation(
            gymnasium.wrappers.TransformObservation(
                gymnasium.make("Pendulum-v1"), lambda x: (seen.append(x.copy()), x)[1], None
            )
        )

    envs = Environments.make(make)
    stepped(envs, 500)
    found = envs.statistics()
    assert sorted(found) == [f"0/NormalizeObservation.obs_rms.{field}" for field in ("count", "mean", "var")]
    assert found["0/NormalizeObservation.obs_rms.count"] == pytest.approx(len(seen))
    assert np.allclose(found["0/NormalizeObservation.obs_rms.mean"], np.mean(seen, 0), atol=1e-4)
    assert np.allclose(found["0/NormalizeObservation.obs_rms.var"], np.var(seen, 0), rtol=1e-3)
    assert Environments.make("CartPole-v1").statistics() == {}


def test_statistics_go_frozen_from_environment_i_to_environment_i_modulo_n():
    learned = Environments.make(scaled(), num_envs=2, seed=0)
    stepped(learned, 300)
    given = learned.statistics()
    assert len(given) == 2 * 3 * 3
    kept = {name: value.copy() for name, value in given.items()}
    for sources, expected in ((None, [0, 1, 0]), ([1], [1, 1, 1])):
        other = Environments.make(scaled(), num_envs=3, seed=5)
        other.load_statistics(given, True, sources)
        first = other.reset()
        step = stepped(other, 250)[-1]
        now = other.statistics()
        for index, source in enumerate(expected):
            for name in given:
                if name.startswith(f"{source}/"):
                    assert np.array_equal(now[f"{index}{name[1:]}"], kept[name])
        plain = Environments.make("Pendulum-v1", num_envs=3, seed=5)
        for raw, through in ((plain.reset(), first), (stepped(plain, 250)[-1].next_state, step.next_state)):
            for index, source in enumerate(expected):
                mean, var = (given[f"{source}/NormalizeObservation.obs_rms.{field}"] for field in ("mean", "var"))
                right = (raw[index] - mean) / np.sqrt(var + 1e-8) - given[f"{source}/OwnScaler.seen.mean"]
                assert np.allclose(through[index], right, atol=1e-5)
        raw = plain.step(np.zeros((3, 1), np.float32)).reward
        earned = other.step(np.zeros((3, 1), np.float32)).reward
        scale = [given[f"{source}/NormalizeReward.return_rms.var"] ** 0.5 for source in expected]
        assert np.allclose(earned, raw / np.array(scale))
    assert all(np.array_equal(learned.statistics()[name], value) for name, value in kept.items())
    learned.step(np.zeros((2, 1), np.float32))
    assert learned.statistics()["0/OwnScaler.seen.count"] > kept["0/OwnScaler.seen.count"]


def test_statistics_that_environments_share_are_frozen_in_the_new_ones_only():
    shared = RunningMeanStd(shape=(3,))

    def make():
        env = OwnScaler(gymnasium.make("Pendulum-v1"))
        env.seen = shared
        return env

    learned, other = Environments.make(make), Environments.make(make)
    stepped(learned, 10)
    count = shared.count
    other.load_statistics(learned.statistics(), frozen=True)
    stepped(other, 10)
    assert shared.count == count
    stepped(learned, 1)
    assert shared.count == count + 1


def test_statistics_of_others_are_refused():
    envs = Environments.make(scaled())
    with pytest.raises(ValueError, match="statistics lack those of NormalizeObservation"):
        envs.load_statistics({}, True)
    with pytest.raises(ValueError, match=r"are of NormalizeObservation\.obs_rms, .*, and these environments hold no"):
        Environments.make("Pendulum-v1").load_statistics(envs.statistics(), True)
    with pytest.raises(ValueError, match=r"is of shape \(3,\), and NormalizeObservation here holds \(4,\)"):
        Environments.make(scaled(lambda: gymnasium.make("CartPole-v1"))).load_statistics(envs.statistics(), True)


def test_statistics_of_a_vector_environment_are_found_and_go_to_each():
    vector = SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")] * 2)
    envs = Environments.make(gymnasium.wrappers.vector.NormalizeObservation(vector))
    stepped(envs, 50)
    given = envs.statistics()
    assert sorted({name.partition("/")[0] for name in given}) == ["batch"]
    single = Environments.make(lambda: gymnasium.wrappers.NormalizeObservation(gymnasium.make("Pendulum-v1")))
    single.load_statistics(given, frozen=True)
    name = "NormalizeObservation.obs_rms.mean"
    assert np.array_equal(single.statistics()[f"0/{name}"], given[f"batch/{name}"])
    inner = Environments.make(SyncVectorEnv([scaled()] * 2))
    assert {name.partition("/")[0] for name in inner.statistics()} == {"0", "1"}


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_batch_with_running_statistics_goes_on_bit_for_bit(num_envs):
    envs = Environments.make(scaled(), num_envs=num_envs, seed=3)
    stepped(envs, 337)
    other = Environments.make(scaled(), num_envs=num_envs, seed=9)
    stepped(other, 20)
    assert other.restore(envs.snapshot()) is True
    for one, two in zip(stepped(envs, 250, 1), stepped(other, 250, 1), strict=True):
        assert same(one, two)
    assert other.restore(envs.snapshot()) is True


def test_statistics_come_back_where_the_episode_does_not():
    def make():
        return gymnasium.wrappers.NormalizeObservation(Counter(noise=1))

    def other_make():
        return gymnasium.wrappers.NormalizeObservation(Counter(noise=2))

    envs, other = Environments.make(make), Environments.make(other_make)
    stepped(envs, 100)
    while envs.snapshot()["arrays"]["actions_0"].shape[0] == 0:
        stepped(envs, 1)
    assert other.restore(envs.snapshot()) is False
    name = "0/NormalizeObservation.obs_rms.count"
    assert other.statistics()[name] == pytest.approx(envs.statistics()[name] + 1)  # the new episode's first


def test_a_snapshot_before_the_first_reset_and_those_of_others():
    envs = Environments.make("CartPole-v1")
    assert envs.restore(envs.snapshot()) is True
    assert envs.state is None
    with pytest.raises(ValueError, match="1 x CartPole-v1, and these are 1 x Pendulum-v1"):
        Environments.make("Pendulum-v1").restore(envs.snapshot())
    with pytest.raises(ValueError, match="2 x CartPole-v1"):
        Environments.make("CartPole-v1", num_envs=2).restore(envs.snapshot())
    for wrong in (None, {}, {"json": {}, "arrays": {}}):
        with pytest.raises(ValueError, match="snapshot lacks"):
            envs.restore(wrong)


# Bad numbers.


def run(envs, steps):
    for _ in range(steps):
        envs.step(np.zeros((envs.num_envs, 4), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["observation", "reward"])
@pytest.mark.parametrize("kind", KINDS)
def test_bad_numbers_stop_with_name_step_and_field(kind, field, value):
    envs, made = batch_of(kind)
    worst = made[-1]
    worst.bad = {field: 9, "value": value}
    envs.reset()
    owned = kind.startswith("owned")
    with pytest.raises(NonFiniteError, match=f"non-finite {field}") as caught:
        run(envs, 100)
    error, name = caught.value, "Counter" if owned else "SyncVectorEnv"
    assert isinstance(error, ValueError)
    assert str(error).startswith(f"{name} gave")
    assert (error.environment, error.field, error.env_index) == (name, field, len(made) - 1)
    assert (f"in environment {len(made) - 1} of" in str(error)) == (len(made) > 1)
    if owned:
        assert worst.total == 9
        assert error.step == 9 * len(made)
        assert f"at step {9 * len(made)}" in str(error)
        assert envs.num_steps == 8 * len(made)  # what a checkpoint now holds is the step before
        assert np.isfinite(envs.snapshot()["arrays"]["state"]).all()
    assert str(value) in str(error)


def test_after_a_bad_number_the_snapshot_is_of_the_step_before():
    class Deterministic(Counter):
        length = lambda self: 50  # noqa: E731

    envs = Environments([Deterministic(bad={"reward": 9, "value": np.nan})])
    envs.reset()
    with pytest.raises(NonFiniteError):
        run(envs, 20)
    healthy = Environments([Deterministic()])
    assert healthy.restore(envs.snapshot() | {"json": envs.snapshot()["json"] | {"name": "Deterministic"}}) is True
    assert healthy.state[0].tolist() == [0, 0, 8]


def test_bad_first_observation():
    envs = Environments([Counter(bad={"observation": 0, "value": np.nan})])
    with pytest.raises(NonFiniteError, match="observation at a reset after 0 steps"):
        envs.reset()


@pytest.mark.parametrize("shape", [(3,), (80,), (9, 9), (2, 3)])
def test_large_finite_observations_are_no_error_and_any_bad_entry_is(shape):
    class Given(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape)
        action_space = gymnasium.spaces.Discrete(2)
        now = np.full(shape, 3e38, np.float32)

        def reset(self, *, seed=None, options=None):
            return self.now, {}

        def step(self, action):
            return self.now, 0.0, False, False, {}

    env = Given()
    envs = Environments([env])
    envs.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(envs.step(np.array([0])).next_state[0], env.now)
        env.now = -env.now
        envs.step(np.array([0]))
    for index in np.ndindex(shape):
        env.now = np.ones(shape, np.float32)
        env.now[index] = np.nan
        with pytest.raises(NonFiniteError, match="observation"):
            envs.step(np.array([0]))


class Answers(gymnasium.Env):
    """Answers as it is told to."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, answer, space):
        self.answer, self.observation_space = answer, space
        self.first = np.zeros(2, np.float32) if isinstance(space, gymnasium.spaces.Box) else int(space.start)

    def reset(self, *, seed=None, options=None):
        return self.first, {}

    def step(self, action):
        return self.answer


BOX2, FOUR = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(4)
NONE = np.zeros(2, np.float32)
FAULTS = [
    (BOX2, (NONE, np.array([1.0]), False, False, {}), "reward", r"is an array of shape \(1,\), and must be one number"),
    (BOX2, (NONE, None, False, False, {}), "reward", r"is NoneType.*return float\(reward\)"),
    (BOX2, (NONE, "1", False, False, {}), "reward", "is str"),
    (BOX2, (NONE, 1.0, None, False, {}), "terminated", r"is NoneType, and must be a bool; return bool\(terminated\)"),
    (BOX2, (NONE, 1.0, False, "no", {}), "truncated", "is str, and must be a bool"),
    (BOX2, (NONE[:1], 1.0, False, False, {}), "observation", r"has shape \(1,\), and its observation_space has \(2,\)"),
    (BOX2, (0.5, 1.0, False, False, {}), "observation", r"has shape \(\)"),
    (BOX2, (np.zeros(2, complex), 1.0, False, False, {}), "observation", "has dtype complex128"),
    (BOX2, (np.array(["0", "1"]), 1.0, False, False, {}), "observation", "has dtype <U1"),
    (BOX2, (NONE, 1.0, False, {}), "step", "is not .observation, reward, terminated, truncated, info."),
    (FOUR, (4, 1.0, False, False, {}), "observation", r"is 4, and its observation_space is Discrete\(4\), .* 0 to 3"),
    (FOUR, (-1, 1.0, False, False, {}), "observation", "is -1"),
    (FOUR, (np.int64(4), 1.0, False, False, {}), "observation", "is 4"),
    (FOUR, (2.5, 1.0, False, False, {}), "observation", "has dtype float64, .* of integers"),
    (gymnasium.spaces.Discrete(4, start=3), (2, 1.0, False, False, {}), "observation", "is 2, .* from 3 to 6"),
]


@pytest.mark.parametrize(("space", "answer", "field", "message"), FAULTS)
def test_a_faulty_answer_names_environment_step_and_field(space, answer, field, message):
    envs = Environments.make(lambda: Answers(answer, space), num_envs=2)
    envs.reset()
    envs._envs[0].answer = (envs._envs[0].first, 0.0, False, False, {})
    named = "what" if field == "step" else field
    with pytest.raises(StepError, match=f"^Answers gave .*{named} at step 2 .*{message}") as caught:
        envs.step(np.array([0, 0]))
    error = caught.value
    assert (error.environment, error.field, error.step, error.env_index) == ("Answers", field, 2, 1)
    assert not isinstance(error, NonFiniteError)


@pytest.mark.parametrize(
    "answer",
    [
        (np.zeros(2), 1, np.False_, np.True_, {}),
        ([0.0, 0.5], np.float32(1), False, False, {}),
        (np.zeros(2, int), np.array(1.0), False, False, {}),
        (NONE, True, False, False, {}),
    ],
)
def test_what_is_one_number_or_loses_only_digits_passes(answer):
    envs = Environments([Answers(answer, BOX2)])
    envs.reset()
    step = envs.step(np.array([0]))
    assert step.reward.tolist() == [1.0]
    assert step.truncated.tolist() == [bool(answer[3])]
    assert np.array_equal(step.next_state[0], np.asarray(answer[0], np.float32))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("vector", [False, True])
def test_a_number_that_is_too_large_for_float32_is_told_apart_from_nan(vector):
    make = lambda: Answers((np.array([0, 1e299]), 0.0, False, False, {}), BOX(-np.inf, np.inf, (2,), np.float64))  # noqa: E731
    envs = Environments.make(SyncVectorEnv([make]) if vector else make)
    envs.reset()
    with pytest.raises(NonFiniteError, match=r"an observation at step 1 that overflows float32: .*e\+299.*; scale it"):
        envs.step(np.array([0]))


# Vector environments that do not say when they reset.


class Silent(gymnasium.vector.VectorEnv):
    """Two environments of five steps, each worth 1, which reset in the same step and have no word for it."""

    def __init__(self, metadata, key):
        self.metadata, self.key, self.num_envs = metadata, key, 2
        self.single_observation_space, self.single_action_space = BOX(-np.inf, np.inf, (1,)), SPACES.Discrete(2)
        self.observation_space, self.action_space = BOX(-np.inf, np.inf, (2, 1)), SPACES.MultiDiscrete([2, 2])

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros((2, 1), np.float32), {}

    def step(self, actions):
        self.time += 1
        now, ended = np.full((2, 1), self.time % 5, np.float32), np.full(2, self.time % 5 == 0)
        info = {self.key: np.full((2, 1), 5, np.float32)} if ended[0] and self.key else {}
        return now, np.ones(2), ended, ~ended & False, info


@pytest.mark.parametrize("key", ["final_obs", "final_observation"])
def test_a_silent_vector_environment_is_warned_of_and_looked_at(key):
    with pytest.warns(UserWarning, match="missing `autoreset_mode`"):
        envs = Environments.make(Silent({}, key))
    assert envs.skips_steps  # as far as one knows
    state, total, returns, rows = envs.reset(), 0.0, [], 0
    for _ in range(50):
        step = envs.step(np.zeros(2, int))
        assert np.array_equal(step.next_state, state + 1)  # the last one too: 5, not the next episode's 0
        rows += int(step.valid.sum())
        total += step.reward[0]
        if step.terminated[0]:
            returns.append(total)
            total = 0.0
        state = step.state
    assert rows == 100
    assert returns == [5.0] * 10
    assert not envs.skips_steps


@pytest.mark.parametrize(
    ("mode", "key", "message"),
    [
        (AutoresetMode.NEXT_STEP, "final_obs", "AutoresetMode.NEXT_STEP, and its info has 'final_obs'"),
        (AutoresetMode.DISABLED, "final_obs", "AutoresetMode.DISABLED, and its info has 'final_obs'"),
        (AutoresetMode.SAME_STEP, None, "resets in the same step, and its info lacks 'final_obs'"),
    ],
)
def test_a_vector_environment_that_contradicts_itself_is_told(mode, key, message):
    envs = Environments.make(Silent({"autoreset_mode": mode}, key))
    envs.reset()
    with pytest.raises(ValueError, match=message):
        stepped(envs, 5)


@pytest.mark.filterwarnings("ignore:.*missing `autoreset_mode`")
def test_a_silent_vector_environment_without_final_observations_is_taken_for_next_step():
    vector = SyncVectorEnv([Counter] * 2)
    del vector.metadata["autoreset_mode"]
    envs = Environments.make(vector)
    envs.reset()
    valid = [step.valid for step in stepped(envs, 60)]
    assert envs.skips_steps
    assert envs.num_steps == np.sum(valid) < 120


@pytest.mark.filterwarnings("ignore:.*missing `autoreset_mode`")
def test_a_silent_vector_environment_that_resets_in_the_same_step_and_loses_observations_is_told():
    envs = Environments.make(Silent({}, None))  # it earns 1 in every step
    envs.reset()
    with pytest.raises(ValueError, match="starts the next episode, and there environment 0 earns 1"):
        stepped(envs, 6)


def test_a_vector_environment_that_resets_in_no_step_is_told():
    class Runs(Silent):
        def step(self, actions):
            now, rewards, ended, truncated, info = super().step(actions)
            return now, rewards, ended | (self.time > 5), truncated, info

    envs = Environments.make(Runs({"autoreset_mode": AutoresetMode.NEXT_STEP}, None))
    envs.reset()
    with pytest.raises(ValueError, match="starts the next episode, and there environment 0 ends an episode again"):
        stepped(envs, 6)


def test_errors_of_the_environment_come_through():
    class Broken(Counter):
        def step(self, action):
            raise KeyError("of its own")

    envs = Environments([Broken()])
    envs.reset()
    with pytest.raises(KeyError, match="of its own"):
        envs.step(np.zeros((1, 4), np.float32))


# Misuse.


def with_spaces(observation=None, action=None):
    env = Counter()
    env.observation_space = observation or env.observation_space
    env.action_space = action or env.action_space
    return env


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        ("NoSuch-v0", {}, r"env: gymnasium.make\('NoSuch-v0'\) failed: NameNotFound"),
        ("Pendulum-v1", {"colour": 3}, "unexpected keyword argument 'colour'"),
        ("Pendulum-v1", {"seed": -1}, "seed must be an integer >= 0, got -1"),
        ("Pendulum-v1", {"seed": 0.5}, "seed must be an integer >= 0"),
        ("Pendulum-v1", {"num_envs": 0}, "num_envs must be an integer >= 1, got 0"),
        ("Pendulum-v1", {"num_envs": True}, "num_envs must be an integer >= 1"),
        (Counter(), {"num_envs": 2}, "env is one environment; pass its id, or a factory"),
        (Counter(), {"g": 9.8}, "g: options of gymnasium.make.* go with an environment's id"),
        (SyncVectorEnv([Counter] * 2), {"num_envs": 3}, "env is a vector of 2"),
        (lambda: 3, {}, "factory that returns int"),
        (lambda: SyncVectorEnv([Counter]), {}, "factory that returns SyncVectorEnv"),
        (lambda env=Counter(): env, {"num_envs": 2}, "the same environment twice"),  # noqa: B008
        (3, {}, "env must be a Gymnasium id.* got int"),
        (
            with_spaces(action=BOX(-np.inf, 1, (2,))),
            {},
            "action_space of Counter is Box with unbounded sides.*TransformA",
        ),
        (with_spaces(action=SPACES.Tuple([BOX(0, 1)])), {}, "action_space of Counter is Tuple.*TransformAction"),
        (with_spaces(action=SPACES.Dict(a=BOX(0, 1))), {}, "is Dict, and Box, Discrete, MultiDiscrete and MultiBinary"),
        (with_spaces(action=BOX(-1, 1, (0,))), {}, "holds no action"),
        (with_spaces(observation=SPACES.Text(3)), {}, "observation_space of Counter is Text.*TransformObservation"),
        (with_spaces(observation=SPACES.Text(3)), {}, "observation_space of Counter is Text"),
    ],
)
def test_misuse_is_told(env, options, message):
    with pytest.raises(ValueError, match=message):
        Environments.make(env, **options)


def test_environments_of_different_spaces_are_told():
    made = iter([Counter(), with_spaces(action=BOX(-1, 1, (2,)))])
    with pytest.raises(ValueError, match="different spaces"):
        Environments.make(lambda: next(made), num_envs=2)


def test_wrong_actions_and_shapes_are_told():
    envs = Environments.make("Pendulum-v1", num_envs=2)
    with pytest.raises(ValueError, match=r"before reset\(\)"):
        envs.step(np.zeros((2, 1), np.float32))
    envs.reset()
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 1\), got \(1, 1\)"):
        envs.step(np.zeros((1, 1), np.float32))
    with pytest.raises(ValueError, match=r"action must have shape \(1,\)"):
        envs.environment_action(np.zeros(3))
    with pytest.raises(ValueError, match=r"gave an observation at a reset.* shape \(3,\).*_space has \(4,\)"):
        Environments([with_spaces(observation=BOX(-1, 1, (4,)))]).reset()
    vector = SyncVectorEnv([Counter] * 2)
    vector.single_observation_space = BOX(-1, 1, (4,))
    with pytest.raises(ValueError, match=r"an observation at a reset.*has shape \(2, 3\), .* say \(2, 4\)"):
        Environments.make(vector).reset()


def test_a_vector_that_loses_final_observations_is_told():
    class Forgetful(SyncVectorEnv):
        def step(self, actions):
            return (*super().step(actions)[:-1], {})

    envs = Environments.make(Forgetful([Counter], autoreset_mode=AutoresetMode.SAME_STEP))
    envs.reset()
    with pytest.raises(ValueError, match="lacks 'final_obs'"):
        envs.step(np.zeros((1, 4), np.float32))


def test_observations_of_any_box_become_float32_and_images_stay_bytes():
    for space, value in (
        (BOX(0, 255, (4, 4, 3), np.uint8), np.full((4, 4, 3), 200, np.uint8)),
        (BOX(0, 255, (4,), np.uint8), np.full(4, 200, np.uint8)),
        (BOX(-1e300, 1e300, (2,), np.float64), np.array([0.1, -0.2])),
        (BOX(-1, 1, ()), np.float32(0.25)),
    ):
        env = with_spaces(observation=space)
        env.observation = lambda value=value: value
        envs = Environments([env])
        kept = np.uint8 if len(space.shape) == 3 else np.float32
        assert envs.state_space.dtype == kept
        assert envs.reset().dtype == kept
        step = envs.step(np.zeros((1, 4), np.float32))
        assert np.array_equal(step.next_state[0], np.asarray(value, np.float32))


# Processes as environments.


def chain(length=5, horizon=None):
    """Action 1 goes on, action 0 stays; the last state ends it and the first steps pay their number."""
    transition = torch.zeros(length, 2, length)
    for s in range(length):
        transition[s, 0, s] = transition[s, 1, min(s + 1, length - 1)] = 1
    rewards = torch.arange(2.0 * length).reshape(length, 2)
    terminal = torch.arange(length) == length - 1
    return TabularMDP(transition, rewards, torch.eye(length)[0], horizon=horizon, terminal=terminal)


def linear_gaussian():
    eye = torch.eye(2)
    return LinearGaussianMDP(0.9 * eye, eye, 0.1 * eye, eye, eye, torch.zeros(2), eye, eye, horizon=5)


UNBOUNDED = {"space minimum value is -infinity", "space maximum value is infinity"}


@pytest.mark.parametrize(
    ("process", "told"),
    [
        (chain(), set()),
        (random_mdp(1, horizon=8, terminal=True), set()),
        (TabularMDP.from_gymnasium("FrozenLake-v1", horizon=100), set()),
        (models.point_mass(), {f"A Box observation {text}" for text in UNBOUNDED}),
        (
            linear_gaussian(),
            {f"A Box {kind} {text}" for text in UNBOUNDED for kind in ("observation", "action")}
            | {"For Box action spaces, we recommend"},
        ),
    ],
    ids=["chain", "random", "frozen lake", "point mass", "linear-Gaussian"],
)
def test_gymnasiums_own_checker_passes(process, told):
    """What it tells besides are facts of the problem, as it does of CartPole: a space without bounds."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(to_gymnasium(process))
    messages = [str(warning.message) for warning in caught]
    assert all(any(text in message for text in told) for message in messages), messages
    assert all(any(text in message for message in messages) for text in told)


def test_terminal_states_terminate_and_the_horizon_truncates():
    env = to_gymnasium(chain(3, horizon=2))
    assert env.reset(seed=0) == (0, {})
    assert env.step(1) == (1, 1.0, False, False, {})
    assert env.step(1) == (2, 3.0, True, True, {})
    env.reset()
    env.step(0)
    assert env.step(1) == (1, 1.0, False, True, {})
    endless = to_gymnasium(chain(3))
    endless.reset()
    assert not any(endless.step(0)[3] for _ in range(50))
    assert env.spec.make().unwrapped.process is env.process
    assert env.spec.id not in gymnasium.registry


def test_an_episode_that_starts_at_its_end_earns_nothing():
    mdp = chain(3, horizon=4)
    mdp = TabularMDP(mdp.kernel.probabilities, mdp.reward_table, torch.eye(3)[2], horizon=4, terminal=mdp.terminal)
    env = to_gymnasium(mdp)
    env.reset(seed=0)
    assert env.step(1) == (2, 0.0, True, False, {})


def test_draws_are_the_environments_own():
    validating = torch.distributions.Distribution._validate_args
    process = models.point_mass()
    one, two, vector = to_gymnasium(process), to_gymnasium(process), to_gymnasium_vector(process, 4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = one.reset(seed=7)[0]
    torch.rand(100)
    torch.set_rng_state(before)
    rows = [one.step(np.zeros(2, np.float32))[0] for _ in range(3)]
    vector.reset(seed=7)
    vector.step(np.zeros((4, 2), np.float32))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert np.array_equal(two.reset(seed=7)[0], first)
    again = [(torch.rand(3), two.step(np.zeros(2, np.float32))[0])[1] for _ in range(3)]
    assert np.array_equal(rows, again)
    assert not np.array_equal(two.reset(seed=8)[0], first)
    assert not np.array_equal(two.reset()[0], two.reset()[0])
    assert torch.distributions.Distribution._validate_args == validating


def test_the_vector_environment_starts_again_in_the_same_step():
    """The chain's counts are known, so every row can be; environment 0 never moves and is cut off."""
    envs = to_gymnasium_vector(chain(4, horizon=5), 3)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    states, _ = envs.reset(seed=0)
    times = np.zeros(3, int)
    go = np.array([0, 1, 1])
    for t in range(30):
        actions = np.where((np.arange(3) == 2) & (t % 2 == 1), 0, go)
        after, rewards, terminated, truncated, info = envs.step(actions)
        times += 1
        final = np.minimum(states + actions, 3)
        assert np.array_equal(rewards, 2 * states + actions)
        assert np.array_equal(terminated, final == 3)
        assert np.array_equal(truncated, times >= 5)
        ended = terminated | truncated
        if ended.any():
            assert np.array_equal(info["_final_obs"], ended)
            assert np.array_equal(info["final_obs"][ended], final[ended])
        else:
            assert info == {}
        assert np.array_equal(after, np.where(ended, 0, final))
        times[ended] = 0
        states = after


def test_a_process_through_gymnasium_earns_what_it_earns_in_rollouts():
    """12,000 episodes each of two ways, seed 0, against the exact return of the action prior: |z| < 4."""
    mdp = random_mdp(4, num_states=6, horizon=8, terminal=True, uniform_prior=True)
    expected = float(exact.expected_return(mdp, None))
    envs = Environments.make(mdp, num_envs=500, seed=0)
    rng = np.random.default_rng(0)
    envs.reset()
    running, finished = np.zeros(500), [[] for _ in range(500)]
    while min(map(len, finished)) < 24:  # the same number from each, as short ones come first
        step = envs.step(rng.integers(mdp.num_actions, size=500))
        running += step.reward
        for i in np.flatnonzero(step.terminated | step.truncated):
            finished[i].append(running[i])
            running[i] = 0
    returns = np.array([each[:24] for each in finished]).ravel()
    torch.manual_seed(0)
    rollouts = mdp.rollout(None, 12_000).returns().numpy()
    for sample in (returns, rollouts):
        assert abs(sample.mean() - expected) < 4 * sample.std() / len(sample) ** 0.5
        assert abs(sample.std() - rollouts.std()) < 0.1 * rollouts.std()


def test_a_continuous_process_through_the_batch_keeps_its_precision_and_draws():
    envs = Environments.make(models.point_mass(horizon=3, dtype=torch.float64), num_envs=5)
    assert envs.reset().dtype == np.float32
    steps = [envs.step(np.ones((5, 2), np.float32)) for _ in range(4)]
    assert [bool(step.truncated.all()) for step in steps] == [False, False, True, False]
    assert (steps[2].next_state > 0.5).all()
    assert (np.abs(steps[2].state) < 0.5).all()
    assert np.unique(steps[0].next_state).size == 10


def test_what_has_no_steps_is_told():
    for wrong in (ProgramProcess(lambda: None), lambda: None, GymnasiumProcess("CartPole-v1")):
        with pytest.raises(ValueError, match="process must be a MarkovDecisionProcess"):
            to_gymnasium(wrong)
    with pytest.raises(ValueError, match="num_envs must be an integer >= 1"):
        to_gymnasium_vector(chain(), 0)
    with pytest.raises(ValueError, match="before reset"):
        to_gymnasium(chain()).step(0)
    spaceless = models.point_mass()
    spaceless.state_space = None
    with pytest.raises(ValueError, match="state_space of PointMass must be a gymnasium Box or Discrete"):
        to_gymnasium(spaceless)
    vector = to_gymnasium_vector(chain(), 2)
    vector.reset()
    with pytest.raises(ValueError, match=r"actions must have shape \(2,\)"):
        vector.step(np.zeros(3, int))
    with pytest.raises(ValueError, match="process_generator of 2 environments"):
        vector.restore({})
