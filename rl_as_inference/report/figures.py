"""The picture of a report that stands still, as a Plotly figure."""

import json
from typing import Any

import numpy as np

from rl_as_inference.compare import Comparison
from rl_as_inference.style import BLUE, GREEN, GREY, ORANGE, PURPLE

__all__ = ["gaps_figure"]


def gaps_figure(comparison: Comparison) -> dict[str, Any] | None:
    """Returns how the log evidence splits, in nats, as a Plotly figure in JSON's terms; None without exact values."""
    evidence, best, policy_gap = comparison.log_evidence, comparison.optimal_elbo, comparison.policy_gap
    if evidence is None or best is None or policy_gap is None or not np.isfinite([evidence, best, policy_gap]).all():
        return None
    from plotly import graph_objects  # imported when first needed: it is slow

    reached, unseen = best - policy_gap, comparison.information_gap
    told = best + (unseen or 0.0)
    bars = [
        (f"ELBO of the guide<br><b>{reached:,.2f}</b>", 0.0, reached, BLUE),
        (f"policy gap<br><b>{policy_gap:+,.2f}</b>", reached, policy_gap, ORANGE),
        *([] if unseen is None else [(f"information gap<br><b>{unseen:+,.2f}</b>", best, unseen, PURPLE)]),
        (f"dynamics gap<br><b>{evidence - told:+,.2f}</b>", told, evidence - told, GREEN),
        (f"log evidence<br><b>{evidence:,.2f}</b>", 0.0, evidence, GREY),
    ]
    names, bases, widths, colours = map(list, zip(*bars, strict=True))
    bar = graph_objects.Bar(
        orientation="h",
        y=names,
        base=bases,
        x=widths,
        marker={"color": colours},
        hovertemplate="%{y} nats<extra></extra>",
    )
    figure = graph_objects.Figure(bar)
    figure.update_layout(
        template="simple_white",
        height=260 if unseen is None else 310,
        margin={"l": 8, "r": 16, "t": 8, "b": 44},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1a1a1a"},
        dragmode=False,
        xaxis={"title": {"text": "nats"}, "zeroline": True, "zerolinecolor": "#1a1a1a", "fixedrange": True},
        yaxis={"autorange": "reversed", "automargin": True, "ticks": "", "showline": False, "fixedrange": True},
    )
    found: dict[str, Any] = json.loads(figure.to_json())
    return found
