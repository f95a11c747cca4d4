"""What a verdict on draws says: the doubts, the praise and the advice, in words."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rl_as_inference.inference.pareto import ALIKE, pareto_k_threshold

__all__ = [
    "LARGEST_DIFFERENCE",
    "LARGEST_R_HAT",
    "LARGEST_STANDARD_ERROR",
    "LEAST_ACCEPTANCE",
    "LEAST_EFFECTIVE_SIZE",
    "advice",
    "advice_for_filters",
    "doubt_about_ancestors",
    "doubt_about_evidence",
    "doubt_about_weights",
    "praise",
    "praise_of_particles",
    "refuted",
    "rounded",
    "too_small",
    "verdict_on_weights",
]

LEAST_EFFECTIVE_SIZE = 100
"""Effective draws below which an answer is not trusted; for NUTS per chain (Vehtari et al. 2021)."""

LARGEST_R_HAT = 1.01
"""R̂ above which chains are said to disagree (Vehtari et al. 2021)."""

LARGEST_STANDARD_ERROR = 0.5
"""Nats of a standard error of the log evidence above which it is taken for unknown: of a few repeats it is never much
above one, since one of them then holds all the weight."""

LEAST_ACCEPTANCE = 0.01
"""Share of moves accepted at a temperature below which annealed draws are not trusted."""

LARGEST_DIFFERENCE = 0.1
"""Nats that an estimate of the log evidence may be off the exact one, where that is more than three standard errors."""


def verdict_on_weights(
    k: float | None, size: float, num_weights: int, mend: str = "use method='smc' or a better guide"
) -> tuple[str, bool]:
    """Returns the verdict on importance weights, and whether they are trusted.

    Args:
        k: their k̂, None where there is no tail to fit.
        size: their effective sample size.
        num_weights: how many there are.
        mend: what to do if they are not.

    Example:
        >>> verdict_on_weights(0.91, 300.0, 10_000)[0]
        "k̂ = 0.91 (above 0.7): do not trust these weights; use method='smc' or a better guide."
    """
    doubt = doubt_about_weights(k, size, num_weights)
    if doubt:
        return f"{doubt}: do not trust these weights; {mend}.", False
    return f"{praise(k, size, num_weights)}: the weights can be trusted.", True


def doubt_about_weights(k: float | None, size: float, num_weights: int) -> str:
    """Returns what speaks against the weights, or an empty string."""
    threshold = pareto_k_threshold(num_weights)
    if k is not None and k > threshold:
        return f"k̂ = {k:.2f} (above {threshold:.2g})"
    return too_small(size) if size < LEAST_EFFECTIVE_SIZE else ""


def advice_for_filters(notes: Mapping[str, Any]) -> str:
    if "annealed" not in notes.get("methods", ["annealed"]):  # critics look at the states of processes in parts
        return "use more draws or a better guide"
    return "use more draws, a better guide or a critic to look ahead"


def advice(notes: Mapping[str, Any]) -> str:
    """Returns what else to do, of what the process allows: filters need one in parts, with a horizon."""
    filters = "smc" in notes.get("methods", ["smc"])
    return "use method='smc' or a better guide" if filters else "use more draws or a better guide"


def praise(k: float | None, size: float, num_weights: int) -> str:
    fit = (
        "The weights have no tail to fit"
        if k is None
        else f"k̂ = {k:.2f} (at most {pareto_k_threshold(num_weights):.2g})"
    )
    return f"{fit}, effective sample size {size:,.0f} (at least {LEAST_EFFECTIVE_SIZE})"


def too_small(size: float, wanted: int = LEAST_EFFECTIVE_SIZE) -> str:
    return f"Effective sample size {size:,.0f} (below {wanted})"


def doubt_about_ancestors(notes: Mapping[str, Any]) -> str:
    """Returns what the noted number of ancestors speaks against, or an empty string.

    Weights are equal after resampling, so that their effective sample size cannot tell a thousand
    trajectories from a thousand copies of one.
    """
    lines = notes.get("effective_ancestors")
    if lines is None or lines >= LEAST_EFFECTIVE_SIZE:
        return ""
    return f"The draws descend from {lines:,.0f} effective ancestors at the first step (below {LEAST_EFFECTIVE_SIZE})"


def doubt_about_evidence(notes: Mapping[str, Any], log_weight: Any) -> str:
    """Returns what the noted standard error of the log evidence speaks against, or an empty string."""
    error = notes.get("log_evidence_standard_error")
    if error is None:
        return ""
    if np.isnan(error):
        return "The standard error of the log evidence is unknown (NaN)"
    if error == 0 and np.ptp(log_weight[np.isfinite(log_weight)]) > ALIKE:
        return "The standard error of the log evidence is 0 although the weights differ, so it is unknown"
    if error > LARGEST_STANDARD_ERROR:
        return (
            f"The standard error of the log evidence is {error:.2g} nats (above {LARGEST_STANDARD_ERROR}): a few runs "
            f"hold all the weight, and it is unknown"
        )
    return ""


def refuted(notes: Mapping[str, Any], estimate: float, error: float) -> str:
    """Returns how the exact log evidence refutes an estimate of it, or an empty string.

    Args:
        notes: the posterior's attributes, of which ``exact_log_evidence`` is there where a process has it.
        estimate: by the draws, in nats.
        error: its standard error; NaN where it is unknown.
    """
    truth = notes.get("exact_log_evidence")
    if truth is None:
        return ""
    rounding = 1e-5 * abs(truth)
    allowed = max(LARGEST_DIFFERENCE, 3 * error) if np.isfinite(error) else LARGEST_DIFFERENCE
    if abs(estimate - truth) <= allowed + rounding:
        return ""
    return f"The draws put the log evidence at {estimate:.2f} ± {rounded(error)} nats, and it is {truth:.2f} (exact)"


def praise_of_particles(size: float, notes: Mapping[str, Any]) -> str:
    lines = notes.get("effective_ancestors")
    told = f"Effective sample size {size:,.0f} (at least {LEAST_EFFECTIVE_SIZE})"
    return told if lines is None else f"{told}, {lines:,.0f} effective ancestors (at least {LEAST_EFFECTIVE_SIZE})"


def rounded(value: float) -> str:
    """Returns two digits of a number, without an exponent."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}" if value >= 0.01 else "0"
