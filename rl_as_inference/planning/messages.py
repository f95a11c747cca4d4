"""Soft values of sampled states, by messages back through the layers of states that particles reached."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.processes.reward_shapes import checked_reward
from rl_as_inference.program.recording import log_prob_of

__all__ = ["Points", "backward_step", "log_densities", "masses_of_draws", "masses_of_states"]

_WORTHLESS = -1e30
"""In place of -∞ within sums, where 0 · ∞ would be no number."""


class Points(NamedTuple):
    """The states that particles from ``B`` roots have reached after so many steps."""

    states: Tensor
    """``(B, n, *state)``; ``(1, n, *state)`` where all roots have the same ones."""
    log_mass: Tensor
    """What each stands for as a successor, ``(B, n)`` in logarithms; -∞ for none."""


def log_densities(
    process: MarkovDecisionProcess, states: Tensor, actions: Tensor, successors: Tensor, t: int
) -> tuple[Tensor, Tensor]:
    """Returns ``log p(s'|s,a)`` in nats and the rewards of all pairs of action and successor.

    Args:
        process: whose dynamics have a density.
        states: ``(b, n, *state)``, which count integers from 0, as the others do.
        actions: ``(b, n, m, *action)``.
        successors: ``(b, n', *state)``.
        t: the step, for messages.

    Returns:
        Both ``(n', b, n, m)``, the rewards in reward units.
    """
    b, n, m = actions.shape[:3]
    event = states.dim() - 2
    before = process._own_state(states)[:, :, None].expand(b, n, m, *states.shape[2:])
    taken = process._own_action(actions)
    after = process._own_state(successors).movedim(1, 0)
    full = (len(after), b, n, m)
    after = after.reshape(*after.shape[:2], 1, 1, *after.shape[2:]).expand(*full, *states.shape[2:])
    density = log_prob_of(process.transition(before, taken), after)
    before, taken = before.expand(*full, *before.shape[3:]), taken.expand(*full, *taken.shape[3:])
    flat = (math.prod(full),)  # one batch dimension, as walks have
    one = before.reshape(*flat, *before.shape[before.dim() - event :])
    earned = checked_reward(
        process.reward(one, taken.reshape(*flat, *taken.shape[4:]), after.reshape(one.shape)),
        one,
        torch.Size(flat),
        t,
        type(process).__name__,
    )
    return density.expand(full), earned.expand(flat).reshape(full)


def masses_of_states(reached: Tensor, valid: Tensor, num_states: int | None) -> Tensor:
    """Returns the log masses of discrete states as successors: every state that was reached counts once.

    Their probabilities are known, so how often each was reached says nothing.

    Args:
        reached: ``(B, K)``.
        valid: which particles took the step, bool ``(B, K)``.
        num_states: weigh all states, ``(B, num_states)``; None for the particles themselves, ``(B, K)``.
    """
    if num_states is None:
        same = (reached[:, :, None] == reached[:, None, :]) & valid[:, None, :]
        return torch.where(valid, -same.sum(-1).clamp(min=1).log(), -math.inf)
    count = torch.zeros(len(reached), num_states, device=reached.device)
    count.scatter_add_(1, reached, valid.to(count))
    return torch.where(count > 0, 0.0, -math.inf)


def masses_of_draws(log_density: Tensor, valid: Tensor) -> Tensor:
    """Returns the log masses of continuous states as successors, ``(B, K)``: one over the density they were drawn from.

    The stochastic mesh of Broadie & Glasserman (2004), Journal of Computational Finance 7, equation 12: that is the
    mixture of all transitions that were taken, so that every particle serves every action.

    Args:
        log_density: of each draw under each transition taken, ``(K, B, K)``, draws first, in nats.
        valid: which particles took the step, bool ``(B, K)``.
    """
    log_density = torch.where(valid, log_density, -math.inf)
    mixture = torch.logsumexp(log_density, -1).T - valid.sum(-1, keepdim=True).clamp(min=1).log()
    return torch.where(valid & mixture.isfinite(), -mixture, -math.inf)


def backward_step(
    log_density: Tensor, rewards: Tensor, points: Points, value: Tensor, discount: float | None, *, bends_luck: bool
) -> tuple[Tensor, Tensor]:
    """Returns the soft Q of every action, ``(B, n, m)`` in nats, and of which ones successors were reached, bool.

    Expectations over successors are weighed sums over the points, normalised. Levine (2018, arXiv:1805.00909),
    section 3, where ``bends_luck`` is exact conditioning; else luck is averaged over before it is exponentiated.

    Args:
        log_density: ``log p(s'|s,a)`` in nats, ``(n', b, n, m)`` with ``b`` 1 or ``B``.
        rewards: ``r/α``, of the same shape, in nats.
        points: the successors.
        value: their soft V in nats, ``(B, n')``.
        discount: γ; None in the last step, after which nothing survives or follows.
        bends_luck: whether the dynamics are part of what is inferred.
    """
    n, m = log_density.shape[2:]
    log_density, rewards = log_density.flatten(2), rewards.flatten(2)  # (n', b, n·m)
    gamma = 1.0 if discount is None else discount
    if bends_luck:
        log_weight = log_density + points.log_mass.T[:, :, None]
        ahead = value
        if gamma < 1:  # who does not survive has nothing before them
            over = math.log1p(-gamma)
            ahead = torch.logaddexp(value + math.log(gamma), value.new_tensor(over)) if gamma else value.new_tensor(0.0)
            ahead = ahead.expand_as(value)
        total = torch.logsumexp(log_weight, 0)
        q = torch.logsumexp(log_weight + rewards + ahead.T[:, :, None], 0) - total
        known = total > -math.inf
        return torch.where(known, q, -math.inf).unflatten(1, (n, m)), known.unflatten(1, (n, m))
    scale = log_density.amax(0).clamp(min=_WORTHLESS)
    chance = (log_density - scale).exp()
    earned = torch.where(chance > 0, chance * rewards.clamp(min=_WORTHLESS), 0.0)
    top = points.log_mass.amax(1, keepdim=True).clamp(min=_WORTHLESS)
    mass = (points.log_mass - top).exp()
    total = _weighed(chance, mass)
    q = _weighed(earned, mass) + gamma * _weighed(chance, mass * value.clamp(min=_WORTHLESS))
    known = total > 0
    q = q / torch.where(known, total, 1.0)
    q = torch.where(known & (q > 1e-6 * _WORTHLESS), q, -math.inf)
    return q.unflatten(1, (n, m)), known.unflatten(1, (n, m))


def _weighed(table: Tensor, mass: Tensor) -> Tensor:
    """Returns ``Σ_l table[l, b, i] mass[b, l]``, ``(B, n·m)``."""
    if table.shape[1] == 1:
        return mass @ table[:, 0]
    return torch.einsum("lbi,bl->bi", table, mass)
