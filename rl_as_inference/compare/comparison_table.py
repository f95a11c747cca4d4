"""The table of a comparison, for people to read."""

import math
from typing import TYPE_CHECKING

from rl_as_inference.tables import render

if TYPE_CHECKING:
    from rl_as_inference.compare.comparison import Comparison

__all__ = ["comparison_table", "number"]


def comparison_table(found: "Comparison") -> str:
    """Returns the comparison's rows, and what each way of acting gets where that is exact."""
    error = f"± {found.elbo_standard_error:.2g}" if math.isfinite(found.elbo_standard_error) else ""
    family = found.reasons.get("family", "")
    rows = [
        ("ELBO of the guide, by rollouts", number(found.elbo), "nats", error),
        ("ELBO of the guide, exact", number(found.elbo_exact), "nats", ""),
        ("ELBO of the guide, by its critic", number(found.elbo_critic), "nats", ""),
        ("  critic - rollouts", number(found.critic_difference), "nats", "what the critic believes too much"),
        ("largest ELBO (causal)", number(found.optimal_elbo), "nats", "what control can reach"),
        ("log evidence log p(O)", number(found.log_evidence), "nats", "what luck could reach"),
        ("dynamics gap", number(found.dynamics_gap), "nats", "log p(O) - largest ELBO"),
        ("policy gap", number(found.policy_gap), "nats", "largest ELBO - ELBO of the guide"),
        ("  of the family", number(found.family_gap), "nats", family),
        ("  of training", number(found.training_gap), "nats", "best of the family - ELBO of the guide"),
        None,
        ("SAC objective", number(found.sac_objective), "reward", f"± {found.sac_standard_error:.2g}"),
        ("  = α · ELBO", number(found.temperature * found.elbo), "reward", f"α = {found.temperature:.6g}"),
        ("  + action-prior term", number(found.prior_term), "reward", "-α E Σ γ^t log p(a|s)"),
        ("SAC objective, exact", number(found.sac_exact), "reward", ""),
        ("  + action-prior term, exact", number(found.prior_term_exact), "reward", ""),
        ("expected return", number(found.expected_return), "reward", f"γ = {found.discount:.6g}"),
        ("expected return, exact", number(found.expected_return_exact), "reward", ""),
        None,
        ("policy entropy", number(found.entropy), "nats", f"{_bits(found.entropy)}, -E Σ γ^t log π(a|s)"),
        ("policy entropy, exact", number(found.entropy_exact), "nats", _bits(found.entropy_exact)),
        (
            "action cost KL(π || p)",
            number(found.action_cost),
            "nats",
            f"{_bits(found.action_cost)}, (return - α ELBO)/α",
        ),
        ("action cost, exact", number(found.action_cost_exact), "nats", _bits(found.action_cost_exact)),
    ]
    shown = [row for row in rows if row is None or row[1] != ""]
    title = f"{found.problem}: ELBO and SAC objective, {found.num_trajectories:,} rollouts"
    text = render(title, ("quantity", "value", "unit", ""), shown, right=(1,))
    if found.broken:
        text += "".join(f"{identity}\n" for identity in found.broken)
    elif found.identities:
        text += f"{len(found.identities)} identities among these rows hold\n"
    for about in ("elbo_exact", "log_evidence", "support"):
        if about in found.reasons and found.optimal_elbo is not None:
            text += f"{_TITLES[about]}{found.reasons[about]}\n"
    if not found.rules:
        return text
    rules = [
        (rule.name, number(rule.elbo), number(rule.expected_return), number(rule.believed_return))
        for rule in found.rules
    ]
    header = ("who acts", "ELBO (nats)", "return it gets (reward)", "return it expects (reward)")
    return text + render(
        "The dynamics gap: what each action rule gets, run in the process", header, rules, right=(1, 2, 3)
    )


_TITLES = {
    "elbo_exact": "no exact rows of the guide: ",
    "log_evidence": "no log evidence: ",
    "support": "note: ",
}


def _bits(nats: float | None) -> str:
    return "" if nats is None else f"{nats / math.log(2):.4g} bits"


def number(value: float | None) -> str:
    """Returns a number for people; nothing for None."""
    if value is None:
        return ""
    if math.isinf(value):
        return f"{value:.2f}"
    if abs(value) < 1e-9:  # what rounding leaves of a zero
        return "0.0000"
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4f}" if abs(value) >= 1e-4 else f"{value:.2e}"
