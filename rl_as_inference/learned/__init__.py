"""Dynamics that are learned from what was seen: processes whose unknowns are networks with a prior."""

from rl_as_inference.learned.anchored import AnchoredEnsemble
from rl_as_inference.learned.dynamics import LearnedDynamics
from rl_as_inference.learned.fitting import DynamicsFit
from rl_as_inference.learned.members import MemberDynamics
from rl_as_inference.learned.prediction import Prediction
from rl_as_inference.learned.transitions import Transitions

__all__ = ["AnchoredEnsemble", "DynamicsFit", "LearnedDynamics", "MemberDynamics", "Prediction", "Transitions"]
