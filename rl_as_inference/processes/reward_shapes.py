"""Rewards as a process answers them, and as one number a trajectory."""

from typing import Any

import torch
from torch import Tensor

from rl_as_inference.checks import below_infinity

__all__ = ["check_weighable", "checked_reward"]


def checked_reward(value: Any, state: Tensor, batch: torch.Size, step: int, name: str) -> Tensor:
    """Returns a reward as floating-point numbers, of a shape that is that of the batch or expands to it.

    Args:
        value: what ``reward()`` answered.
        state: whose dtype and device count.
        batch: one number each is wanted.
        step, name: of the walk and of the process's class, for messages.

    Raises:
        ValueError: if it is not one number a trajectory.
    """
    try:
        earned = torch.as_tensor(value, device=state.device)
        told = str(tuple(earned.shape))
        fits = earned.shape in (batch, ()) or torch.broadcast_shapes(earned.shape, batch) == batch
    except (TypeError, ValueError, RuntimeError):  # no number, or of shapes that do not go together
        fits, told = False, told if isinstance(value, Tensor) else type(value).__name__
    if not fits:
        raise ValueError(
            f"reward(state, action, next_state) must give one number a trajectory, of shape {tuple(batch)}, got "
            f"{told} at step {step}; check reward() of {name}"
        )
    if not earned.is_floating_point():
        earned = earned.to(state.dtype if state.is_floating_point() else torch.get_default_dtype())
    return earned


def check_weighable(earned: Tensor, step: int, name: str) -> None:
    """Raises ValueError if a reward is NaN or +∞, which gives a trajectory no weight; -∞ forbids it.

    Args:
        earned: the rewards that count.
        step, name: of the walk and of the process's class, for messages.
    """
    if not below_infinity(earned):
        what = "NaN" if bool(earned.isnan().any()) else "+inf, which no trajectory can weigh,"
        raise ValueError(f"reward is {what} at step {step}; check reward() of {name}")
