"""Trajectories as a page holds them: few, rounded, and with a way to draw them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rl_as_inference.arviz_data import PosteriorData
from rl_as_inference.nouns import Process
from rl_as_inference.report.beliefs import belief_kind, belief_size, beliefs_of
from rl_as_inference.report.pictures import action_values, dimension_names, grid_of
from rl_as_inference.report.rounding import plain, rounded
from rl_as_inference.report.sources import Source
from rl_as_inference.report.values import directions

__all__ = ["embed"]

Array = np.ndarray[Any, Any]

_MOST_DRAWS = 200  # of a source; more make the page heavy and show nothing new
_MOST_NUMBERS = 600_000  # in all sources together: some four megabytes of text
_FEWEST_DRAWS = 10
_MOST_DIMENSIONS = 12
_MOST_STATES = 100  # more are too thin to be told apart as rows; they are lines instead
_FEW_VALUES = 12
_MOST_LATENT_VALUES = 4


def embed(process: Process, sources: Sequence[Source], share: float = 1.0) -> dict[str, Any]:
    """Returns ``view`` (how to draw states) and ``sources`` (the draws), as JSON can hold them.

    ``view["kind"]`` is ``"grid"`` for finite processes with a layout, ``"index"`` for other finite ones, and
    ``"series"`` for states of real numbers. A draw's states, actions and rewards end where it ends. Numbers are rounded
    to about four digits; what is not finite is None.

    Where the state is hidden, ``view["belief"]`` says how beliefs are drawn, and a draw has those before each action:
    ``"shares"`` of every state, or a ``"fan"`` of five quantiles a dimension.

    At most 200 draws of a source are kept, evenly spaced, fewer where trajectories are long; ``returns`` has all.

    Args:
        process: what the trajectories are of.
        sources: the draws.
        share: of the numbers that a page may hold, in (0, 1].
    """
    states = [_states(source.data) for source in sources]
    view = _view(process, sources, states)
    arrays = [(path, *_steps(source.data)) for source, path in zip(sources, states, strict=True)]
    per_draw = max(sum(math.prod(array.shape[1:]) for array in each) for each in arrays)
    if view["belief"] is not None:
        per_draw += view["horizon"] * belief_size(process, states[0].shape[2])
    most = max(_FEWEST_DRAWS, min(_MOST_DRAWS, int(share * _MOST_NUMBERS) // (per_draw * len(sources))))
    return {
        "view": view,
        "sources": [
            {
                "key": source.key,
                "label": source.label,
                "colour": source.colour,
                "colour_on_dark": source.colour_on_dark,
                "returns": plain(rounded(source.returns, 6)),
                "draws": _draws(process, source.data, most, view, path, actions, rewards),
            }
            for source, (path, actions, rewards) in zip(sources, arrays, strict=True)
        ],
    }


def _view(process: Process, sources: Sequence[Source], states: list[Array]) -> dict[str, Any]:
    # States that are counted; a walk on both sides of zero is drawn as lines.
    finite = all(path.shape[2] == 1 and np.issubdtype(path.dtype, np.integer) and path.min() >= 0 for path in states)
    # No step beyond the longest draw, nor beyond the last state that a program names.
    horizon = max(
        min(int(source.data.sample_stats["length"].max()), path.shape[1] - 1)
        for source, path in zip(sources, states, strict=True)
    )
    view: dict[str, Any] = {"horizon": horizon, "belief": belief_kind(process), "actions": action_values(process)}
    largest = max(int(path.max()) for path in states) if finite else 0
    grid = grid_of(process, largest) if finite else None
    if grid is not None:
        return view | {
            "kind": "grid",
            "letters": grid.letters.tolist(),
            "cells": grid.cells.tolist(),
            "copy_of": grid.copy_of.tolist(),
            "copies": list(grid.copies),
            "meanings": grid.meanings,
            "arrows": directions(process, grid),
        }
    if finite and largest < _MOST_STATES:
        return view | {"kind": "index", "num_states": largest + 1}
    dimensions = states[0].shape[2]
    names = dimension_names(process, "state", dimensions)
    in_plane = dimensions == 2 and all(
        len(np.unique(path[..., i])) > _FEW_VALUES for path in states for i in range(dimensions)
    )
    view |= {"names": names[:_MOST_DIMENSIONS], "num_dimensions": dimensions, "in_plane": in_plane}
    return view | {"kind": "series", "action_names": _action_names(process, sources[0].data)}


def _action_names(process: Process, data: PosteriorData) -> list[str]:
    actions, _ = _steps(data)
    if np.issubdtype(actions.dtype, np.integer) and actions.shape[2] == 1:
        return ["action"]  # whose values may have names
    return dimension_names(process, "action", actions.shape[2])[:_MOST_DIMENSIONS]


def _states(data: PosteriorData) -> Array:
    """Returns ``(draw, time, dimension)``, with the state after the last step where there is one."""
    path = _flat(data.posterior["state"].values)
    if "final_state" in data.posterior:
        last = np.asarray(data.posterior["final_state"].values)
        path = np.concatenate([path, last.reshape(len(path), 1, -1)], 1)
    return path


def _steps(data: PosteriorData) -> tuple[Array, Array]:
    """Returns actions ``(draw, time, dimension)`` and rewards ``(draw, time)``."""
    return _flat(data.posterior["action"].values), _flat(data.posterior["reward"].values)[..., 0]


def _flat(values: Any) -> Array:
    """Returns ``(chain, draw, time, …)`` as ``(chain · draw, time, dimension)``."""
    array = np.asarray(values)
    return array.reshape(array.shape[0] * array.shape[1], array.shape[2], -1)


def _draws(
    process: Process,
    data: PosteriorData,
    most: int,
    view: dict[str, Any],
    states: Array,
    actions: Array,
    rewards: Array,
) -> dict[str, Any]:
    count = len(states)
    # Evenly spaced and not the first ones: draws that were resampled stand in the order of their proposals.
    index = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    lengths = np.asarray(data.sample_stats["length"].values).ravel()[index].astype(int)
    stats = {name: np.asarray(data.sample_stats[name].values).ravel()[index] for name in ("return", "log_weight")}
    states, actions, rewards = rounded(states[index]), rounded(actions[index]), rounded(rewards[index], 6)
    one_value = view["kind"] != "series"
    dimensions = 1 if one_value else len(view["names"])
    by_dimension = [
        [plain(path[: length + 1, i]) for path, length in zip(states, lengths, strict=True)] for i in range(dimensions)
    ]
    single = actions.shape[2] == 1
    latents = {
        str(name): plain(rounded(flat[index]))
        for name, values in data.posterior.data_vars.items()
        if "time" not in values.dims and name != "final_state"
        if (flat := np.asarray(values.values).reshape(count, -1)).shape[1] <= _MOST_LATENT_VALUES
    }
    believed = None if view["belief"] is None else beliefs_of(process, data, index)
    return {
        "number": index.tolist(),
        "return": plain(rounded(stats["return"], 6)),
        "log_weight": plain(rounded(stats["log_weight"], 6)),
        "length": lengths.tolist(),
        "state": by_dimension[0] if one_value else by_dimension,
        "action": [plain(a[:n, 0] if single else a[:n]) for a, n in zip(actions, lengths, strict=True)],
        "reward": [plain(r[:n]) for r, n in zip(rewards, lengths, strict=True)],
        "latents": latents,
        "belief": None if believed is None else plain(rounded(believed[..., : view["horizon"]])),
    }
