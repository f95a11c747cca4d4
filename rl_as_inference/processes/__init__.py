"""Problems in parts: a Pyro program when called, fast tensors when rolled out."""

from rl_as_inference.processes.environments import Environments, NonFiniteError, Step
from rl_as_inference.processes.gymnasium_process import GymnasiumProcess
from rl_as_inference.processes.linear_gaussian import LinearGaussianMDP
from rl_as_inference.processes.linear_gaussian_pomdp import LinearGaussianPOMDP
from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.processes.partially_observed import PartiallyObservedMDP
from rl_as_inference.processes.tabular import TabularMDP
from rl_as_inference.processes.tabular_pomdp import TabularPOMDP
from rl_as_inference.processes.to_gymnasium import to_gymnasium, to_gymnasium_vector

__all__ = [
    "Environments",
    "GymnasiumProcess",
    "LinearGaussianMDP",
    "LinearGaussianPOMDP",
    "MarkovDecisionProcess",
    "NonFiniteError",
    "PartiallyObservedMDP",
    "Step",
    "TabularMDP",
    "TabularPOMDP",
    "to_gymnasium",
    "to_gymnasium_vector",
]
