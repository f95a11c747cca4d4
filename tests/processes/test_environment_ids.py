"""The models under Gymnasium's ids: all of them are there, pass its checker, and are the models."""

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import rl_as_inference as rlai
from rl_as_inference import exact, models
from rl_as_inference.environments import MODELS
from rl_as_inference.problems import load_problem
from rl_as_inference.processes.to_gymnasium import ProcessVectorEnv

FILE = Path(rlai.environments.__file__)
LONGER = {"rlai/Bandit-v0": {"horizon": 2}}
"""The checker takes an episode of one step for a mistake."""
FACTS = ("is -infinity", "is infinity", "we recommend using a symmetric and normalized space")
"""What the checker tells of spaces without bounds, which are the problem's own."""


def test_every_model_that_has_steps_has_an_id():
    def has_steps(name: str) -> bool:
        return isinstance(getattr(models, name)(), rlai.MarkovDecisionProcess)

    assert {name for name in models.__all__ if has_steps(name)} == set(MODELS.values())
    for env_id, name in MODELS.items():
        if env_id != "rlai/MultiGoal-v0":
            assert env_id.lower() == f"rlai/{name.replace('_', '')}-v0"


@pytest.mark.parametrize("env_id", MODELS)
def test_ids_pass_gymnasiums_checker(env_id):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = gymnasium.make(env_id, **LONGER.get(env_id, {}))
        check_env(env.unwrapped)
    told = [str(warning.message) for warning in caught]
    assert all(any(fact in message for fact in FACTS) for message in told), told
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.process.horizon == env.unwrapped.process.horizon


@pytest.mark.parametrize("env_id", MODELS)
def test_vectors_step_as_single_environments_do(env_id):
    """The same actions in the same state: of a vector and a single one the observations are of one space."""
    single, several = gymnasium.make(env_id), gymnasium.make_vec(env_id, num_envs=5)
    assert isinstance(several, ProcessVectorEnv)
    assert several.single_observation_space == single.observation_space
    assert several.single_action_space == single.action_space
    observations, _ = several.reset(seed=0)
    several.action_space.seed(0)
    for _ in range(3):
        assert all(single.observation_space.contains(each) for each in observations)
        observations, rewards, *_ = several.step(several.action_space.sample())
        assert rewards.shape == (5,)


def test_options_are_the_models_own():
    env = gymnasium.make("rlai/FrozenLake-v0", map_name="4x4", is_slippery=False, dtype=torch.float64)
    process = env.unwrapped.process
    assert process.num_states == 16
    assert process.reward_table.dtype == torch.float64
    assert gymnasium.make_vec("rlai/FrozenLake-v0", 2, map_name="4x4").process.num_states == 16
    with pytest.raises(TypeError, match=r"hoirzon.*rlai/Tiger-v0"):
        gymnasium.make("rlai/Tiger-v0", hoirzon=3)
    with pytest.raises(ValueError, match=r"horizon.*integer >= 1"):
        gymnasium.make("rlai/Tiger-v0", horizon=0)


def test_the_horizon_truncates_and_is_an_option():
    env = gymnasium.make("rlai/RandomMDP-v0", horizon=3)
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    assert env.spec.max_episode_steps is None
    assert env.unwrapped.max_episode_steps == 3
    envs = gymnasium.make_vec("rlai/RandomMDP-v0", 2, horizon=2)
    envs.reset(seed=0)
    assert not envs.step(np.zeros(2, int))[3].any()
    assert envs.step(np.zeros(2, int))[3].all()
    shorter = gymnasium.make("rlai/RandomMDP-v0", max_episode_steps=2)  # Gymnasium's own time limit
    shorter.reset(seed=0)
    assert [shorter.step(0)[3] for _ in range(2)] == [False, True]
    with pytest.raises(ValueError, match=r"max_episode_steps: .*horizon=2"):
        gymnasium.make_vec("rlai/RandomMDP-v0", 2, max_episode_steps=2)


def test_hidden_states_are_not_seen():
    env = gymnasium.make("rlai/Tiger-v0", accuracy=1.0, horizon=2)
    for seed in range(8):
        first, _ = env.reset(seed=seed)
        assert first == 2  # nothing is seen yet
        growl, *_ = env.step(0)
        assert env.step(1 + int(growl))[1] == -100.0  # the door that the growl came from
    assert {env.reset(seed=seed)[0] for seed in range(8)} == {2}


def test_a_process_is_found_again_by_its_id():
    """So that whatever somebody else's agent reaches can be held to the exact answer."""
    env = gymnasium.make("rlai/Gridworld-v0", rows=3, columns=3)
    found = load_problem("rlai/Gridworld-v0", {"rows": 3, "columns": 3})
    assert exact.optimal_elbo(found) == exact.optimal_elbo(env.unwrapped.process)
    learner = rlai.SoftQLearning("rlai/Gridworld-v0", hidden_sizes=(8,), batch_size=8, learning_starts=20)
    learner.learn(40)
    assert learner.num_steps == 40


def test_entering_the_ids_loads_neither_the_models_nor_torch():
    program = f"""
import sys, importlib.util
import gymnasium
spec = importlib.util.spec_from_file_location("ids", {str(FILE)!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
assert gymnasium.spec("rlai/Tiger-v0").entry_point == "rl_as_inference.model_environments:tiger"
assert not {{"torch", "pyro", "rl_as_inference"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    "program",
    [
        "import gymnasium; gymnasium.make('rl_as_inference.environments:rlai/Tiger-v0')",
        "import gymnasium, rl_as_inference; gymnasium.make('rlai/Tiger-v0')",
        "import rl_as_inference as rlai, gymnasium; gymnasium.register_envs(rlai.environments); "
        "gymnasium.make_vec('rlai/Tiger-v0', 2)",
        "import gymnasium; gymnasium.make_vec('rl_as_inference:rlai/Tiger-v0', 2, vectorization_mode='async').close()",
    ],
)
def test_ids_are_there_however_the_package_came(program):
    guarded = f"if __name__ == '__main__':\n    exec({program!r})"
    subprocess.run([sys.executable, "-c", guarded], check=True)
