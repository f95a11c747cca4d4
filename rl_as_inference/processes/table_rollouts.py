"""Rollouts of finite processes: what is drawn and looked up of all trajectories at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl_as_inference.nouns import Policy
from rl_as_inference.processes.inversion import Inversion, cumulated, invert
from rl_as_inference.processes.kernels import DenseKernel
from rl_as_inference.processes.policy_tables import table_for_rollouts
from rl_as_inference.trajectories import Trajectories

if TYPE_CHECKING:
    from rl_as_inference.processes.tabular import TabularMDP

__all__ = ["rolled_out"]


def rolled_out(process: TabularMDP, policy: Policy | None, num_trajectories: int, horizon: int) -> Trajectories:
    """Returns trajectories of a policy, of the prior where it is None."""
    uniform = process.initial_probabilities.new_empty(horizon, 2, num_trajectories)
    table = table_for_rollouts(process, policy, num_trajectories, horizon, uniform.uniform_)
    kernel, num_actions, (first, second) = process.kernel, process.num_actions, uniform.unbind(1)
    with torch.no_grad():
        state = process.initial().sample((num_trajectories,))
        rules = None if table is None else Inversion.of_steps(cumulated(table)) * (horizon // len(table))
    # In one block each: many rows of a megabyte would leave the heap in pieces that are not given back. They are
    # written in place, since for a few thousand trajectories the number of operations is what takes the time.
    all_states, pairs = state.new_empty(horizon + 1, num_trajectories), state.new_empty(horizon, num_trajectories)
    (into, *following), rows, log_q = all_states.unbind(), pairs.unbind(), []
    state = into.copy_(state)
    for t, (numbers, successor) in enumerate(zip(first.unbind(), kernel.sampler.along(second), strict=True)):
        if rules is None:
            assert policy is not None
            seen = state.clone()  # which the policy's gradient may keep, while the block is written on
            logits = process.log_probabilities(policy(seen, t), state, f"at step {t}")
            action = invert(cumulated(logits.detach()), numbers[:, None])
            log_q.append(logits.gather(-1, action[:, None]).squeeze(-1))
        else:
            action = rules[t](state, numbers)
        row = torch.add(action, state, alpha=num_actions, out=rows[t])
        state = successor(row, following[t])
    del uniform, first, second, numbers, successor
    before = all_states[:-1]
    all_actions = torch.sub(pairs, before, alpha=num_actions)
    # Terminal states are never left, so the state alone tells who has ended.
    mask = ~_looked_up(process.terminal, before)
    reward = process.reward_table
    if reward.dim() == 2:
        rewards = _while_alive(process, mask, reward, pairs)
    elif isinstance(kernel, DenseKernel) and reward.is_contiguous():
        triples = torch.add(all_states[1:], pairs, alpha=process.num_states)
        rewards = _while_alive(process, mask, reward, triples)
    else:
        rewards = torch.where(mask, process.reward(before, all_actions, all_states[1:]), 0.0)
    log_p = _while_alive(process, mask, process.log_action_prior, pairs)
    if policy is None:
        log_policy = log_p
    elif table is None:
        log_policy = torch.where(mask, torch.stack(log_q), 0.0)
    else:
        table = torch.where(process.terminal[:, None], 0.0, table) if process.has_terminal else table
        log_policy = table.flatten(1).expand(horizon, -1).gather(1, pairs)
    return Trajectories(
        states=all_states,
        actions=all_actions,
        rewards=rewards,
        mask=mask,
        log_prior=log_p,
        log_policy=log_policy,
        log_factors=rewards / process.temperature,
        temperature=process.temperature,
        discount=process.discount,
    )


def _while_alive(process: TabularMDP, mask: Tensor, table: Tensor, places: Tensor) -> Tensor:
    """Returns a table's entries at places where the trajectory is alive, zero elsewhere."""
    if not process.has_terminal:
        return _looked_up(table, places)
    if table.numel() > places.numel():
        return torch.where(mask, _looked_up(table, places), 0.0)
    return _looked_up(torch.where(process.terminal.view(-1, *[1] * (table.dim() - 1)), 0.0, table), places)


def _looked_up(table: Tensor, places: Tensor) -> Tensor:
    """Returns a table's entries at places counted along it; four times faster than indexing with them."""
    return table.flatten().index_select(0, places.flatten()).view(places.shape)
