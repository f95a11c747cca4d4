"""Occupancy: where trajectories are, on the grid or over time."""

from typing import TYPE_CHECKING, Any

import numpy as np

from rl_as_inference.arguments import checked_but
from rl_as_inference.inspect.plots.from_data import state_paths
from rl_as_inference.style import new_axes, tidy, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_occupancy"]


@checked_but("visits")
def plot_occupancy(
    visits: Any,
    *,
    layout: Any = None,
    ax: "Axes | None" = None,
    title: str = "",
    colour_limit: float | None = None,
    colour_bar: bool = True,
) -> "Axes":
    """Draws where trajectories are: on the grid, or over time and state.

    Args:
        visits: probabilities of states over time, ``(T+1, S)`` (:func:`rl_as_inference.exact.occupancy`), or
            what :func:`rl_as_inference.posterior` returns for a finite process: the shares of its draws.
        layout: for grids, letters ``(rows, columns)``; the picture then shows the expected share of
            time in each cell.
        ax: where to draw.
        title: of the axes.
        colour_limit: the share at which colours saturate.
        colour_bar: say what the colours mean, beside the axes.

    Raises:
        ValueError: if the states of the draws are not numbered, or the layout has another number of cells.
    """
    letters = None if layout is None else np.asarray(layout)
    table = _shares(visits, None if letters is None else letters.size) if hasattr(visits, "posterior") else visits
    table = np.asarray(table)
    if getattr(table, "ndim", 0) != 2:
        raise ValueError(f"visits must be (T+1, S), or what rlai.posterior returns, got {visits!r:.80}")
    if letters is not None and table.shape[-1] != letters.size:
        raise ValueError(f"layout has {letters.size} cells, and visits {table.shape[-1]} states")
    ax = new_axes(ax, 5.2, 4.2)
    if letters is None:
        image = ax.imshow(
            table.T, aspect="auto", origin="lower", cmap="cividis", interpolation="nearest", vmin=0, vmax=colour_limit
        )
        tidy(ax, "time (steps)", "state")
        whole_numbers(ax.xaxis, ax.yaxis)
        meaning = "probability of the state"
    else:
        share = table.mean(0).reshape(letters.shape)
        limit = colour_limit or share.max()
        image = ax.imshow(share, cmap="cividis", vmin=0, vmax=limit, interpolation="nearest")
        for (row, column), letter in np.ndenumerate(letters):
            colour = "black" if share[row, column] > 0.55 * limit else "white"
            weight = "bold" if letter in "SGH" else "normal"
            if letter != "F":
                ax.text(column, row, letter, ha="center", va="center", color=colour, fontweight=weight, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
        meaning = "share of the time"
    if colour_bar:
        ax.figure.colorbar(image, ax=ax, label=meaning, shrink=0.85 if letters is not None else 1.0)
    ax.set_title(title, fontsize=10)
    return ax


def _shares(data: Any, num_states: int | None) -> Any:
    """Returns the share of draws in each state over time, ``(T+1, S)``."""
    if np.issubdtype(data.posterior["state"].dtype, np.floating):
        raise ValueError("visits: these states are continuous; draw them with plot_fan or plot_paths")
    paths = state_paths(data, "posterior")
    count = num_states or int(paths.max()) + 1
    return np.stack([np.bincount(column, minlength=count) / len(column) for column in paths.T])
