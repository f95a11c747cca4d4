"""Problems in parts: a Pyro program when called, fast tensors when rolled out."""

from rl_as_inference.processes.linear_gaussian import LinearGaussianMDP
from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.processes.tabular import TabularMDP

__all__ = ["LinearGaussianMDP", "MarkovDecisionProcess", "TabularMDP"]
