"""Transitions that were seen, from whatever holds them, checked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeAlias

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rl_as_inference.trajectories import Trajectories

__all__ = ["HasTransitions", "Transitions", "TransitionsLike", "read_transitions"]


class HasTransitions(Protocol):
    """What a learner's ``replay`` offers: tensors of ``n`` transitions."""

    @property
    def state(self) -> Tensor:
        """``(n, *state)``."""

    @property
    def action(self) -> Tensor:
        """``(n, *action)``, in the agent's units."""

    @property
    def reward(self) -> Tensor:
        """``(n,)``, in reward units."""

    @property
    def next_state(self) -> Tensor:
        """``(n, *state)``: the true successors, also where a time limit cut an episode off."""

    @property
    def terminated(self) -> Tensor:
        """``(n,)`` bool: the successor is terminal. A time limit is no ending."""


@dataclass(frozen=True)
class Transitions:
    """Transitions as tensors, as :class:`HasTransitions` says."""

    state: Tensor
    action: Tensor
    reward: Tensor
    next_state: Tensor
    terminated: Tensor

    def __len__(self) -> int:
        return len(self.reward)


TransitionsLike: TypeAlias = HasTransitions | Trajectories
"""A learner's replay, trajectories, or :class:`Transitions`."""


def read_transitions(
    data: Any, state_space: gymnasium.spaces.Box, action_space: gymnasium.Space[Any], like: Tensor
) -> tuple[Transitions, Tensor | None]:
    """Returns the transitions in data, and the states that episodes began in where that is known, ``(m, d)``.

    Args:
        data: trajectories, a replay, or :class:`Transitions`.
        state_space, action_space: whose members they are to be.
        like: of their precision and device.

    Raises:
        TypeError: for another kind of data.
        ValueError: if shapes do not fit the spaces, or a number is not finite (the first such transition is named).
    """
    first: Tensor | None = None
    if isinstance(data, Trajectories):
        data, first = _of_trajectories(data)
    names = [field.name for field in fields(Transitions)]
    try:
        columns = {name: torch.as_tensor(getattr(data, name), device=like.device) for name in names}
    except AttributeError as error:
        raise TypeError(
            f"data must be Trajectories, a learner's replay, or Transitions(state, action, reward, next_state, "
            f"terminated), got {type(data).__name__}"
        ) from error
    discrete = isinstance(action_space, gymnasium.spaces.Discrete)
    count = len(columns["reward"])
    shapes = {"state": state_space.shape, "action": action_space.shape or (), "next_state": state_space.shape}
    for name, column in columns.items():
        wanted = (count, *(shapes.get(name, ())))
        if tuple(column.shape) != wanted:
            raise ValueError(
                f"data: {name} must have shape {wanted} ({count} transitions in {state_space} and {action_space}), got "
                f"{tuple(column.shape)}"
            )
        if column.is_floating_point() and not bool((finite := column.isfinite().reshape(count, -1).all(1)).all()):
            where = int((~finite).nonzero()[0])
            raise ValueError(f"data: {name} of transition {where} is NaN or infinite; leave such transitions out")
    action = columns["action"]
    if discrete:
        number = int(action_space.n)  # type: ignore[attr-defined]
        if action.is_floating_point() or bool(((action < 0) | (action >= number)).any()):
            raise ValueError(
                f"data: action must hold integers from 0 to {number - 1}, as {action_space} counted from 0"
            )
        action = action.long()
    seen = Transitions(
        columns["state"].to(like.dtype),
        action if discrete else action.to(like.dtype),
        columns["reward"].to(like.dtype),
        columns["next_state"].to(like.dtype),
        columns["terminated"].bool(),
    )
    return seen, None if first is None else first.to(like)


def _of_trajectories(draws: Trajectories) -> tuple[Transitions, Tensor]:
    """Returns the transitions of trajectories, and their first states; one that stops before the last step ended."""
    if len(draws.states) != draws.horizon + 1:
        raise ValueError(f"data has {len(draws.states)} states of {draws.horizon} steps, and one is needed after each")
    mask = draws.mask
    goes_on = torch.cat([mask[1:], torch.ones_like(mask[:1])])
    return Transitions(
        draws.states[:-1][mask],
        draws.actions[mask],
        draws.rewards[mask],
        draws.states[1:][mask],
        ~goes_on[mask],
    ), draws.states[0]


def size_of(space: gymnasium.Space[Any], name: str) -> int:
    """Returns how many numbers a network is told of a member of the space.

    Raises:
        ValueError: for images, and for spaces that are neither a flat Box nor Discrete actions.
    """
    if isinstance(space, gymnasium.spaces.Discrete) and name == "action_space":
        return int(space.n)
    if isinstance(space, gymnasium.spaces.Box):
        if len(space.shape) == 1 and space.dtype != np.uint8:
            return int(space.shape[0])
        if len(space.shape) > 1 or space.dtype == np.uint8:
            raise ValueError(
                f"{name} is {space}: images and other arrays are not learned here; give vectors, Box of shape (d,) "
                f"(gymnasium.wrappers.FlattenObservation makes such)"
            )
    also = ", or Discrete(n)" if name == "action_space" else ""
    hint = "; of discrete states, learn tables with infer_dynamics" if name == "state_space" else ""
    raise ValueError(f"{name} must be a Box of shape (d,){also}, got {space}{hint}")
