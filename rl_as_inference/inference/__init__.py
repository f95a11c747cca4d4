"""Which trajectories explain success, how likely success is, and how far a policy is from it: by every method.

Posterior draws are ArviZ data, which files hold. Verdicts on them and pictures of them are in ``inspect``.
"""

from rl_as_inference.inference.divergences import DivergenceMethod, trajectory_kl
from rl_as_inference.inference.evidence import EvidenceMethod, estimate_log_evidence
from rl_as_inference.inference.inference_data import from_trajectories
from rl_as_inference.inference.netcdf import load_posterior, save_posterior
from rl_as_inference.inference.posteriors import Method, posterior

__all__ = [
    "DivergenceMethod",
    "EvidenceMethod",
    "Method",
    "estimate_log_evidence",
    "from_trajectories",
    "load_posterior",
    "posterior",
    "save_posterior",
    "trajectory_kl",
]
