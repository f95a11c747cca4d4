"""Objectives and their gradients: the trajectory ELBO and its estimators."""

from rl_as_inference.objectives.rollout_elbo import Estimate, estimate_elbo
from rl_as_inference.objectives.trajectory_elbo import Estimator, TrajectoryELBO

__all__ = ["Estimate", "Estimator", "TrajectoryELBO", "estimate_elbo"]
