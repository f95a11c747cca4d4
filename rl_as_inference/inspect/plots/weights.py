"""Weights of draws: how few of them carry the answer."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rl_as_inference.arguments import checked
from rl_as_inference.arviz_data import groups_of
from rl_as_inference.inference.pareto import pareto_k
from rl_as_inference.inspect.diagnostics import diagnose
from rl_as_inference.inspect.verdicts import verdict_on_weights
from rl_as_inference.sampling.importance import effective_sample_size
from rl_as_inference.style import BLUE, GREY, RED, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_weights"]

_LETTERS_AN_INCH = 15  # of a title, at its size


@checked
def plot_weights(weights: Any, ax: "Axes | None" = None) -> "Axes":
    """Draws the normalised weights from the largest to the smallest, with the verdict on them as title.

    On logarithmic axes, beside the line where all would lie if they were equal. The shaded ones
    together carry half the weight.

    Args:
        weights: log weights in nats, of any shape; or what :func:`rl_as_inference.posterior` returns, with
            the weights of a guide's draws, or those that the draws were resampled by
            (``proposal_log_weight`` in ``constant_data``).
        ax: where to draw.

    Raises:
        ValueError: if a weight is NaN or infinite, all are zero, or the data have lost their weights.
    """
    if hasattr(weights, "posterior"):
        logs, text = _weights_of(weights), diagnose(weights).text
    else:
        try:
            array = np.asarray(weights, dtype=float)
        except (TypeError, ValueError):
            array = np.empty(())
        if array.ndim == 0:
            raise ValueError(f"weights must be log weights, or what rlai.posterior returns, got {weights!r:.80}")
        logs = array.ravel()
        k = pareto_k(logs)
        text, _ = verdict_on_weights(k, effective_sample_size(torch.from_numpy(logs)), len(logs))
    if not len(logs):
        raise ValueError("weights: there are none to draw")
    shares = np.sort(np.exp(logs - np.logaddexp.reduce(logs)))[::-1]
    shown = shares[shares > 0]
    ranks = np.arange(1, len(shown) + 1)
    carrying = int(np.searchsorted(np.cumsum(shares), 0.5)) + 1

    ax = new_axes(ax, 6.4, 4.2)
    ax.plot(ranks, shown, color=BLUE, linewidth=1.6, marker="." if len(shown) < 200 else None)
    floor = float(max(shown.min(), shown.max() * 1e-6))
    ax.fill_between(
        ranks[:carrying],
        shown[:carrying],
        floor / 2,
        color=RED,
        alpha=0.3,
        linewidth=0,
        label=f"{carrying:,} of {len(shares):,} carry half the weight",
    )
    ax.axhline(1 / len(shares), color=GREY, linestyle="--", linewidth=1, label="equal weights")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(floor / 2, float(shown.max()) * 2)
    ax.set_xlim(0.9, len(shares) * 1.1)
    ax.legend(frameon=False, loc="lower left")
    inches = ax.get_window_extent().width / ax.figure.dpi
    title = textwrap.fill(text, max(int(_LETTERS_AN_INCH * inches), 30))
    return tidy(ax, "rank of the trajectory", "share of the weight", title)


def _weights_of(data: Any) -> Any:
    if "constant_data" in groups_of(data) and "proposal_log_weight" in data.constant_data:
        return np.asarray(data.constant_data["proposal_log_weight"].values, dtype=float)
    if "effective_sample_size" in data.posterior.attrs:
        raise ValueError(
            "weights: these draws were resampled, and the weights of what they were drawn from are not in the data; "
            "pass those log weights themselves (sampling.importance_sampling returns them)"
        )
    return np.asarray(data.sample_stats["log_weight"].values, dtype=float).ravel()
