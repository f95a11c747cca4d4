"""Comparisons: how the log evidence splits, and what the dynamics gap looks like."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.arguments import checked
from rl_as_inference.inspect.plots.occupancy import plot_occupancy
from rl_as_inference.processes import TabularMDP
from rl_as_inference.style import BLUE, GREEN, GREY, ORANGE, PURPLE, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from rl_as_inference.compare import Comparison

__all__ = ["plot_dynamics_gap", "plot_gaps"]


@checked
def plot_gaps(comparison: "Comparison", ax: "Axes | None" = None) -> "Axes":
    """Draws how the log evidence splits: the ELBO, the policy gap and the dynamics gap, in nats.

    Where the state is hidden the information gap lies between the two.

    Raises:
        ValueError: if the comparison has no exact values.
    """
    evidence, best = comparison.log_evidence, comparison.optimal_elbo
    if evidence is None or best is None or comparison.policy_gap is None:
        raise ValueError("plot_gaps needs a comparison with exact values (a finite or linear-Gaussian process)")
    ax = new_axes(ax, 7.2, 2.8)
    reached, unseen = best - comparison.policy_gap, comparison.information_gap
    told = best + (unseen or 0.0)
    bars = [
        ("ELBO of the guide", 0.0, reached, BLUE, f"{reached:,.2f}"),
        ("policy gap", reached, comparison.policy_gap, ORANGE, f"{comparison.policy_gap:+,.2f}"),
        *([] if unseen is None else [("information gap", best, unseen, PURPLE, f"{unseen:+,.2f}")]),
        ("dynamics gap", told, evidence - told, GREEN, f"{evidence - told:+,.2f}"),
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
    between = "" if unseen is None else " + information gap"
    return tidy(ax, "nats", "", f"{comparison.problem}: log evidence = ELBO + policy gap{between} + dynamics gap")


@torch.no_grad()
@checked
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
    shares = [_in_cells(mdp, visits.detach().cpu()) for _, visits, _ in panels]
    # One scale for all panels; cells where ended trajectories wait would otherwise drown the paths.
    limit = float(np.quantile(np.stack([share.mean(0) for share in shares]), 0.97))
    for ax, (name, _, gets), visits in zip(axes, panels, shares, strict=True):
        plot_occupancy(visits, layout=mdp.layout, ax=ax, title=name, colour_limit=limit, colour_bar=False)
        ax.set_xlabel(f"expected return {float(gets):.3g}", fontweight="bold")
    return axes


def _in_cells(mdp: TabularMDP, visits: Tensor) -> Tensor:
    """Returns visits of cells, where several states are in one; of states where there is no grid."""
    cells = mdp.cell_of_state
    if cells is None or mdp.layout is None:
        return visits
    return visits.new_zeros(len(visits), np.size(mdp.layout)).index_add(1, torch.as_tensor(cells), visits)
