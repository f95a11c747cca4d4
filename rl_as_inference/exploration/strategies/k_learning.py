"""K-learning: what is not known is worth its cumulant, at the temperature at which it is explored."""

from __future__ import annotations

from typing import Literal, NamedTuple

import scipy.special
import torch
from torch import Tensor

from rl_as_inference.exploration.layers import TablePolicy, soft
from rl_as_inference.exploration.table_beliefs import TableBeliefs

__all__ = ["KLearning"]

_LARGE = 300.0
"""Beyond this a moment generating function is bounded, before it overflows."""

_STEPS = (0.8, 0.93, 1.0, 1.08, 1.25)
"""Temperatures that are tried each episode, in units of the last one."""


class KLearning:
    """Soft messages in the mean world, with the posterior's cumulant ``τ log E_φ e^{r/τ}`` as reward, and their policy.

        K_t(s,a) = E r + Var r / 2τ + γ Σ_{s'} E[p(s'|s,a)] V_{t+1}(s') + u_t(s,a)
        V_t(s) = τ log Σ_a e^{K_t(s,a)/τ},     π_t(a|s) = e^{(K_t(s,a) - V_t(s))/τ}

    At every τ, ``E_{s_0} V_0`` is at least the posterior mean of the best return where no state is met twice in an
    episode, and if

    - ``transition_term="dirichlet"``: ``u`` makes of the mean ``Σ E[p] V`` the cumulant of a Beta variable between the
      least and the largest ``V``, which is above that of ``Σ p V`` (Osband & Van Roy, "Why is posterior sampling better
      than optimism for reinforcement learning?", ICML 2017). With a ``reward_range`` instead ``u = (reward_range ·
      (T-t-1))² / 8τ(α+1)``, where α is the sum of the row's Dirichlet parameters: what rewards can still come to takes
      the place of ``max V - min V``, and such a Beta variable is sub-Gaussian with variance ``1/4(α+1)`` (Marchal &
      Arbel 2017, arXiv:1705.00048). That is the form of O'Donoghue (2018, arXiv:1807.09647), whose ``(T-t)²/2τn`` after
      ``n`` visits is about four times as much;
    - ``transition_term="mean"``: ``u = 0``, as if transitions were known at their mean, the recursion of O'Donoghue,
      Osband & Ionescu (2020, arXiv:2001.00805), table 3. Where they are unknown the bound need not hold. This is what
      solves DeepSea fast.

    The temperature is the one that makes ``E V_0`` least: the tightest bound, by a search over a grid, in units of the
    rewards, before the first episode and then of five temperatures around the last one.

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
        self._unit = torch.ones(())

    def policy(self, beliefs: TableBeliefs) -> TablePolicy:
        """Returns each run's policy for the next episode."""
        known = self.moments(beliefs)
        if self.temperature is not None:
            self.found = known.mean.new_full((beliefs.num_runs,), self.temperature)
        else:
            if self.found is None:
                tried = torch.logspace(-3, 3, 25, dtype=known.mean.dtype, device=known.mean.device)
                self._unit = _unit(*beliefs.reward(known.transition))
                self.found = self._least(beliefs, known, tried[:, None] * self._unit)
            steps = torch.tensor(_STEPS, dtype=known.mean.dtype, device=known.mean.device)
            self.found = self._least(beliefs, known, steps[:, None] * self.found)
        return self.values(beliefs, self.found, known)[1]

    def _least(self, beliefs: TableBeliefs, known: _Moments, tried: Tensor) -> Tensor:
        """Returns of temperatures ``(G, B)`` each run's with the tightest bound, ``(B,)``."""
        bounds = torch.stack([self.values(beliefs, tau, known)[0] for tau in tried])
        # Where nothing is unknown the bound falls to the last.
        return torch.maximum(tried.gather(0, bounds.argmin(0)[None])[0], 1e-6 * self._unit)

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

        def backup(value: Tensor, t: int) -> Tensor:
            chance, onward = layers.at(known.transition, t), layers.discount * value
            q = layers.at(reward, t)
            if self.transition_term == "mean":
                return q + layers.expect(onward, chance, t)
            worth = layers.onward(onward, t)
            if beliefs.paid is not None:
                worth = worth + layers.at(beliefs.paid[None], t)
            mean, weight = (chance * worth).sum(-1), layers.at(known.totals, t)
            if self.reward_range is not None:
                steps = layers.horizon - t - (beliefs.paid is None)
                return q + mean + (steps * self.reward_range) ** 2 / (8 * wide * (weight + 1))
            no = ~beliefs.possible[layers.states[t]]
            low, high = worth.masked_fill(no, torch.inf).amin(-1), worth.masked_fill(no, -torch.inf).amax(-1)
            return q + _beta_cumulant(mean, low, high, weight, wide)

        value, policy = layers.backward(backup, soft(tau, counting=True), beliefs.num_runs)
        return value @ layers.start, policy


def _unit(mean: Tensor, variance: Tensor) -> Tensor:
    """Returns the power of ten next to the largest rewards that are believed in, ``(B,)``; 1 where all are 0."""
    largest = (mean.abs() + variance.sqrt()).amax((1, 2))
    return torch.where(largest > 0, 10.0 ** largest.log10().round(), 1.0)


def _beta_cumulant(mean: Tensor, low: Tensor, high: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
    """Returns ``τ log E e^{X/τ}`` in reward units, of ``X`` between ``low`` and ``high``.

    ``X`` is a Beta variable that is stretched, with the given mean and parameters of sum ``weight``. Its moment
    generating function is Kummer's ``1F1(a; a + b; z)``, a series of positive terms.
    """
    span = (high - low).clamp(min=1e-12)
    share = ((mean - low) / span).clamp(1e-12, 1 - 1e-12)
    z = span / temperature
    near = z.clamp(max=_LARGE)  # past it E e^{zX} <= E e^{nX} e^{z - n}, as X <= 1
    sure = ~weight.isfinite()
    total = torch.where(sure, 1.0, weight)
    kummer = scipy.special.hyp1f1((total * share).cpu().numpy(), total.cpu().numpy(), near.cpu().numpy())
    logs = torch.as_tensor(kummer, device=mean.device).log() + (z - near)
    return torch.where(sure, mean, low + temperature * logs)


class _Moments(NamedTuple):
    """What is known of tables: means and variances, and the weight of what was seen of transitions."""

    transition: Tensor
    mean: Tensor
    variance: Tensor
    totals: Tensor
