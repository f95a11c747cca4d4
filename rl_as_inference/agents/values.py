"""A learner's critic as a soft state value: what comparing and inspecting ask of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rl_as_inference.agents.task import Task
from rl_as_inference.nouns import Policy
from rl_as_inference.objectives.soft_critics import exact_soft_value, sampled_soft_value
from rl_as_inference.processes.mdp import unvalidated

__all__ = ["SoftValue"]


class SoftValue(nn.Module):
    """The soft value of a policy by a learned ensemble, ``(state, t) -> V(s)`` in reward units.

    ``V(s) = E_π[min_i Q_i(s, a) - α (log π(a|s) - log p(a|s))]``, exact over discrete actions and by
    draws over continuous ones; without α's term where ``Q`` was learned for the return alone. Without a horizon it is
    stationary: ``t`` is not looked at.

    Attributes:
        temperature: α, in reward units per nat, that the critic was trained at.
        discount: γ, likewise.
        action_prior: ``"uniform"``, or ``"flat"`` where log p is taken for 0.
        objective: what ``Q`` was learned for. Only ``"maxent"`` makes this the policy's soft value.
        stationary: whether ``t`` is not looked at.
        normalized: whether observations or rewards were, by the learner's options.
        windowed: whether a state is several observations.
    """

    batch_steps = True

    def __init__(
        self,
        task: Task,
        q: nn.Module,
        policy: Policy,
        *,
        temperature: float,
        objective: str = "maxent",
        num_draws: int = 64,
    ) -> None:
        super().__init__()
        self.task, self.q, self.policy = task, q, policy
        self.temperature, self.discount, self.action_prior = temperature, task.discount, task.action_prior
        self.objective, self.num_draws, self.stationary = objective, num_draws, task.horizon is None
        self.normalized, self.windowed = task.normalized, task.window is not None

    def action_values(self, state: Tensor, action: Tensor | None = None, t: int | Tensor = 0) -> Tensor:
        """Returns the least ``Q`` of the ensemble in reward units, of an action or of all discrete ones."""
        values: Tensor = self.q(state, action, t).amin(0)
        return values

    @torch.no_grad()
    def forward(self, state: Tensor, t: int | Tensor = 0) -> Tensor:
        alpha = 0.0 if self.objective == "return" else self.temperature
        with unvalidated():
            chosen = self.policy(state, t)
            if self.task.is_discrete:
                q = self.action_values(state, t=t)
                log_policy = self.task.log_policies(chosen)
                return exact_soft_value(q, log_policy, self.task.log_prior(state), alpha)
            action = chosen.sample((self.num_draws,))
            log_policy = chosen.log_prob(action)
            states = state.expand(self.num_draws, *state.shape)
            value = self.action_values(states, action, t)
            return sampled_soft_value(value, log_policy, self.task.log_prior(states, action), alpha).mean(0)
