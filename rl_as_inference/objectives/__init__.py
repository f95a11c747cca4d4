"""Objectives and their gradients: the trajectory ELBO and its estimators, projection and path consistency."""

from rl_as_inference.objectives.path_consistency import path_consistency_loss
from rl_as_inference.objectives.rollout_elbo import Estimate, estimate_elbo
from rl_as_inference.objectives.trajectory_elbo import Estimator, TrajectoryELBO
from rl_as_inference.objectives.weighted_regression import Projection

__all__ = ["Estimate", "Estimator", "Projection", "TrajectoryELBO", "estimate_elbo", "path_consistency_loss"]
