"""What pictures read from ArviZ data."""

from typing import Any

import numpy as np

from rl_as_inference.arviz_data import PosteriorData

__all__ = ["alive", "label_of", "over_time", "state_paths"]


def over_time(data: PosteriorData, group: str, name: str, dimension: int | None = None) -> Any:
    """Returns a variable's draws as ``(sample, time)``, all chains one after the other.

    Raises:
        ValueError: if the group or variable is missing, there are no draws, or the variable has more than one dimension
            beside time or no such entry.
    """
    held = getattr(data, group, None)
    if held is None or name not in held:
        raise ValueError(f"data: there is no variable {name!r} in a group {group!r}; make it with rlai.posterior")
    values = held[name]
    if 0 in values.sizes.values():
        raise ValueError(f"data: the group {group!r} holds no draws of {name!r}; make it with rlai.posterior")
    own = [dim for dim in values.dims if dim not in ("chain", "draw", "time")]
    if len(own) > 1:
        raise ValueError(f"data: {name!r} is not a number or vector, but has the dimensions {', '.join(map(str, own))}")
    if own:
        if dimension is None or not 0 <= dimension < values.sizes[own[0]]:
            raise ValueError(f"dimension must be from 0 to {values.sizes[own[0]] - 1} for {name!r}, got {dimension}")
        values = values.isel({own[0]: dimension})
    order = [dim for dim in ("chain", "draw", "time") if dim in values.dims]
    array = values.transpose(*order).values
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def state_paths(data: PosteriorData, group: str, dimension: int = 0) -> Any:
    """Returns one dimension of the state as ``(sample, T+1)``, or ``(sample, T)`` without a final state."""
    paths = over_time(data, group, "state", dimension)
    if "final_state" in data[group]:
        paths = np.column_stack([paths, over_time(data, group, "final_state", dimension)])
    return paths


def alive(data: PosteriorData, group: str = "sample_stats") -> Any:
    """Returns which steps were taken, ``(sample, time)`` bool."""
    return over_time(data, group, "alive")


def label_of(data: PosteriorData, name: str, dimension: int) -> str:
    """Returns what to call one dimension of a variable on an axis."""
    dim = f"{name}_dim_0"
    values = data.posterior[name]
    if dim not in values.dims:
        return name
    coordinate = values.coords[dim].values[dimension] if dim in values.coords else dimension
    return str(coordinate) if isinstance(coordinate, str) else f"{name}, dimension {dimension}"
