"""Processes too large for a linear solve: iteration gives what Newton's method does, and its gradient."""

import pytest
import torch
from problems import random_mdp

from rl_as_inference import exact
from rl_as_inference.exact import fixed_point


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
    monkeypatch.setattr(fixed_point, "_SOLVE_LIMIT", 0)
    for one, other in zip(solved, answers(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


def test_evaluation_and_occupancy_by_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = random_mdp(4, num_states=5, horizon=None, discount=0.9, terminal=True)
    policy = exact.plan(mdp).policy
    solved = exact.evaluate(mdp, policy).soft_v, exact.occupancy(mdp, policy)
    monkeypatch.setattr(fixed_point, "_SOLVE_LIMIT", 0)
    for one, other in zip(solved, (exact.evaluate(mdp, policy).soft_v, exact.occupancy(mdp, policy)), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)
