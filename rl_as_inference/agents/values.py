"""A learner's critic as a soft state value: what comparing and inspecting ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rl_as_inference.agents.functional import log_probabilities
from rl_as_inference.objectives.soft_critics import exact_soft_value, sampled_soft_value
from rl_as_inference.processes.mdp import unvalidated

__all__ = ["SoftValue"]


class SoftValue(nn.Module):
    """The soft value of a policy by a learned ensemble, ``(state, t) -> V(s)`` in reward units.

    ``V(s) = E_π[min_i Q_i(s, a) - α (log π(a|s) - log p(a|s))]``, exact over discrete actions and by
    draws over continuous ones. It is stationary: ``t`` is not looked at.

    Attributes:
        temperature: α, in reward units per nat, that the critic was trained at.
        discount: γ, likewise.
        action_prior: ``"uniform"``, or ``"flat"`` where log p is taken for 0.
        objective: what ``Q`` was learned for. Only ``"maxent"`` makes this the policy's soft value.
    """

    batch_steps = True
    stationary = True

    def __init__(
        self,
        q: nn.Module,
        policy: Any,
        *,
        temperature: float,
        discount: float,
        action_prior: str,
        log_prior: Callable[[Tensor, Tensor | None], Tensor],
        objective: str = "maxent",
        num_draws: int = 64,
    ) -> None:
        super().__init__()
        self.q, self.policy = q, policy
        self.temperature, self.discount, self.action_prior = temperature, discount, action_prior
        self.log_prior, self.objective, self.num_draws = log_prior, objective, num_draws

    def action_values(self, state: Tensor, action: Tensor | None = None) -> Tensor:
        """Returns the least ``Q`` of the ensemble in reward units, of an action or of all discrete ones."""
        values: Tensor = (self.q(state) if action is None else self.q(state, action)).amin(0)
        return values

    @torch.no_grad()
    def forward(self, state: Tensor, t: int | Tensor = 0) -> Tensor:
        with unvalidated():
            chosen = self.policy(state, t)
            if getattr(self.q, "discrete_actions", False):
                q = self.action_values(state)
                log_policy = log_probabilities(chosen, q.shape[-1], q.device)
                return exact_soft_value(q, log_policy, self.log_prior(state, None), self.temperature)
            action = chosen.sample((self.num_draws,))
            log_policy = chosen.log_prob(action)
            states = state.expand(self.num_draws, *state.shape)
            value = self.action_values(states, action)
            return sampled_soft_value(value, log_policy, self.log_prior(states, action), self.temperature).mean(0)
