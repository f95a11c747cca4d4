"""How the log evidence splits, for the page to draw."""

import math
from typing import Any

from rl_as_inference.compare import Comparison

__all__ = ["gaps_of"]


def gaps_of(comparison: Comparison) -> list[dict[str, Any]] | None:
    """Returns the bars from the guide's ELBO to the log evidence, in nats; None without exact values.

    A bar has a ``label`` (of Plotly's few tags), ``base`` and ``width``, and a ``part`` that says which it is.
    """
    evidence, best, policy_gap = comparison.log_evidence, comparison.optimal_elbo, comparison.policy_gap
    if evidence is None or best is None or policy_gap is None:
        return None
    if not all(map(math.isfinite, (evidence, best, policy_gap))):
        return None
    reached, unseen = best - policy_gap, comparison.information_gap
    told = best + (unseen or 0.0)
    bars = [
        ("elbo", "ELBO of the guide", 0.0, reached),
        ("policy", "policy gap", reached, policy_gap),
        *([] if unseen is None else [("information", "information gap", best, unseen)]),
        ("dynamics", "dynamics gap", told, evidence - told),
        ("evidence", "log evidence", 0.0, evidence),
    ]
    return [
        {
            "part": part,
            "label": f"{name}<br><b>{width:{'+' if 'gap' in name else ''},.2f}</b>",
            "base": base,
            "width": width,
        }
        for part, name, base, width in bars
    ]
