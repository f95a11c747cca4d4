"""Actions over time: shares of the discrete, bands of the continuous."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_as_inference.arguments import checked
from rl_as_inference.arviz_data import PosteriorData
from rl_as_inference.inspect.plots.from_data import alive, label_of, over_time
from rl_as_inference.inspect.plots.states import draw_fan
from rl_as_inference.style import BLUE, QUALITATIVE, new_axes, tidy, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_actions"]

_ENDED = "#D9D9D9"


@checked
def plot_actions(
    data: PosteriorData,
    dimension: int = 0,
    ax: "Axes | None" = None,
    *,
    names: Sequence[str] | None = None,
) -> "Axes":
    """Draws the draws' actions over time.

    Discrete actions are stacked shares of all draws, and what is missing to 1 are the trajectories that have
    ended; beyond eight actions the shares are colours, an action a row. A continuous one is its
    median with bands that hold 50 % and 90 % of the draws that are still alive.

    Args:
        data: what :func:`rl_as_inference.posterior` returns.
        dimension: which dimension of the action, for continuous actions.
        ax: where to draw.
        names: of the discrete actions, in the order of their numbers.

    Raises:
        ValueError: if the action has no such dimension, or there are fewer names than actions.
    """
    actions, living = over_time(data, "posterior", "action", dimension), alive(data)
    if np.issubdtype(actions.dtype, np.floating):
        ax = new_axes(ax)
        going = living.any(0)
        times = np.flatnonzero(going)
        draw_fan(ax, np.where(living, actions, np.nan)[:, going], BLUE, "", times)
        ax.legend(frameon=False)
        whole_numbers(ax.xaxis)
        return tidy(ax, "time (steps)", label_of(data, "action", dimension))
    count = int(actions[living].max()) + 1 if names is None else len(names)
    if actions[living].max() >= count:
        raise ValueError(f"names must have one for each of {int(actions[living].max()) + 1} actions, got {count}")
    shares = np.stack([((actions == a) & living).mean(0) for a in range(count)])
    labels = [f"action {a}" for a in range(count)] if names is None else list(names)
    ax = new_axes(ax)
    if count > len(QUALITATIVE):
        _rows(ax, shares, labels if names is not None else None)
    else:
        _stack(ax, shares, labels)
    return ax


def _stack(ax: "Axes", shares: Any, labels: Sequence[str]) -> None:
    times, floor = np.arange(shares.shape[1]), np.zeros(shares.shape[1])
    ended = 1 - shares.sum(0)
    bars = [*zip(labels, shares, QUALITATIVE, strict=False)]
    if ended.max() > 1e-12:
        bars.append(("ended", ended, _ENDED))
    for label, share, colour in bars:
        ax.bar(times, share, 1.0, floor, color=colour, label=label, edgecolor="white", linewidth=0.4)
        floor = floor + share
    ax.set_xlim(-0.5, len(times) - 0.5)
    ax.set_ylim(0, 1)
    whole_numbers(ax.xaxis)
    # From top to bottom, as they are stacked, beside the bars that fill the axes.
    handles, names = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], names[::-1], frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    tidy(ax, "time (steps)", "share of draws")


def _rows(ax: "Axes", shares: Any, labels: Sequence[str] | None) -> None:
    image = ax.imshow(shares, aspect="auto", origin="lower", cmap="cividis", interpolation="nearest", vmin=0)
    whole_numbers(ax.xaxis)
    if labels is not None:
        ax.set_yticks(range(len(labels)), labels)
    else:
        whole_numbers(ax.yaxis)
    ax.figure.colorbar(image, ax=ax, label="share of draws")
    tidy(ax, "time (steps)", "action")
