"""Looking at trajectory posteriors: as ArviZ data, and as pictures."""

from rl_as_inference.inspect import plots
from rl_as_inference.inspect.inference_data import from_trajectories
from rl_as_inference.inspect.posteriors import Method, posterior

__all__ = ["Method", "from_trajectories", "plots", "posterior"]
