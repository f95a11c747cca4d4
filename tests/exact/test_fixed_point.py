"""Processes too large for a linear solve: iteration gives what Newton's method does, and its gradient."""

import math

import numpy as np
import pytest
import torch
from problems import random_mdp

from rl_as_inference import exact, satisfice
from rl_as_inference.exact import linear_systems
from rl_as_inference.processes import TabularMDP

F64 = torch.float64
EPS = torch.finfo(F64).eps


@pytest.mark.parametrize("dynamics", ["causal", "posterior"])
@pytest.mark.parametrize("discount", [0.5, 0.9])
def test_iteration_agrees_with_the_solve(dynamics: str, discount: float, monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = random_mdp(4, num_states=5, horizon=None, discount=discount, terminal=True, temperature=3.0)

    def answers() -> tuple[torch.Tensor, ...]:
        reward = mdp.reward_table.clone().requires_grad_()
        plan = exact.plan(mdp.replace(reward=reward), dynamics)
        (slope,) = torch.autograd.grad(plan.objective, reward)
        return plan.soft_v.detach(), plan.policy.detach(), slope

    solved = answers()
    monkeypatch.setattr(linear_systems, "_DENSE_LIMIT", 0)
    for one, other in zip(solved, answers(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


def test_evaluation_and_occupancy_by_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = random_mdp(4, num_states=5, horizon=None, discount=0.9, terminal=True)
    policy = exact.plan(mdp).policy
    solved = exact.evaluate(mdp, policy).soft_v, exact.occupancy(mdp, policy)
    monkeypatch.setattr(linear_systems, "_DENSE_LIMIT", 0)
    for one, other in zip(solved, (exact.evaluate(mdp, policy).soft_v, exact.occupancy(mdp, policy)), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


def _near_one(seed: int, discount: float, dtype: torch.dtype = torch.float64, **options: object) -> TabularMDP:
    return random_mdp(
        seed, num_states=10, num_actions=3, horizon=None, discount=discount, temperature=1.0, dtype=dtype, **options
    )


def _soft_policy_iteration(mdp: TabularMDP) -> torch.Tensor:
    """Returns the advantages ``Q - V`` of the fixed point, whose size does not grow with the level.

    With ``P`` and ``r`` of the present rule, ``(I - γP + 1ρ) h = r`` for a distribution ``ρ`` gives ``V`` but for
    a constant.
    """
    prior, transition = mdp.action_prior, mdp.kernel.probabilities
    policy = prior.clone()
    for _ in range(60):
        moves = torch.einsum("sa,sat->st", policy, transition)
        earned = (policy * (mdp.reward_table + (prior / policy).log())).sum(-1)
        uniform = torch.full((10, 10), 0.1, dtype=moves.dtype)
        rest = torch.linalg.solve(torch.eye(10, dtype=moves.dtype) - mdp.discount * moves + uniform, earned)
        q = mdp.reward_table + mdp.discount * transition @ rest
        policy = torch.softmax(q + prior.log(), -1)
    return q - torch.logsumexp(q + prior.log(), -1, keepdim=True)


@pytest.mark.parametrize("discount", [0.99, 0.9999, 0.99999, 0.999999, 1 - 1e-7])
@pytest.mark.parametrize("limit", [3000, 0])
def test_causal_values_exist_at_any_discount_below_one(
    discount: float, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random processes of 10 states, seeds 0-4: to the rounding of one backup, and against soft policy iteration."""
    monkeypatch.setattr(linear_systems, "_DENSE_LIMIT", limit)
    for seed in range(5):
        mdp = _near_one(seed, discount)
        plan = exact.plan(mdp, "causal")
        value, reward = plan.soft_v, mdp.reward_table
        q = reward + discount * mdp.kernel.probabilities @ value
        improved = torch.logsumexp(q + mdp.action_prior.log(), -1)
        scale = 1 + float(value.abs().max())
        assert float((improved - value).abs().max()) < 8 * EPS * scale
        advantage = _soft_policy_iteration(mdp)
        assert float((plan.policy - mdp.action_prior * advantage.exp()).abs().max()) < 1e-12 + 8 * EPS * scale
        # The level is as exact: (1-γ) V is the average of what the optimal rule earns.
        earned = (plan.policy * (reward - (plan.policy / mdp.action_prior).log())).sum(-1)
        moves = torch.einsum("sa,sat->st", plan.policy, mdp.kernel.probabilities)
        system = torch.eye(10, dtype=F64) - discount * moves
        assert torch.allclose(torch.linalg.solve(system, earned), value, rtol=100 * EPS / (1 - discount), atol=1e-9)
        # In single precision rewards and kernel are rounded, and with them the gain (1-γ) V.
        single = exact.plan(_near_one(seed, discount, torch.float32), "causal").soft_v.double()
        assert float((1 - discount) * (single - value).abs().max()) < 16 * 1.2e-7 * (1 + float(reward.abs().max()))


def test_ends_that_are_far_away() -> None:
    """Terminal states that are hardly ever reached leave the level to rounding, but not without an answer."""
    for seed in range(3):
        mdp = _near_one(seed, 1 - 1e-7, terminal=True)
        value = exact.plan(mdp, "causal").soft_v
        q = mdp.reward_table + mdp.discount * mdp.kernel.probabilities @ value
        improved = torch.where(mdp.terminal, 0.0, torch.logsumexp(q + mdp.action_prior.log(), -1))
        assert float((improved - value).abs().max()) < 100 * EPS * (1 + float(value.abs().max()))


def test_two_levels() -> None:
    """Two states that are never left, of rewards 0 and 1: values 0 and 1/(1-γ)."""
    transition = torch.eye(2, dtype=F64)[:, None]
    mdp = TabularMDP(
        transition, torch.tensor([[0.0], [1.0]], dtype=F64), torch.tensor([0.5, 0.5], dtype=F64), discount=1 - 1e-7
    )
    value = exact.plan(mdp, "causal").soft_v
    assert torch.allclose(value, torch.tensor([0.0, 1 / (1 - mdp.discount)], dtype=F64), rtol=1e-8, atol=1e-3)


def test_an_infinite_evidence_is_called_so() -> None:
    """A reward of 1 nat for certain at every step: Z = (1-γ) Σ γ^t e^(t+1) has no bound once γ e ≥ 1."""
    one = torch.ones(1, 1, dtype=F64)

    def sure(discount: float) -> TabularMDP:
        return TabularMDP(one[None], one, torch.ones(1, dtype=F64), discount=discount)

    for discount in (0.4, 0.999999):
        with pytest.raises(ValueError, match="with no horizon the log evidence of this process is infinite"):
            exact.plan(sure(discount), "posterior")
    value = float(exact.plan(sure(0.3), "posterior").soft_v[0])
    assert abs(value - math.log(0.7 * math.e / (1 - 0.3 * math.e))) < 1e-12


@pytest.mark.parametrize("chance", [3e-3, 1e-3, 1e-5])
def test_undiscounted_values_of_long_episodes(chance: float) -> None:
    """Two states, 201 temperatures: soft values against the equation that they solve, and the return that satisfices.

    Rounding is magnified by the episodes' length, so that Newton's last steps do not shrink to it.
    """
    moves = torch.tensor([[[1 - chance, chance], [0.5, 0.5]], [[0, 1], [0, 1]]], dtype=F64)
    reward = torch.tensor([[1, 0.9], [0, 0]], dtype=F64)
    mdp = TabularMDP(moves, reward, torch.tensor([1.0, 0.0]).double(), terminal=torch.tensor([False, True]))
    for alpha in torch.linspace(0.5, 2.5, 201).tolist():
        value = float(exact.plan(mdp.at_temperature(alpha)).soft_v[0]) / alpha

        def gap(x: float, alpha: float = alpha) -> float:
            stay, leave = 1 / alpha + (1 - chance) * x, 0.9 / alpha + 0.5 * x
            return x - float(np.logaddexp(stay, leave)) + math.log(2)

        assert abs(gap(value)) < 1e-13 * (1 + abs(value))
        assert gap(value - 1e-6 * (1 + abs(value))) < 0 < gap(value + 1e-6 * (1 + abs(value)))
    for epsilon in (0.01, 0.3):
        answer = satisfice(mdp, epsilon)
        assert answer.best_return == pytest.approx(1 / chance, rel=1e-9)
        assert answer.expected_return == pytest.approx((1 - epsilon) / chance, rel=1e-9)
