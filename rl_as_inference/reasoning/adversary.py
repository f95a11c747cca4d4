"""The search for the dynamics under which a policy earns least: an augmented Lagrangian, and a convex relaxation."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from rl_as_inference.processes import TabularMDP

__all__ = ["Attack", "worst_dynamics"]

_STARTS = 3
"""From the nominal dynamics, and from two random ones further and further from it."""


class Attack(NamedTuple):
    """The dynamics found, their cost in nats, what one more nat would do, and what substochastic dynamics could."""

    process: TabularMDP
    cost: float
    multiplier: float
    relaxed: float | None


def worst_dynamics(mdp: TabularMDP, table: Tensor, weight: Tensor, budget: float, tilt: float | None) -> Attack:
    """Returns the attack on a table of probabilities; ``weight``, ``(T, S)``, are its nominal visits.

    With ``tilt`` the policy's information, times this, is taken off the reward: what the worst reward of budget 0 does.
    """
    dense = mdp.kernel.dense()
    by_successor = mdp.reward_table.dim() == 3
    reward = mdp.kernel.dense_table(mdp.reward_table) if by_successor else mdp.reward_table[..., None].expand_as(dense)
    expected = mdp.expected_reward()
    visits = weight.sum(0)
    possible = dense > 0
    # log μ(a|s) + log ν(s'|s,a) + log p(s'|s,a), what log p̃ is set against.
    against = torch.where(
        possible,
        mdp.log_action_prior[..., None]
        - possible.sum(-1, keepdim=True).to(dense).log()
        + torch.where(possible, dense, 1).log(),
        -torch.inf,
    )

    going = ~mdp.terminal

    def cost(log_kernel: Tensor) -> Tensor:
        ratio = torch.where(possible, against - torch.where(possible, log_kernel, 0.0), -torch.inf)
        per_state = torch.logsumexp(ratio.flatten(1), -1)
        return torch.where(visits > 0, visits * per_state, 0.0).sum()

    information = torch.zeros_like(table[..., 0])
    if tilt is not None:
        log_odds = torch.where(table > 0, table.log() - mdp.log_action_prior, 0.0)
        information = tilt * (table * log_odds).sum(-1)

    def value(log_kernel: Tensor) -> Tensor:
        kernel = log_kernel.exp()
        # A reward r(s,a) is paid wherever the step leads, also where a relaxed row loses mass.
        paid_now = (kernel * reward).sum(-1) if by_successor else expected
        if table.dim() == 2:
            own = (table * paid_now).sum(-1) - information
            onward = torch.einsum("sa,sat->st", table, kernel) * mdp.discount
            if mdp.horizon is None:
                identity = torch.eye(mdp.num_states, dtype=own.dtype, device=own.device)
                v = torch.linalg.solve(identity - going[:, None] * onward, going * own)
                return mdp.initial_probabilities @ v
        v = reward.new_zeros(mdp.num_states)
        for t in reversed(range(mdp.horizon or 0)):
            pi, paid = (table, information) if table.dim() == 2 else (table[t], information[t])
            q = paid_now + kernel @ (mdp.discount * v)
            v = torch.where(going, (pi * q).sum(-1) - paid, 0.0)
        return mdp.initial_probabilities @ v

    start = torch.where(possible, dense, 0.0)
    floor = 1e-4 / mdp.num_states
    best: tuple[float, Tensor, float] | None = None
    generator = torch.Generator().manual_seed(0)
    for attempt in range(_STARTS):
        mixed = (1 - 1e-3) * start + 1e-3 / mdp.num_states
        if attempt:
            noise = torch.randn(mixed.shape, generator=generator, dtype=mixed.dtype).to(mixed.device)
            mixed = mixed.clamp_min(floor) * (attempt * noise).exp()
        logits, multiplier = _augmented_lagrangian(
            lambda theta: value(torch.log_softmax(theta, -1)),
            lambda theta: (cost(torch.log_softmax(theta, -1)) - budget)[None],
            mixed.log(),
        )
        log_kernel = _within(torch.log_softmax(logits, -1), dense, cost, budget)
        found = float(value(log_kernel))
        if best is None or found < best[0]:
            best = found, log_kernel, float(multiplier[0])
    assert best is not None
    nominal = dense.clamp_min(1e-300).log()
    if best[0] > float(value(nominal)):  # a budget of 0 can leave nothing better
        best = float(value(nominal)), nominal, best[2]
    kernel = best[1].exp()
    kernel = kernel / kernel.sum(-1, keepdim=True)
    relaxed = None
    if tilt is None and bool((reward >= 0).all()):
        relaxed = _relaxation(value, cost, best[1], budget)
    earned = mdp.reward_table if mdp.reward_table.dim() == 2 else reward
    ends = mdp.terminal.reshape(-1, *(1,) * (earned.dim() - 1))
    perturbed = TabularMDP(
        kernel,
        torch.where(ends, 0.0, earned),
        mdp.initial_probabilities,
        horizon=mdp.horizon,
        discount=mdp.discount,
        temperature=mdp.temperature,
        action_prior=None if mdp.has_uniform_prior else mdp.action_prior,
        terminal=mdp.terminal if mdp.has_terminal else None,
    )
    perturbed.name, perturbed.layout = mdp.name, mdp.layout
    return Attack(perturbed, float(cost(best[1])), best[2], relaxed)


def _within(log_kernel: Tensor, dense: Tensor, cost: Callable[[Tensor], Tensor], budget: float) -> Tensor:
    """Returns the kernel, mixed with the nominal one by so little that it keeps the budget."""
    if float(cost(log_kernel)) <= budget:
        return log_kernel
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        mixed = ((1 - middle) * log_kernel.exp() + middle * dense).clamp_min(1e-300).log()
        low, high = (low, middle) if float(cost(mixed)) <= budget else (middle, high)
    return ((1 - high) * log_kernel.exp() + high * dense).clamp_min(1e-300).log()


def _relaxation(
    value: Callable[[Tensor], Tensor], cost: Callable[[Tensor], Tensor], log_kernel: Tensor, budget: float
) -> float:
    """Returns the least return where rows may sum to less than one: in ``log p̃`` a convex problem."""
    if float(value(log_kernel)) <= 0:
        return 0.0
    lost = torch.full_like(log_kernel[..., :1], -2.0)
    # What is lost is one more successor. Its logits map one to one, so that a minimum in them is global too.
    theta, _ = _augmented_lagrangian(
        lambda theta: value(torch.log_softmax(theta, -1)[..., :-1]).log(),
        lambda theta: (cost(torch.log_softmax(theta, -1)[..., :-1]) - budget)[None],
        torch.cat([log_kernel.clamp_min(-30), lost], -1),
    )
    return float(value(torch.log_softmax(theta, -1)[..., :-1]))


def _augmented_lagrangian(
    objective: Callable[[Tensor], Tensor], excess: Callable[[Tensor], Tensor], start: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns a minimiser of ``objective`` where ``excess <= 0``, and multipliers (Nocedal & Wright 2006, ch. 17)."""
    point = start.clone()
    scale = max(float(objective(start).detach().abs()), 1e-3)
    multiplier, penalty = torch.zeros_like(excess(start)), 10.0
    before = float("inf")
    for _ in range(20):

        def both(
            flat: np.ndarray, multiplier: Tensor = multiplier, penalty: float = penalty
        ) -> tuple[float, np.ndarray]:
            theta = torch.as_tensor(flat, dtype=start.dtype, device=start.device).view(start.shape).requires_grad_()
            with torch.enable_grad():
                shifted = (multiplier + penalty * excess(theta)).clamp_min(0.0)
                total = objective(theta) / scale + ((shifted**2 - multiplier**2) / (2 * penalty)).sum()
                (gradient,) = torch.autograd.grad(total, theta)
            return float(total.detach()), gradient.flatten().cpu().numpy()

        answer = minimize(
            both,
            point.flatten().cpu().numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-9},
        )
        point = torch.as_tensor(answer.x, dtype=start.dtype, device=start.device).view(start.shape)
        over = excess(point).detach()
        multiplier = (multiplier + penalty * over).clamp_min(0.0)
        violation = float(torch.maximum(over, -multiplier / penalty).abs().max())
        if violation < 1e-9:
            break
        if violation > 0.25 * before:
            penalty = min(penalty * 5, 1e7)
        before = violation
    return point, scale * multiplier
