"""The temperature as the dual variable of a constraint on return, for learned policies."""

import math

import numpy as np
import pytest
import torch
from small_agents import EASY, F64, Line, checkpoint, sac, same, small_mdp, sql

import rl_as_inference as rlai
from rl_as_inference import TabularMDP, exact
from rl_as_inference.agents import ReturnConstraint

QUICK = {**EASY, "compile": False}


def layers(seed: int, depth: int = 4, width: int = 3, num_actions: int = 3) -> TabularMDP:
    """Random steps from layer to layer, and the end: what a stationary policy can do best is best of all."""
    generator = torch.Generator().manual_seed(seed)
    last = depth * width
    transition = torch.zeros(last + 1, num_actions, last + 1, dtype=F64)
    for layer in range(depth - 1):
        onward = torch.rand(width, num_actions, width, generator=generator, dtype=F64) ** 4
        rows = slice(layer * width, (layer + 1) * width)
        transition[rows, :, (layer + 1) * width : (layer + 2) * width] = onward / onward.sum(-1, keepdim=True)
    transition[last - width :, :, last] = 1
    initial = torch.zeros(last + 1, dtype=F64)
    initial[:width] = 1 / width
    terminal = torch.arange(last + 1) == last
    reward = torch.randn(last + 1, num_actions, generator=generator, dtype=F64)
    return TabularMDP(transition, reward, initial, terminal=terminal, temperature=0.5)


# ---- learned policies against the exact answer ------------------------------------------------------


@pytest.mark.parametrize(("kind", "epsilon"), [(sac, 0.3), (sql, 0.5)])
def test_a_learned_policy_satisfices_as_the_exact_answer_does(kind, epsilon):
    """Four seeds, 5,000 steps each (some 1,250 episodes of 4): every α and every exact return near the answer's.

    One return has a standard deviation of about 1.5, so that 400 episodes tell α to some 5 %.
    """
    mdp = layers(4)
    answer = rlai.satisfice(mdp, epsilon)
    agent = kind(mdp, target_return=answer.target_return, seeds=4, **QUICK)
    agent.learn(5000, progress=False)
    states = torch.arange(mdp.num_states)
    earned = [float(exact.expected_return(mdp, policy(states, 0).probs.detach().double())) for policy in agent.policies]
    start = float(exact.expected_return(mdp, mdp.action_prior))
    span = answer.best_return - start
    assert start < answer.target_return - 0.3 * span  # it has something to learn,
    assert answer.target_return < answer.best_return - 0.2 * span  # and something to forgo
    np.testing.assert_allclose(earned, answer.target_return, rtol=0, atol=0.05 * span)
    np.testing.assert_allclose(np.log(agent.temperatures), math.log(answer.temperature), rtol=0, atol=0.15)
    assert np.abs(np.array(agent.constraint.recent) - answer.target_return).max() < 1.5


def test_a_return_that_nothing_earns_drives_the_temperature_down_and_an_easy_one_up():
    hard, easy = (sac(layers(4), target_return=target, **QUICK) for target in (100.0, -100.0))
    for agent in (hard, easy):
        agent.learn(1500, progress=False)
    # No step is shortened: every gap is as large as all before it, up to the spread of returns.
    assert easy.temperature == pytest.approx(math.exp(0.01 * easy.num_updates), rel=0.3)
    assert hard.temperature == pytest.approx(math.exp(-0.2 * 0.01 * hard.num_updates), rel=0.1)
    for agent in (hard, easy):
        for _ in range(3):
            agent.constraint._bounds = (-1.0, 1.0)
            agent.learn(100, progress=False)
        assert abs(math.log(agent.temperature)) <= 1 + 1e-12


def test_nothing_but_whole_episodes_of_the_policy_moves_the_temperature():
    agent = sac(lambda: Line(ends_at=200), target_return=-1.0, initial_temperature=0.3)
    agent.learn(399, progress=False)  # one episode from before learning began, and one that is not over
    assert agent.num_updates == 380
    assert agent.temperature == pytest.approx(0.3, rel=1e-6)
    assert np.isnan(agent.constraint.recent).all()
    agent.learn(1, progress=False)
    assert agent.constraint.recent == pytest.approx([agent.episodes[-1][2]])
    # All 380 updates before that step, at a fifth of the learning rate; the first gap is its own scale.
    sign = math.copysign(1, agent.episodes[-1][2] + 1.0)
    assert agent.temperature == pytest.approx(0.3 * math.exp(sign * 0.2 * 380 * agent.learning_rate), rel=1e-5)


# ---- the steps by hand ------------------------------------------------------------------------------


def test_steps_of_the_dual_by_hand():
    """Two seeds of two environments, random episodes of random length, against a plain loop over episodes."""
    generator = np.random.default_rng(0)
    target, discount, rate = 1.3, 0.9, 0.02
    constraint = ReturnConstraint(target, discount=discount, num_seeds=2, num_envs=2, learning_rate=rate)
    running = [[] for _ in range(4)]
    started = [False] * 4
    crossings, run, updates, before = [0, 0], [0, 0], [0, 0], [0.0, 0.0]
    returns, lengths, reached, log_alpha = [[], []], [[], []], [-math.inf, -math.inf], [0.0, 0.0]
    steps = forgotten = crossed = held = 0
    for step in range(1300):
        mean_reward = 0.5 if step < 600 else 2.0 if step < 900 else -2.0  # later the returns stay on one side
        reward, ended = generator.normal(mean_reward, 1, 4), generator.random(4) < 0.3
        valid = generator.random(4) < 0.8
        acts = step >= 20
        ended &= valid
        moved = constraint.observe(reward, ended=ended, valid=valid, acts=acts, num_updates=3 * step)
        expected = {}
        for env in range(4):
            seed = env // 2
            if valid[env]:
                running[env].append(reward[env])
            if not ended[env]:
                continue
            earned, counts = sum(discount**t * r for t, r in enumerate(running[env])), started[env]
            running[env], started[env] = [], acts
            if not counts:
                continue
            returns[seed].append(earned)
            gaps = np.array(returns[seed]) - target
            age = np.arange(len(gaps))[::-1]
            scale = math.sqrt((0.99**age * gaps**2).sum() / (0.99**age).sum())
            lengths[seed].append(3 * step - updates[seed])
            updates[seed] = 3 * step
            usual = np.average(lengths[seed][:-1] or lengths[seed], weights=0.9 ** age[1:] if len(age) > 1 else None)
            mean = (0.9**age * gaps).sum()
            run[seed] += 1
            if mean * before[seed] < 0:
                crossings[seed], run[seed] = crossings[seed] + 1, 1
                crossed += 1
            elif run[seed] > 50:
                crossings[seed] *= 0.95
                forgotten += 1
            before[seed] = mean
            if mean >= 0:
                reached[seed] = log_alpha[seed]
            step_size = rate * usual * max(1 / (1 + crossings[seed] / 3), 0.02)
            if reached[seed] == -math.inf:
                step_size *= 0.2
            proposed = log_alpha[seed] + step_size * min(max(gaps[-1] / scale, -3), 3)
            log_alpha[seed] = expected[seed] = max(proposed, reached[seed] - math.log(3))
            held += proposed < expected[seed]
            steps += 1
        assert moved == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert steps > 500
    assert crossed > 20
    assert forgotten > 50
    assert held > 5
    for seed in range(2):
        weights = 0.9 ** np.arange(len(returns[seed]))[::-1]
        mean = (weights * returns[seed]).sum() / weights.sum()
        assert constraint.recent[seed] == pytest.approx(mean, rel=1e-9)


def test_episodes_of_random_length_leave_no_bias():
    """Twelve seeds of 40,000 steps each: an episode earns 1 a step, and ends after 20/α of them on average.

    The mean is the target at α = 1. Steps in proportion to an episode's own length would count long ones twice, and
    settle where E[L²]/E[L] = 20, at α near 2.
    """
    generator = np.random.default_rng(1)
    constraint = ReturnConstraint(20.0, num_seeds=12, num_envs=1, learning_rate=1e-3)
    alpha, late = np.ones(12), []
    for step in range(40_000):
        ended = generator.random(12) < np.minimum(alpha / 20, 1)
        moved = constraint.observe(np.ones(12), ended=ended, valid=np.ones(12, bool), acts=True, num_updates=step)
        for seed, log_temperature in moved.items():
            alpha[seed] = math.exp(log_temperature)
        if step >= 20_000:
            late.append(np.log(alpha))
    means = np.mean(late, 0)
    assert np.abs(means).max() < 0.3
    assert abs(means.mean()) < 4 * means.std(ddof=1) / math.sqrt(12) + 0.02


def test_the_return_is_discounted_by_a_process_and_not_by_an_environment():
    assert sac(small_mdp(), target_return=1.0).constraint.discount == 0.8
    assert sac(small_mdp(), target_return=1.0, discount=0.5).constraint.discount == 0.8
    assert sac("Pendulum-v1", target_return=-400).constraint.discount == 1.0


# ---- checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [None, 2])
def test_learning_goes_on_from_a_checkpoint_as_it_would_have(tmp_path, seeds):
    def make(target=0.5):
        return sac(layers(3), target_return=target, seeds=seeds, num_envs=2)

    whole, parts = make(), make()
    whole.learn(300, progress=False)
    parts.learn(150, progress=False)
    parts.save(tmp_path / "half")
    gone_on = make()
    gone_on.restore(tmp_path / "half")
    assert gone_on.temperatures == parts.temperatures
    gone_on.learn(150, progress=False)
    assert whole.temperature != 1.0
    assert same(checkpoint(whole, tmp_path / "one"), checkpoint(gone_on, tmp_path / "other"))
    assert whole.constraint.state_dict() == gone_on.constraint.state_dict()
    with pytest.raises(ValueError, match=r"written with another target_return: it has 0\.5, and this agent 0\.6"):
        make(0.6).restore(tmp_path / "half")
    with pytest.raises(ValueError, match=r"written with another target_return: it has 0\.5, and this agent None"):
        sac(layers(3), temperature="auto", seeds=seeds, num_envs=2).restore(tmp_path / "half")


# ---- wrong input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [sac, sql])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_return": math.nan}, "target_return must be a finite number of reward units, got nan"),
        ({"target_return": "much"}, "target_return must be a finite number of reward units, got 'much'"),
        ({"target_return": True}, "target_return must be a finite number of reward units, got True"),
        ({"target_return": 1.0, "target_entropy": 0.3}, "target_return and target_entropy both tune the temperature"),
        (
            {"target_return": 1.0, "temperature": 0.2},
            r"target_return tunes the temperature, and temperature=0\.2 fixes",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind("CartPole-v1", **options)


@pytest.mark.parametrize("objective", ["ddpg", "svg0"])
def test_an_objective_without_entropy_has_no_temperature_to_tune(objective):
    with pytest.raises(ValueError, match=f"target_return tunes an entropy that objective='{objective}' has not"):
        sac("Pendulum-v1", objective=objective, target_return=-400)


def test_episodes_that_never_end_are_refused():
    grid = rlai.models.gridworld(3, 3, None, discount=0.9)
    with pytest.raises(ValueError, match=r"target_return is held by whole episodes, and those of .* never end"):
        sac(grid, target_return=1.0)
    sac(rlai.models.gridworld(3, 3, 10, discount=0.9), target_return=1.0)
