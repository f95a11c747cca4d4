"""Agents made anew from their files, options that are declared once, and threads while an agent is tried."""

import inspect

import gymnasium
import numpy as np
import pytest
import torch
from small_agents import F64, Line, checkpoint, sac, same, small_mdp, sql

from rl_as_inference.agents import SoftActorCritic, SoftQLearning, perturb
from rl_as_inference.agents.options import SoftActorCriticOptions
from rl_as_inference.agents.reading_options import all_options, filled
from rl_as_inference.checkpoints import load_tensors, save_tensors
from rl_as_inference.guides import CategoricalPolicy


@pytest.mark.parametrize("make", [sac, sql])
def test_an_agent_is_made_anew_from_its_file(make, tmp_path):
    """Options that are nobody's default, an environment with options; it goes on bit for bit."""
    options = {"num_envs": 2, "seeds": 2, "discount": 0.9, "dtype": F64, "action_prior": "flat", "hidden_sizes": (7, 5)}
    agent = make("Acrobot-v1", env_kwargs={"max_episode_steps": 20}, seed=3, **options)
    agent.learn(50)
    agent.save(tmp_path / "a", note="kept")
    other = type(agent).load(tmp_path / "a")
    assert type(other) is type(agent)
    assert other.options == {**agent.options, "device": None}
    assert (other.envs.name, other.envs.max_episode_steps, other.num_steps) == ("Acrobot-v1", 20, 50)
    for each in (agent, other):
        each.learn(40)
    assert same(checkpoint(agent, tmp_path / "b"), checkpoint(other, tmp_path / "c"))


def test_what_a_file_cannot_name_is_given(tmp_path):
    """A factory, a process, an environment with options that JSON cannot hold, and a policy of the user's."""
    own = CategoricalPolicy(gymnasium.spaces.Box(-1, 1, (4,)), 2)
    cases = {
        "factory": (
            sac(Line),
            {"env": Line},
            r"env: the agent in .* learned in Line, given as a factory,",
        ),
        "process": (sac(small_mdp()), {"env": small_mdp()}, "learned in tabular, given as an object, TabularMDP"),
        "policy": (
            sac("CartPole-v1", policy=own),
            {"policy": CategoricalPolicy(gymnasium.spaces.Box(-1, 1, (4,)), 2)},
            r"policy: the agent in .* has a CategoricalPolicy of the user's, .*load\(path, policy=...\)",
        ),
    }
    for name, (agent, given, message) in cases.items():
        agent.learn(40)
        agent.save(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            SoftActorCritic.load(tmp_path / name)
        other = SoftActorCritic.load(tmp_path / name, **given)
        for each in (agent, other):
            each.learn(10)
        assert same(checkpoint(agent, tmp_path / "b"), checkpoint(other, tmp_path / "c")), name


def test_changes_replace_what_the_file_says(tmp_path):
    agent = sac(learning_rate=np.float64(1e-3), n_step=np.int64(1))
    agent.learn(30)
    agent.save(tmp_path / "a")
    other = SoftActorCritic.load(tmp_path / "a", learning_rate=1e-4, device="cpu")
    assert (other.learning_rate, other.batch_size, other.num_steps) == (1e-4, 6, 30)
    with pytest.raises(ValueError, match=r"another discount: it has 0\.99, and this agent 0\.5"):
        SoftActorCritic.load(tmp_path / "a", discount=0.5)
    with pytest.raises(ValueError, match="another environment: it has Pendulum-v1"):
        SoftActorCritic.load(tmp_path / "a", "MountainCarContinuous-v0")


def test_the_file_of_another_class_or_of_an_earlier_version_is_told(tmp_path):
    agent = sac("CartPole-v1")
    agent.learn(30)
    agent.save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"is of SoftActorCritic, not of SoftQLearning; use SoftActorCritic\.load"):
        SoftQLearning.load(tmp_path / "a")
    tensors, record = load_tensors(tmp_path / "a")
    del record["made"], record["identity"]["horizon"]
    save_tensors(tmp_path / "old", tensors, record)
    with pytest.raises(ValueError, match=r"earlier version, .* make the agent the same way, and restore\(path\)"):
        SoftActorCritic.load(tmp_path / "old")
    other = sac("CartPole-v1")
    other.restore(tmp_path / "old")
    assert same(checkpoint(other, tmp_path / "b"), tensors)


def test_load_of_an_agent_does_not_leave_it_as_it_was(tmp_path):
    """It looks as if it would: so it restores that agent, and returns it."""
    agent, other = sac(), sac()
    agent.learn(30)
    agent.save(tmp_path / "a")
    assert other.load(tmp_path / "a") is other
    assert other.num_steps == 30


# Options.


def test_signatures_say_every_option_with_its_default():
    for kind, own, missing in (
        (SoftActorCritic, {"objective": "maxent", "num_critics": 2}, "double"),
        (SoftQLearning, {"double": False, "num_critics": 1}, "objective"),
    ):
        parameters = inspect.signature(kind).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        for name, default in {**own, "batch_size": 256, "learning_rate": 1e-3, "buffer_size": 1_000_000}.items():
            assert defaults[name] == default
        assert missing not in parameters
        assert next(iter(parameters)) == "env"
        assert "target_entropy: nats; by default -d" in inspect.getdoc(kind)


def test_every_option_is_declared_with_words_and_a_default_that_may_be():
    names = [(option.name, option.of) for option in all_options()]
    assert len(names) == len(set(names))
    for option in all_options():
        assert option.help, option.name
        assert not option.help.endswith("."), option.name
        if option.check is not None:
            option.check(option.name, option.default)
    assert {option.of for option in all_options()} == {None, "sac", "sql", "mpo", "model-based"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [("lr", "learning_rate"), ("learning_rates", "learning_rate"), ("n_steps", "n_step"), ("zzz", None)],
)
def test_an_option_that_there_is_not_is_told_with_the_one_that_is_meant(given, meant):
    with pytest.raises(TypeError) as caught:
        SoftActorCritic("Pendulum-v1", **{given: 1})
    said = f"SoftActorCritic has no option {given!r}"
    assert str(caught.value) == (said if meant is None else f"{said}; did you mean {meant}?")


def test_what_is_given_stands_among_the_defaults():
    options = filled(SoftActorCriticOptions, {"batch_size": 7})
    assert (options["batch_size"], options["n_step"], options["policy"]) == (7, 1, None)


# Threads.


def test_an_agent_is_tried_with_one_thread():
    """A small network's work is done faster by one thread, and much faster beside another busy process."""
    counts = set()

    class Counting(Line):
        def step(self, action):
            counts.add(torch.get_num_threads())
            return super().step(action)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        agent = sac(lambda: gymnasium.wrappers.TimeLimit(Counting(), 4))
        agent.learn(25)
        agent.evaluate(2)
        perturb(agent, "action", [0.1], num_episodes=2, progress=False)
        assert counts == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
