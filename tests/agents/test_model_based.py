"""Model-based agents: on the loop of the others, they fit, imagine and plan; and resume to the bit."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

import rl_as_inference as rlai
from rl_as_inference import LearnedDynamics, ModelBasedAgent, models
from rl_as_inference.agents.model_planning import MemberPlanner, PlanningPolicy
from rl_as_inference.learned import Transitions

TINY = {
    "hidden_sizes": (8,),
    "model_hidden_sizes": (8,),
    "ensemble": 3,
    "batch_size": 8,
    "learning_starts": 30,
    "look_ahead": 3,
    "num_samples": 6,
    "model_every": 20,
    "model_updates": 10,
    "imagined_steps": 2,
    "imagined_transitions": 40,
    "compile": False,
}


def state_of(agent):
    """Returns everything that was learned."""
    tensors = {name: tensor.clone() for name, tensor in agent._update.tensors.items()}
    for index, dynamics in enumerate(agent.models):
        tensors |= {f"{index}.{name}": tensor.clone() for name, tensor in dynamics.state_dict().items()}
    return tensors | {
        "imagined": agent.imagined.storage[:, : len(agent.imagined)].clone(),
        "replay": agent.replay.action,
    }


@pytest.mark.parametrize("planner", ["mppi", "smc", "policy"])
def test_it_goes_on_from_a_file_to_the_bit(planner, tmp_path):
    whole = ModelBasedAgent("Pendulum-v1", planner=planner, **TINY)
    whole.learn(45, progress=False)
    whole.save(tmp_path / "agent.safetensors")
    whole.learn(15, progress=False)  # with a fit in it
    again = ModelBasedAgent.load(tmp_path / "agent.safetensors")
    assert again.dynamics.num_transitions == 30
    again.learn(15, progress=False)
    expected, found = state_of(whole), state_of(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert again.dynamics.num_transitions == 50
    observation = [0.5, 0.5, 0.0]
    assert np.array_equal(whole.act(observation), again.act(observation))


def test_what_is_imagined_begins_where_it_has_been_and_no_time_limit_ends_it():
    agent = ModelBasedAgent("Pendulum-v1", real_share=0.2, planner="policy", **{**TINY, "learning_starts": 210})
    agent.learn(211, progress=False)
    assert bool(agent.replay.truncated.any())
    assert not bool(agent.imagined.terminated.any())
    assert len(agent.imagined) == 40 + 10
    lived = {tuple(row) for row in agent.replay.state.tolist()}
    starts = [tuple(row) in lived for row in agent.imagined.state.tolist()]
    assert sum(starts) == 10 + 20  # what was lived, and the first of the two steps of each walk
    walked = agent.imagined.state[30:50]
    assert torch.equal(walked, agent.imagined.next_state[10:30])  # the second step goes on from the first
    row = agent.history[-1]
    assert row["model_log_likelihood"] == pytest.approx(agent._model.log_likelihood)


def test_endings_are_imagined_and_discrete_actions_planned():
    agent = ModelBasedAgent("CartPole-v1", **{**TINY, "learning_starts": 100, "model_updates": 80})
    assert agent.planner == "smc"
    agent.learn(101, progress=False)
    assert bool(agent.replay.terminated.any())
    assert bool(agent.imagined.terminated.any())
    assert agent.act(np.zeros((4, 4), np.float32)).shape == (4,)


def test_several_seeds_have_a_model_each():
    agent = ModelBasedAgent("Pendulum-v1", seeds=2, **TINY)
    agent.learn(32, progress=False)
    first, second = agent.models
    assert not torch.equal(first.networks.input_mean, second.networks.input_mean)
    for seed, dynamics in enumerate(agent.models):
        inputs = dynamics.networks.raw_inputs(agent.replay.state[seed, :30], agent.replay.action[seed, :30])
        torch.testing.assert_close(dynamics.networks.input_mean, inputs.mean(0))
    assert agent.imagined.storage.shape[0] == 2
    assert [policy.planner.process for policy in agent.policies] == agent.models


def test_a_process_of_a_horizon_is_learned_and_planned_in_to_its_end():
    agent = ModelBasedAgent(models.pendulum(horizon=12), dtype=torch.float64, **TINY)
    agent.learn(40, progress=False)
    assert agent.dynamics.horizon == 12
    assert agent.dynamics.like.dtype == torch.float64
    last = agent.imagined.time == 11
    assert torch.equal(agent.imagined.terminated, last)
    assert agent.evaluate(3).lengths.tolist() == [12, 12, 12]


def test_a_reward_that_is_known_is_not_learned(tmp_path):
    def upright(state, action, next_state):
        return state[..., 0]

    agent = ModelBasedAgent("Pendulum-v1", reward_function=upright, planner="policy", **TINY)
    agent.learn(31, progress=False)
    assert agent.dynamics.networks.num_outputs == 3
    torch.testing.assert_close(agent.imagined.reward[-40:], agent.imagined.state[-40:, 0])
    agent.save(tmp_path / "agent.safetensors")
    with pytest.raises(ValueError, match=r"reward_function: the agent in .* has a upright of the user's"):
        ModelBasedAgent.load(tmp_path / "agent.safetensors")
    again = ModelBasedAgent.load(tmp_path / "agent.safetensors", reward_function=upright)
    assert again.num_steps == 31


def test_before_there_is_a_model_its_policy_acts():
    agent = ModelBasedAgent("Pendulum-v1", **TINY)
    assert agent.policy is agent.modules[0]["policy"]
    assert agent.act([1.0, 0.0, 0.0]).shape == (1,)
    with pytest.raises(ValueError, match="dynamics were never fitted"):
        rlai.inspect.foresee(agent, 5)


def test_it_says_what_it_foresaw_planned_and_did():
    agent = ModelBasedAgent("Pendulum-v1", **TINY)
    agent.learn(31, progress=False)
    before = state_of(agent)
    found = rlai.inspect.foresee(agent, 8, every=4, num_draws=5)
    assert [look.start for look in found.outlooks] == [0, 4]
    assert (found.states.shape, found.actions.shape) == ((9, 3), (8, 1))
    look = found.outlooks[1]
    assert look.planned
    assert (look.draws.shape, look.expected.shape) == ((3, 5, 4, 3), (3, 4, 3))
    torch.testing.assert_close(look.draws[:, :, 0], found.states[4].expand(3, 5, 3))
    # What a member expects is what its own process does without luck.
    state, walk = found.states[4], []
    member = agent.dynamics.certain().member(2)
    for action in look.actions:
        state = member.transition(state[None], action[None]).mean[0]
        walk.append(state)
    torch.testing.assert_close(look.expected[2, 1:], torch.stack(walk))
    assert all(torch.equal(before[name], value) for name, value in state_of(agent).items())
    ax = rlai.inspect.plots.plot_foresight(found, 3)
    assert ax.get_ylabel() == "action"
    with pytest.raises(ValueError, match="agent must be a ModelBasedAgent, got SoftActorCritic"):
        rlai.inspect.foresee(rlai.SoftActorCritic("Pendulum-v1"), 5)


def test_plans_go_on_within_an_episode_and_begin_anew_in_the_next():
    agent = ModelBasedAgent("Pendulum-v1", **TINY)
    agent.learn(32, progress=False)
    policy = agent.policy
    assert isinstance(policy, PlanningPolicy)
    agent.act([1.0, 0.0, 0.0], t=0)
    assert policy.planner._last[0] == 0
    agent.act([1.0, 0.0, 0.0], t=1)
    assert policy.planner._last[0] == 1
    agent.begin_episode()
    assert policy.planner._last is None
    with torch.no_grad():
        several = policy(torch.zeros(2, 3), torch.tensor([0, 5]))
    assert several.sample().shape == (2, 1)


@pytest.fixture(scope="module")
def leap():
    """Dynamics where action 2 of three earns, and all members know it."""
    torch.manual_seed(0)
    state, action = torch.randn(300, 1), torch.randint(3, (300,))
    seen = Transitions(state, action, (action == 2).float(), state, torch.zeros(300, dtype=torch.bool))
    dynamics = LearnedDynamics(
        Box(-9, 9, (1,)), gymnasium.spaces.Discrete(3), ensemble=3, hidden_sizes=(16,), horizon=2
    )
    dynamics.fit(seen, 400, learning_rate=1e-2)
    return dynamics.at_temperature(0.5)


def test_soft_values_are_averaged_over_members_before_they_are_exponentiated(leap):
    planner = MemberPlanner(leap, look_ahead=1, num_particles=30)
    state = torch.randn(4, 1)
    found = planner(state, 1).logits.log_softmax(-1)
    rewards = torch.stack([leap.predict(state, torch.full((4,), a)).mean[..., 1] for a in range(3)], -1)
    torch.testing.assert_close(found, (rewards.mean(0) / 0.5).log_softmax(-1), rtol=0, atol=1e-4)
    assert bool((found.argmax(-1) == 2).all())


BAD = {
    "a planner": ({"planner": "tree"}, "planner must be one of mppi, smc, policy; got 'tree'"),
    "too few": ({"learning_starts": 10}, "learning_starts is 10, and 20 transitions are needed"),
    "n steps": ({"n_step": 3}, "n_step=3 does not go with a model of the world"),
    "a memory": ({"memory": "gru"}, "memory='gru' does not go with a model of the world"),
    "a share": ({"real_share": 2.0}, r"real_share must be a number in \[0, 1\], got 2.0"),
    "yes": ({"optimistic": "yes"}, "optimistic must be True or False, got 'yes'"),
    "a reward": ({"reward_function": 3}, "reward_function must be a function"),
    "an ensemble": ({"ensemble": 0}, "ensemble must be an integer >= 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ModelBasedAgent("Pendulum-v1", **options)


def test_problems_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"planner='mppi' needs continuous actions.*use 'smc'"):
        ModelBasedAgent("CartPole-v1", planner="mppi")
    with pytest.raises(ValueError, match="state_space must be a Box"):
        ModelBasedAgent("FrozenLake-v1")
    with pytest.raises(TypeError, match="has no option 'horizon'"):
        ModelBasedAgent("Pendulum-v1", horizon=3)


def test_it_is_a_name_of_the_command_line_and_of_records(tmp_path):
    agent = ModelBasedAgent("Pendulum-v1", planner="policy", **TINY)
    training = rlai.agents.train(
        agent, 40, tmp_path / "run", evaluate_every=40, evaluate_episodes=1, checkpoint_every=40, progress=False
    )
    assert len(training.curve) == 2
    run = rlai.load_run(tmp_path / "run")
    assert isinstance(run.agent, ModelBasedAgent)
    assert run.agent.dynamics.num_transitions == 30
