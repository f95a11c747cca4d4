"""The tail of importance weights: Pareto k̂."""

from typing import Any

import numpy as np

from rl_as_inference.arviz_data import pareto_shape
from rl_as_inference.turns import silenced

__all__ = ["ALIKE", "checked_log_weight", "pareto_k", "pareto_k_threshold"]

ALIKE = 1e-4
"""Weights within so many nats of each other differ by rounding; a fit to that says nothing."""

_LEAST_FOR_A_TAIL = 30  # below, a fifth of the draws is fewer than the six that a Pareto fit by quartiles needs


def pareto_k_threshold(num_draws: int) -> float:
    """Returns the largest k̂ at which weights are trusted: ``min(1 - 1/log10(S), 0.7)`` for ``S`` draws.

    Vehtari, Simpson, Gelman, Yao & Gabry (2024), section 3.2.5. It reaches 0.7 at 2,155 draws.

    Example:
        >>> pareto_k_threshold(100), pareto_k_threshold(10_000)
        (0.5, 0.7)
    """
    return min(1 - 1 / float(np.log10(max(num_draws, 2))), 0.7)


def pareto_k(log_weight: Any) -> float | None:
    """Returns k̂, the shape of the generalized Pareto distribution fitted to the largest weights.

    Args:
        log_weight: an array in nats, of any shape and not normalised.

    None where there is no tail to fit: fewer than 30 weights, or weights that are alike.
    Vehtari et al. (2024), by ArviZ's ``psislw``.

    Raises:
        ValueError: if there are no weights, one is NaN or infinite, or all are zero.
    """
    weights = checked_log_weight(np.asarray(log_weight, dtype=float).ravel())
    possible = weights[np.isfinite(weights)]
    if len(weights) < _LEAST_FOR_A_TAIL or np.ptp(possible) < ALIKE:
        return None
    with np.errstate(all="ignore"), silenced():  # weights that are all alike divide by zero
        k = pareto_shape(weights)
    return k if np.isfinite(k) else None


def checked_log_weight(log_weight: Any) -> Any:
    """Returns log weights, ``(N,)`` in nats, of which there are some, and one is not zero.

    Raises:
        ValueError: if there are no weights, one is NaN or infinite, or all are zero.
    """
    if len(log_weight) == 0:
        raise ValueError("log_weight is empty: there are no draws to weigh")
    if np.isnan(log_weight).any():
        at = np.flatnonzero(np.isnan(log_weight))
        raise ValueError(
            f"log_weight is NaN for {len(at)} of {len(log_weight)} draws, first for draw {at[0]}; look for NaN in the "
            f"rewards or in the policy's log probabilities"
        )
    if np.isposinf(log_weight).any():
        at = np.flatnonzero(np.isposinf(log_weight))
        raise ValueError(f"log_weight is infinite for {len(at)} of {len(log_weight)} draws, first for draw {at[0]}")
    if np.isneginf(log_weight).all():
        raise ValueError(
            f"log_weight is -inf for all {len(log_weight)} draws: every weight is zero, none of them can be a draw of "
            f"the posterior; use another policy or more draws"
        )
    return log_weight
