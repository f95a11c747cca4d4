"""From an environment's own spaces and units to the agent's: unit boxes, float32, integers from 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from rl_as_inference.spaces import factor_sizes
from rl_as_inference.state_layout import LaidOut, StateLayout, check_not_pixels, is_image

__all__ = ["agent_actions", "agent_states", "as_agent_actions", "as_states", "finiteness", "name_of", "time_limit_of"]

Array = np.ndarray[Any, Any]

_ROUNDING = 1e-5
"""How far outside the unit box an action may be by rounding."""
_SUMMED = 64
"""States up to this size are summed in Python, which is quicker than the calls into NumPy."""


def name_of(env: Any) -> str:
    return type(env.unwrapped).__name__ if env.spec is None else str(env.spec.id)


def dimension_names(env: Any) -> tuple[Sequence[str] | None, Sequence[str] | None]:
    """Returns what an environment calls the entries of its observations and actions: its own ``state_names`` and
    ``action_names``; None where it does not say."""
    own: Any = env.unwrapped
    return getattr(own, "state_names", None), getattr(own, "action_names", None)


def layout_of_cells(env: Any) -> Any:
    """Returns the letters of an environment whose states are cells, its ``layout`` or a toy text's map; or None."""
    own: Any = env.unwrapped
    letters, states = getattr(own, "desc", None), env.observation_space
    if hasattr(own, "layout"):
        return own.layout
    is_map = letters is not None and isinstance(states, Discrete) and np.size(letters) == states.n
    return np.asarray(letters).astype(str) if is_map else None


def time_limit_of(env: Any) -> int | None:
    limit = None if env.spec is None else env.spec.max_episode_steps
    if limit is None and isinstance(env, gymnasium.Env) and env.has_wrapper_attr("_max_episode_steps"):
        limit = env.get_wrapper_attr("_max_episode_steps")  # TimeLimit around an environment without a spec
    if limit is None:
        limit = getattr(env.unwrapped, "max_episode_steps", None)
    return limit if isinstance(limit, int) else None


def agent_states(space: Any, name: str) -> tuple[gymnasium.Space[Any], int]:
    """Returns the agent's state space and where the environment's integers start.

    Images stay as they are, bytes; observations in parts are rows, :class:`LaidOut`.

    Raises:
        ValueError: for a space that is not supported.
    """
    if isinstance(space, Discrete):
        return Discrete(int(space.n)), int(space.start)
    try:
        if isinstance(space, Dict | Tuple | MultiDiscrete | MultiBinary):
            return LaidOut(StateLayout(space)), 0
        if isinstance(space, Box):
            check_not_pixels(space, "observation")
    except ValueError as error:
        raise ValueError(f"observation_space of {name}{str(error).removeprefix('observation_space')}") from error
    if isinstance(space, Box):
        if space.dtype == np.float32 or is_image(space):
            return space, 0
        with np.errstate(over="ignore"):
            return Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32), 0
    raise ValueError(
        f"observation_space of {name} is {type(space).__name__}, and Box, Discrete, MultiDiscrete, MultiBinary, and "
        f"Dict or Tuple of these are supported; turn it into one of them with gymnasium.wrappers.TransformObservation"
    )


def as_states(observation: Array, space: gymnasium.Space[Any], start: int) -> Array:
    """Returns what the environment gives as states: integers count from 0.

    Args:
        observation: one or a batch.
        space: the agent's.
        start: where the environment's integers start.

    Raises:
        ValueError: in the environment's numbers, if one is outside its space.
    """
    if not isinstance(space, Discrete):
        return observation
    states = observation - start if np.issubdtype(observation.dtype, np.integer) else observation
    if states is observation or not ((states >= 0).all() and (states < space.n).all()):
        own = Discrete(space.n, start=start)
        raise ValueError(f"observation must be in {own}, or a batch of such, got {observation}")
    return states


def finiteness(space: gymnasium.Space[Any]) -> Callable[[Array], bool]:
    """Returns the quickest test of whether a state is finite."""
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):  # integers (pixels) always are
        return lambda row: True
    size = math.prod(space.shape)
    if size > _SUMMED:
        zeros = np.zeros(size, np.float32)
        return lambda row: bool(row.reshape(-1).dot(zeros) == 0.0)  # ∞ · 0 is NaN
    if len(space.shape) == 1:
        return lambda row: isfinite(sum(row.tolist()))  # in float64, in which float32 does not overflow
    return lambda row: isfinite(sum(row.reshape(-1).tolist()))


def agent_actions(space: Any, name: str) -> tuple[gymnasium.Space[Any], Callable[[Array], Any]]:
    """Returns the agent's action space, and the map from it to the environment's, for single actions and batches."""
    if isinstance(space, Discrete):
        start, kind = int(space.start), space.dtype
        scalar = kind.type
        if start == 0:  # what is of the type already goes through as it is
            return Discrete(int(space.n)), lambda action: action if type(action) is scalar else action.astype(kind)[()]
        return Discrete(int(space.n)), lambda action: (action + start).astype(kind)
    if (sizes := factor_sizes(space)) is not None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"action_space of {name} is {space}, which holds no action")
        return MultiDiscrete(list(sizes)), _to_factors(space)
    if not isinstance(space, Box):
        raise ValueError(
            f"action_space of {name} is {type(space).__name__}, and Box, Discrete, MultiDiscrete and MultiBinary are "
            f"supported; make it one of them with gymnasium.wrappers.TransformAction"
        )
    size = math.prod(space.shape)
    if size == 0:
        raise ValueError(f"action_space of {name} is Box of shape {space.shape}, which holds no action")
    if not space.is_bounded("both"):
        raise ValueError(
            f"action_space of {name} is Box with unbounded sides, {space}; wrap it with gymnasium.wrappers."
            f"TransformAction(env, lambda action: action, gymnasium.spaces.Box(low, high)) to bound it"
        )
    convert, shape = _from_unit_box(space), tuple(space.shape)
    agent = Box(-1.0, 1.0, (size,), np.float32)
    if shape == agent.shape:
        return agent, convert
    return agent, lambda action: convert(action).reshape((*action.shape[:-1], *shape))


def _to_factors(space: MultiDiscrete | MultiBinary) -> Callable[[Array], Array]:
    """Returns the map from vectors of integers from 0 to actions of several factors, for single ones and batches."""
    shape, start = tuple(space.shape), getattr(space, "start", 0)
    return lambda action: (action.reshape((*action.shape[:-1], *shape)) + start).astype(space.dtype)


def _from_unit_box(space: Box) -> Callable[[Array], Array]:
    """Returns the map from ``[-1, 1]^d`` to a box, exact at its ends; it makes new arrays."""
    low, high, kind = space.low.reshape(-1), space.high.reshape(-1), space.dtype

    def between(action: Array) -> Array:
        value = low.astype(np.float64) * (0.5 - 0.5 * action) + high.astype(np.float64) * (0.5 + 0.5 * action)
        return (value if np.issubdtype(kind, np.floating) else np.rint(value)).astype(kind)

    if not np.issubdtype(kind, np.floating):
        return between
    if (low == -1).all() and (high == 1).all():
        return lambda action: np.array(action, kind)
    if (low == -high).all():
        return lambda action: np.multiply(action, high, dtype=kind, casting="same_kind")
    middle, half = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
    if not ((middle - half == low).all() and (middle + half == high).all()):
        return between  # rounding would miss the ends

    def scaled(action: Array) -> Array:
        value = np.multiply(action, half, dtype=kind, casting="same_kind")
        value += middle
        return value

    return scaled


def as_agent_actions(actions: Array, space: gymnasium.Space[Any]) -> Array:
    """Returns what an environment was given as actions in the agent's units: the way back of :func:`agent_actions`.

    Args:
        actions: ``(*batch, *action)`` in the environment's units.
        space: the environment's, ``Discrete``, ``MultiDiscrete``, ``MultiBinary`` or a bounded ``Box``.

    Raises:
        ValueError: if one is outside the space.

    Example:
        >>> as_agent_actions(np.array([[2.0], [-1.0]], np.float32), Box(-2.0, 2.0, (1,)))
        array([[ 1. ],
               [-0.5]], dtype=float32)
    """
    unit: Array
    if not isinstance(space, Box):
        if not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions are {actions.dtype}, and those of {space} are integers")
        sizes = factor_sizes(space)
        unit = actions.astype(np.int64) - getattr(space, "start", 0)
        if sizes is not None:
            unit = unit.reshape(*actions.shape[: actions.ndim - len(space.shape or ())], -1)
        bad = (unit < 0) | (unit >= (space.n if sizes is None else np.array(sizes)))  # type: ignore[attr-defined]
        bad = bad if sizes is None else bad.any(-1)
    else:
        assert isinstance(space, Box)
        flat = actions.reshape(*actions.shape[: actions.ndim - len(space.shape)], -1)
        low, high = space.low.reshape(-1), space.high.reshape(-1)
        if (low == -high).all():
            unit = flat / high
        else:
            unit = 2 * (flat.astype(np.float64) - low) / (high.astype(np.float64) - low) - 1
        bad = (np.abs(unit) > 1 + _ROUNDING).any(-1)
        unit = unit.clip(-1, 1).astype(np.float32)
    if bad.any():
        first = tuple(int(index[0]) for index in np.nonzero(bad))
        raise ValueError(f"actions are outside {space}, first {actions[first]} at {list(first)}")
    return unit
