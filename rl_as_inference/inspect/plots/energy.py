"""Free energy over temperature: statistical physics' view of the evidence."""

from typing import TYPE_CHECKING, Any

import numpy as np

from rl_as_inference.arguments import checked
from rl_as_inference.style import BLUE, GREY, Numbers, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_free_energy"]


@checked
def plot_free_energy(
    temperatures: Numbers,
    free_energy: Numbers,
    standard_error: Any = None,
    *,
    exact: Any = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the free energy ``F(α) = -α log p(O)`` against the temperature, with bars of two standard errors.

    Args:
        temperatures: α in reward units per nat, ``(K,)``, > 0, in any order.
        free_energy: estimates of F in reward units, ``(K,)``.
        standard_error: of each estimate, in reward units, ``(K,)``.
        exact: the curve to compare with: ``(K,)`` at the same temperatures, or a pair of
            temperatures and values.
        ax: where to draw.

    Raises:
        ValueError: if the shapes differ, a temperature is not > 0, or a standard error is negative.
    """
    alpha = _column("temperatures", temperatures)
    if not (alpha > 0).all():
        raise ValueError(f"temperatures must be > 0, got {alpha.min():g}")
    values = _column("free_energy", free_energy, len(alpha))
    order = np.argsort(alpha)
    ax = new_axes(ax)
    if exact is not None:
        at, curve = exact if isinstance(exact, tuple) else (alpha, exact)
        at = _column("exact[0]", at)
        curve = _column("exact", curve, len(at))
        rising = np.argsort(at)
        ax.plot(at[rising], curve[rising], color=GREY, linewidth=2.5, alpha=0.7, label="exact")
    bars = None
    if standard_error is not None:
        spread = _column("standard_error", standard_error, len(alpha))
        if (spread < 0).any():
            raise ValueError(f"standard_error must not be negative, got {spread.min():g}")
        bars = 2 * spread[order]
    label = "estimate" if bars is None else "estimate ± 2 standard errors"
    ax.errorbar(
        alpha[order], values[order], bars, color=BLUE, linewidth=1, marker="o", markersize=4, capsize=3, label=label
    )
    if alpha.max() > 5 * alpha.min():
        ax.set_xscale("log")
    ax.legend(frameon=False)
    return tidy(ax, "temperature α (reward units per nat)", "free energy F(α) (reward units)")


def _column(name: str, values: Any, length: int | None = None) -> Any:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or (length is not None and len(array) != length) or not len(array):
        wanted = "one or more" if length is None else f"{length:,}"
        raise ValueError(f"{name} must be {wanted} numbers in one dimension, got shape {array.shape}")
    return array
