"""What the gradient of a batch of action draws is, by the estimator that is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rl_as_inference.critics import QEnsemble
from rl_as_inference.distributed import ALONE, Ranks
from rl_as_inference.nouns import Policy
from rl_as_inference.objectives import estimators
from rl_as_inference.objectives.action_steps import ActionSteps, over_time
from rl_as_inference.objectives.path_consistency import alike, log_policy_at, squared_residuals
from rl_as_inference.objectives.soft_critics import exact_soft_value
from rl_as_inference.objectives.weighted_regression import Projection

__all__ = ["ActionSurrogate", "Estimator"]

Estimator = Literal[
    "auto",
    "pathwise",
    "full_return",
    "score",
    "baseline",
    "advantage",
    "exact_sum",
    "n_step",
    "em",
    "path_consistency",
]


@dataclass(frozen=True)
class ActionSurrogate:
    """A surrogate of action draws, and of the critic that is trained alongside.

    Attributes:
        estimator, critic, lambda_, n, projection, behavior: as of :class:`TrajectoryELBO`.
        ranks: whose draws make up the batch; the sum of their surrogates is that of the whole batch.
    """

    estimator: Estimator
    critic: Callable[[Any, Any], Tensor] | None
    lambda_: float
    n: int
    projection: Projection
    behavior: Policy | None
    ranks: Ranks = ALONE

    def __call__(self, steps: ActionSteps, policy: Any) -> Tensor:
        """Returns the surrogate; the policy is the one that is trained, whoever drew the actions."""
        estimator = self.estimator
        if estimator == "auto":
            estimator = "score" if self.critic is None else "baseline"
        if estimator == "full_return":
            return estimators.score_surrogate(steps.log_policy, steps.terms.sum(0).expand_as(steps.terms))
        if estimator == "score":
            return estimators.score_surrogate(steps.log_policy, estimators.return_to_go(steps.terms))
        if estimator == "em" and self.projection.teacher is not None:
            return self.projection.on_teacher(steps)
        if estimator == "path_consistency" and self.critic is None:
            return self._consistency_part(steps, policy, None)
        if steps.temperature is None:
            raise ValueError(
                "critic: its values are in reward units, so all rewards of the program need one temperature, and "
                "they have several or none"
            )
        # The critic's own loss is no part of the ELBO, and none of it reaches a temperature that is learned.
        alpha = steps.temperature.detach() if isinstance(steps.temperature, Tensor) else steps.temperature
        weights = steps.weights()
        alive = weights > 0
        safe = torch.where(alive, weights, 1.0)
        if self.critic is None:
            return self.projection.on_trajectories(steps, alpha, self.ranks)
        if isinstance(self.critic, QEnsemble):
            return self._draws_part(steps, self.critic, alpha, safe, alive)
        critic = over_time(self.critic, steps.states, steps.times, steps.views) / alpha
        if estimator in ("exact_sum", "n_step") or (estimator == "em" and critic.dim() > steps.terms.dim()):
            policy, prior = steps.distributions()
            if estimator == "em":
                surrogate = self.projection.on_tables(
                    policy.logits, critic * alpha, prior.logits.expand_as(policy.logits), weights, alpha, self.ranks
                )
            else:
                surrogate = estimators.exact_sum_surrogate(policy, prior, critic, weights)
            if estimator != "n_step" and not critic.requires_grad:
                return surrogate
            taken = critic.gather(-1, steps.actions.long()[..., None]).squeeze(-1)
            if estimator == "n_step":
                value = exact_soft_value(critic.detach(), policy.logits, prior.logits.expand_as(policy.logits), 1.0)
                rewards = steps.terms - steps.own_terms()
                surrogate = estimators.n_step_surrogate(
                    steps.log_policy, rewards, value, taken.detach(), weights, self.n
                )
                if not critic.requires_grad:
                    return surrogate
            after = estimators.return_to_go(steps.terms) - steps.own_terms()
            return surrogate - estimators.critic_loss(taken, after / safe, alive, self.ranks)
        if critic.shape != steps.terms.shape:
            raise ValueError(
                f"estimator={estimator!r} needs a soft V, one value a state, of shape {tuple(steps.terms.shape)}; "
                f"the critic gave {tuple(critic.shape)}"
            )
        if estimator == "path_consistency":
            return self._consistency_part(steps, policy, torch.where(alive, weights * critic, 0.0))
        values = torch.where(alive, weights * critic.detach(), 0.0)
        lambda_ = self.lambda_ if estimator in ("advantage", "em") else 1.0
        advantage = estimators.lambda_advantage(steps.terms, values, lambda_)
        if estimator == "em":
            surrogate = self.projection.on_advantages(
                steps, torch.where(alive, advantage / safe, 0.0), alpha, self.ranks
            )
        else:
            surrogate = estimators.score_surrogate(steps.log_policy, advantage)
        if critic.requires_grad:
            surrogate = surrogate - estimators.critic_loss(critic, (advantage + values) / safe, alive, self.ranks)
        return surrogate

    def _draws_part(self, steps: ActionSteps, critic: QEnsemble, alpha: Any, safe: Tensor, alive: Tensor) -> Tensor:
        """Returns the surrogate of a critic that is asked for one action's value, each member of which is trained."""
        if self.estimator != "em":
            raise ValueError(f"critic: a QEnsemble of actions is for estimator='em', got estimator={self.estimator!r}")
        surrogate = self.projection.on_draws(steps, critic, alpha, self.ranks)
        times = torch.as_tensor(list(steps.times), device=steps.actions.device)[:, None].expand(steps.terms.shape)
        taken = critic(steps.states, steps.actions, times) / alpha
        if taken.requires_grad:
            after = (estimators.return_to_go(steps.terms) - steps.own_terms()) / safe
            for member in taken:
                surrogate = surrogate - estimators.critic_loss(member, after, alive, self.ranks)
        return surrogate

    def _consistency_part(self, steps: ActionSteps, policy: Any, values: Tensor | None) -> Tensor:
        """Returns minus half the squares; the terms get the gradient of the policy that is trained."""
        mine, weights = steps.log_policy, steps.weights()
        if self.behavior is not None:
            mine = log_policy_at(policy, steps.views, steps.times, steps.actions)
        change = torch.where(weights > 0, steps.log_policy.detach() - mine, 0.0)
        terms = steps.terms + weights * change
        rows = (len(terms), -1)
        terms, weights = terms.reshape(rows), weights.reshape(rows)
        if values is not None:
            return -squared_residuals(terms, weights, values.reshape(rows), self.n)
        # Among trajectories that start alike, whichever rank drew them; each rank has the gradient in its own.
        starts = alike(steps.states[0], steps.terms.shape[1:], self.ranks)
        whole = self.ranks.whole(terms.sum(0, keepdim=True), dim=1)  # a program's runs may end sooner on one rank
        return -squared_residuals(whole, weights, starts=starts)
