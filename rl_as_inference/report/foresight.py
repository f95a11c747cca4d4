"""The picture of a model-based run in a report: what it believed, what it planned, what happened."""

import base64
import io
from typing import Any

from rl_as_inference.agents import Learner, ModelBasedAgent
from rl_as_inference.inspect.foresight import foresee
from rl_as_inference.inspect.plots.foresight import plot_foresight

__all__ = ["foresight_picture"]

_MOST_ROWS = 5
_NUM_STEPS = 100


def foresight_picture(agent: Learner | None, *, seed: int) -> str | None:
    """Returns the picture as a ``data:`` address of a PNG; None for an agent without a model of the world.

    Args:
        agent: of the run.
        seed: of the episode.
    """
    if not isinstance(agent, ModelBasedAgent):
        return None
    from matplotlib.figure import Figure

    found = foresee(agent, _NUM_STEPS, seed=seed)
    size = found.states.shape[1]
    rows = [*range(min(size, _MOST_ROWS - 1)), size]
    figure = Figure(figsize=(9.0, 2.0 * len(rows)), layout="constrained")
    axes: Any = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for ax, dimension in zip(axes, rows, strict=True):
        plot_foresight(found, dimension, ax)
        ax.set_xlabel("time (steps)" if ax is axes[-1] else "")
    for ax in axes[1:-1]:
        ax.get_legend().remove()
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode("ascii")
