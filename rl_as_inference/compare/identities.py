"""Identities among the rows of a comparison: asserted where the exact values exist, and shown where they break."""

import math
from dataclasses import dataclass

from scipy import stats

__all__ = ["Identity", "agrees", "is_equal", "not_negative"]


@dataclass(frozen=True)
class Identity:
    """One equation or inequality among rows.

    Attributes:
        name: as an equation.
        left, right: its two sides, in the units of its rows.
        tolerance: by how much they may differ: rounding, or standard errors.
        holds: whether they do not differ by more.
    """

    name: str
    left: float
    right: float
    tolerance: float
    holds: bool

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "BROKEN"
        return f"{verdict}: {self.name}: {self.left:.10g} against {self.right:.10g}, tolerance {self.tolerance:.2g}"


def is_equal(name: str, left: float, right: float, precision: float, *terms: float) -> Identity:
    """Returns whether two sides are equal up to ``precision``, relative to a hundredth of the largest of ``terms``."""
    tolerance = _rounding(precision, left, right, *terms)
    return Identity(name, left, right, tolerance, left == right or abs(left - right) <= tolerance)


def not_negative(name: str, value: float, precision: float, *terms: float) -> Identity:
    """Returns whether a gap, the difference of ``terms``, is ≥ 0 up to rounding as in :func:`is_equal`."""
    tolerance = _rounding(precision, *terms)
    return Identity(name, value, 0.0, tolerance, value >= -tolerance)


def agrees(
    name: str, estimate: float, standard_error: float, exact: float, number: int, rare: float, precision: float
) -> Identity:
    """Returns whether an estimate from ``number`` draws agrees with the exact value.

    By the t statistic that chance exceeds once in two million (5 standard errors when there are many draws): a
    comparison is made often, and a broken identity should mean something. A rare event of size ``rare`` may be
    missing from the draws, and from their standard error: the second term of the empirical Bernstein bound (Maurer &
    Pontil 2009, arXiv:0907.3740) is allowed for it.
    """
    chance = 6e-7
    bernstein = 7 * rare * math.log(2 / chance) / (3 * (number - 1))
    tolerance = float(stats.t.isf(chance / 2, number - 1)) * standard_error + bernstein
    tolerance += _rounding(precision, exact)
    return Identity(name, estimate, exact, tolerance, estimate == exact or abs(estimate - exact) <= tolerance)


def _rounding(precision: float, *terms: float) -> float:
    return precision * max(1.0, *(abs(x) / 100 for x in terms if math.isfinite(x)), 1.0)
