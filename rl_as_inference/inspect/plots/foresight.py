"""Fans of what was believed, with ignorance told from luck, against what happened."""

from typing import TYPE_CHECKING, Any

import numpy as np

from rl_as_inference.arguments import checked
from rl_as_inference.style import BLACK, BLUE, ORANGE, new_axes, tidy, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rl_as_inference.inspect.foresight import Foresight

__all__ = ["draw_two_bands", "plot_foresight"]


def draw_two_bands(ax: "Axes", times: Any, draws: Any, expected: Any, label: bool = True) -> None:
    """Draws the band that 90 % of all draws lie in, and within it the band that the members' own expectations span.

    Args:
        ax: where.
        times: ``(T,)``.
        draws: with luck, of all members, ``(sample, T)``.
        expected: of each member, ``(E, T)``.
        label: whether they are named in the legend.
    """
    low, high = np.nanquantile(draws, (0.05, 0.95), axis=0)
    names = ("ignorance and luck: 90 % of draws", "ignorance: what the members expect") if label else (None, None)
    ax.fill_between(times, low, high, color=BLUE, alpha=0.25, linewidth=0, label=names[0])
    ax.fill_between(
        times,
        expected.min(0),
        expected.max(0),
        color=ORANGE,
        alpha=0.6,
        linewidth=0.8,
        edgecolor=ORANGE,
        label=names[1],
    )


@checked
def plot_foresight(found: "Foresight", dimension: int = 0, ax: "Axes | None" = None) -> "Axes":
    """Draws one state dimension of an episode, and what was believed of it on the way, plan after plan.

    Args:
        found: what :func:`rl_as_inference.inspect.foresee` returns.
        dimension: of the state; or of the action where it is beyond these: then what was planned, and what was done.
        ax: where to draw.

    Raises:
        ValueError: if there is no such dimension.
    """
    size, extra = found.states.shape[1], 1 if found.actions.dim() == 1 else found.actions.shape[1]
    if not 0 <= dimension < size + extra:
        raise ValueError(f"dimension must be from 0 to {size + extra - 1}, got {dimension}")
    ax = new_axes(ax)
    if dimension >= size:
        done = found.actions.reshape(len(found.actions), -1)[:, dimension - size]
        ax.step(np.arange(len(done)), done.cpu(), where="post", color=BLACK, linewidth=1.2, label="done")
        for index, look in enumerate(each for each in found.outlooks if each.planned):
            planned = look.actions.reshape(len(look.actions), -1)[:, dimension - size].cpu()
            times = look.start + np.arange(len(planned))
            ax.step(times, planned, where="post", color=ORANGE, linewidth=1.2, label=None if index else "planned")
        name = "action" if extra == 1 else f"action, dimension {dimension - size}"
    else:
        for index, look in enumerate(found.outlooks):
            times = look.start + np.arange(look.draws.shape[2])
            draws = look.draws.flatten(0, 1)[..., dimension].cpu().numpy()
            draw_two_bands(ax, times, draws, look.expected[..., dimension].cpu().numpy(), not index)
            ax.axvline(look.start, color=BLACK, linewidth=0.4, alpha=0.3)
        ax.plot(found.states[:, dimension].cpu(), color=BLACK, linewidth=1.4, label="what happened")
        name = f"state, dimension {dimension}"
    ax.legend(frameon=False, fontsize=8)
    whole_numbers(ax.xaxis)
    return tidy(ax, "time (steps)", name)
