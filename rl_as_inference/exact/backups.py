"""Soft Bellman backups of finite processes, in nats."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rl_as_inference.checks import is_deferred
from rl_as_inference.processes.kernels import DenseKernel, SparseKernel
from rl_as_inference.processes.log_sums import change_of_sum, exp_from, log_mean_exp, log_to, span
from rl_as_inference.processes.tabular import TabularMDP

__all__ = [
    "Dynamics",
    "backup",
    "backup_of_forbidden",
    "backward",
    "check_dynamics",
    "log_survival",
    "outcomes",
    "reward_in_nats",
    "soft_maximum",
]

Dynamics = Literal["causal", "posterior"]


def check_dynamics(dynamics: str) -> None:
    """Raises ValueError unless the dynamics are one of the two."""
    if dynamics not in get_args(Dynamics):
        raise ValueError(f"dynamics must be 'causal' or 'posterior', got {dynamics!r}")


def reward_in_nats(mdp: TabularMDP, dynamics: Dynamics) -> Tensor:
    """Returns what the backup adds: ``(S, A)``, or the table on the kernel's support for the posterior."""
    table = mdp.expected_reward() if dynamics == "causal" else mdp.reward_table
    if table.dim() == 2 and not isinstance(mdp.kernel, DenseKernel):
        # Action-major memory, as the sparse kernel's answers have; stacking takes half the time of contiguous().
        table = torch.stack(table.unbind(1)).mT
    return table / mdp.temperature


def backup(
    mdp: TabularMDP, dynamics: Dynamics, reward: Tensor, value: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Returns ``Q(s,a)`` in nats from the next step's ``V``; None after the last step.

    ``out``, ``(S, A)`` in action-major memory, takes it where no gradient is tracked.
    """
    if reward.dim() == 3:
        onward = reward.new_zeros(mdp.num_states) if value is None else log_survival(mdp.discount, value)
        q = mdp.kernel.log_expect(onward, reward)
        q = q if out is None else out.copy_(q)
    elif value is None:
        q = reward if out is None else out.copy_(reward)
    elif dynamics == "causal":
        q = torch.add(reward, mdp.kernel.expect(mdp.discount * value, out), out=out)
    else:
        q = torch.add(reward, _log_expect_survival(mdp, value, out), out=out)
    if not mdp.has_terminal:
        return q
    ended = mdp.terminal[:, None]
    return q.masked_fill(ended, 0.0) if out is None else q.masked_fill_(ended, 0.0)


def _log_expect_survival(mdp: TabularMDP, value: Tensor, out: Tensor | None) -> Tensor:
    """Returns ``log E_{s'}[(1-γ) + γ e^{V(s')}]``, ``(S, A)``."""
    kernel, gamma = mdp.kernel, mdp.discount
    plain = isinstance(kernel, SparseKernel) and not _tracked(kernel.probabilities, value)
    values = span(value)
    if plain and not isinstance(gamma, Tensor) and 0 < gamma < 1 and values.scale is not None and not values.is_small:
        # Without going to logarithms and back. What underflows against a scale of 0 is nothing beside 1-γ.
        scale = max(values.scale, 0.0)
        factors = exp_from(scale, value).mul_(gamma).add_((1 - gamma) * math.exp(-scale))
        return log_to(scale, kernel.expect(factors, out))
    return kernel.log_expect(log_survival(gamma, value), out=out)


def backup_of_forbidden(mdp: TabularMDP, reward: Tensor, value: Tensor | None) -> Tensor:
    """Returns the causal backup of values that may be -inf, where 0 · -inf must be 0."""
    if value is None:
        return backup(mdp, "causal", reward, None)
    doomed = value == -torch.inf
    q = backup(mdp, "causal", reward, torch.where(doomed, 0.0, value))
    reaches = (mdp.kernel.expect(doomed.to(value.dtype)) > 0) & ~mdp.terminal[:, None]
    return torch.where(reaches & bool(mdp.discount > 0), -torch.inf, q)


def soft_maximum(mdp: TabularMDP, q: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Returns ``V(s) = log Σ_a p(a|s) e^{Q(s,a)}`` in nats; ``scratch`` is spare memory of the shape of ``q``."""
    values = span(q.mT)  # in the order of a sparse kernel's answers
    if values.is_small:
        factors = torch.expm1(q) if scratch is None else torch.expm1(q, out=scratch)
        prior = mdp.action_prior
        mean = factors.mean(-1) if mdp.has_uniform_prior else (prior * factors).sum(-1) + change_of_sum(prior)
        value = torch.log1p(mean)
        return torch.where(mdp.terminal, 0.0, value) if mdp.has_terminal else value
    plain = isinstance(mdp.kernel, SparseKernel) and not _tracked(q, mdp.action_prior)
    # On large tables one scale for all states takes half the time of each state's own.
    if plain and (scale := values.scale) is not None:
        factors = exp_from(scale, q, scratch)
        if mdp.has_uniform_prior:
            value = log_to(scale, factors.sum(-1).div_(mdp.num_actions))
        else:
            value = log_to(scale, factors.mul_(mdp.action_prior).sum(-1))
    elif mdp.has_uniform_prior:
        value = torch.logsumexp(q, -1) + mdp.log_action_prior[0, 0]
    else:
        value = torch.logsumexp(q + mdp.log_action_prior, -1)
    return torch.where(mdp.terminal, 0.0, value) if mdp.has_terminal else value


def log_survival(discount: float | Tensor, value: Tensor) -> Tensor:
    """Returns ``log((1-γ) + γ e^V)``, what a successor is worth when survival is a coin."""
    gamma = torch.as_tensor(discount, dtype=value.dtype, device=value.device)
    if not gamma.requires_grad and not (isinstance(discount, Tensor) and is_deferred()):
        if float(gamma) == 1.0:
            return value
        if float(gamma) == 0.0:
            return torch.zeros_like(value)
    if span(value).is_small:
        return torch.log1p(gamma * torch.expm1(value))
    # Not by log γ and log(1-γ), whose slopes have no bound where the sum's have one.
    return log_mean_exp(torch.stack([1 - gamma, gamma]), torch.stack([torch.zeros_like(value), value], -1))


def outcomes(mdp: TabularMDP, indices: Tensor, log_weights: Tensor, value: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """Returns what may come of steps, and its log weights with what follows, both ``(*batch, K or 2K)``.

    A trajectory that goes on from state ``s'`` is the outcome ``s'``; one that gets there and does not survive its
    discount is ``S + s'``.

    Args:
        mdp: the process.
        indices: the steps' successors, ``(*batch, K)``.
        log_weights: theirs, likewise.
        value: what going on from a state is worth, ``(S,)`` in nats.
        last: whether it is the last step, after which there is nothing to survive into.
    """
    if last:
        return indices, log_weights
    gamma = torch.as_tensor(mdp.discount, dtype=value.dtype, device=value.device)
    going = log_weights + value[indices]
    if float(gamma) == 1.0:
        return indices, going
    stopping = log_weights + torch.log1p(-gamma)
    if float(gamma) == 0.0:
        return indices + mdp.num_states, stopping
    return torch.cat([indices, indices + mdp.num_states], -1), torch.cat([going + gamma.log(), stopping], -1)


def backward(mdp: TabularMDP, dynamics: Dynamics, reward: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Returns the backward messages in nats: ``V``, ``(T+1, S)``, and ``Q``, ``(T, S, A)``."""
    kernel, last = mdp.kernel, horizon - 1
    if isinstance(kernel, SparseKernel) and not _tracked(kernel.probabilities, reward, mdp.action_prior, mdp.discount):
        # Large tables take as long to allocate as to compute, so they are written where they stay.
        values = reward.new_empty(horizon + 1, mdp.num_states)
        qs = reward.new_empty(horizon, mdp.num_actions, mdp.num_states).mT
        scratch = torch.empty_like(qs[0])
        values[horizon] = 0.0
        for t in reversed(range(horizon)):
            q = backup(mdp, dynamics, reward, None if t == last else values[t + 1], out=qs[t])
            values[t] = soft_maximum(mdp, q, scratch)
        return values, qs

    start = reward.new_zeros(mdp.num_states)
    messages, backups = [start], []
    for t in reversed(range(horizon)):
        q = backup(mdp, dynamics, reward, None if t == last else start)
        start = soft_maximum(mdp, q)
        messages.append(start)
        backups.append(q)
    # Sparse kernels answer in action-major memory; stacking it as such spares a transposition.
    return torch.stack(messages[::-1]), torch.stack([q.mT for q in reversed(backups)]).mT


def _tracked(*values: Any) -> bool:
    """Returns whether a gradient is wanted with respect to any of the values, or must be taken to be."""
    wanted = torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values)
    return wanted or is_deferred()
