"""Tables of toy text: held to the environment they were read from."""

import gymnasium
import numpy as np
import pytest
import torch
from problems import TAXI, newest

from rl_as_inference import TabularMDP
from rl_as_inference.processes.toy_text import read_toy_text

has_weather = pytest.mark.skipif(TAXI == "Taxi-v3", reason="options that Gymnasium has had since Taxi-v4")


def test_a_lake_has_no_walls():
    with pytest.raises(ValueError, match=r"desc: FrozenLake takes '#' for free ice; .* models.gridworld\(layout="):
        TabularMDP.from_gymnasium("FrozenLake-v1", desc=["SF#G", "FFFG"], horizon=5)
    assert TabularMDP.from_gymnasium("FrozenLake-v1", desc=["SFHG", "FFFG"], horizon=5).terminal.sum() == 3


@has_weather
@pytest.mark.parametrize(
    "options", [{}, {"is_rainy": True}, {"fickle_probability": 0.1}], ids=["", "rainy", "fickle by half"]
)
def test_an_option_that_acts_in_steps_only_is_refused(options):
    """The table with it is the table without it: 7.55 promised, 8.95 earned."""
    tables = [gymnasium.make(TAXI, fickle_passenger=fickle).unwrapped.P for fickle in (False, True)]
    assert tables[0] == tables[1]
    with pytest.raises(ValueError, match=rf"'{TAXI}' \(options .*'fickle_passenger': True.* went from state \d+"):
        TabularMDP.from_gymnasium(TAXI, fickle_passenger=True, **options)


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("FrozenLake-v1", {}),
        ("FrozenLake-v1", {"is_slippery": False}),
        pytest.param("FrozenLake-v1", {"success_rate": 0.6}, marks=has_weather),
        ("FrozenLake8x8-v1", {}),
        (newest("CliffWalking"), {}),
        pytest.param(TAXI, {"is_rainy": True, "rainy_probability": 0.5}, marks=has_weather),
        pytest.param(TAXI, {"fickle_passenger": False}, marks=has_weather),
    ],
)
def test_ordinary_options_pass_and_no_random_numbers_of_others_are_taken(env_id, options):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    read_toy_text(env_id, **options)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


class TwoDoors(gymnasium.Env):
    """One step; what ``step`` does beside its table is ``trick``."""

    observation_space, action_space = gymnasium.spaces.Discrete(3), gymnasium.spaces.Discrete(2)

    def __init__(self, trick=None):
        self.trick = trick
        self.P = {s: {a: [(1.0, a + 1, 1.0 if a else 0.0, True)] for a in range(2)} for s in range(3)}
        self.initial_state_distrib = np.array([1.0, 0, 0])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return int(self.trick == "start"), {}

    def step(self, action):
        reward = 0.5 if self.trick == "reward" and action else float(action)
        return int(action) + 1, reward, self.trick != "ending", False, {}


@pytest.mark.parametrize(
    ("trick", "message"),
    [
        ("reward", "with reward 0.5 and an ending, which its table gives reward 1 and an ending"),
        ("ending", "and no ending, which its table gives reward . and an ending"),
        ("start", "starts in state 1, which its table gives probability 0"),
    ],
)
def test_other_rewards_endings_and_starts_are_refused(trick, message):
    gymnasium.register("TwoDoors-v0", TwoDoors)
    try:
        assert read_toy_text("TwoDoors-v0").terminal.tolist() == [False, True, True]
        with pytest.raises(ValueError, match=rf"{message}.*"):
            read_toy_text("TwoDoors-v0", trick=trick)
    finally:
        del gymnasium.registry["TwoDoors-v0"]
