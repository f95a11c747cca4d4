"""What pictures know of a problem: its grid, and what the entries of its states and actions are called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np

from rl_as_inference.nouns import Process
from rl_as_inference.processes.programs import ProgramProcess

__all__ = ["Grid", "action_values", "dimension_names", "grid_of"]

Array = np.ndarray[Any, Any]

_MOST_CELLS = 10_000
_MEANINGS = {"S": "start", "G": "goal", "H": "hole", "C": "cliff", "#": "wall", "K": "key", "D": "door"}
_FREE = ("F", ".", " ", "")
_GYMNASIUM: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "Pendulum-v1": (("cos θ", "sin θ", "ω (rad/s)"), ("torque (share of its limit)",)),
    "CartPole-v1": (("x (m)", "dx/dt (m/s)", "θ (rad)", "ω (rad/s)"), ("push left", "push right")),
    "MountainCar-v0": (("position", "velocity (a step)"), ("left", "none", "right")),
    "MountainCarContinuous-v0": (("position", "velocity (a step)"), ("force (share of its limit)",)),
    "Acrobot-v1": (
        ("cos θ₁", "sin θ₁", "cos θ₂", "sin θ₂", "ω₁ (rad/s)", "ω₂ (rad/s)"),
        ("torque −1", "torque 0", "torque +1"),
    ),
}
"""Of Gymnasium's classic control, which has names in its documentation alone: of observations, and of actions."""


@runtime_checkable
class _HasLayout(Protocol):
    layout: Any


@runtime_checkable
class _HasCells(Protocol):
    cells: Any
    copies: Sequence[str]


@runtime_checkable
class _HasLegend(Protocol):
    legend: Mapping[str, str]


@runtime_checkable
class _NamesStates(Protocol):
    state_names: Sequence[str] | None


@runtime_checkable
class _NamesActions(Protocol):
    action_names: Sequence[str] | None


@dataclass(frozen=True)
class Grid:
    """A grid whose cells hold the states of a finite problem.

    Attributes:
        letters: one a cell, ``(rows, columns)``; empty where there is nothing to say.
        cells: which cell a state is in, ``(S,)``, row by row.
        copy_of: which of the states of its cell a state is, ``(S,)``.
        copies: names of those, at least one.
        meanings: of the letters that are there.
    """

    letters: Array
    cells: Array
    copy_of: Array
    copies: tuple[str, ...]
    meanings: dict[str, str]

    @property
    def columns(self) -> int:
        return int(self.letters.shape[1])


def grid_of(process: Process, largest: int = 0) -> Grid | None:
    """Returns the grid of a finite problem that has a ``layout``; None if it has none, or a vast one.

    Args:
        process: a process, or what runs a program, which has these attributes then.
        largest: the largest state that was met; a program, which has no state space, has those of the layout, or as
            many copies of them as that needs.

    Raises:
        ValueError: if the layout does not fit the states.
    """
    said = _asked(process)
    layout = said.layout if isinstance(said, _HasLayout) else None
    if layout is None:
        return None
    letters = np.asarray(layout).astype(str)
    if letters.ndim != 2:
        raise ValueError(f"layout must be letters (rows, columns), got an array of shape {letters.shape}")
    if letters.size > _MOST_CELLS:
        return None
    if isinstance(process, ProgramProcess):
        num_states = letters.size * (largest // letters.size + 1)
    else:
        space = process.state_space
        num_states = int(space.n) if isinstance(space, gymnasium.spaces.Discrete) else letters.size
    given = said.cells if isinstance(said, _HasCells) else None
    if given is not None:
        cells = np.asarray(given).astype(int)
        if cells.shape != (num_states,) or cells.min() < 0 or cells.max() >= letters.size:
            raise ValueError(
                f"cells must say a cell in 0 … {letters.size - 1} for each of the {num_states} states, got shape "
                f"{cells.shape}"
            )
    elif num_states % letters.size:
        raise ValueError(
            f"layout has {letters.size} cells, and there are {num_states} states, which is no multiple of that; say in "
            f"cells which cell each state is in"
        )
    else:
        cells = np.arange(num_states) % letters.size
    order = np.argsort(cells, kind="stable")
    first = np.searchsorted(cells[order], cells[order])
    copy_of = np.empty(num_states, int)
    copy_of[order] = np.arange(num_states) - first
    named = tuple(map(str, said.copies)) if isinstance(said, _HasCells) else ()
    count = int(copy_of.max()) + 1
    copies = tuple(named[i] if i < len(named) else f"state {i + 1} of {count} of each cell" for i in range(count))
    known = {**_MEANINGS, **(said.legend if isinstance(said, _HasLegend) else {})}
    present = {str(letter): str(meaning) for letter, meaning in known.items() if letter in letters}
    return Grid(np.where(np.isin(letters, _FREE), "", letters), cells, copy_of, copies, present)


def dimension_names(process: Process, kind: str, size: int) -> list[str]:
    """Returns what the entries of states (``kind="state"``) or actions (``"action"``) are called.

    By the process's own ``state_names`` and ``action_names``, or those of its environment; Gymnasium's classic control
    by its documentation; else by number.

    Raises:
        ValueError: if there are names, and not one for each entry.
    """
    names = _names(process, kind)
    if names is None:
        return [kind] if size == 1 else [f"{kind} dimension {i}" for i in range(size)]
    if isinstance(names, str) or len(names) != size:
        raise ValueError(
            f"{kind}_names must name the {size} entries of {'an' if kind == 'action' else 'a'} {kind}, got {names!r}"
        )
    return [str(name) for name in names]


def action_values(process: Process) -> list[str] | None:
    """Returns the names of discrete actions; None if they have none."""
    space = process.action_space
    names = _names(process, "action")
    if not isinstance(space, gymnasium.spaces.Discrete) or names is None or len(names) != int(space.n):
        return None
    return [str(name) for name in names]


def _names(process: Process, kind: str) -> Sequence[str] | None:
    said = _asked(process)
    if kind == "state":
        own = said.state_names if isinstance(said, _NamesStates) else None
    else:
        own = said.action_names if isinstance(said, _NamesActions) else None
    if own is None and process.name in _GYMNASIUM:
        return _GYMNASIUM[process.name][kind == "action"]
    return own


def _asked(process: Process) -> Any:
    """Returns what has the attributes: of a program, the program."""
    return process.program if isinstance(process, ProgramProcess) else process
