"""Returns: how they are distributed, in one reading beside the others."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_as_inference.arguments import checked
from rl_as_inference.style import BLUE, GREEN, GREY, ORANGE, RED, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_returns"]


@checked
def plot_returns(returns: Mapping[str, Any], ax: "Axes | None" = None) -> "Axes":
    """Draws distributions of returns side by side, as the share of trajectories.

    Where a few returns are so far out that the others would be squeezed together, the picture leaves them
    out and the legend says how many.

    Args:
        returns: per name, an array of returns in reward units, or what :func:`rl_as_inference.posterior` returns.

    Raises:
        ValueError: if there is nothing to draw, or a return is not finite.
    """
    if hasattr(returns, "sample_stats"):
        raise ValueError("returns must name what it shows: give {'posterior': data} for what rlai.posterior returns")
    arrays = {name: _returns(name, values) for name, values in returns.items()}
    if not arrays:
        raise ValueError("returns: name at least one set of returns")
    ax = new_axes(ax)
    everything = np.concatenate(list(arrays.values()))
    levels = np.unique(everything)
    colours = (GREY, BLUE, GREEN, ORANGE, RED)
    if len(levels) <= 12:
        width = 0.8 / len(arrays)
        for i, (name, values) in enumerate(arrays.items()):
            shares = [float(np.mean(values == level)) for level in levels]
            at = np.arange(len(levels)) + (i - (len(arrays) - 1) / 2) * width
            drawn = ax.bar(at, shares, width, label=name, color=colours[i % 5])
            if len(levels) <= 4:  # beyond that the numbers run into each other
                ax.bar_label(drawn, [f"{share:.1%}" for share in shares], fontsize=8, padding=2)
        ax.set_xticks(np.arange(len(levels)), [f"{level:g}" for level in levels])
    else:
        low, high = _range(list(arrays.values()))
        bins = np.linspace(low, high, 61).tolist()
        for i, (name, values) in enumerate(arrays.items()):
            outside = float(np.mean((values < low) | (values > high)))
            label = f"{name} ({outside:.1%} outside)" if outside > 0 else name
            equal = np.full(len(values), 1 / len(values))
            ax.hist(values, bins, weights=equal, label=label, color=colours[i % 5], histtype="step", lw=1.6)
    ax.margins(y=0.12)
    ax.legend(frameon=False)
    return tidy(ax, "return (reward units)", "share of trajectories")


def _range(arrays: list[Any]) -> tuple[float, float]:
    """Returns what the axis shows: everything, unless a few far out would squeeze the rest."""
    low, high = float(min(a.min() for a in arrays)), float(max(a.max() for a in arrays))
    least, most = float(min(np.quantile(a, 0.02) for a in arrays)), float(max(np.quantile(a, 0.98) for a in arrays))
    room = (most - least) / 2
    if room == 0:
        return low, high
    return (least if least - low > room else low), (most if high - most > room else high)


def _returns(name: str, values: Any) -> Any:
    values = values.sample_stats["return"] if hasattr(values, "sample_stats") else values
    array = np.asarray(values, dtype=float).ravel()
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"returns[{name!r}] must hold one or more finite numbers")
    return array
