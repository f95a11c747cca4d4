"""Observations in parts, images, and numbers on a common scale: as environments give them, and as states."""

import copy

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_as_inference.processes.environments import Environments, NonFiniteError, StepError
from rl_as_inference.processes.normalization import Normalization

SPACES = {
    "parts": Dict({"body": Box(-9, 9, (2,)), "more": Tuple((Discrete(4, start=2), Box(0, 255, (3, 3), np.uint8)))}),
    "image": Box(0, 255, (5, 5, 2), np.uint8),
    "dials": MultiDiscrete([3, 4], start=[1, 0]),
}


class Draws(gymnasium.Env):
    """Observations drawn from a space, and rewards of 100; episodes of three steps."""

    action_space = Discrete(2)

    def __init__(self, space, spoil=None):
        self.observation_space, self.spoil, self.seen = space, spoil, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.look(), {}

    def look(self):
        self.seen.append(self.observation_space.sample())
        return self.seen[-1]

    def step(self, action):
        self.steps += 1
        observation = self.look()
        if self.spoil is not None:
            self.spoil(observation)
        return observation, 100.0 + self.steps, self.steps == 3, False, {}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("mode", [None, AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_states_are_what_was_seen(name, mode):
    made = []

    def make():
        made.append(Draws(copy.deepcopy(SPACES[name])))  # each samples in an order of its own
        return made[-1]

    source = make if mode is None else SyncVectorEnv([make] * 2, autoreset_mode=mode)
    envs = Environments.make(source, num_envs=2, seed=1)
    states, reset = [], envs.reset()
    for _ in range(2):
        states.append(envs.step(np.zeros(2, np.int64)).next_state)
    for index, env in enumerate(made[-2:]):
        assert np.array_equal(reset[index], envs.agent_state(env.seen[0]))
        for step in range(2):
            assert np.array_equal(states[step][index], envs.agent_state(env.seen[1 + step]))
    last = envs.step(np.zeros(2, np.int64))
    assert last.terminated.all()
    assert np.array_equal(last.next_state[0], envs.agent_state(made[-2].seen[3]))


def test_images_stay_bytes_and_parts_are_rows_with_integers_from_0():
    envs = Environments([Draws(SPACES["image"])])
    assert envs.reset().dtype == np.uint8
    envs = Environments([Draws(SPACES["parts"])])
    envs.reset()
    assert envs.agent_state({"body": np.zeros(2), "more": (5, np.full((3, 3), 255, np.uint8))}).tolist() == [
        *[0, 0, 3],
        *[255] * 9,
    ]


def test_what_is_not_finite_or_does_not_fit_is_said_with_its_part():
    def spoil(observation):
        observation["body"][1] = np.nan

    envs = Environments([Draws(SPACES["parts"], spoil)])
    envs.reset()
    with pytest.raises(NonFiniteError, match=r"at step 1 in part 'body': .*nan"):
        envs.step(np.zeros(1, np.int64))

    envs = Environments([Draws(SPACES["parts"], lambda observation: observation.pop("body"))])
    envs.reset()
    with pytest.raises(StepError, match=r"at step 1 that lacks part 'body'.*mend the environment's observation_space"):
        envs.step(np.zeros(1, np.int64))

    env = Draws(SPACES["image"])
    envs = Environments([env])
    envs.reset()
    env.look = lambda: np.full((5, 5, 2), 300)
    with pytest.raises(StepError, match="pixels from 300 to 300"):
        envs.step(np.zeros(1, np.int64))


def test_floats_that_look_like_bytes_are_refused():
    with pytest.raises(
        ValueError, match=r"observation_space of Draws has 'observation' of float32 from 0 to 255.*uint8"
    ):
        Environments([Draws(Box(0, 255, (8, 8, 3)))])


@pytest.mark.parametrize("name", ["plain", "parts"])
def test_normalized_numbers_are_those_of_gymnasiums_wrapper(name):
    space = Box(-9, 9, (2,)) if name == "plain" else SPACES["parts"]
    env = Draws(space)
    envs = Environments([env], normalization=Normalization(observations=True))
    states = [envs.reset()[0]]
    states += [envs.step(np.zeros(1, np.int64)).next_state[0] for _ in range(2)]
    bodies = np.array([seen if name == "plain" else seen["body"] for seen in env.seen], np.float32)
    other = gymnasium.wrappers.NormalizeObservation(Draws(Box(-9, 9, (2,))))
    for state, body in zip(states, bodies, strict=True):
        np.testing.assert_allclose(state[:2], other.observation(body), rtol=1e-5)
    if name == "parts":
        assert states[1][2] == env.seen[1]["more"][0] - 2
        assert states[1][3:].tolist() == env.seen[1]["more"][1].ravel().tolist()
    # What is asked with from outside is the environment's own, one or a batch, and changes nothing.
    before = envs.statistics()
    asked = envs.agent_state(env.seen[-1])
    np.testing.assert_allclose(asked, states[-1], rtol=1e-5)
    assert all(np.array_equal(value, before[key]) for key, value in envs.statistics().items())


def test_normalized_rewards_are_learned_from_and_the_own_ones_told():
    envs = Environments.make(lambda: Draws(Box(-1, 1, (2,))), num_envs=2, normalization=Normalization(rewards=True))
    envs.reset()
    steps = [envs.step(np.zeros(2, np.int64)) for _ in range(3)]
    assert [step.earned.tolist() for step in steps] == [[101.0] * 2, [102.0] * 2, [103.0] * 2]
    deviation = np.sqrt(envs.statistics()["0/NormalizedReward.return_rms.var"])
    assert steps[-1].reward[0] == pytest.approx(103 / deviation)


def test_what_cannot_be_normalized_is_told():
    with pytest.raises(ValueError, match=r"normalize_observations: Draws observes Box.*no numbers"):
        Environments([Draws(SPACES["image"])], normalization=Normalization(observations=True))
    vector = SyncVectorEnv([lambda: Draws(Box(-1, 1, (2,)))])
    with pytest.raises(ValueError, match=r"normalize_rewards needs the environments one by one.*factory"):
        Environments.make(vector, normalization=Normalization(rewards=True))


@pytest.mark.parametrize(("observations", "field"), [(True, "observation"), (False, "reward")])
def test_statistics_learn_nothing_from_what_is_not_finite(observations, field):
    env = Draws(Box(-9, 9, (2,)))
    envs = Environments([env], normalization=Normalization(observations=observations, rewards=not observations))
    envs.reset()
    envs.step(np.zeros(1, np.int64))
    before = envs.statistics()
    if observations:
        env.look = lambda: np.array([np.nan, 1.0], np.float32)
    else:
        env.steps = np.nan
    with pytest.raises(NonFiniteError, match=f"non-finite {field} at step 2"):
        envs.step(np.zeros(1, np.int64))
    assert all(np.array_equal(value, before[key]) for key, value in envs.statistics().items())
