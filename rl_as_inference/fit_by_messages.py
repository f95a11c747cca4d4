"""The regression of ``fit(estimator="em")`` on exact messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rl_as_inference import exact
from rl_as_inference.exact.gaussian_projection import expected_log_density, improved_rule, rule_within, sigma_points
from rl_as_inference.exact.linear_gaussian import rules_of
from rl_as_inference.exact.tabular import discounted_visits, log_policy_table
from rl_as_inference.objectives.projection import improved_policy, projection_loss, soft_advantage
from rl_as_inference.objectives.weighted_regression import Projection
from rl_as_inference.processes import LinearGaussianMDP, TabularMDP

__all__ = ["ProjectionByMessages"]

_E_STEP = 4
"""Gradient steps of the regression on one answer of exact messages."""


class ProjectionByMessages:
    """Minus the ELBO, whose gradient is that of the regression on exact E-steps, of every fourth call."""

    def __init__(self, process: TabularMDP | LinearGaussianMDP, policy: nn.Module, projection: Projection) -> None:
        self.process, self.policy, self.projection = process, policy, projection
        self.calls = 0

    def __call__(self) -> Tensor:
        if self.calls % _E_STEP == 0:
            with torch.no_grad():
                plan = exact.evaluate(self.process, self.policy)
                self.elbo = plan.objective
                self.regress = self._on(self.process, plan)
        self.calls += 1
        loss = self.regress()
        return loss - loss.detach() - self.elbo

    def _on(self, process: TabularMDP | LinearGaussianMDP, plan: Any) -> Callable[[], Tensor]:
        return self._finite(process, plan) if isinstance(process, TabularMDP) else self._gaussian(process, plan)

    def _finite(self, mdp: TabularMDP, plan: exact.Plan) -> Callable[[], Tensor]:
        alpha = mdp.temperature
        weights = discounted_visits(mdp, plan)
        weights = weights[0] if mdp.horizon is None else weights
        log_policy = plan.exact_log_policy.to(plan.soft_q)
        advantage = soft_advantage(plan.soft_q, log_policy, mdp.log_action_prior, alpha)
        eta = self.projection.temperature(advantage, log_policy, weights, alpha)
        target = improved_policy(advantage, log_policy, eta)

        def regress() -> Tensor:
            return eta / alpha * projection_loss(log_policy_table(mdp, self.policy), target, weights)

        return regress

    def _gaussian(self, system: LinearGaussianMDP, plan: exact.LinearGaussianPlan) -> Callable[[], Tensor]:
        alpha, chosen = system.temperature, self.projection
        states, weights = sigma_points(system, plan)
        if chosen.epsilon is None:
            eta: Any = alpha if chosen.eta is None else chosen.eta
            target = improved_rule(system, plan, eta)
        else:
            target, eta = rule_within(system, plan, chosen.epsilon)

        def regress() -> Tensor:
            rule = tuple(torch.stack(x) for x in zip(*rules_of(system, self.policy), strict=True))
            return -eta / alpha * (weights * expected_log_density(states, target, rule)).sum()

        return regress
