"""Reinforcement learning written as probabilistic inference: one Pyro program, many readings."""

from rl_as_inference import exact
from rl_as_inference.objectives import Estimate, TrajectoryELBO, estimate_elbo
from rl_as_inference.processes import LinearGaussianMDP, MarkovDecisionProcess, TabularMDP
from rl_as_inference.program import act, follow, reward, simulate, steps, survival, terminate
from rl_as_inference.trajectories import Trajectories
