"""Soft Q-learning in the mean world: what "RL as inference" does when it takes ignorance for luck."""

from __future__ import annotations

from rl_as_inference.exploration.layers import TablePolicy, soft
from rl_as_inference.exploration.table_beliefs import TableBeliefs

__all__ = ["SoftQ"]


class SoftQ:
    """The causal messages at temperature α in the process at the mean of its unknowns.

        Q_t(s,a) = E_φ[r(s,a)] + γ Σ_{s'} E_φ[p(s'|s,a)] V_{t+1}(s'),     V = α log Σ_a p(a|s) e^{Q/α}

    How sure the mean is makes no difference, so that what is not known has nothing to say for it but the entropy of
    actions: DeepSea takes exponentially many episodes (O'Donoghue, Osband & Ionescu 2020, arXiv:2001.00805, section 3).

    Args:
        temperature: α, in reward units per nat.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def policy(self, beliefs: TableBeliefs) -> TablePolicy:
        """Returns each run's policy for the next episode."""
        layers, world = beliefs.layers, beliefs.mean_process()
        _, policy = layers.backward(
            lambda value, t: (
                layers.at(world.reward, t) + layers.expect(layers.discount * value, layers.at(world.transition, t), t)
            ),
            soft(world.reward.new_full((beliefs.num_runs,), self.temperature)),
            beliefs.num_runs,
        )
        return policy
