"""What an agent does with what it does not know: one strategy a file."""

from rl_as_inference.exploration.strategies.k_learning import KLearning
from rl_as_inference.exploration.strategies.posterior_sampling import PosteriorSampling
from rl_as_inference.exploration.strategies.soft_q import SoftQ
from rl_as_inference.exploration.strategies.vapor import Vapor

__all__ = ["KLearning", "PosteriorSampling", "SoftQ", "Vapor"]
