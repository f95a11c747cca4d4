"""Pictures of comparisons, training and trajectories: one function a picture, each returns its axes."""

from rl_as_inference.agents.curves import plot_learning_curve
from rl_as_inference.inspect.plots.actions import plot_actions
from rl_as_inference.inspect.plots.comparisons import plot_dynamics_gap, plot_gaps
from rl_as_inference.inspect.plots.elbo_history import plot_elbo_history
from rl_as_inference.inspect.plots.energy import plot_free_energy
from rl_as_inference.inspect.plots.foresight import plot_foresight
from rl_as_inference.inspect.plots.occupancy import plot_occupancy
from rl_as_inference.inspect.plots.perturbed_returns import plot_perturbation
from rl_as_inference.inspect.plots.rationality_curve import plot_rationality
from rl_as_inference.inspect.plots.return_shares import plot_returns
from rl_as_inference.inspect.plots.states import plot_fan, plot_paths, plot_states
from rl_as_inference.inspect.plots.weights import plot_weights
from rl_as_inference.style import BLUE, GREEN, GREY, ORANGE, RED

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "RED",
    "plot_actions",
    "plot_dynamics_gap",
    "plot_elbo_history",
    "plot_fan",
    "plot_foresight",
    "plot_free_energy",
    "plot_gaps",
    "plot_learning_curve",
    "plot_occupancy",
    "plot_paths",
    "plot_perturbation",
    "plot_rationality",
    "plot_returns",
    "plot_states",
    "plot_weights",
]
