"""Soft policy iteration: each step by hand, never downhill, and to the exact plan from wherever it starts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import random_mdp, small_mdps

from rl_as_inference import TabularMDP, exact
from rl_as_inference.agents import SoftPolicyIteration

F64 = torch.float64


def values_by_loops(mdp, policy):
    """Q of a stationary policy by 3,000 sweeps over states, actions and successors, in reward units."""
    transition = mdp.kernel.probabilities
    reward, alpha, gamma = mdp.reward_table, mdp.temperature, mdp.discount
    v = torch.zeros(mdp.num_states, dtype=F64)
    for _ in range(3000):
        q = reward + gamma * torch.einsum("sat,t->sa", transition, v)
        terms = policy * (q - alpha * (policy / mdp.action_prior).log())
        v = torch.where(mdp.terminal, 0.0, terms.nan_to_num().sum(-1))
    return q


@pytest.mark.parametrize("terminal", [False, True])
def test_an_iteration_is_evaluation_and_a_softmax(terminal):
    """Three of them, against sweeps: π' ∝ p exp(Q/α), to 1e-9."""
    mdp = random_mdp(3, num_states=4, num_actions=3, horizon=None, discount=0.9, terminal=terminal)
    learner, policy = SoftPolicyIteration(mdp), mdp.action_prior
    for _ in range(3):
        weights = mdp.action_prior * (values_by_loops(mdp, policy) / mdp.temperature).exp()
        policy = weights / weights.sum(-1, keepdim=True)
        learner.learn(1)
        states = ~mdp.terminal
        found = learner.policy(torch.arange(4), 0).probs
        torch.testing.assert_close(found[states], policy[states], rtol=1e-9, atol=1e-9)
    assert len(learner.objectives) == 4


@settings(max_examples=40, deadline=None, derandomize=True)
@given(mdp=small_mdps)
def test_it_ends_at_the_exact_plan_with_a_horizon(mdp):
    learner, plan = SoftPolicyIteration(mdp), exact.plan(mdp)
    reached = learner.learn()
    torch.testing.assert_close(reached.soft_v, plan.soft_v, rtol=1e-9, atol=1e-9)
    assert float(reached.objective) == pytest.approx(float(plan.objective), rel=1e-9, abs=1e-9)
    # From the end backwards one step is right after each iteration; one more finds it standing still.
    assert len(learner.objectives) <= mdp.horizon + 2


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    discount=st.sampled_from([0.0, 0.5, 0.9, 0.99]),
    temperature=st.sampled_from([0.01, 0.3, 1.0, 10.0]),
    terminal=st.booleans(),
)
def test_it_ends_at_the_exact_plan_without_a_horizon(seed, discount, temperature, terminal):
    mdp = random_mdp(
        seed, num_states=5, num_actions=3, horizon=None, discount=discount, temperature=temperature, terminal=terminal
    )
    learner, plan = SoftPolicyIteration(mdp), exact.plan(mdp)
    reached = learner.learn()
    torch.testing.assert_close(reached.soft_v, plan.soft_v, rtol=1e-8, atol=1e-8)
    living = ~mdp.terminal
    torch.testing.assert_close(
        learner.policy(torch.arange(5), 0).probs[living], plan.policy[living], rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(learner.critic(torch.arange(5), 0), reached.soft_v)


def test_the_elbo_never_falls():
    """20 random processes: every iteration's ELBO is at least the one before, to rounding; it starts at the prior's."""
    for seed in range(20):
        mdp = random_mdp(seed, num_states=6, num_actions=4, horizon=None, discount=0.95, temperature=0.2)
        learner = SoftPolicyIteration(mdp)
        learner.learn()
        objectives = torch.tensor(learner.objectives, dtype=F64)
        assert (objectives.diff() >= -1e-9 * objectives.abs()[1:]).all()
        assert objectives[0] == pytest.approx(float(exact.elbo(mdp, None)))
        assert objectives[-1] == pytest.approx(float(exact.optimal_elbo(mdp)))
        assert objectives[-1] - objectives[0] > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("temperature", "discount"), [(0.02, 0.999), (0.1, 0.9999), (1e-6, 0.9)])
def test_it_ends_where_rounding_is_as_large_as_what_is_left(temperature, discount, dtype):
    """Values in thousands of nats, whose last digits never settle: few iterations, and as good as the plan."""
    mdp = random_mdp(
        0, num_states=20, num_actions=4, horizon=None, discount=discount, temperature=temperature, dtype=dtype
    )
    learner = SoftPolicyIteration(mdp)
    reached = learner.learn(100)
    assert len(learner.objectives) < 100
    rel = 1e-3 if dtype is torch.float32 else 1e-8
    assert float(reached.objective) == pytest.approx(float(exact.optimal_elbo(mdp)), rel=rel)


def test_learning_goes_on_where_it_stopped():
    mdp = random_mdp(1, num_states=6, num_actions=4, horizon=None, discount=0.95, temperature=0.2)
    whole, parts = SoftPolicyIteration(mdp), SoftPolicyIteration(mdp)
    whole.learn(3)
    for _ in range(3):
        parts.learn(1)
    assert parts.objectives == whole.objectives
    assert torch.equal(parts.policy.logits, whole.policy.logits)
    assert torch.equal(parts.learn().soft_v, whole.learn().soft_v)
    loose = SoftPolicyIteration(mdp)
    loose.learn(tolerance=0.1)
    assert len(loose.objectives) < len(whole.objectives)


def test_the_policy_depends_on_the_step_where_there_is_a_horizon():
    mdp = random_mdp(0, horizon=5)
    learner = SoftPolicyIteration(mdp)
    plan = learner.learn()
    assert learner.policy.logits.shape == (5, 3, 2)
    assert learner.policy.logits.dtype == F64
    torch.testing.assert_close(learner.policy.logits.softmax(-1), exact.plan(mdp).policy, rtol=1e-9, atol=1e-9)
    for t in range(5):
        torch.testing.assert_close(learner.critic(torch.arange(3), t), plan.soft_v[t])


def test_impossible_actions_stay_impossible():
    mdp = random_mdp(0, num_actions=3)
    prior = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [1 / 3, 1 / 3, 1 / 3]], dtype=F64)
    mdp = TabularMDP(
        mdp.kernel.probabilities, mdp.reward_table, mdp.initial_probabilities, discount=0.9, action_prior=prior
    )
    learner = SoftPolicyIteration(mdp)
    learner.learn()
    found = learner.policy(torch.arange(3), 0).probs
    assert (found[prior == 0] == 0).all()
    torch.testing.assert_close(found, exact.plan(mdp).policy, rtol=1e-9, atol=1e-9)


def test_bad_input():
    with pytest.raises(ValueError, match=r"mdp must be a TabularMDP .* got str; use SoftActorCritic"):
        SoftPolicyIteration("FrozenLake-v1")
    learner = SoftPolicyIteration(random_mdp(0))
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="num_iterations must be an integer >= 1, got"):
            learner.learn(wrong)
    for wrong in (0.0, -1e-3, math.nan, math.inf, "small"):
        with pytest.raises(ValueError, match="tolerance must be a finite number > 0, got"):
            learner.learn(tolerance=wrong)
    with pytest.raises(ValueError, match="no fixed point: the process is undiscounted"):
        SoftPolicyIteration(random_mdp(0, horizon=None)).learn()
