"""Critics of the user's own, which are asked once before all else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rl_as_inference.agents.task import Task

__all__ = ["StateCritic", "check_critic", "users_critic"]


class StateCritic(nn.Module):
    """A critic of all discrete actions at once, ``(state, t=t) -> (num_critics, *batch, A)``, called as others are."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, state: Tensor, action: Tensor | None = None, t: int | Tensor = 0) -> Tensor:
        values: Tensor = self.critic(state, t=t)
        return values


def users_critic(task: Task, critic: Any) -> nn.Module:
    """Returns a critic of the user's, a module, as the learners call critics.

    Raises:
        ValueError: if it has nothing to train.
    """
    if not isinstance(critic, nn.Module) or not any(parameter.requires_grad for parameter in critic.parameters()):
        raise ValueError("critic has no parameters to train; pass a module such as rl_as_inference.critics.QEnsemble")
    return StateCritic(critic) if task.is_discrete else critic


@torch.no_grad()
def check_critic(task: Task, critic: nn.Module, state: Tensor, time: Tensor | int, *, several: bool) -> int:
    """Returns how many critics a module of the user's holds, by its answer for two states.

    Raises:
        ValueError: if it fails, answers with another shape, changes its buffers, or cannot be batched over seeds.
    """
    action = None if task.is_discrete else torch.zeros(2, *task.action_shape, dtype=task.dtype, device=task.device)
    call = "(state, t=t)" if task.is_discrete else "(state, action, t)"
    before = {name: buffer.clone() for name, buffer in critic.named_buffers()}
    try:
        values = critic(state, action, time)
    except Exception as error:  # a module of the user's raises anything
        kind = f"{tuple(state.shape)} {str(task.state_dtype).removeprefix('torch.')}"
        raise ValueError(f"critic fails for two states, {kind}, called as {call}: {error}") from error
    wanted = (2, task.num_actions) if task.is_discrete else (2,)
    if not isinstance(values, Tensor) or values.dim() != 1 + len(wanted) or tuple(values.shape[1:]) != wanted:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"critic must return (num_critics, {', '.join(map(str, wanted))}) for two states and {task.action_space}, "
            f"called as {call}, and returned {found}"
        )
    for name, buffer in critic.named_buffers():
        if not torch.equal(buffer, before[name]):
            raise ValueError(
                f"critic changes its buffer {name} when it is called, and an update is a function of parameters alone; "
                f"use normalisation without running statistics (nn.LayerNorm), or track_running_stats=False"
            )
    if several:
        try:
            torch.func.vmap(lambda state: critic(state, action, time), randomness="different")(state[None])
        except RuntimeError as error:
            raise ValueError(f"critic cannot be batched over seeds; make one agent a seed ({error})") from error
    return len(values)
