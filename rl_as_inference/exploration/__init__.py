"""Unknown dynamics: what is known of them from what was seen, and how to find out more."""

from rl_as_inference.exploration.conjugate import ConjugatePosterior
from rl_as_inference.exploration.infer_dynamics import infer_dynamics

__all__ = ["ConjugatePosterior", "infer_dynamics"]
