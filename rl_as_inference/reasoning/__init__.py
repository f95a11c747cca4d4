"""Questions about agents: what they want, how rational they are, how good is good enough, and how robust."""

from rl_as_inference.reasoning.hyperbolic import hyperbolic_policy
from rl_as_inference.reasoning.inverse import infer_agent
from rl_as_inference.reasoning.rationality import RationalityCurve, rationality_curve
from rl_as_inference.reasoning.robustness import WorstCase, worst_case
from rl_as_inference.reasoning.satisficing import Satisficing, satisfice

__all__ = [
    "RationalityCurve",
    "Satisficing",
    "WorstCase",
    "hyperbolic_policy",
    "infer_agent",
    "rationality_curve",
    "satisfice",
    "worst_case",
]
