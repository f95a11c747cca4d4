"""A grid of cells with walls, holes and goals, of any size.

S  F  F  #  F        S start    # wall: cannot be entered
F  #  F  #  F        F free     H hole: ends the episode
F  F  F  F  G        G goal: pays 1 a step, and keeps who arrives
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer, check_probability
from rl_as_inference.processes import TabularMDP

__all__ = ["gridworld"]

Cell = tuple[int, int]

_MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""Left, down, right, up: the order of Gymnasium's FrozenLake."""


@checked
def gridworld(
    rows: int = 5,
    columns: int = 5,
    horizon: int | None = 20,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 0.5,
    slip: float = 0.1,
    *,
    start: Cell = (0, 0),
    goal: Cell = (-1, -1),
    walls: Iterable[Cell] = (),
    holes: Iterable[Cell] = (),
    layout: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularMDP:
    """Returns a walk on a grid, as a sparse process with five successors a state and action.

        actions  0 left, 1 down, 2 right, 3 up
        s'       the cell the action points at; with probability slip one of the four neighbours and
                 s itself, 1/5 each. Walls and the grid's edge leave s where it is.
        r(s)     1 at the goal, 0 elsewhere

    Who reaches the goal stays there and earns on, so that early arrival is worth more; who falls
    into a hole earns nothing more. States are numbered row by row, and ``layout`` holds a letter a
    cell. Memory and time grow with the number of cells: a grid of 1,000 by 1,000 takes seconds.

    Source: the grids of Sutton & Barto, "Reinforcement Learning: An Introduction", 2018, chapters 3 and 4.

    Args:
        rows, columns: the grid's size, with at least two cells.
        horizon: the number of steps; None for no horizon, which needs a discount < 1.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        slip: the probability in [0, 1] that the ice decides.
        start, goal: cells ``(row, column)``; negative numbers count from the end.
        walls, holes: more such cells.
        layout: a map in place of rows, columns and all cells: a string for each row, of ``S`` start, ``G`` goal,
            ``#`` wall, ``H`` hole, and ``F`` or ``.`` free. Of several starts each is as likely; every goal pays 1.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range, or a cell is given two uses.

    Example:
        >>> grid = gridworld(3, 5, walls=[(0, 3), (1, 1), (1, 3)])
        >>> print("\\n".join(" ".join(row) for row in grid.layout))
        S F F # F
        F # F # F
        F F F F G
        >>> two_goals = gridworld(layout=["S.#G", "...G"])
        >>> two_goals.num_states, two_goals.expected_reward()[:, 0].tolist()
        (8, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    """
    check_integer("rows", rows, 1)
    check_integer("columns", columns, 1)
    if rows * columns < 2:
        raise ValueError("rows and columns must make at least two cells, one to start in and one for the goal")
    check_probability("slip", slip)
    uses = {"S": ("start", [start]), "G": ("goal", [goal]), "#": ("walls", walls), "H": ("holes", holes)}
    if layout is not None and (rows, columns, start, goal, *walls, *holes) != (5, 5, (0, 0), (-1, -1)):
        raise ValueError("layout says where everything is: leave out rows, columns, start, goal, walls and holes")
    drawn = _layout(rows, columns, uses) if layout is None else _read(layout)
    letters = drawn.ravel()
    rows, columns = drawn.shape
    starts = torch.as_tensor(letters == "S", device=device)

    here = torch.arange(rows * columns, device=device)
    row, column = here // columns, here % columns
    wall, arrived, hole = (torch.as_tensor(letters == letter, device=device) for letter in "#GH")
    neighbours = torch.stack(
        [(row + down).clamp(0, rows - 1) * columns + (column + right).clamp(0, columns - 1) for down, right in _MOVES],
        -1,
    )
    stays = (neighbours == here[:, None]) | wall[neighbours] | (wall | arrived)[:, None]
    successors = torch.cat([neighbours, here[:, None]], -1)[:, None].expand(-1, 4, -1)

    chances = slip / 5 + (1 - slip) * torch.eye(4, dtype=dtype or torch.get_default_dtype(), device=device)
    moving = torch.where(stays[:, None], 0.0, chances)
    # Whatever does not leave the cell is one successor, the fifth.
    staying = slip / 5 + stays.to(chances) @ chances.mT
    probabilities = torch.cat([moving, staying[..., None]], -1)

    mdp = TabularMDP.from_successors(
        successors,
        probabilities,
        arrived.to(chances)[:, None].expand(-1, 4),
        starts.to(chances) / starts.sum(),
        horizon=horizon,
        discount=discount,
        temperature=temperature,
        terminal=hole if bool(hole.any()) else None,
    )
    mdp.name, mdp.layout = "gridworld", drawn
    return mdp


def _layout(rows: int, columns: int, uses: dict[str, tuple[str, Iterable[Cell]]]) -> np.ndarray[Any, Any]:
    """Returns the letters of the grid, ``(rows, columns)``."""
    layout = np.full((rows, columns), "F")
    for letter, (name, cells) in uses.items():
        for cell in cells:
            if not (isinstance(cell, tuple) and len(cell) == 2 and all(isinstance(place, int) for place in cell)):
                raise ValueError(f"{name}: a cell must be a pair of integers (row, column), got {cell!r}")
            row, column = cell
            if not (-rows <= row < rows and -columns <= column < columns):
                raise ValueError(f"{name}: the cell {cell} is outside the grid of {rows} rows and {columns} columns")
            if layout[row, column] != "F":
                raise ValueError(f"{name}: the cell {cell} is taken by {str(layout[row, column])!r} already")
            layout[row, column] = letter
    return layout


def _read(layout: Sequence[str]) -> np.ndarray[Any, Any]:
    """Returns the letters of a map, ``(rows, columns)``."""
    if len({len(row) for row in layout}) != 1 or not layout[0]:
        raise ValueError(f"layout must be strings of one length, one a row, got lengths {[len(row) for row in layout]}")
    letters = np.array([list(row.replace(".", "F")) for row in layout])
    strange = sorted(set(letters.ravel().tolist()) - set("SFG#H"))
    if strange:
        raise ValueError(f"layout: {strange[0]!r} is no cell; there are S start, G goal, # wall, H hole, F or . free")
    for letter, meaning in (("S", "start"), ("G", "goal")):
        if letter not in letters:
            raise ValueError(f"layout needs a {meaning}, {letter!r}, and has none")
    return letters
