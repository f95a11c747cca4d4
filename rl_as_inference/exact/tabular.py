"""Exact messages on finite processes: soft planning, evaluation, occupancy, posterior draws.

Everything inside works in nats; what leaves in a :class:`Plan` as soft values is in reward units.
The recursions are those of Levine (2018, arXiv:1805.00909), sections 2.2 and 3.1, with a
temperature, discount as survival, and terminal states.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_at_least, holds
from rl_as_inference.exact.backups import (
    Dynamics,
    backup,
    backup_of_forbidden,
    backward,
    check_dynamics,
    outcomes,
    reward_in_nats,
    soft_maximum,
)
from rl_as_inference.exact.fixed_point import backup_of_rest, check_fixed_point, fixed_point, solve_linear
from rl_as_inference.exact.precision import in_double
from rl_as_inference.nouns import ExactPolicy, Policy, takes_all_steps
from rl_as_inference.processes.log_sums import log_mean_exp, log_or_minus_inf
from rl_as_inference.processes.mdp import unvalidated
from rl_as_inference.processes.tabular import TabularMDP
from rl_as_inference.trajectories import Trajectories, discounts

__all__ = [
    "Dynamics",
    "Plan",
    "backward_step",
    "discounted_visits",
    "evaluate",
    "expected_return",
    "log_evidence",
    "log_policy_table",
    "occupancy",
    "plan",
    "reachable",
    "sample_posterior",
]


@dataclass(frozen=True)
class Plan:
    """Soft values of a finite process, and the policy they belong to.

    It can be called as a policy, ``plan(state, t) -> Categorical``.

    Attributes:
        soft_v: ``(T+1, S)``, or ``(S,)`` with no horizon, in reward units; 0 in terminal states.
        soft_q: ``(T, S, A)``, or ``(S, A)``, in reward units.
        objective: 0-dimensional, in nats: the ELBO, or for ``dynamics="posterior"`` the log evidence.
        log_policy: ``log π_t(a|s)``, ``(T, S, A)`` or ``(S, A)``; the action prior in terminal states.
        dynamics: which posterior the plan belongs to.
        residual: with no horizon the Bellman residual ``max_s |backup(V)(s) - V(s)|``, 0-dimensional, in nats: causal
            values at a discount γ < 1 are no further than ``residual / (1-γ)`` from the true ones. Else None.
    """

    soft_v: Tensor
    soft_q: Tensor
    objective: Tensor
    dynamics: Dynamics
    _log_policy: Tensor | Callable[[], Tensor]
    residual: Tensor | None = None

    batch_steps = True

    @cached_property
    def exact_log_policy(self) -> Tensor:
        """:attr:`log_policy` in the precision that the plan was computed in."""
        # Made when asked for: a plan of a large process is often wanted for its values alone.
        if isinstance(self._log_policy, Tensor):
            return self._log_policy
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.soft_q.requires_grad):
            return self._log_policy()

    @cached_property
    def log_policy(self) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.soft_q.requires_grad):
            return self.exact_log_policy.to(self.soft_v.dtype)

    @property
    def policy(self) -> Tensor:
        """``π_t(a|s)``, ``(T, S, A)`` or ``(S, A)``."""
        return self.log_policy.exp()

    def __call__(self, state: Tensor, t: int | Tensor) -> Any:
        """Returns the policy's distribution over actions, of the batch shape of ``state``."""
        table = self.log_policy
        return dist.Categorical(logits=table[state] if table.dim() == 2 else table[t, state])


def plan(mdp: TabularMDP, dynamics: Dynamics = "causal") -> Plan:
    """Returns the exact soft plan of a finite process.

    ``dynamics="causal"`` leaves the dynamics alone and gives the maximum-entropy optimum, whose
    objective is the largest ELBO; ``"posterior"`` conditions on optimality outright, and its
    objective is the log evidence (with survival sampled, if γ < 1). With no horizon it is the fixed point.

    Raises:
        ValueError: for unknown ``dynamics``, or when there is no fixed point.
    """
    check_dynamics(dynamics)
    dtype, mdp = mdp.initial_probabilities.dtype, in_double(mdp)
    reward, residual = reward_in_nats(mdp, dynamics), None
    if mdp.horizon is None:
        rest, level, residual = fixed_point(mdp, dynamics, reward)
        values = start = rest + level
        logits = backup_of_rest(mdp, dynamics, reward, rest, level)
        qs = logits + (0 if mdp.has_terminal else mdp.discount * level)
    else:
        values, qs = backward(mdp, dynamics, reward, mdp.horizon)
        start, logits = values[0], None

    initial = mdp.initial_probabilities
    objective = initial @ start if dynamics == "causal" else log_mean_exp(initial, start)
    soft_v, soft_q = _to_reward_units(mdp, values), _to_reward_units(mdp, qs)
    # As it is now: the process may be given another one before the policy is asked for.
    temperature = mdp.temperature.clone() if isinstance(mdp.temperature, Tensor) else mdp.temperature

    def log_policy() -> Tensor:
        # Not soft_q - soft_v: two large numbers, each rounded, whose rows need not sum to one.
        table = torch.log_softmax(mdp.log_action_prior + (soft_q / temperature if logits is None else logits), -1)
        return torch.where(mdp.terminal[:, None], mdp.log_action_prior, table) if mdp.has_terminal else table

    return Plan(soft_v.to(dtype), soft_q.to(dtype), objective.to(dtype), dynamics, log_policy, residual)


def log_evidence(mdp: TabularMDP) -> Tensor:
    """Returns ``log p(O)``, 0-dimensional, in nats; states that are never reached need not have values of their own."""
    try:
        return plan(mdp, "posterior").objective
    except ValueError:
        reached = reachable(mdp)
        if mdp.horizon is not None or bool(reached.all()):
            raise
    without = copy.copy(mdp)
    vars(without).pop("_in_double", None)
    without.terminal, without.has_terminal, without._kernel = mdp.terminal | ~reached, True, None
    return plan(without, "posterior").objective


def reachable(mdp: TabularMDP) -> Tensor:
    """Returns which states are ever reached under the action prior, ``(S,)`` bool."""
    allowed = (mdp.action_prior.detach() > 0).to(mdp.initial_probabilities.dtype)
    reached = mdp.initial_probabilities > 0
    while True:
        grown = reached | (mdp.kernel.push(reached[:, None] * allowed) > 0)
        if bool((grown == reached).all()):
            return reached
        reached = grown


def evaluate(mdp: TabularMDP, policy: ExactPolicy) -> Plan:
    """Returns the soft values of ``policy``; the plan's objective is its ELBO in nats.

    Soft policy evaluation (Haarnoja et al. 2018, arXiv:1801.01290, lemma 1), with the action prior:
    ``V = E_a[Q + α (log p - log π)]``.

    Args:
        policy: a plan, a table ``(S, A)`` or ``(T, S, A)`` of probabilities, or a callable.
    """
    dtype, mdp = mdp.initial_probabilities.dtype, in_double(mdp)
    log_policy, residual = log_policy_table(mdp, policy), None
    probabilities = log_policy.exp()
    # 0 log 0 = 0, and an action that neither takes costs nothing; nor does one where none is taken.
    cost = torch.where(probabilities > 0, log_policy, 0.0) - torch.where(probabilities > 0, mdp.log_action_prior, 0.0)
    cost = torch.where(mdp.terminal[:, None], 0.0, cost) if mdp.has_terminal else cost
    reward = reward_in_nats(mdp, "causal")
    forbidden = bool((cost == torch.inf).any())

    if mdp.horizon is None:
        check_fixed_point(mdp, probabilities)
        if forbidden:
            state, action = (int(i) for i in (cost == torch.inf).nonzero()[0])
            raise ValueError(
                f"policy takes action {action} in state {state}, which the action prior forbids, so its ELBO is -inf; "
                f"give it probability 0"
            )
        own = (probabilities * (reward - cost)).sum(-1)
        if mdp.has_terminal:
            own = torch.where(mdp.terminal, 0.0, own)
        values = start = solve_linear(mdp, probabilities, own)
        qs = backup(mdp, "causal", reward, values)
        backed = torch.where(mdp.terminal, 0.0, (probabilities * (qs - cost)).sum(-1))
        residual = (backed - values).detach().abs().max()
    else:
        start = reward.new_zeros(mdp.num_states)
        messages, backups = [start], []
        for t in reversed(range(mdp.horizon)):
            pi, paid = (probabilities, cost) if cost.dim() == 2 else (probabilities[t], cost[t])
            last = t == mdp.horizon - 1
            if forbidden:
                q = backup_of_forbidden(mdp, reward, None if last else start)
                start = torch.where(pi > 0, pi * (q - paid), 0.0).sum(-1)
            else:
                q = backup(mdp, "causal", reward, None if last else start)
                start = (pi * (q - paid)).sum(-1)
            if mdp.has_terminal:
                start = torch.where(mdp.terminal, 0.0, start)
            messages.append(start)
            backups.append(q)
        values = torch.stack(messages[::-1])
        qs = torch.stack([q.mT for q in reversed(backups)]).mT
        log_policy = log_policy.expand(mdp.horizon, -1, -1)
    weighted = mdp.initial_probabilities * start
    objective = (torch.where(mdp.initial_probabilities > 0, weighted, 0.0) if forbidden else weighted).sum()
    soft_v, soft_q = ((mdp.temperature * nats).to(dtype) for nats in (values, qs))
    return Plan(soft_v, soft_q, objective.to(dtype), "causal", log_policy, residual)


@checked
def backward_step(mdp: TabularMDP, soft_v: Tensor, dynamics: Dynamics = "causal") -> tuple[Tensor, Tensor]:
    """Returns ``(soft_v_t, soft_q_t)``, ``(S,)`` and ``(S, A)`` in reward units, from ``soft_v_{t+1}``.

    One soft Bellman backup, for those who write their own recursion.

    Raises:
        ValueError: for unknown ``dynamics``, or values that are not ``(S,)``.
    """
    check_dynamics(dynamics)
    if not isinstance(mdp, TabularMDP):
        raise ValueError(f"backward_step needs a TabularMDP, got {type(mdp).__name__}")
    if not isinstance(soft_v, Tensor) or soft_v.shape != (mdp.num_states,):
        raise ValueError(
            f"soft_v must be a tensor of shape ({mdp.num_states},), got {getattr(soft_v, 'shape', soft_v)}"
        )
    dtype, mdp = mdp.initial_probabilities.dtype, in_double(mdp)
    q = backup(mdp, dynamics, reward_in_nats(mdp, dynamics), soft_v.to(mdp.initial_probabilities) / mdp.temperature)
    value = _to_reward_units(mdp, soft_maximum(mdp, q))
    return value.to(dtype), _to_reward_units(mdp, q).to(dtype)


def occupancy(mdp: TabularMDP, policy: ExactPolicy) -> Tensor:
    """Returns the distribution of the state at each time under ``policy``, ``(T+1, S)``; rows sum to one.

    It is the state's own distribution, whatever the discount; an ended trajectory stays in its
    terminal state. With no horizon: the discounted number of visits ``Σ_t γ^t P(s_t = s)``, ``(S,)``,
    where a terminal state counts on arrival.
    """
    dtype, mdp = mdp.initial_probabilities.dtype, in_double(mdp)
    probabilities = log_policy_table(mdp, policy).exp()
    state = mdp.initial_probabilities
    if mdp.horizon is None:
        check_fixed_point(mdp, probabilities)
        return solve_linear(mdp, probabilities, state, transpose=True).to(dtype)
    states = [state]
    for t in range(mdp.horizon):
        pi = probabilities if probabilities.dim() == 2 else probabilities[t]
        state = mdp.kernel.push(state[:, None] * pi)
        states.append(state)
    return torch.stack(states).to(dtype)


def discounted_visits(mdp: TabularMDP, policy: ExactPolicy) -> Tensor:
    """Returns ``γ^t P(s_t = s)`` of states that ``policy`` acts in, ``(T, S)``; with no horizon the sum, ``(1, S)``.

    Terminal states have none: no action is taken there.
    """
    states = occupancy(mdp, policy)
    if mdp.horizon is None:  # discounted already
        weighted = states[None]
    else:
        weighted = states[:-1] * discounts(mdp.discount, mdp.horizon, states)[:, None]
    return torch.where(mdp.terminal, 0.0, weighted)


def expected_return(mdp: TabularMDP, policy: ExactPolicy) -> Tensor:
    """Returns ``E_π Σ_t γ^t r_t``, 0-dimensional, in reward units, also where the ELBO of ``policy`` is -inf."""
    dtype, mdp = mdp.initial_probabilities.dtype, in_double(mdp)
    flow = discounted_visits(mdp, policy)[..., None] * log_policy_table(mdp, policy).exp()
    return (flow * mdp.expected_reward()).sum().to(dtype)


@torch.no_grad()
def sample_posterior(mdp: TabularMDP, num_draws: int, dynamics: Dynamics = "posterior") -> Trajectories:
    """Returns exact independent draws of trajectories given optimality.

    Backward messages, then forward draws. For ``"posterior"`` transitions and initial state are
    bent towards success; for ``"causal"`` only the actions are. With γ < 1 the coins are drawn too:
    ``mask`` ends where a trajectory does not survive. ``log_policy`` is that of the plan's policy.
    With no horizon the draws go on until the last has ended.

    Raises:
        ValueError: if ``num_draws`` < 1, or there is no fixed point.
    """
    check_at_least("num_draws", num_draws)
    dtype, mdp = mdp.initial_probabilities.dtype, mdp.to(torch.float64)  # also of a table too large for in_double
    messages = plan(mdp, dynamics)
    values = messages.soft_v / mdp.temperature
    tilted = dynamics == "posterior"
    worth = values if tilted else torch.zeros_like(values)

    def at(table: Tensor, t: int) -> Tensor:
        return table if mdp.horizon is None else table[t]

    initial = mdp.initial_probabilities.log()
    state = dist.Categorical(logits=initial + at(values, 0) if tilted else initial).sample((num_draws,))
    alive = torch.ones(num_draws, dtype=torch.bool, device=state.device)
    states, actions, rewards, masks, log_p, log_q = [state], [], [], [], [], []
    t = 0
    while t < mdp.horizon if mdp.horizon is not None else bool(alive.any()):
        if mdp.has_terminal:
            alive = alive & ~mdp.terminal[state]
            if mdp.horizon is None and t > 0 and not bool(alive.any()):
                break
        policy = at(messages.log_policy, t)[state]
        prior = mdp.log_action_prior[state]
        action = dist.Categorical(logits=torch.where(alive[:, None], policy, prior)).sample()
        indices, probabilities = mdp.kernel.successors(state, action)
        logs = log_or_minus_inf(probabilities)
        last = mdp.horizon is not None and t == mdp.horizon - 1
        if tilted and mdp.reward_table.dim() == 3:
            logs = logs + mdp.reward_table[state, action] / mdp.temperature
        after, logits = outcomes(mdp, indices, logs, worth if mdp.horizon is None else worth[t + 1], last)
        outcome = after.gather(-1, dist.Categorical(logits=logits).sample()[:, None]).squeeze(-1)
        next_state = outcome % mdp.num_states
        next_state = torch.where(alive, next_state, state)
        rewards.append(torch.where(alive, mdp.reward(state, action, next_state), 0.0))
        log_p.append(torch.where(alive, prior.gather(-1, action[:, None]).squeeze(-1), 0.0))
        log_q.append(torch.where(alive, policy.gather(-1, action[:, None]).squeeze(-1), 0.0))
        masks.append(alive)
        actions.append(action)
        states.append(next_state)
        alive, state = alive & (outcome < mdp.num_states), next_state
        t += 1
    earned, log_prior, log_policy = (torch.stack(values).to(dtype) for values in (rewards, log_p, log_q))
    return Trajectories(
        states=torch.stack(states),
        actions=torch.stack(actions),
        rewards=earned,
        mask=torch.stack(masks),
        log_prior=log_prior,
        log_policy=log_policy,
        log_factors=earned / mdp.temperature,
        temperature=mdp.temperature,
        discount=1.0,
    )


def log_policy_table(mdp: TabularMDP, policy: ExactPolicy) -> Tensor:
    """Returns ``log π_t(a|s)`` of any kind of policy, ``(S, A)`` or ``(T, S, A)``.

    Args:
        policy: a :class:`Plan`; a table of probabilities ``(S, A)`` or ``(T, S, A)``; a callable
            ``(state, t) -> Distribution``; None for the action prior. With no horizon a callable is
            asked at ``t = 0``.

    Raises:
        ValueError: if a table has the wrong shape or rows that do not sum to one, or a callable's
            distribution is not over the process's actions.
    """
    if policy is None:
        return mdp.log_action_prior
    dtype = mdp.log_action_prior.dtype
    shapes: list[tuple[int, ...]] = [(mdp.num_states, mdp.num_actions)]
    if mdp.horizon is not None:
        shapes.append((mdp.horizon, *shapes[0]))
    if isinstance(policy, Plan):
        table = policy.exact_log_policy
        if tuple(table.shape) not in shapes:
            raise ValueError(
                f"policy is the plan of another process, of shape {tuple(table.shape)}; this one has "
                f"{' or '.join(map(str, shapes))}; plan it anew"
            )
        return table.to(dtype)
    if isinstance(policy, Tensor):
        if tuple(policy.shape) not in shapes:
            raise ValueError(
                f"policy: a table must have shape {' or '.join(map(str, shapes))}, got {tuple(policy.shape)}"
            )
        sums = policy.detach().sum(-1)
        if not holds((policy.detach() >= 0).all(-1) & ((sums - 1).abs() < 1e-4)):
            raise ValueError("policy: a table must hold probabilities >= 0 whose rows sum to one over actions")
        policy = policy.to(dtype)
        # Rows may be off by rounding to some digits; for slopes the sums are constants.
        return log_or_minus_inf(policy / policy.detach().sum(-1, keepdim=True))
    if not callable(policy):
        raise ValueError(f"policy must be a plan, a table or a callable (state, t), got {type(policy).__name__}")
    with unvalidated():
        answer = _ask_policy(mdp, policy)
    return answer if answer.dtype == dtype else torch.log_softmax(answer.to(dtype), -1)


def _ask_policy(mdp: TabularMDP, policy: Policy) -> Tensor:
    device = mdp.log_action_prior.device
    states = torch.arange(mdp.num_states, device=device)
    if mdp.horizon is None:
        return mdp.log_probabilities(policy(states, 0), states, "at step 0")
    if takes_all_steps(policy):
        shape = (mdp.horizon, mdp.num_states)
        states = states.expand(shape)
        times = torch.arange(mdp.horizon, device=device)[:, None].expand(shape)
        return mdp.log_probabilities(policy(states, times), states, "for all steps")
    answers = (mdp.log_probabilities(policy(states, t), states, f"at step {t}") for t in range(mdp.horizon))
    return torch.stack(list(answers))


def _to_reward_units(mdp: TabularMDP, nats: Tensor) -> Tensor:
    """Returns ``α`` times a tensor that nobody else holds, in its own memory where that can be."""
    if nats.requires_grad or isinstance(mdp.temperature, Tensor):
        return mdp.temperature * nats
    return nats if mdp.temperature == 1 else nats.mul_(mdp.temperature)
