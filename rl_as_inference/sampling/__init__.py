"""Draws from trajectory posteriors where there are no exact answers."""

from rl_as_inference.sampling.annealing import Annealing, annealing, repeated_annealing
from rl_as_inference.sampling.importance import WeightedDraws, importance_sampling, survive, surviving_rollout
from rl_as_inference.sampling.nuts import nuts, nuts_with_statistics
from rl_as_inference.sampling.particle_filter import ParticleBelief, ParticleFilter, ProgramBelief, ProgramFilter
from rl_as_inference.sampling.smc import repeated_filters, sequential_monte_carlo

__all__ = [
    "Annealing",
    "ParticleBelief",
    "ParticleFilter",
    "ProgramBelief",
    "ProgramFilter",
    "WeightedDraws",
    "annealing",
    "importance_sampling",
    "nuts",
    "nuts_with_statistics",
    "repeated_annealing",
    "repeated_filters",
    "sequential_monte_carlo",
    "survive",
    "surviving_rollout",
]
