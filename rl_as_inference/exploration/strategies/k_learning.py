"""K-learning: what is not known is worth its cumulant, at the temperature at which it is explored."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rl_as_inference.exploration.layers import TablePolicy, soft
from rl_as_inference.exploration.table_beliefs import TableBeliefs

__all__ = ["KLearning"]

_STEPS = (0.8, 0.93, 1.0, 1.08, 1.25)
"""Temperatures that are tried each episode, in units of the last one."""


class KLearning:
    """Soft messages in the mean world, whose reward is the posterior's cumulant ``τ log E_φ e^{r/τ}``, and their policy.

        K_t(s,a) = E r + Var r / 2τ + γ Σ_{s'} E[p(s'|s,a)] V_{t+1}(s') + u_t(s,a)
        V_t(s) = τ log Σ_a e^{K_t(s,a)/τ},     π_t(a|s) = e^{(K_t(s,a) - V_t(s))/τ}

    At every τ, ``E_{s_0} V_0`` is at least the posterior mean of the best return where no state is met twice in an
    episode, and if

    - ``transition_term="dirichlet"``: ``u = (max V - min V)² / 8τ(1 + Σ concentration)`` over the successors, which
      bounds the cumulant of ``Σ p V`` (a Beta distribution with parameters of sum α is sub-Gaussian with variance
      ``1/4(α+1)``: Marchal & Arbel 2017, arXiv:1705.00048). With a ``reward_range``, what it leaves of an episode,
      ``reward_range · (T - t - 1)``, stands in place of ``max V - min V``, as in O'Donoghue (2018, arXiv:1807.09647),
      whose ``(T - t)²/2τn`` after ``n`` visits is about four times as much;
    - ``transition_term="mean"``: ``u = 0``, as if transitions were known at their mean. This is how the recursion stands
      in O'Donoghue, Osband & Ionescu (2020, arXiv:2001.00805), table 3, and how it explores DeepSea. Where transitions
      are unknown the bound need not hold.

    The temperature is the one that makes ``E V_0`` least: the tightest bound, by a search over a grid before
    the first episode and then of five temperatures around the last one.

    Args:
        temperature: a τ to stay at, in reward units per nat; None for the search.
        transition_term, reward_range: as above, the latter in reward units.
    """

    def __init__(
        self,
        temperature: float | None = None,
        transition_term: Literal["mean", "dirichlet"] = "mean",
        reward_range: float | None = None,
    ) -> None:
        self.temperature, self.transition_term, self.reward_range = temperature, transition_term, reward_range
        self.found: Tensor | None = None
        """The temperatures of the latest episode, ``(B,)``."""

    def policy(self, beliefs: TableBeliefs) -> TablePolicy:
        """Returns each run's policy for the next episode."""
        known = self.moments(beliefs)
        if self.temperature is not None:
            self.found = known.mean.new_full((beliefs.num_runs,), self.temperature)
        else:
            if self.found is None:
                tried = torch.logspace(-3, 3, 25, dtype=known.mean.dtype, device=known.mean.device)
                self.found = self._least(beliefs, known, tried[:, None].expand(-1, beliefs.num_runs))
            steps = torch.tensor(_STEPS, dtype=known.mean.dtype, device=known.mean.device)
            self.found = self._least(beliefs, known, steps[:, None] * self.found)
        return self.values(beliefs, self.found, known)[1]

    def _least(self, beliefs: TableBeliefs, known: _Moments, tried: Tensor) -> Tensor:
        """Returns of temperatures ``(G, B)`` each run's with the tightest bound, ``(B,)``."""
        bounds = torch.stack([self.values(beliefs, tau, known)[0] for tau in tried])
        # Where nothing is unknown the bound falls to the last.
        return tried.gather(0, bounds.argmin(0)[None])[0].clamp(min=1e-6)

    def bound(self, beliefs: TableBeliefs) -> Tensor:
        """Returns ``E V_0`` at the latest temperatures, ``(B,)`` in reward units."""
        assert self.found is not None
        return self.values(beliefs, self.found, self.moments(beliefs))[0]

    def moments(self, beliefs: TableBeliefs) -> _Moments:
        """Returns what is known, as the recursion takes it."""
        transition = beliefs.transition()
        mean, variance = beliefs.reward(transition) if self.transition_term == "mean" else beliefs.own_reward()
        return _Moments(transition, mean, variance, beliefs.totals())

    def values(self, beliefs: TableBeliefs, tau: Tensor, known: _Moments) -> tuple[Tensor, TablePolicy]:
        """Returns ``E V_0``, ``(B,)`` in reward units, and the policy, at temperatures ``(B,)``."""
        layers, wide = beliefs.layers, tau[:, None, None]
        reward = known.mean + known.variance / (2 * wide)
        scale = 1 / (8 * wide * (known.totals + 1))

        def backup(value: Tensor, t: int) -> Tensor:
            chance, onward = layers.at(known.transition, t), layers.discount * value
            q = layers.at(reward, t)
            if self.transition_term == "mean":
                return q + layers.expect(onward, chance, t)
            worth = layers.onward(onward, t)
            if beliefs.paid is not None:
                worth = worth + layers.at(beliefs.paid[None], t)
            if self.reward_range is not None:
                own = 0.0 if beliefs.paid is None else self.reward_range
                span = torch.as_tensor(own + self.reward_range * (layers.horizon - t - 1))
            else:
                no = ~beliefs.possible[layers.states[t]]
                span = worth.masked_fill(no, -torch.inf).amax(-1) - worth.masked_fill(no, torch.inf).amin(-1)
            return q + (chance * worth).sum(-1) + layers.at(scale, t) * span.square()

        value, policy = layers.backward(backup, soft(tau, counting=True), beliefs.num_runs)
        return value @ layers.start, policy


class _Moments(NamedTuple):
    """What is known of tables: means and variances, and the weight of what was seen of transitions."""

    transition: Tensor
    mean: Tensor
    variance: Tensor
    totals: Tensor
