"""An expectation over the policy: in each state some actions and what each counts, however it is taken."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rl_as_inference.agents.evaluation import mode_of
from rl_as_inference.agents.functional import log_probabilities
from rl_as_inference.agents.task import Task

__all__ = ["Expectation", "How", "expectation"]

How = Literal["exact_sum", "components", "pathwise", "score", "draw", "mean"]
"""All discrete actions; one draw of each of a mixture's components; one draw, with its gradient along the path or by
the score function or without one; the policy's mean."""


class Expectation(NamedTuple):
    """``E_π[f(s, a)] = Σ_k w_k f(s, a_k)`` in each state of a batch, as a thing to average any ``f`` with.

    The points ``k`` are a last dimension, or there is one and no such dimension.
    """

    state: Tensor
    """The states, once for each action where these are given: what critics are asked with."""
    time: Tensor | int
    action: Tensor | None
    """``a_k``; None for all discrete actions, in their order."""
    log_policy: Tensor
    """``log π(a_k|s)``, nats; 0 of actions without probability, which count nothing (0 log 0 = 0)."""
    log_prior: Tensor
    """``log p(a_k|s)``, nats; it may broadcast."""
    weight: Tensor | None
    """``w_k``; None for one point, which counts 1."""
    score: Tensor | None = None
    """Zero, with the gradient ``∇log π``, where that is how a draw's gradient is taken (Williams 1992)."""

    def mean(self, value: Tensor) -> Tensor:
        """Returns ``E_π[f]`` in each state, ``(*batch,)``, of ``f`` at the points."""
        if self.score is not None:
            value = value + value.detach() * self.score
        return value if self.weight is None else (self.weight * value).sum(-1)

    @property
    def relative(self) -> Tensor:
        """``log π - log p`` at the points, nats: what entropy costs."""
        return self.log_policy - self.log_prior

    @property
    def entropy(self) -> Tensor:
        """``H[π]`` in each state, ``(*batch,)``, nats."""
        return self.mean(-self.log_policy)


def expectation(task: Task, chosen: Any, state: Tensor, time: Tensor | int, how: How) -> Expectation:
    """Returns the expectation over a policy's distribution ``chosen`` in a batch of states.

    Args:
        task: of which the action prior is.
        chosen: the policy's distributions in ``state`` at ``time``.
        how: over which actions.
    """
    if how == "exact_sum":
        log_policy, log_prior = log_probabilities(chosen, task.num_actions, task.device), task.log_prior(state)
        impossible = log_policy == -torch.inf  # replaced before anything is subtracted, so that gradients are 0 too
        log_policies, log_priors = (torch.where(impossible, 0.0, value) for value in (log_policy, log_prior))
        return Expectation(state, time, None, log_policies, log_priors, log_policy.exp())
    if how == "components":
        action = chosen.rsample_components()
        log_policy = torch.stack([chosen.log_prob(each) for each in action.unbind(-2)], -1)
        state, time = task.beside(state, action.shape[-2]), task.times_beside(time)
        weight = chosen.log_weights.exp()
        return Expectation(state, time, action, log_policy, task.log_prior(state, action), weight)
    if how == "mean":
        action = mode_of(chosen)
        nothing = action.new_zeros(action.shape[: action.dim() - len(task.action_shape)])
        return Expectation(state, time, action, nothing, nothing, None)
    action = chosen.rsample() if how == "pathwise" else chosen.sample()
    log_policy, score = chosen.log_prob(action), None
    if how == "score":
        log_policy, score = log_policy.detach(), log_policy - log_policy.detach()
    return Expectation(state, time, action, log_policy, task.log_prior(state, action), None, score)
