"""What a policy is worth where it was never played: exactly, by importance weights, or as its critic says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.agents.task import Task
from rl_as_inference.agents.values import SoftValue
from rl_as_inference.estimate import plus_minus
from rl_as_inference.inference.pareto import pareto_k, pareto_k_threshold
from rl_as_inference.nouns import EnvironmentLike, Policy
from rl_as_inference.offline.algorithms import StateValue
from rl_as_inference.offline.datasets import OfflineData
from rl_as_inference.processes import LinearGaussianMDP, TabularMDP
from rl_as_inference.processes.mdp import unvalidated

__all__ = ["ReturnEstimate", "critic_estimate", "exact_estimate", "importance_estimate", "weighted_return"]


@dataclass(frozen=True)
class ReturnEstimate:
    """An estimate of a policy's discounted return from the states that episodes begin in, in reward units.

    Attributes:
        mean: ``E_π[Σ_t γ^t r_t]``.
        method: ``"exact"``, of a process whose answers are exact; ``"importance"``, the self-normalised importance
            weighted mean of the data's returns; ``"fitted_q"``, what the learned critic says of the first states, which
            nothing holds to the truth.
        standard_error: of the mean; None where there is none to be had.
        pareto_k: k̂ of the weights; None for other methods, and where there is no tail to fit.
        effective_episodes: ``(Σ w)²/Σ w²`` of the weights; None for other methods.
        trusted: whether it may be reckoned with: an exact one always, weights by k̂ (Vehtari et al. 2024), a critic's
            never.
    """

    mean: float
    method: Literal["exact", "importance", "fitted_q"]
    standard_error: float | None = None
    pareto_k: float | None = None
    effective_episodes: float | None = None
    trusted: bool = False

    def __str__(self) -> str:
        words = {
            "exact": "exact",
            "importance": "importance weighted",
            "fitted_q": "what the critic says; nothing in the data holds it to the truth",
        }[self.method]
        if self.method == "importance":
            tail = "no tail to fit" if self.pareto_k is None else f"k̂ {self.pareto_k:.2f}"
            verdict = "trust it" if self.trusted else "do not trust it"
            words += f", {tail}, {self.effective_episodes:.1f} episodes count: {verdict}"
        mean = f"{self.mean:.4g} {plus_minus(self.standard_error, self.mean, digits=3)}".rstrip()
        return f"discounted return {mean} ({words})"


def exact_estimate(process: EnvironmentLike | None, policy: Policy) -> ReturnEstimate | None:
    """Returns the exact return in a finite or linear-Gaussian process; None for anything else."""
    if not isinstance(process, TabularMDP | LinearGaussianMDP):
        return None
    with torch.no_grad():
        return ReturnEstimate(float(exact.expected_return(process, policy)), "exact", trusted=True)


def weighted_return(log_weight: Any, returns: Any) -> ReturnEstimate:
    """Returns the self-normalised importance weighted mean ``Σ w G/Σ w`` with its verdict.

    The standard error is the delta method's, ``√(Σ w² (G - mean)²)/Σ w`` (Owen 2013, Monte Carlo theory, section 9.2).

    Args:
        log_weight: ``Σ_t log π(a_t|s_t) - log b(a_t|s_t)`` of each episode, nats.
        returns: of each, reward units.

    Raises:
        ValueError: if a weight is NaN or infinite, or all are zero.

    Example:
        >>> print(weighted_return(np.log([1.0, 3.0]), np.array([0.0, 4.0])))
        discounted return 3 ± 1.06 (importance weighted, no tail to fit, 1.6 episodes count: do not trust it)
    """
    k = pareto_k(log_weight)
    weight = np.exp(log_weight - np.max(log_weight))
    weight = weight / weight.sum()
    mean = float((weight * returns).sum())
    error = float(np.sqrt((weight**2 * (returns - mean) ** 2).sum()))
    effective = float(1 / (weight**2).sum())
    alike = k is None and len(weight) > 1 and effective > 0.99 * len(weight)
    trusted = alike if k is None else k <= pareto_k_threshold(len(weight))
    return ReturnEstimate(mean, "importance", error, k, effective, trusted)


@torch.no_grad()
def importance_estimate(task: Task, policy: Policy, data: OfflineData) -> ReturnEstimate | None:
    """Returns the estimate from the data's own episodes; None where it is not known how their actions were drawn."""
    if not data.has_log_policy():
        return None
    log_weights, returns = [], []
    for episode in data.episodes:
        state = torch.as_tensor(episode.states[:-1], device=task.device).to(task.state_dtype)
        action = torch.as_tensor(episode.actions, device=task.device)
        action = action if task.is_discrete else action.to(task.dtype)
        time = task.times(episode.start + torch.arange(len(episode), device=task.device))
        acted = episode.log_policy
        assert acted is not None
        with unvalidated():
            log_policy: Tensor = policy(state, time).log_prob(action)
        log_weights.append(float(log_policy.double().sum()) - float(acted.sum(dtype=np.float64)))
        returns.append(float((task.discount ** np.arange(len(episode)) * episode.rewards).sum(dtype=np.float64)))
    if np.isneginf(log_weights).all():
        return ReturnEstimate(float("nan"), "importance", None, None, 0.0, False)
    return weighted_return(np.array(log_weights), np.array(returns))


@torch.no_grad()
def critic_estimate(task: Task, critic: SoftValue | None, data: OfflineData) -> ReturnEstimate | None:
    """Returns what the critic says of the states that episodes begin in; None without a critic of the policy."""
    if critic is None or isinstance(critic, StateValue):
        return None
    first = np.stack([episode.states[0] for episode in data.episodes if episode.start == 0])
    state = torch.as_tensor(first, device=task.device).to(task.state_dtype)
    values = critic(state, task.times(torch.zeros(len(first), dtype=torch.int64, device=task.device))).double()
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return ReturnEstimate(float(values.mean()), "fitted_q", error)
