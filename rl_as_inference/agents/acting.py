"""Acting: a policy's actions in states as arrays, and those of the action prior."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rl_as_inference.agents.evaluation import mode_of
from rl_as_inference.agents.task import Task
from rl_as_inference.nouns import Policy
from rl_as_inference.processes.mdp import unvalidated
from rl_as_inference.randomness import drawn_from_logits
from rl_as_inference.state_layout import LaidOut, is_image

__all__ = ["checked_states", "choose", "prior_actions"]

Array = np.ndarray[Any, Any]


def choose(task: Task, policy: Policy, state: Any, time: Any, *, deterministic: bool) -> Array:
    """Returns actions in the agent's units for states, one or a batch, at their times.

    Raises:
        ValueError: if a state has another shape, is not finite, or the time is past the model's horizon.
    """
    array = checked_states(state, task.state_space)
    states = torch.as_tensor(array, device=task.device).to(task.state_dtype)
    with torch.no_grad(), unvalidated():
        chosen = policy(states, _times(task, states, time))
        if not task.is_discrete:
            action = mode_of(chosen) if deterministic else chosen.sample()
        else:
            log_policy = task.log_policies(chosen)
            action = task.action_at(log_policy.argmax(-1) if deterministic else drawn_from_logits(log_policy))
    acted: Array = action.cpu().numpy()
    return acted


def checked_states(state: Any, space: gymnasium.Space[Any]) -> Array:
    """Returns states of ``space``, one or a batch, as an array.

    Raises:
        ValueError: if a state has another shape, or is not finite.
    """
    array, shape = np.asarray(state), tuple(space.shape or ())
    if array.shape[array.ndim - len(shape) :] != shape:
        raise ValueError(f"observation must have shape {shape}, or be a batch of such, got {array.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"observation must be of real numbers, got {array.dtype}; act on those of {space}")
    if not np.isfinite(array).all():
        if isinstance(space, LaidOut):
            part = space.layout.part_at(int(np.nonzero(~np.isfinite(array))[-1][0])).name
            raise ValueError(f"observation has NaN or infinite entries in part {part!r}; act on finite ones")
        raise ValueError("observation has NaN or infinite entries; act on finite ones")
    if is_image(space) and array.dtype.kind not in "biu":
        raise ValueError(f"observation is of {array.dtype}, and {space} is of bytes, 0 to 255; act on images as bytes")
    if isinstance(space, gymnasium.spaces.Discrete) and not (
        np.issubdtype(array.dtype, np.integer) and (array >= 0).all() and (array < space.n).all()
    ):
        raise ValueError(f"observation must be in {space}, or a batch of such, got {state}")
    return array


def _times(task: Task, states: Tensor, time: Any) -> Tensor | int:
    """Returns the times that the policy is asked with; 0 where it does not look at them."""
    if task.horizon is None:
        return 0
    array = np.asarray(time)
    if not np.issubdtype(array.dtype, np.integer) or (array < 0).any() or (array >= task.horizon).any():
        raise ValueError(
            f"t must be an integer from 0 to {task.horizon - 1}, or one for each observation: {task.name} ends at "
            f"step {task.horizon}; got {time}"
        )
    return torch.as_tensor(array, device=task.device).expand(task.batch_shape(states))


def prior_actions(task: Task, state: Tensor) -> Tensor:
    """Returns draws from the action prior in the agent's units, ``(*batch, *action)``."""
    shape = (*task.batch_shape(state), *task.action_shape)
    if task.has_prior:
        with unvalidated():
            action: Tensor = task.prior(state).sample()
        return action.clamp(-1, 1) if isinstance(task.action_space, gymnasium.spaces.Box) else action
    if task.factors is not None:
        return (torch.rand(shape, dtype=torch.float64) * torch.tensor(task.factors.sizes)).long()
    if task.is_discrete:
        return torch.randint(task.num_actions, shape)
    return 2 * torch.rand(shape) - 1
