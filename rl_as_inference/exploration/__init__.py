"""Unknown dynamics: what is known of them from what was seen, and how to find out more."""

from rl_as_inference.exploration.bayes_adaptive import BayesAdaptive, bayes_adaptive
from rl_as_inference.exploration.conjugate import ConjugatePosterior
from rl_as_inference.exploration.exploration import Belief, Exploration
from rl_as_inference.exploration.explore import explore
from rl_as_inference.exploration.infer_dynamics import infer_dynamics

__all__ = [
    "BayesAdaptive",
    "Belief",
    "ConjugatePosterior",
    "Exploration",
    "bayes_adaptive",
    "explore",
    "infer_dynamics",
]
