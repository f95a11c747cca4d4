"""Soft values and policies on a grid: of the exact causal plan, and of the guide."""

import contextlib
from typing import Any

import numpy as np
import torch

from rl_as_inference import exact
from rl_as_inference.nouns import ExactPolicy, Process
from rl_as_inference.processes import TabularMDP
from rl_as_inference.report.pictures import Grid, action_values, grid_of
from rl_as_inference.report.rounding import plain, rounded

__all__ = ["directions", "value_maps"]

Array = np.ndarray[Any, Any]

_MOST_NUMBERS = 200_000  # some 1.2 megabytes of text; beyond them fewer times are kept
_ARROWS = {(-1, 0): "↑", (1, 0): "↓", (0, -1): "←", (0, 1): "→"}


def value_maps(process: Process, policy: ExactPolicy) -> dict[str, Any] | None:
    """Returns soft V and π of the exact causal plan and of a policy, for JSON; None where there is no grid.

    ``times`` are the steps that are kept, all of them unless the grid is large. Each of ``maps`` has ``v``,
    ``(times, S)`` in reward units, and ``p``, ``(times, S, A)``; ``policy`` is left out where it has no exact values.

    Args:
        process: a finite one with a ``layout``, see ``docs/report.md``.
        policy: the guide, or None for the action prior.
    """
    grid = grid_of(process) if isinstance(process, TabularMDP) else None
    if grid is None or not isinstance(process, TabularMDP):
        return None
    steps = process.horizon or 1
    per_time = 2 * process.num_states * (1 + process.num_actions)
    count = max(1, min(steps, _MOST_NUMBERS // per_time))
    times = np.unique(np.linspace(0, steps - 1, count).round().astype(int))
    maps = []
    with torch.no_grad():
        plan = exact.plan(process)
        found = [("causal", "exact causal plan", plan)]
        with contextlib.suppress(ValueError):  # it takes what the prior forbids, say
            found.append(("guide", "guide", exact.evaluate(process, policy)))
        for key, label, values in found:
            stationary = values.soft_v.dim() == 1
            v = (values.soft_v[None] if stationary else values.soft_v[:-1]).double().cpu().numpy()[times]
            p = (values.policy[None] if stationary else values.policy).double().cpu().numpy()[times]
            maps.append({"key": key, "label": label, "v": plain(rounded(v, 5)), "p": plain(p.round(3))})
    return {
        "times": times.tolist(),
        "stationary": process.horizon is None,
        "ends": process.terminal.cpu().tolist(),
        "arrows": directions(process, grid),
        "actions": action_values(process),
        "maps": maps,
    }


def directions(process: Process, grid: Grid) -> list[str] | None:
    """Returns where each action moves, on average over the states, as arrows; None if that is not clear."""
    if not isinstance(process, TabularMDP):
        return None
    goes_on = ~process.terminal.cpu().numpy()
    to, chance = (part.detach().cpu().numpy()[goes_on] for part in process.kernel.rows())
    here = grid.cells[goes_on][:, None, None]
    there = grid.cells[to]
    down, right = there // grid.columns - here // grid.columns, there % grid.columns - here % grid.columns
    near = chance * (np.abs(down) + np.abs(right) <= 1)  # a jump back to the start is no direction
    total = near.sum((0, 2))
    if (total == 0).any():
        return None
    means = np.stack([(near * move).sum((0, 2)) / total for move in (down, right)], -1)
    arrows = []
    for mean in means:
        largest = int(np.abs(mean).argmax())
        if abs(mean[largest]) < 0.15:
            return None
        arrows.append(_ARROWS[tuple(int(np.sign(mean[i])) if i == largest else 0 for i in range(2))])  # type: ignore[index]
    return arrows if len(set(arrows)) == len(arrows) else None
