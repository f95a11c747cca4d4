"""Frame stacking: the last few observations, without the actions between them, as one state."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import Tensor

from rl_as_inference.state_layout import LaidOut, Part, StateLayout, is_image, layout_of

__all__ = ["FrameStack"]

Array = np.ndarray[Any, Any]
Kind = TypeVar("Kind", bound="Tensor | Array")


class FrameStack:
    """How the last ``k`` observations of an episode are one state, as :class:`Window` is with the actions between.

    Images are stacked along their channels, oldest first, where these are; those without channels get them last. Other
    numbers are put one after the other, oldest first. Of a mask of actions the last alone counts. Before the beginning
    the first observation stands in, as in :class:`gymnasium.wrappers.FrameStackObservation` (Mnih et al. 2015, Nature
    518).

    Args:
        observation_space: what the environment gives, in the agent's units.
        length: ``k`` ≥ 2.

    Attributes:
        space: of the states.

    Example:
        >>> frames = FrameStack(Box(0, 255, (2, 2), np.uint8), 3)
        >>> frames.space
        Box(0, 255, (2, 2, 3), uint8)
        >>> first = frames.first(np.full((1, 2, 2), 7, np.uint8))
        >>> frames.then(first, np.zeros(1), np.full((1, 2, 2), 9, np.uint8))[0, 0, 0]
        array([7, 7, 9], dtype=uint8)
    """

    option = "frame_stack"

    def __init__(self, observation_space: gymnasium.Space[Any], length: int) -> None:
        self.observation_space, self.length = observation_space, length
        self._shape = tuple(observation_space.shape or ())
        size = math.prod(self._shape)
        layout = layout_of(observation_space)
        self.space: gymnasium.Space[Any]
        if layout is None or is_image(observation_space):
            columns = np.arange(size).reshape(self._shape)
            self.space, self._frame, self._column = _stacked(observation_space, columns, length)
            if isinstance(self.space, MultiDiscrete):
                self.space = LaidOut(StateLayout(self.space))
        else:
            spaces, frames, places = zip(*(_stacked_part(part, length) for part in layout.parts), strict=True)
            parts = [
                replace(part, space=space, shape=tuple(space.shape))
                for part, space in zip(layout.parts, spaces, strict=True)
            ]
            self.space = LaidOut(StateLayout.made_of(parts))
            self._frame, self._column = np.concatenate(frames), np.concatenate(places)
        self._space_shape = tuple(self.space.shape or ())
        self.dtype: Any = self.space.dtype
        # A step is one gather, of the state with what is new put behind it.
        width = len(self._column)
        place = {
            (frame, column): at
            for at, (frame, column) in enumerate(zip(self._frame.tolist(), self._column.tolist(), strict=True))
        }
        self._shift = np.array(
            [
                place.get((frame + 1, column), width + column)
                for frame, column in zip(self._frame.tolist(), self._column.tolist(), strict=True)
            ]
        )
        self._latest = np.array([place[length - 1, column] for column in range(size)])

    def first(self, observation: Array) -> Array:
        """Returns the states ``(*batch, *state)`` that episodes begin in, of their first observations."""
        rows = self._rows(observation)
        return rows.take(self._column, -1).reshape(*rows.shape[:-1], *self._space_shape)

    def then(self, state: Array, action: Array, observation: Array) -> Array:
        """Returns the states ``(*batch, *state)`` after what was seen; the action is not looked at."""
        seen = self._rows(observation)
        before = state.reshape(*seen.shape[:-1], -1)
        return np.concatenate([before, seen], -1).take(self._shift, -1).reshape(state.shape)

    def latest(self, state: Kind) -> Kind:
        """Returns the last observation of states ``(*batch, *state)``, as the environment gives it."""
        batch = state.shape[: state.ndim - len(self._space_shape)]
        rows: Any = state.reshape((*batch, -1))[..., self._latest]
        if isinstance(self.observation_space, Discrete):
            rows = rows.long() if isinstance(rows, Tensor) else rows.astype(np.int64)
        latest: Kind = rows.reshape((*batch, *self._shape))
        return latest

    def _rows(self, observation: Array) -> Array:
        rows = observation.reshape(*observation.shape[: observation.ndim - len(self._shape)], -1)
        return rows.astype(self.dtype, copy=False)


def _stacked_part(part: Part, length: int) -> tuple[gymnasium.Space[Any], Array, Array]:
    """Returns a part's space when it is stacked, and the frame and column of the row that each of its columns holds."""
    columns = np.arange(part.columns.start, part.columns.stop).reshape(part.shape)
    if part.kind == "mask":
        return MultiBinary(part.size), np.full(part.size, length - 1), columns
    return _stacked(part.space, columns, length)


def _stacked(space: gymnasium.Space[Any], columns: Array, length: int) -> tuple[gymnasium.Space[Any], Array, Array]:
    frames = np.broadcast_to(np.arange(length).reshape(-1, *[1] * columns.ndim), (length, *columns.shape))
    columns = np.broadcast_to(columns, frames.shape)
    if isinstance(space, Discrete | MultiDiscrete):  # which count from 0 in rows
        counts = [int(space.n)] if isinstance(space, Discrete) else space.nvec.reshape(-1).tolist()
        return MultiDiscrete(counts * length), frames.reshape(-1), columns.reshape(-1)
    if isinstance(space, MultiBinary):
        return MultiBinary(length * columns[0].size), frames.reshape(-1), columns.reshape(-1)
    assert isinstance(space, Box)
    layout = layout_of(space)
    channels = None if layout is None else layout.images[0].channels

    def put(each: Array) -> Array:
        """Returns what is of each frame, ``(k, *shape)``, as it stands in the state."""
        if channels is not None:
            return np.concatenate(list(each), 0 if channels == "first" else -1)
        return np.moveaxis(each, 0, -1) if layout is not None else each.reshape(-1)

    low, high = (put(np.broadcast_to(bound, (length, *bound.shape))) for bound in (space.low, space.high))
    return Box(low, high, dtype=space.dtype.type), put(frames).reshape(-1), put(columns).reshape(-1)
