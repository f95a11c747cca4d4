"""Posterior sampling: draw a world from what is believed, and do what would be best there."""

from __future__ import annotations

from rl_as_inference.exploration.layers import TablePolicy, greedy
from rl_as_inference.exploration.table_beliefs import Drawn, TableBeliefs

__all__ = ["PosteriorSampling", "best_in"]


class PosteriorSampling:
    """Each episode ``φ ~ p(φ|data)``, then the plan of φ at temperature 0.

    Source: Strens, "A Bayesian framework for reinforcement learning", ICML 2000; Osband, Russo & Van Roy, "(More)
    efficient reinforcement learning via posterior sampling", NeurIPS 2013.
    """

    def policy(self, beliefs: TableBeliefs) -> TablePolicy:
        """Returns each run's policy for the next episode."""
        return best_in(beliefs, beliefs.draw())


def best_in(beliefs: TableBeliefs, worlds: Drawn) -> TablePolicy:
    """Returns the best policies of given worlds, one for each run."""
    layers = beliefs.layers
    _, policy = layers.backward(
        lambda value, t: (
            layers.at(worlds.reward, t) + layers.expect(layers.discount * value, layers.at(worlds.transition, t), t)
        ),
        greedy,
        beliefs.num_runs,
    )
    return policy
