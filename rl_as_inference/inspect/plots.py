"""Pictures of comparisons, training and trajectories: one function a picture, each returns its axes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rl_as_inference import exact
from rl_as_inference.processes import TabularMDP

if TYPE_CHECKING:
    import arviz
    from matplotlib.axes import Axes

    from rl_as_inference.agents import CurveRow
    from rl_as_inference.compare import Comparison

__all__ = [
    "plot_dynamics_gap",
    "plot_elbo_history",
    "plot_gaps",
    "plot_learning_curve",
    "plot_occupancy",
    "plot_returns",
    "plot_states",
]

BLUE, ORANGE, GREEN, GREY, RED = "#0072B2", "#E69F00", "#009E73", "#7F7F7F", "#D55E00"
"""Colours that the colour-blind can tell apart (Okabe & Ito 2008)."""


def _axes(ax: "Axes | None", width: float = 6.4, height: float = 4.0) -> "Axes":
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    # A figure of its own, without pyplot: nothing to close, and no screen needed.
    return Figure(figsize=(width, height), layout="constrained").subplots()


def plot_gaps(comparison: "Comparison", ax: "Axes | None" = None) -> "Axes":
    """Draws how the log evidence splits: the ELBO, the policy gap and the dynamics gap, in nats.

    Raises:
        ValueError: if the comparison has no exact values.
    """
    evidence, best = comparison.log_evidence, comparison.optimal_elbo
    if evidence is None or best is None or comparison.policy_gap is None:
        raise ValueError("plot_gaps needs a comparison with exact values (a finite or linear-Gaussian process)")
    ax = _axes(ax, 7.2, 2.8)
    reached = best - comparison.policy_gap
    bars = [
        ("ELBO of the guide", 0.0, reached, BLUE, f"{reached:,.2f}"),
        ("policy gap", reached, comparison.policy_gap, ORANGE, f"{comparison.policy_gap:+,.2f}"),
        ("dynamics gap", best, evidence - best, GREEN, f"{evidence - best:+,.2f}"),
        ("log evidence", 0.0, evidence, GREY, f"{evidence:,.2f}"),
    ]
    span = max(abs(x) for _, left, width, _, _ in bars for x in (left, left + width)) or 1.0
    for row, (_, left, width, colour, text) in enumerate(bars):
        ax.barh(row, width, left=left, color=colour, height=0.62)
        end = max(left, left + width, 0.0)
        ax.text(end + 0.012 * span, row, text, va="center", fontsize=9)
    ax.set_yticks(range(len(bars)), [name for name, *_ in bars])
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.8)
    ax.margins(x=0.14)
    ax.set_xlabel("nats")
    ax.set_title(f"{comparison.problem}: log evidence = ELBO + policy gap + dynamics gap", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_elbo_history(elbo: Any, *, optimal_elbo: float | None = None, ax: "Axes | None" = None) -> "Axes":
    """Draws the ELBO over training steps, in nats, under its ceiling where that is known."""
    ax = _axes(ax)
    values = np.asarray(elbo)
    ax.plot(np.arange(len(values)), values, color=BLUE, linewidth=1.4, label="ELBO of the guide")
    if optimal_elbo is not None:
        ax.axhline(optimal_elbo, color=GREY, linestyle="--", linewidth=1, label="largest ELBO")
        # The first steps can be very low, and would flatten everything that follows.
        low = min(float(np.quantile(values, 0.02)), optimal_elbo)
        pad = 0.05 * max(optimal_elbo - low, 1e-9)
        ax.set_ylim(low - pad, optimal_elbo + pad)
    ax.set_xlabel("gradient step")
    ax.set_ylabel("ELBO (nats)")
    ax.legend(frameon=False, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_learning_curve(curve: "Sequence[CurveRow]", *, title: str = "", ax: "Axes | None" = None) -> "Axes":
    """Draws evaluation returns over environment steps: every seed thin, their mean thick.

    A single seed has a band from the least to the largest return of its episodes.

    Args:
        curve: the rows that :func:`rl_as_inference.agents.train` returns.
        title: of the axes.
    """
    ax = _axes(ax)
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
    ax.set_xlabel("environment steps")
    ax.set_ylabel("evaluation return (reward units)")
    ax.set_title(title, fontsize=10)
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_returns(returns: Mapping[str, Any], ax: "Axes | None" = None) -> "Axes":
    """Draws distributions of returns side by side, as the share of trajectories.

    Args:
        returns: per name, an array of returns in reward units.
    """
    ax = _axes(ax)
    arrays = {name: np.asarray(values, dtype=float).ravel() for name, values in returns.items()}
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
        bins = np.histogram_bin_edges(everything, bins=40)
        for i, (name, values) in enumerate(arrays.items()):
            weights = np.full(len(values), 1 / len(values))
            ax.hist(
                values, bins.tolist(), weights=weights, label=name, color=colours[i % 5], histtype="step", linewidth=1.6
            )
    ax.set_xlabel("return (reward units)")
    ax.set_ylabel("share of trajectories")
    ax.margins(y=0.12)
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_occupancy(
    visits: Any, *, layout: Any = None, ax: "Axes | None" = None, title: str = "", colour_limit: float | None = None
) -> "Axes":
    """Draws where trajectories are: on the grid, or over time and state.

    Args:
        visits: probabilities of states over time, ``(T+1, S)``.
        layout: for grids, letters ``(rows, columns)``; the picture then shows the expected share of
            time in each cell.
        title: of the axes.
        colour_limit: the share at which colours saturate.
    """
    ax = _axes(ax, 4.2, 4.2)
    table = np.asarray(visits)
    if layout is None:
        image = ax.imshow(table.T, aspect="auto", origin="lower", cmap="cividis", interpolation="nearest", vmin=0)
        ax.set_xlabel("time (steps)")
        ax.set_ylabel("state")
        ax.figure.colorbar(image, ax=ax, label="probability of the state")
    else:
        letters = np.asarray(layout)
        share = table.mean(0).reshape(letters.shape)
        ax.imshow(share, cmap="cividis", vmin=0, vmax=colour_limit or share.max(), interpolation="nearest")
        bright = share > 0.55 * (colour_limit or share.max())
        for (row, column), letter in np.ndenumerate(letters):
            colour = "black" if bright[row, column] else "white"
            weight = "bold" if letter in "SGH" else "normal"
            if letter != "F":
                ax.text(column, row, letter, ha="center", va="center", color=colour, fontweight=weight, fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
    ax.set_title(title, fontsize=10)
    return ax


@torch.no_grad()
def plot_dynamics_gap(mdp: TabularMDP, policy: Any = None, axes: "Sequence[Axes] | None" = None) -> "Sequence[Axes]":
    """Draws what the exact posterior expects beside what its action rule and the causal one get.

    Three or four panels of state occupancy: the posterior as it believes things to go (luck
    included), its action rule run in the process as it is, the causal rule run in the same, and the
    guide's. Under each the expected return, in reward units.

    Raises:
        ValueError: if the process is not finite or has no horizon.
    """
    if not isinstance(mdp, TabularMDP):
        raise ValueError(f"plot_dynamics_gap needs a TabularMDP, got {type(mdp).__name__}")
    bent, causal = exact.plan(mdp, "posterior"), exact.plan(mdp, "causal")
    panels = [
        ("exact posterior,\nas it expects to go", exact.posterior_occupancy(mdp), exact.posterior_return(mdp)),
        ("its action rule,\nrun in the process", exact.occupancy(mdp, bent), exact.expected_return(mdp, bent)),
        ("causal posterior,\nrun in the process", exact.occupancy(mdp, causal), exact.expected_return(mdp, causal)),
    ]
    if policy is not None:
        gets = exact.expected_return(mdp, policy)
        panels.append(("the trained guide,\nrun in the process", exact.occupancy(mdp, policy), gets))
    if axes is None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.0 * len(panels), 3.9), layout="constrained")
        axes = list(figure.subplots(1, len(panels)))
        figure.suptitle(
            f"{mdp.name}: the dynamics gap. What conditioning on success dreams of, and what acting on it gets\n"
            f"(brighter: more of the time spent there)",
            fontsize=11,
        )
    shares = [visits.detach().cpu() for _, visits, _ in panels]
    # One scale for all panels; cells where ended trajectories wait would otherwise drown the paths.
    limit = float(np.quantile(np.stack([share.mean(0) for share in shares]), 0.97))
    for ax, (name, _, gets), visits in zip(axes, panels, shares, strict=True):
        plot_occupancy(visits, layout=mdp.layout, ax=ax, title=name, colour_limit=limit)
        ax.set_xlabel(f"expected return {float(gets):.3g}", fontweight="bold")
    return axes


def plot_states(data: "arviz.InferenceData", dimension: int = 0, ax: "Axes | None" = None) -> "Axes":
    """Draws one state dimension over time: bands that hold 50 % and 90 % of the draws, and some draws.

    Args:
        data: what :func:`rl_as_inference.posterior` returns.
        dimension: which dimension of the state, for continuous states.
    """
    ax = _axes(ax)

    def draws(name: str) -> Any:
        values = data.posterior[name]
        if "state_dim_0" in values.dims:
            values = values.isel(state_dim_0=dimension)
        return values.stack(sample=("chain", "draw")).transpose("sample", ...).values

    paths = draws("state")
    if "final_state" in data.posterior:
        paths = np.column_stack([paths, draws("final_state")])
    times = np.arange(paths.shape[1])
    for low, high, shade in ((0.05, 0.95, 0.2), (0.25, 0.75, 0.4)):
        band = np.quantile(paths, (low, high), axis=0)
        ax.fill_between(times, *band, color=BLUE, alpha=shade, linewidth=0, label=f"{high - low:.0%} of draws")
    ax.plot(times, paths[:: max(len(paths) // 12, 1)][:12].T, color=GREY, linewidth=0.7, alpha=0.8)
    ax.plot(times, np.median(paths, 0), color=BLUE, linewidth=1.8, label="median")
    ax.set_xlabel("time (steps)")
    ax.set_ylabel(f"state, dimension {dimension}" if "state_dim_0" in data.posterior["state"].dims else "state")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
