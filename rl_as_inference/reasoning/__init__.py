"""Questions about agents: how rational, how good is good enough, and how robust."""

from rl_as_inference.reasoning.rationality import RationalityCurve, rationality_curve
from rl_as_inference.reasoning.robustness import WorstCase, worst_case
from rl_as_inference.reasoning.satisficing import Satisficing, satisfice

__all__ = [
    "RationalityCurve",
    "Satisficing",
    "WorstCase",
    "rationality_curve",
    "satisfice",
    "worst_case",
]
