"""States over time: bands that hold most draws, and single paths."""

from typing import TYPE_CHECKING, Any

import numpy as np

from rl_as_inference.arguments import checked
from rl_as_inference.arviz_data import PosteriorData, groups_of
from rl_as_inference.inspect.plots.from_data import label_of, over_time, state_paths
from rl_as_inference.style import BLUE, GREY, ORANGE, new_axes, tidy, whole_numbers
from rl_as_inference.tables import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_fan", "plot_fan", "plot_paths", "plot_states"]

_BANDS = ((0.05, 0.95, 0.2), (0.25, 0.75, 0.4))
"""Lower and upper quantile of each band, and how opaque it is."""


@checked
def plot_states(data: PosteriorData, dimension: int = 0, ax: "Axes | None" = None) -> "Axes":
    """Draws one state dimension over time: bands that hold 50 % and 90 % of the draws, and some draws.

    Args:
        data: what :func:`rl_as_inference.posterior` returns.
        dimension: which dimension of the state, for continuous states.
        ax: where to draw.

    Raises:
        ValueError: if the state has no such dimension, or more than one beside time.
    """
    paths = state_paths(data, "posterior", dimension)
    ax = new_axes(ax)
    draw_fan(ax, paths, BLUE, "")
    _paths(ax, paths, GREY, 12, None)
    ax.legend(frameon=False)
    whole_numbers(ax.xaxis)
    return tidy(ax, "time (steps)", label_of(data, "state", dimension))


@checked
def plot_fan(data: PosteriorData, dimension: int = 0, ax: "Axes | None" = None) -> "Axes":
    """Draws quantile bands of one state dimension over time, of the posterior and, if there, of the prior.

    The line is the median, the bands hold 50 % and 90 % of the draws. Of learned dynamics a third band tells ignorance
    from luck: between the lowest and the highest of the members' medians.

    Args:
        data: what :func:`rl_as_inference.posterior` returns.
        dimension: which dimension of the state, for continuous states.
        ax: where to draw.

    Raises:
        ValueError: if the state has no such dimension, or more than one beside time.
    """
    groups = [(group, state_paths(data, group, dimension)) for group in _present(data)]
    ax = new_axes(ax)
    for group, paths in groups:
        draw_fan(ax, paths, _COLOURS[group], f"{_name(data, group)}, ")
    if "member" in data.posterior:
        _draw_ignorance(ax, groups[-1][1], over_time(data, "posterior", "member"))
    ax.legend(frameon=False, fontsize=8)
    whole_numbers(ax.xaxis)
    return tidy(ax, "time (steps)", label_of(data, "state", dimension))


@checked
def plot_paths(data: PosteriorData, dimension: int = 0, ax: "Axes | None" = None, *, num_paths: int = 40) -> "Axes":
    """Draws single trajectories of one state dimension, of the posterior and, if there, of the prior.

    Args:
        data: what :func:`rl_as_inference.posterior` returns.
        dimension: which dimension of the state, for continuous states.
        ax: where to draw.
        num_paths: how many of each, evenly spaced among the draws.

    Raises:
        ValueError: if the state has no such dimension, or more than one beside time.
    """
    groups = [(group, state_paths(data, group, dimension)) for group in _present(data)]
    ax = new_axes(ax)
    for group, paths in groups:
        label = f"{counted(min(num_paths, len(paths)), 'draws')} of the {_name(data, group)}"
        _paths(ax, paths, _COLOURS[group], num_paths, label)
    ax.legend(frameon=False, fontsize=8)
    whole_numbers(ax.xaxis)
    return tidy(ax, "time (steps)", label_of(data, "state", dimension))


_COLOURS = {"prior": GREY, "posterior": BLUE}


def _present(data: Any) -> list[str]:
    return [group for group in _COLOURS if group in groups_of(data)]


def _name(data: Any, group: str) -> str:
    """Returns what the draws are: those of a guide stand in the posterior group, but are its own."""
    return "guide" if group == "posterior" and data.posterior.attrs.get("method") == "guide" else group


def draw_fan(ax: "Axes", paths: Any, colour: str, whose: str, times: Any = None) -> None:
    """Draws median and bands of ``(sample, time)``, over numbers that are there."""
    times = np.arange(paths.shape[1]) if times is None else times
    for low, high, shade in _BANDS:
        band = np.nanquantile(paths, (low, high), axis=0)
        label = f"{whose}{high - low:.0%} of draws"
        ax.fill_between(times, *band, color=colour, alpha=shade, linewidth=0, label=label)
    ax.plot(times, np.nanmedian(paths, 0), color=colour, linewidth=1.8, label=f"{whose}median")


def _draw_ignorance(ax: "Axes", paths: Any, member: Any) -> None:
    """Draws the band that the medians of the members' paths ``(sample, time)`` span."""
    medians = np.stack([np.nanmedian(paths[member == each], 0) for each in np.unique(member)])
    label = "ignorance: medians of the members"
    times = np.arange(paths.shape[1])
    ax.fill_between(times, medians.min(0), medians.max(0), color=ORANGE, alpha=0.6, linewidth=0, label=label)


def _paths(ax: "Axes", paths: Any, colour: str, count: int, label: str | None) -> None:
    chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)
    lines = ax.plot(np.arange(paths.shape[1]), paths[chosen].T, color=colour, linewidth=0.7, alpha=0.8)
    if label is not None:
        lines[0].set_label(label)
