"""Looking at trajectory posteriors: a verdict on their draws, and pictures; what makes them is in ``inference``."""

from rl_as_inference.inference import (
    DivergenceMethod,
    EvidenceMethod,
    Method,
    estimate_log_evidence,
    from_trajectories,
    load_posterior,
    posterior,
    save_posterior,
    trajectory_kl,
)
from rl_as_inference.inspect import plots
from rl_as_inference.inspect.diagnostics import Diagnosis, diagnose
from rl_as_inference.inspect.foresight import Foresight, Outlook, foresee

__all__ = [
    "Diagnosis",
    "DivergenceMethod",
    "EvidenceMethod",
    "Foresight",
    "Method",
    "Outlook",
    "diagnose",
    "estimate_log_evidence",
    "foresee",
    "from_trajectories",
    "load_posterior",
    "plots",
    "posterior",
    "save_posterior",
    "trajectory_kl",
]
