"""Choosing a temperature: what reward scale does to it, and its limits."""

import pytest
import torch
from problems import random_mdp

import rl_as_inference as rlai
from rl_as_inference import LinearGaussianMDP, exact
from rl_as_inference.objectives.soft_actors import exact_sum_actor_loss, pathwise_actor_loss
from rl_as_inference.objectives.soft_critics import (
    exact_soft_value,
    log_sum_exp_value,
    soft_critic_loss,
    soft_td_target,
    softmax_policy,
)

F64 = torch.float64


@pytest.mark.parametrize("c", [0.1, 2.0, 37.0])
@pytest.mark.parametrize("dynamics", ["causal", "posterior"])
@pytest.mark.parametrize("seed", range(3))
def test_scaling_rewards_and_temperature_together_changes_nothing(seed, dynamics, c):
    mdp = random_mdp(seed, discount=0.9, terminal=True, reward_on_successor=seed == 1)
    other = mdp.replace(reward=c * mdp.reward_table, temperature=c * mdp.temperature)
    plan, scaled = exact.plan(mdp, dynamics), exact.plan(other, dynamics)
    assert torch.allclose(plan.policy, scaled.policy, rtol=0, atol=1e-12)
    assert torch.allclose(c * plan.soft_v, scaled.soft_v, rtol=1e-12, atol=1e-12)
    assert float(plan.objective) == pytest.approx(float(scaled.objective), abs=1e-12), "nats do not scale"
    returns = [float(exact.expected_return(mdp, p)) for p in (plan, scaled)]
    assert returns[0] == pytest.approx(returns[1], abs=1e-12)
    assert float(exact.expected_return(other, scaled)) == pytest.approx(c * returns[0], rel=1e-12)
    # Doubled rewards alone are half the temperature.
    doubled, halved = mdp.replace(reward=2 * mdp.reward_table), mdp.at_temperature(mdp.temperature / 2)
    assert torch.allclose(exact.plan(doubled).policy, exact.plan(halved).policy, rtol=0, atol=1e-12)
    assert float((exact.plan(doubled).policy - exact.plan(mdp).policy).abs().max()) > 1e-2, "and not the same"


@pytest.mark.parametrize("c", [0.1, 2.0, 37.0])
def test_linear_gaussian_invariance(c):
    mdp = rlai.models.double_integrator(horizon=8, temperature=0.7, dtype=F64)
    other = LinearGaussianMDP(
        mdp.A,
        mdp.B,
        mdp.noise_scale_tril @ mdp.noise_scale_tril.T,
        c * mdp.state_cost,
        c * mdp.action_cost,
        mdp.initial_mean,
        mdp.initial_scale_tril @ mdp.initial_scale_tril.T,
        mdp.action_prior_scale_tril @ mdp.action_prior_scale_tril.T,
        horizon=8,
        temperature=c * 0.7,
    )
    plan, scaled = exact.plan(mdp), exact.plan(other)
    for name in ("gain", "offset", "covariance"):
        assert torch.allclose(getattr(plan, name), getattr(scaled, name), rtol=1e-10, atol=1e-12)
    assert float(plan.objective) == pytest.approx(float(scaled.objective), abs=1e-10)
    earned = float(exact.expected_return(mdp, plan)), float(exact.expected_return(other, scaled))
    assert earned[1] == pytest.approx(c * earned[0], rel=1e-10)


@pytest.mark.parametrize("c", [0.1, 2.0, 37.0])
def test_the_learners_losses_scale(c):
    """Values times c: targets times c, the critic's loss times c², the actor's gradient unchanged."""
    g = torch.Generator().manual_seed(0)
    q, logits, reward = (torch.randn(*shape, generator=g, dtype=F64) for shape in ((8, 3), (8, 3), (8,)))
    done, alpha = torch.zeros(8, dtype=torch.bool), 0.3
    log_prior = torch.full((3,), 1 / 3, dtype=F64).log()
    log_policy = logits.log_softmax(-1)
    value = exact_soft_value(q, log_policy, log_prior, alpha)
    target = soft_td_target(reward, value, done, 0.9)
    scaled = soft_td_target(c * reward, exact_soft_value(c * q, log_policy, log_prior, c * alpha), done, 0.9)
    assert torch.allclose(scaled, c * target, rtol=1e-12)
    losses = [float(soft_critic_loss(k * q.T, k * target)) for k in (1.0, c)]
    assert losses[1] == pytest.approx(c**2 * losses[0], rel=1e-12)

    def gradient(scale: float) -> torch.Tensor:
        free = logits.clone().requires_grad_()
        log_pi = free.log_softmax(-1)
        discrete = exact_sum_actor_loss(scale * q, log_pi, log_prior, scale * alpha)
        single = pathwise_actor_loss(scale * (q * log_pi).sum(-1), log_pi[:, 0], log_prior[0].expand(8), scale * alpha)
        return torch.autograd.grad(discrete + single, free)[0]

    assert torch.allclose(gradient(1.0), gradient(c), rtol=1e-10, atol=1e-14)


def value_iteration(mdp) -> torch.Tensor:
    """Hard Q values by plain value iteration, without entropy or prior."""
    value = torch.zeros(mdp.num_states, dtype=F64)
    for _ in range(2000):
        q = mdp.expected_reward() + float(mdp.discount) * mdp.kernel.probabilities @ value
        value = q.amax(-1)
    return q


@pytest.mark.parametrize("seed", range(3))
def test_no_temperature_is_value_iteration(seed):
    """α → 0: soft Q is hard Q within α log(1/min p)/(1-γ), V within that too, and the policy takes the best action."""
    mdp = random_mdp(seed, num_states=5, num_actions=3, horizon=None, discount=0.9)
    hard = value_iteration(mdp)
    bound = -float(mdp.log_action_prior.min()) / (1 - 0.9)
    for alpha in (1e-1, 1e-2, 1e-4):
        plan = exact.plan(mdp.at_temperature(alpha))
        assert float((plan.soft_q - hard).abs().max()) <= alpha * bound
        assert float((hard - plan.soft_q).min()) >= -1e-9, "entropy relative to a prior only costs"
    assert bool((plan.policy.argmax(-1) == hard.argmax(-1)).all())
    assert float(plan.policy.amax(-1).min()) > 1 - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_infinite_temperature_is_the_prior(seed):
    """α → ∞: the policy is the prior to first order in 1/α, and uniform where the prior is."""
    for uniform in (True, False):
        mdp = random_mdp(seed, num_states=5, num_actions=3, horizon=None, discount=0.9, uniform_prior=uniform)
        off = [float((exact.plan(mdp.at_temperature(a)).policy - mdp.action_prior).abs().max()) for a in (1e3, 1e6)]
        assert off[0] < 1e-2
        assert off[1] == pytest.approx(off[0] / 1e3, rel=0.05)
        prior_value = exact.evaluate(mdp, None)
        assert torch.allclose(exact.plan(mdp.at_temperature(1e8)).soft_v, prior_value.soft_v, atol=1e-5)


def test_softmax_limits():
    """Equations 20 and 26 of the lecture, on one Q with a tie."""
    q = torch.tensor([0.2, 1.0, 1.0, -0.5], dtype=F64)
    prior = torch.full((4,), 0.25, dtype=F64).log()
    cold, hot = softmax_policy(q, prior, 1e-6).exp(), softmax_policy(q, prior, 1e9).exp()
    assert torch.allclose(cold, torch.tensor([0.0, 0.5, 0.5, 0.0], dtype=F64))
    assert torch.allclose(hot, torch.full((4,), 0.25, dtype=F64), atol=1e-8)
    assert float(log_sum_exp_value(q, prior, 1e-6)) == pytest.approx(1.0, abs=1e-5)
    assert float(log_sum_exp_value(q, prior, 1e9)) == pytest.approx(float(q.mean()), abs=1e-5)
    entropies = [float(-(p := softmax_policy(q, prior, a)).exp() @ p) for a in (0.05, 0.2, 1.0, 5.0)]
    assert entropies == sorted(entropies)


def test_return_falls_and_entropy_rises_with_temperature():
    mdp = random_mdp(4, num_states=6, num_actions=3, horizon=None, discount=0.9, uniform_prior=True)
    returns, costs = [], []
    for alpha in (0.05, 0.2, 0.5, 1.0, 3.0, 10.0):
        warm = mdp.at_temperature(alpha)
        plan = exact.plan(warm)
        returns.append(float(exact.expected_return(mdp, plan)))
        costs.append(returns[-1] / alpha - float(plan.objective))
    assert returns == sorted(returns, reverse=True)
    assert costs == sorted(costs, reverse=True), "nats paid to be other than the prior"
