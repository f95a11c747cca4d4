"""Training: the ELBO over gradient steps, returns over environment steps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_as_inference.inspect.plots.style import BLUE, GREY, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rl_as_inference.agents import CurveRow

__all__ = ["plot_elbo_history", "plot_learning_curve"]


def plot_elbo_history(elbo: Any, *, optimal_elbo: float | None = None, ax: "Axes | None" = None) -> "Axes":
    """Draws the ELBO over training steps, in nats, under its ceiling where that is known."""
    ax = new_axes(ax)
    values = np.asarray(elbo)
    ax.plot(np.arange(len(values)), values, color=BLUE, linewidth=1.4, label="ELBO of the guide")
    if optimal_elbo is not None:
        ax.axhline(optimal_elbo, color=GREY, linestyle="--", linewidth=1, label="largest ELBO")
        # The first steps can be very low, and would flatten everything that follows.
        low = min(float(np.quantile(values, 0.02)), optimal_elbo)
        pad = 0.05 * max(optimal_elbo - low, 1e-9)
        ax.set_ylim(low - pad, optimal_elbo + pad)
    ax.legend(frameon=False, loc="lower right")
    return tidy(ax, "gradient step", "ELBO (nats)")


def plot_learning_curve(curve: "Sequence[CurveRow]", *, title: str = "", ax: "Axes | None" = None) -> "Axes":
    """Draws evaluation returns over environment steps: every seed thin, their mean thick.

    A single seed has a band from the least to the largest return of its episodes.

    Args:
        curve: the rows that :func:`rl_as_inference.agents.train` returns.
        title: of the axes.
    """
    ax = new_axes(ax)
    steps = sorted({row.step for row in curve})
    seeds = sorted({row.seed for row in curve})
    for seed in seeds:
        own = [row for row in curve if row.seed == seed]
        at = [row.step for row in own]
        if len(seeds) == 1:
            low, high = [row.least_return for row in own], [row.largest_return for row in own]
            ax.fill_between(at, low, high, color=BLUE, alpha=0.2, linewidth=0, label="least to largest episode")
        else:
            label = f"each of {len(seeds)} seeds" if seed == seeds[0] else None
            ax.plot(at, [row.mean_return for row in own], color=GREY, linewidth=0.8, alpha=0.8, label=label)
    means = [float(np.mean([row.mean_return for row in curve if row.step == step])) for step in steps]
    marker = "o" if len(steps) < 3 else None
    label = "mean of the episodes" if len(seeds) == 1 else "mean of the seeds"
    ax.plot(steps, means, color=BLUE, linewidth=2.2, marker=marker, label=label)
    ax.legend(frameon=False)
    return tidy(ax, "environment steps", "evaluation return (reward units)", title)
