"""Soft values of sampled states, by messages back through the layers of states that particles reached."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rl_as_inference.checks import has_no_nan
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
    after = after.reshape(*after.shape[:2], 1, 1, *after.shape[2:]).expand(*full, *after.shape[2:])
    density = log_prob_of(process.transition(before, taken), after)
    before, taken = before.expand(*full, *before.shape[3:]), taken.expand(*full, *taken.shape[3:])
    flat = (math.prod(full),)  # one batch dimension, as walks have
    one = before.reshape(*flat, *before.shape[before.dim() - event :])
    earned = checked_reward(
        process.reward(one, taken.reshape(*flat, *taken.shape[4:]), after.reshape(*flat, *after.shape[4:])),
        one,
        torch.Size(flat),
        t,
        type(process).__name__,
    )
    if not has_no_nan(earned):
        raise ValueError(f"reward is NaN at step {t}; check reward() of {type(process).__name__}")
    return density.expand(full), earned.expand(flat).reshape(full)


def masses_of_states(reached: Tensor, valid: Tensor) -> Tensor:
    """Returns the log masses of discrete states as successors, ``(B, K)``: every state that was reached counts once.

    Their probabilities are known, so how often each was reached says nothing.

    Args:
        reached: ``(B, K)``.
        valid: which particles took the step, bool ``(B, K)``.
    """
    same = (reached[:, :, None] == reached[:, None, :]) & valid[:, None, :]
    return torch.where(valid, -same.sum(-1).clamp(min=1).log(), -math.inf)


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
    # Together, as each alone may leave the range of numbers.
    log_weight = log_density.flatten(2) + points.log_mass.T[:, :, None]  # (n', b, n·m)
    rewards, value = rewards.flatten(2), value.T[:, :, None]
    gamma = 1.0 if discount is None else discount
    if bends_luck:
        if gamma < 1:  # who does not survive has nothing before them
            over = value.new_tensor(math.log1p(-gamma))
            value = torch.logaddexp(value + math.log(gamma), over) if gamma else torch.zeros_like(value)
        total = torch.logsumexp(log_weight, 0)
        q, known = torch.logsumexp(log_weight + rewards + value, 0) - total, total > -math.inf
    else:
        chance = log_weight.softmax(0)
        known = log_weight.amax(0) > -math.inf
        ahead = rewards.clamp(min=_WORTHLESS) + gamma * value.clamp(min=_WORTHLESS)
        q = torch.where(chance > 0, chance * ahead, 0.0).sum(0)
        known &= q > 1e-6 * _WORTHLESS
    q = torch.where(known, q, -math.inf)
    return q.unflatten(1, (n, m)), (log_weight.amax(0) > -math.inf).unflatten(1, (n, m))
