"""Looking at trajectory posteriors: as ArviZ data and files, with a verdict on their draws, and as pictures."""

from rl_as_inference.inspect import plots
from rl_as_inference.inspect.diagnostics import Diagnosis, diagnose
from rl_as_inference.inspect.divergences import DivergenceMethod, trajectory_kl
from rl_as_inference.inspect.evidence import EvidenceMethod, estimate_log_evidence
from rl_as_inference.inspect.inference_data import from_trajectories
from rl_as_inference.inspect.netcdf import load_posterior, save_posterior
from rl_as_inference.inspect.posteriors import Method, posterior

__all__ = [
    "Diagnosis",
    "DivergenceMethod",
    "EvidenceMethod",
    "Method",
    "diagnose",
    "estimate_log_evidence",
    "from_trajectories",
    "load_posterior",
    "plots",
    "posterior",
    "save_posterior",
    "trajectory_kl",
]
