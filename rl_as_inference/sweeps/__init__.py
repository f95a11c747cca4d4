"""Sweeps: runs of one problem over options and seeds, in processes of this machine or on a Ray cluster."""

from rl_as_inference.sweeps.results import Sweep
from rl_as_inference.sweeps.space import Range

__all__ = ["Range", "Sweep"]
