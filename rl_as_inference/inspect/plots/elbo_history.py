"""Training: the ELBO over gradient steps."""

from typing import TYPE_CHECKING, Any

import numpy as np

from rl_as_inference.arguments import checked
from rl_as_inference.style import BLUE, GREY, Numbers, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_elbo_history"]


@checked
def plot_elbo_history(
    elbo: Numbers, *, optimal_elbo: float | None = None, temperature: Any = None, ax: "Axes | None" = None
) -> "Axes":
    """Draws the ELBO over training steps, in nats, under its ceiling where that is known.

    Args:
        elbo: ``(steps,)``, in nats.
        optimal_elbo: the ceiling, in nats.
        temperature: at which each was taken, ``(steps,)``; what was not at the last one's is drawn apart.
        ax: where to draw.
    """
    ax = new_axes(ax)
    values, steps = np.asarray(elbo), np.arange(len(elbo))
    own = np.full(len(values), True) if temperature is None else np.isclose(temperature, temperature[-1])
    if not own.all():
        ax.plot(steps[~own], values[~own], color=GREY, linewidth=1.0, label="at higher temperatures")
    steps, values = steps[own], values[own]
    ax.plot(steps, values, color=BLUE, linewidth=1.4, label="ELBO of the guide")
    if optimal_elbo is not None:
        ax.axhline(optimal_elbo, color=GREY, linestyle="--", linewidth=1, label="largest ELBO")
        # The first steps can be very low, and would flatten everything that follows.
        low = min(float(np.quantile(values, 0.02)), optimal_elbo)
        high = max(float(np.quantile(values, 0.98)), optimal_elbo)  # an estimate may lie above
        pad = 0.05 * max(high - low, 1e-9)
        ax.set_ylim(low - pad, high + pad)
    ax.legend(frameon=False, loc="lower right")
    return tidy(ax, "gradient step", "ELBO (nats)")
