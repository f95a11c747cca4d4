"""The table of a policy over finite states: asked once for all of them at all times, where that costs no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl_as_inference.checks import holds
from rl_as_inference.nouns import Policy, takes_all_steps
from rl_as_inference.sharing import in_shares

if TYPE_CHECKING:
    from rl_as_inference.processes.tabular import TabularMDP

__all__ = ["check_no_nan", "is_asked_at_once", "table_for_rollouts"]


def is_asked_at_once(process: TabularMDP, policy: Policy, num_trajectories: int) -> bool:
    """Returns whether so many rollouts ask a policy once, and not on the way."""
    return takes_all_steps(policy) and process.num_states <= 2 * num_trajectories


def table_for_rollouts(
    process: TabularMDP,
    policy: Policy | None,
    num_trajectories: int,
    horizon: int,
    meanwhile: Callable[[], None] = lambda: None,
) -> Tensor | None:
    """Returns ``log π`` in all states, ``(T or 1, S, A)``, in nats; None where a policy is better asked on the way.

    Once the policy is asked, what is to be done ``meanwhile`` is done: of ranks that share the table each waits for the
    others' parts.
    """
    if policy is None or not is_asked_at_once(process, policy, num_trajectories):
        meanwhile()
        return None if policy is not None else process.log_action_prior[None]
    states = torch.arange(process.num_states, device=process.terminal.device).expand(horizon, -1)
    times = torch.arange(horizon, device=process.terminal.device)[:, None].expand_as(states)

    def rows(part: slice) -> Tensor:
        answer = policy(states[part], times[part])
        return process.log_probabilities(answer, states[part], "for all steps", checks_nan=False)

    # Looked at once all of it is there: the others would wait for a rank that fails at its part.
    return check_no_nan(in_shares(policy, horizon, rows, meanwhile), "for all steps")


def check_no_nan(logits: Tensor, where: str) -> Tensor:
    """Returns a policy's log probabilities as they are.

    Raises:
        ValueError: if one is NaN.
    """
    if not holds(~logits.detach().isnan()):
        raise ValueError(f"policy gives NaN as a log probability {where}; check its parameters")
    return logits
