"""Return against perturbation."""

from typing import TYPE_CHECKING, Any

import numpy as np

from rl_as_inference.arguments import checked
from rl_as_inference.style import BLUE, GREY, Numbers, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_perturbation"]


@checked
def plot_perturbation(
    sizes: Numbers,
    mean: Numbers,
    low: Any = None,
    high: Any = None,
    *,
    nominal: float | None = None,
    xlabel: str = "size of the perturbation",
    label: str = "",
    color: str = BLUE,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws mean return against the size of a perturbation, with a band from ``low`` to ``high``.

    Args:
        sizes, mean: ``(K,)``, returns in reward units.
        low, high: ends of the intervals, ``(K,)``.
        nominal: the return without perturbation, as a dashed line.
        xlabel, label, color: of the axis, and of the curve.
        ax: where to draw.

    Raises:
        ValueError: if the shapes differ.
    """
    at, returns = np.asarray(sizes, float), np.asarray(mean, float)
    if at.ndim != 1 or at.shape != returns.shape:
        raise ValueError(f"sizes and mean must be as many numbers, got shapes {at.shape} and {returns.shape}")
    ax = new_axes(ax)
    if nominal is not None:
        ax.axhline(nominal, color=GREY, linewidth=1, linestyle="--")
    if low is not None and high is not None:
        ax.fill_between(at, np.asarray(low, float), np.asarray(high, float), color=color, alpha=0.25, linewidth=0)
    ax.plot(at, returns, color=color, marker="o", markersize=4, linewidth=1.5, label=label or None)
    if label:
        ax.legend(frameon=False)
    return tidy(ax, xlabel, "return (reward units)")
