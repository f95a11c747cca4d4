"""What many runs of an agent believe of one finite family, side by side."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from rl_as_inference.exploration.conjugate import ConjugatePosterior
from rl_as_inference.exploration.layers import Layers
from rl_as_inference.processes import TabularMDP
from rl_as_inference.processes.log_sums import log_or_minus_inf
from rl_as_inference.trajectories import Trajectories

__all__ = ["Drawn", "TableBeliefs", "impossible"]

_SMALL = 0.02
"""Dirichlet parameters from which Gamma draws may vanish."""


class Drawn(NamedTuple):
    """A process for each run: ``p(s'|s,a)``, ``(B, S, A, K)``, and ``E r(s,a)``, ``(B, S, A)``."""

    transition: Tensor
    reward: Tensor


class TableBeliefs:
    """The posteriors of ``B`` runs, which start from one prior: :class:`ConjugatePosterior` with a batch in front.

    Transitions are Dirichlet rows or known. Rewards are known, or each hangs on one Normal unknown, which several may
    share.

    Args:
        prior: of the family.
        num_runs: ``B``.

    Attributes:
        concentration: Dirichlet parameters of all entries, ``(B, E)``.
        indices: successors, ``(S, A, K)``.
        entries: which entry is a successor's probability, ``(S, A, K)``; -1 where it is known.
        mean, precision: of the Normal unknowns, ``(B, G)``; an infinite precision is that of one that is known.
        counts: how often each action was tried, ``(B, S, A)``.
        layers: the states that can be reached by each step.

    Raises:
        ValueError: if the process has no horizon, a reward hangs on several unknowns, or another part of the process
            (initial distribution, discount, temperature, action prior) on any.
    """

    def __init__(self, prior: ConjugatePosterior, num_runs: int) -> None:
        structure = prior.structure
        process, moves, numbers = structure.process, structure.moves, structure.numbers
        assert isinstance(process, TabularMDP)
        assert moves is not None
        self.process, self.num_runs, self.noise = process, num_runs, prior.reward_noise
        structure.check_told()
        self.indices, self.entries = moves.indices, moves.entries
        known = moves.probabilities
        self._known = known if bool((known > 0).any()) else None
        self._entry = self.entries.clamp(min=0)
        self._open = None if bool((self.entries >= 0).all()) else self.entries >= 0
        self.possible = (self.entries >= 0) | (known > 0)
        self._rows, self._num_rows = structure.rows, int(structure.rows.max()) + 1 if len(structure.rows) else 0
        widths = torch.bincount(self._rows)
        # Rows of one length are summed as a matrix.
        self._width = int(widths[0]) if len(widths) and bool((widths == widths[0]).all()) else None
        self.concentration = structure.concentration.expand(num_runs, -1).clone()

        states, actions, _ = self.indices.shape
        if numbers.slopes.shape[-1] > 1:
            raise ValueError(
                "family: a reward that hangs on several Normal unknowns, or on correlated ones, cannot be explored; "
                "give each reward a Normal unknown of its own (several may share one)"
            )
        if len(numbers.slopes) and len(numbers.offset) != states * actions:
            raise ValueError(
                "family: unknown rewards must be r(s,a), of shape (S, A), to be explored; they are r(s,a,s') here"
            )
        self._offset = numbers.offset
        self._number = torch.where(
            numbers.varying >= 0, numbers.block[numbers.varying.clamp(min=0)] if len(numbers.block) else -1, -1
        )
        slope = numbers.slopes[:, 0] if len(numbers.slopes) else numbers.offset.new_zeros(1)
        self._slope = torch.where(numbers.varying >= 0, slope[numbers.varying.clamp(min=0)], 0.0)
        self.mean = numbers.mean.flatten().expand(num_runs, -1).clone()
        self.precision = numbers.factor.flatten().square().reciprocal().expand(num_runs, -1).clone()
        self._paid = None
        if len(numbers.offset) != states * actions:  # known rewards r(s,a,s')
            self._paid = self._on_support(numbers.offset)
            self._offset = numbers.offset.new_zeros(states * actions)
            self._number, self._slope = self._offset.long() - 1, self._offset
        self.counts = torch.zeros(num_runs, states, actions, dtype=torch.float64, device=self.indices.device)
        self.layers = Layers(
            self.indices,
            self.possible,
            process.initial_probabilities.double(),
            process.terminal,
            process.finite_horizon("explore"),
            process.discount,
            log_or_minus_inf(process.action_prior.double()),
        )
        self.episodes = 0

    def _on_support(self, flat: Tensor) -> Tensor:
        table = flat.reshape(*self.indices.shape[:2], -1)
        return table if table.shape == self.indices.shape else table.gather(-1, self.indices)

    @property
    def paid(self) -> Tensor | None:
        """Known rewards of transitions, ``(S, A, K)``; None where rewards are those of states and actions."""
        return self._paid

    def totals(self) -> Tensor:
        """Returns the sum of each row's Dirichlet parameters, ``(B, S, A)``; infinite where the row is known."""
        if not self._num_rows:
            return self.concentration.new_full((self.num_runs, *self.indices.shape[:2]), torch.inf)
        sums = self._sums(self.concentration)[:, self._rows[self.entries.amax(-1).clamp(min=0)]]
        return sums if self._open is None else torch.where(self._open.any(-1), sums, torch.inf)

    def transition(self) -> Tensor:
        """Returns the mean of ``p(s'|s,a)``, ``(B, S, A, K)``."""
        return self._as_transition(self.concentration)

    def own_reward(self) -> tuple[Tensor, Tensor]:
        """Returns mean and variance of ``r(s,a)``, both ``(B, S, A)``, without :attr:`paid`."""
        return self._as_reward(self.mean), self._spread(self.precision.reciprocal())

    def reward(self, transition: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and variance of ``E r(s,a)``, both ``(B, S, A)``, given :meth:`transition`.

        Where :attr:`paid` makes it a Dirichlet row's ``Σ p r(s,a,s')``, the variance is that of a Gaussian whose tails
        are above its own, ``(max r - min r)²/4(α+1)``: Marchal & Arbel 2017, arXiv:1705.00048.
        """
        mean, variance = self.own_reward()
        if self._paid is not None:
            no = ~self.possible
            span = self._paid.masked_fill(no, -torch.inf).amax(-1) - self._paid.masked_fill(no, torch.inf).amin(-1)
            variance = variance + span.square() / (4 * (self.totals() + 1))
        return self._with_paid(transition, mean), variance

    def mean_process(self) -> Drawn:
        """Returns every run's process at the mean of its unknowns."""
        transition = self.transition()
        return Drawn(transition, self._with_paid(transition, self._as_reward(self.mean)))

    def draw(self) -> Drawn:
        """Returns for every run a process drawn from what it believes."""
        transition = self._as_transition(self._gammas())
        numbers = self.mean + self.precision.rsqrt() * torch.randn_like(self.mean)
        return Drawn(transition, self._with_paid(transition, self._as_reward(numbers)))

    def at(self, episodes: int, told: Tensor, tried: Tensor) -> TableBeliefs:
        """Returns what is believed after some episodes.

        Args:
            episodes: how many.
            told: how often each entry of the Dirichlet rows was seen in them, ``(B, E)``.
            tried: how often each action was tried, ``(B, S, A)``.
        """
        other = copy.copy(self)
        other.episodes = episodes
        other.concentration = self.concentration + told
        other.counts = self.counts + tried
        return other

    def seen(self, walks: Trajectories) -> None:
        """Conditions run ``b`` on trajectory ``b``.

        Raises:
            ValueError: if a transition was seen that the family holds impossible.
        """
        state, action, after = walks.states[:-1], walks.actions, walks.states[1:]
        alive = walks.mask & ~self.process.terminal[state]
        run = torch.arange(self.num_runs, device=state.device).expand_as(state)
        same = (self.indices[state, action] == after[..., None]) & self.possible[state, action]
        if bool((wrong := alive & ~same.any(-1)).any()):
            t, which = (int(i) for i in wrong.nonzero()[0])
            raise ValueError(impossible(int(state[t, which]), int(action[t, which]), int(after[t, which])))
        entry = torch.where(same, self.entries[state, action], -1).amax(-1)
        told = alive & (entry >= 0)
        one = self.concentration.new_ones(int(told.sum()))
        self.concentration.index_put_((run[told], entry[told]), one, accumulate=True)
        one = self.counts.new_ones(int(alive.sum()))
        self.counts.index_put_((run[alive], state[alive], action[alive]), one, accumulate=True)
        pair = state * self.indices.shape[1] + action
        number = self._number[pair]
        told = alive & (number >= 0)
        if self.noise == 0:
            self._check_known(walks, alive & (number < 0), self._offset[pair], same)
        if self._paid is None and bool(told.any()):
            slope, left = self._slope[pair][told], walks.rewards.double()[told] - self._offset[pair][told]
            where = (run[told], number[told])
            if self.noise == 0:
                known = self.precision[where] == torch.inf
                fresh = tuple(each[~known] for each in where)
                self.mean[fresh] = (left / slope)[~known]
                self.precision[fresh] = torch.inf
                off = (slope * self.mean[where] - left).abs() > 1e-5 * (1 + left.abs())
                if bool(off.any()):
                    t, which = (int(i) for i in told.nonzero()[off][0])
                    raise ValueError(
                        f"truth: state {int(state[t, which])} and action {int(action[t, which])} paid "
                        f"{float(walks.rewards[t, which]):g}, which contradicts what was paid at another step; rewards "
                        f"are seen exactly with reward_noise = 0, so give reward_noise > 0 where they vary"
                    )
            else:
                weight = slope.square() / self.noise**2
                shift = torch.zeros_like(self.mean).index_put_(where, weight * left / slope, accumulate=True)
                before = self.precision.clone()
                self.precision.index_put_(where, weight, accumulate=True)
                self.mean = (before * self.mean + shift) / self.precision
        self.episodes += 1

    def _check_known(self, walks: Trajectories, known: Tensor, expected: Tensor, same: Tensor) -> None:
        """Raises ValueError if a reward that the family knows is not the one that was seen."""
        if self._paid is not None:
            expected = torch.where(same, self._paid[walks.states[:-1], walks.actions], 0.0).sum(-1)
        off = known & ((walks.rewards.double() - expected).abs() > 1e-5 * (1 + expected.abs()))
        if bool(off.any()):
            t, run = (int(i) for i in off.nonzero()[0])
            raise ValueError(
                f"truth: state {int(walks.states[t, run])} and action {int(walks.actions[t, run])} paid "
                f"{float(walks.rewards[t, run]):g}, and the family says {float(expected[t, run]):g}; make that reward "
                f"unknown, or give reward_noise > 0"
            )

    def _gammas(self) -> Tensor:
        """Returns Gamma draws of all entries, ``(B, E)``, up to a factor for each row."""
        if not self.concentration.numel() or float(self.concentration.min()) > _SMALL:
            return torch._standard_gamma(self.concentration)
        # A Gamma variable of shape α is one of shape α + 1 times U^(1/α), which is less than the least number if α is
        # small, often for a whole row.
        logs = torch._standard_gamma(self.concentration + 1).log()
        logs = logs + torch.rand_like(logs).log() / self.concentration
        top = logs.new_full((self.num_runs, self._num_rows), -torch.inf)
        top = top.scatter_reduce(1, self._rows.expand_as(logs), logs, "amax")
        return (logs - top[:, self._rows]).exp()

    def _as_transition(self, entries: Tensor) -> Tensor:
        if not self._num_rows:
            known = torch.zeros_like(self.indices, dtype=entries.dtype) if self._known is None else self._known
            return known.expand(len(entries), *known.shape)
        shares = entries / self._sums(entries)[:, self._rows] if self._width is None else self._shares(entries)
        table = shares[:, self._entry]
        if self._open is None:
            return table
        table = torch.where(self._open, table, 0.0)
        return table if self._known is None else table + self._known

    def _shares(self, entries: Tensor) -> Tensor:
        rows = entries.unflatten(-1, (-1, self._width))
        return (rows / rows.sum(-1, keepdim=True)).flatten(1)

    def _sums(self, entries: Tensor) -> Tensor:
        if self._width is not None:
            return entries.unflatten(-1, (-1, self._width)).sum(-1)
        sums = entries.new_zeros(len(entries), max(self._num_rows, 1))
        return sums.index_add(1, self._rows, entries)

    def _as_reward(self, numbers: Tensor) -> Tensor:
        shape = (self.num_runs, *self.indices.shape[:2])
        if not numbers.shape[-1]:
            return self._offset.expand(self.num_runs, -1).reshape(shape)
        return (self._offset + self._slope * numbers[:, self._number.clamp(min=0)]).reshape(shape)

    def _spread(self, variance: Tensor) -> Tensor:
        shape = (self.num_runs, *self.indices.shape[:2])
        if not variance.shape[-1]:
            return self._offset.new_zeros(shape)
        return (self._slope.square() * variance[:, self._number.clamp(min=0)]).reshape(shape)

    def _with_paid(self, transition: Tensor, reward: Tensor) -> Tensor:
        return reward if self._paid is None else reward + (transition * self._paid).sum(-1)


def impossible(state: int, action: int, after: int) -> str:
    """Returns what is wrong with a transition that a family gives no probability."""
    return (
        f"truth: action {action} in state {state} leads to state {after}, which the family gives no probability at any "
        f"value of its unknowns; widen its support"
    )
