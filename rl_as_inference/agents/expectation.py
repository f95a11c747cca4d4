"""An expectation over the policy: in each state some actions and what each counts, however it is taken."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rl_as_inference.agents.evaluation import mode_of
from rl_as_inference.agents.task import Task
from rl_as_inference.factored import FactoredCategorical, expected

__all__ = ["Expectation", "How", "expectation"]

How = Literal["exact_sum", "factors", "components", "pathwise", "score", "draw", "mean"]
"""All discrete actions; one draw, with all values of each of its factors in turn; one draw of each of a mixture's
components; one draw, with its gradient along the path or by the score function or without one; the policy's mean."""


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
        log_policy, log_prior = task.log_policies(chosen), task.log_prior(state)
        impossible = log_policy == -torch.inf  # replaced before anything is subtracted, so that gradients are 0 too
        log_policies, log_priors = (torch.where(impossible, 0.0, value) for value in (log_policy, log_prior))
        return Expectation(state, time, None, log_policies, log_priors, log_policy.exp())
    if how == "factors":
        return _by_factors(task, chosen, state, time)
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
    if how == "draw" and isinstance(chosen, FactoredCategorical):  # whose entropy need not be drawn
        means = [expected(chosen.log_factors, log).sum(-1) for log in _log_factors(task, chosen, state)]
        return Expectation(state, time, action, means[0], means[1], None)
    log_policy, score = chosen.log_prob(action), None
    if how == "score":
        log_policy, score = log_policy.detach(), log_policy - log_policy.detach()
    return Expectation(state, time, action, log_policy, task.log_prior(state, action), None, score)


def _by_factors(task: Task, chosen: FactoredCategorical, state: Tensor, time: Tensor | int) -> Expectation:
    """Returns the expectation by one draw in which each factor in turn is summed over exactly.

    With ``a_{-f}`` drawn, ``Σ_{a_f} π_f(a_f) f(a_f, a_{-f})`` is the expectation given the other factors, and
    ``Σ_{a_f} ∇π_f(a_f) f(a_f, a_{-f})`` is factor ``f``'s part of its gradient: the score gradient after Rao and
    Blackwell, unbiased for both (the local expectation gradients of Titsias & Lázaro-Gredilla 2015). Each factor is a
    mean of its own, and the value their average. What only the drawn factors contribute to ``log π`` and
    ``log p`` is replaced by what it is on average, so that entropies and their gradients are exact.
    """
    factors = chosen.factors
    log_policy = factors.in_row(chosen.log_factors)
    probability = log_policy.exp()
    action = factors.varied(chosen.sample())
    weight = probability - probability.detach() * (1 - 1 / factors.num_factors)
    logs = []
    for log in _log_factors(task, chosen, state):
        mean = expected(chosen.log_factors, log)
        others = mean.sum(-1, keepdim=True) - mean
        logs.append((factors.in_row(log + others[..., None])).detach())
    impossible = log_policy == -torch.inf
    logs = [torch.where(impossible, 0.0, log) for log in logs]
    state, time = task.beside(state, factors.num_values), task.times_beside(time)
    return Expectation(state, time, action, logs[0], logs[1], weight)


def _log_factors(task: Task, chosen: FactoredCategorical, state: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log probabilities of each factor's values in the policy and in the action prior, ``(*batch, F, n)``."""
    return chosen.log_factors, task.log_prior_factors(state).expand_as(chosen.log_factors)
