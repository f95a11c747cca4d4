"""The exact posterior of a family whose unknowns are conjugate to what is seen of its process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from rl_as_inference.arguments import checked_but
from rl_as_inference.checks import check_count
from rl_as_inference.exploration.affine import by_block
from rl_as_inference.exploration.conjugacy import Moves, NotConjugateError, Structure, run_at
from rl_as_inference.exploration.gaussian import Exact, Noisy
from rl_as_inference.exploration.transitions import checked_noise, read_transitions
from rl_as_inference.host import in_turn
from rl_as_inference.processes import LinearGaussianMDP, MarkovDecisionProcess, TabularMDP

__all__ = ["ConjugatePosterior"]

_NEVER_NOTHING = 0.05
"""Gamma variables of larger parameters do not underflow."""


@dataclass(frozen=True)
class ConjugatePosterior:
    """What is known of a family's unknowns after some transitions, in closed form; it does not change, see `updated`.

    Conjugate are Dirichlet and Beta sites whose rows are rows of a TabularMDP's transition (in any order, each entry
    once, beside zeros; several rows may be one draw); Normal and MultivariateNormal sites that its rewards are affine
    in; and those that ``A``, ``B`` and ``drift`` of a LinearGaussianMDP are affine in (Bayesian linear regression).
    The posterior is a product of Dirichlet distributions and a Gaussian, see Bernardo & Smith, Bayesian Theory, 1994,
    chapter 5. All is computed in float64, on the process's device.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def family():
        ...     rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 1, 2)).to_event(2))
        ...     worth = pyro.sample("worth", dist.Normal(torch.zeros(2, 1), 1.0).to_event(2))
        ...     return TabularMDP(rows, worth, torch.tensor([1.0, 0.0]), horizon=3)
        >>> belief = ConjugatePosterior.of(family, reward_noise=1.0)
        >>> belief = belief.updated(torch.tensor([0, 0]), torch.tensor([0, 0]), torch.tensor([1.0, 2.0]),
        ...                         torch.tensor([1, 1]))
        >>> chance, mean, variance = belief.transition_mean[0, 0, 1], belief.reward_mean[0], belief.reward_variance[0]
        >>> [round(float(x), 4) for x in (chance, mean, variance)]
        [0.75, 1.0, 0.3333]
    """

    structure: Structure
    """What was found by looking at the family."""
    reward_noise: float
    """In reward units."""
    counts: Tensor
    """Dirichlet parameters of all entries, prior and seen, ``(E,)``."""
    gaussian: Noisy | Exact
    """What is believed of Gaussian unknowns."""
    num_seen: int = 0
    """Transitions seen."""

    @staticmethod
    def of(family: Callable[[], Any], *, reward_noise: float = 0.0) -> ConjugatePosterior | None:
        """Returns the prior of a family as a conjugate posterior; None where it is not conjugate.

        Args:
            family: a Pyro program without arguments that draws unknowns and returns a process.
            reward_noise: the deviation of Gaussian noise on rewards, in reward units; with 0 one seen once is known.

        Raises:
            ValueError: if the noise is negative or not finite.
        """
        try:
            return ConjugatePosterior.exactly(family, reward_noise=reward_noise)
        except NotConjugateError:
            return None

    @staticmethod
    @checked_but("reward_noise")
    def exactly(family: Callable[[], Any], *, reward_noise: float = 0.0) -> ConjugatePosterior:
        """Returns what :meth:`of` does; ValueError says why a family is not conjugate."""
        noise = checked_noise(reward_noise)
        kind = Exact if (structure := Structure.of(family)).moves is not None and noise == 0 else Noisy
        return ConjugatePosterior(structure, noise, structure.concentration, kind.before(structure.numbers))

    def before(self) -> ConjugatePosterior:
        """Returns what was known before anything was seen."""
        prior = self.structure.numbers
        gaussian = Noisy.before(prior) if isinstance(self.gaussian, Noisy) else Exact.before(prior)
        return replace(self, counts=self.structure.concentration, gaussian=gaussian, num_seen=0)

    def given(self, trajectories: Any) -> ConjugatePosterior:
        """Returns the posterior after trajectories, in any of the forms of :func:`infer_dynamics`.

        Raises:
            ValueError: as :meth:`updated` does; step and trajectory are named.
        """
        seen = read_transitions(trajectories)
        seen.check(self.structure.process)
        return self._seeing(*seen.flat, lambda i: f"{seen.noun}: {seen.name(i)}")

    @cached_property
    def process(self) -> MarkovDecisionProcess:
        """The process at the mean of the unknowns."""
        return self.process_of(self.mean())

    def process_of(self, values: dict[str, Tensor]) -> MarkovDecisionProcess:
        """Returns the process that the family builds at these values of its sites, in the sites' own types.

        Raises:
            ValueError: unless there is a value for each site.
        """
        sites = self.structure.sites
        if set(values) != set(sites):
            raise ValueError(f"values must have the sites {sorted(sites)}, got {sorted(values)}")
        own = {name: torch.as_tensor(value).to(sites[name].like) for name, value in values.items()}
        return run_at(self.structure.family, own)

    @in_turn
    def draw(self, count: int, *, seed: int | None = None, generator: Generator | None = None) -> dict[str, Tensor]:
        """Returns independent draws of the sites, ``(count, *site)`` float64 by name; see :func:`drawing` for seeds."""
        check_count("count", count)
        return self.by_site(*self.draw_all(count))

    def draw_all(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns independent draws of all Dirichlet entries ``(count, E)`` and all Gaussian numbers ``(count, n)``."""
        counts = self.counts.expand(count, -1)
        if len(self.counts) == 0 or float(self.counts.min()) > _NEVER_NOTHING:
            return self._as_rows(torch._standard_gamma(counts)), self.gaussian.draw(count)
        # Gamma(c) is Gamma(c + 1) U^{1/c}: in logarithms, as small parameters give numbers that underflow.
        logs = torch._standard_gamma(counts + 1).log() + torch.rand_like(counts).log() / counts
        top = logs.new_full((count, self._num_rows), -torch.inf)
        top = top.scatter_reduce(1, self.structure.rows.expand_as(logs), logs, "amax")
        return self._as_rows((logs - top[:, self.structure.rows]).exp()), self.gaussian.draw(count)

    def mean(self) -> dict[str, Tensor]:
        """Returns the mean of each site, float64 by name."""
        return self.by_site(self._as_rows(self.counts), self.gaussian.means().reshape(-1)[self.structure.numbers.place])

    def variance(self) -> dict[str, Tensor]:
        """Returns the variance of each site's numbers, ``(*site)`` float64 by name."""
        share, rows = self._as_rows(self.counts), self.structure.rows
        total = self.counts.new_zeros(self._num_rows).index_add(0, rows, self.counts)[rows]
        numbers = self.gaussian.roots().square().sum(-1).reshape(-1)[self.structure.numbers.place]
        return self.by_site(share * (1 - share) / (total + 1), numbers)

    def covariance(self, name: str, other: str | None = None) -> Tensor:
        """Returns the covariance of a site, float64; in the sites' units, squared.

        Of a Normal or MultivariateNormal site with ``n`` numbers ``(n, n)``, in their order. Of a Dirichlet site that
        of each row, ``(*batch, K, K)``, and of a Beta site the variances: rows are independent of one another.

        Args:
            name: the site.
            other: another Normal site with ``m`` numbers, for the ``(n, m)`` between the two.

        Raises:
            ValueError: for a site that there is not, or a pair that is not of Normal ones.
        """
        for each in (name, other or name):
            if each not in self.structure.sites:
                raise ValueError(f"name must be one of the sites {sorted(self.structure.sites)}, got {each!r}")
        site, second = self.structure.sites[name], self.structure.sites[other or name]
        if site.kind == "normal" and second.kind == "normal":
            place, roots = self.structure.numbers.place, self.gaussian.roots().flatten(0, 1)
            ours, theirs = (place[each.start : each.start + each.size] for each in (site, second))
            near = (ours // roots.shape[1])[:, None] == (theirs // roots.shape[1])[None]
            return torch.where(near, roots[ours] @ roots[theirs].T, 0.0)
        if other is not None and other != name:
            raise ValueError(f"other must be a Normal site, and so must name: {name!r} and {other!r} are not both")
        own = self.counts[site.start : site.start + site.size]
        rows = own.reshape(-1, site.width).reshape(
            *(site.shape if site.kind == "beta" else site.shape[:-1]), site.width
        )
        total = rows.sum(-1, keepdim=True)
        share = rows / total
        spread = (torch.diag_embed(share) - share[..., :, None] * share[..., None, :]) / (total[..., None] + 1)
        return spread[..., 0, 0] if site.kind == "beta" else spread

    def updated(self, state: Tensor, action: Tensor, reward: Tensor | None, next_state: Tensor) -> ConjugatePosterior:
        """Returns the posterior after more transitions.

        What is written down of terminal states counts for nothing.

        Args:
            state, action, next_state: of a finite process integers ``(N,)``, of a linear one ``(N, ds)``, ``(N, da)``.
            reward: ``(N,)`` in reward units; None where they were not seen. What a linear process earns is known.

        Raises:
            ValueError: if states or actions are outside the process's spaces, a transition is one that no value of the
                unknowns allows, or rewards that are seen exactly contradict one another; the transition is named.
        """
        return self._seeing(state, action, reward, next_state, lambda i: f"transition {i}")

    def _seeing(
        self, state: Any, action: Any, reward: Any, next_state: Any, name: Callable[[int], str]
    ) -> ConjugatePosterior:
        """Returns what :meth:`updated` does, with transitions called by ``name`` in messages."""
        device = self.counts.device
        state, action, next_state = (torch.as_tensor(x, device=device) for x in (state, action, next_state))
        reward = None if reward is None else torch.as_tensor(reward, device=device)
        if len({len(x) for x in (state, action, next_state)} | ({len(reward)} if reward is not None else set())) > 1:
            raise ValueError("state, action, reward and next_state must have the same length")
        if self.structure.moves is None:
            return self._seeing_motion(state, action, next_state, name)
        return self._seeing_steps(state, action, reward, next_state, name)

    def _seeing_motion(
        self, state: Tensor, action: Tensor, next_state: Tensor, name: Callable[[int], str]
    ) -> ConjugatePosterior:
        process, numbers = self.structure.process, self.structure.numbers
        assert isinstance(process, LinearGaussianMDP)
        assert isinstance(self.gaussian, Noisy)
        ds, da = process.state_size, process.action_size
        for what, value, size in (("state", state, ds), ("action", action, da), ("next_state", next_state, ds)):
            if value.dim() != 2 or value.shape[1] != size:
                raise ValueError(f"{what} must have shape (N, {size}), got {tuple(value.shape)}")
            if not bool(value.isfinite().all()):
                where = int((~value.isfinite()).any(1).nonzero()[0])
                raise ValueError(f"{name(where)}: its {what} is not finite; leave the transition out")
        features = torch.cat([state, action, state.new_ones(len(state), 1)], -1).double()
        lower = torch.linalg.cholesky(process.noise_cov.detach().double())
        known = features @ numbers.offset.reshape(ds, -1).T
        residual = torch.linalg.solve_triangular(lower, (next_state.double() - known).T, upper=False)  # (ds, N)
        table = numbers.slopes.new_zeros(len(numbers.offset), numbers.slopes.shape[-1])
        table[numbers.varying >= 0] = numbers.slopes
        whitened = torch.linalg.solve_triangular(lower, table.reshape(ds, -1), upper=False).reshape(ds, ds + da + 1, -1)
        slopes = torch.einsum("nf,dfk->dnk", features, whitened).flatten(0, 1)
        believed = self.gaussian
        if len(numbers.block):  # all rows are of one block, as the noise ties them together
            block, seen = numbers.block[:1].expand(len(slopes)), residual.flatten()
            believed = believed.seeing(block, slopes, seen, torch.ones_like(seen))
        return replace(self, gaussian=believed, num_seen=self.num_seen + len(state))

    def _seeing_steps(
        self, state: Tensor, action: Tensor, reward: Tensor | None, next_state: Tensor, name: Callable[[int], str]
    ) -> ConjugatePosterior:
        process, moves = self.structure.process, self.structure.moves
        assert isinstance(process, TabularMDP)
        assert moves is not None
        sizes = (process.num_states, process.num_actions, process.num_states)
        for what, value, size in zip(
            ("state", "action", "next_state"), (state, action, next_state), sizes, strict=True
        ):
            if value.dim() != 1 or value.is_floating_point():
                raise ValueError(f"{what} must be integers (N,), got {value.dtype} of shape {tuple(value.shape)}")
            if bool(((value < 0) | (value >= size)).any()):
                where = int(((value < 0) | (value >= size)).nonzero()[0])
                raise ValueError(f"{name(where)}: {what} {int(value[where])} is outside 0 … {size - 1}")
        alive = ~process.terminal[state]
        entry, known = moves.find(state, action, next_state)
        impossible = alive & (entry < 0) & (known == 0)
        if bool(impossible.any()):
            i = int(impossible.nonzero()[0])
            raise ValueError(
                f"{name(i)}: action {int(action[i])} in state {int(state[i])} leads to state {int(next_state[i])}, "
                f"which the family gives no probability at any value of its unknowns; widen its support, or mend what "
                f"was seen"
            )
        told = entry[alive & (entry >= 0)]
        counts = self.counts.index_add(0, told, torch.ones_like(told, dtype=torch.float64))
        believed = self.gaussian
        if reward is not None:
            reward = reward if reward.is_floating_point() else reward.double()
            if not bool(reward.isfinite().all()):
                i = int((~reward.isfinite()).nonzero()[0])
                raise ValueError(
                    f"{name(i)}: its reward is {float(reward[i]):g}; leave rewards out where not seen (None)"
                )
            believed = self._seeing_rewards(state, action, reward, next_state, alive, name)
        return replace(self, counts=counts, gaussian=believed, num_seen=self.num_seen + int(alive.sum()))

    def _seeing_rewards(
        self,
        state: Tensor,
        action: Tensor,
        reward: Tensor,
        next_state: Tensor,
        seen: Tensor,
        name: Callable[[int], str],
    ) -> Noisy | Exact:
        assert isinstance(self.structure.process, TabularMDP)
        numbers, place = self.structure.numbers, self.paid_in(state, action, next_state)
        which = numbers.varying[place]
        open_ = seen & (which >= 0)
        left = reward.double() - numbers.offset[place]
        row, first = which[open_], open_.nonzero().squeeze(-1)
        if isinstance(self.gaussian, Noisy):
            unique, back = row.unique(return_inverse=True)
            count = torch.zeros(len(unique), dtype=torch.float64, device=row.device)
            count = count.index_add(0, back, torch.ones_like(left[open_]))
            mean = torch.zeros_like(count).index_add(0, back, left[open_]) / count
            weight = count / self.reward_noise**2
            return self.gaussian.seeing(numbers.block[unique], numbers.slopes[unique], mean, weight)
        unique, back = row.unique(return_inverse=True)
        pick = torch.full_like(unique, len(row)).scatter_reduce(
            0, back, torch.arange(len(row), device=row.device), "amin"
        )
        believed = self.gaussian.seeing(numbers.block[unique], numbers.slopes[unique], left[first[pick]])
        expected = numbers.offset[place]
        told = (numbers.slopes[row] * believed.means()[numbers.block[row]]).sum(-1)
        expected = expected.index_add(0, first, told)
        coarse = min(reward.dtype, self.structure.process.reward_table.dtype, key=lambda kind: torch.finfo(kind).bits)
        tolerance = 1e-5 if torch.finfo(coarse).bits < 64 else 1e-9
        off = seen & ((reward.double() - expected).abs() > tolerance * (1 + reward.double().abs()))
        if bool(off.any()):
            i = int(off.nonzero()[0])
            raise ValueError(
                f"{name(i)}: its reward {float(reward[i]):g}, in state {int(state[i])} by action {int(action[i])}, is "
                f"not {float(expected[i]):g}, as the family and the other rewards have it; rewards are seen exactly "
                f"with reward_noise = 0, so give reward_noise > 0 where they vary, or leave rewards out"
            )
        return believed

    def paid_in(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Returns which of the reward's numbers transitions ``(N,)`` are paid, ``(N,)``."""
        assert isinstance(self.structure.process, TabularMDP)
        moves, place = self._moves, state * self.structure.process.num_actions + action
        if self._slots is None:
            return place
        if moves.dense:
            return place * moves.indices.shape[-1] + next_state
        slot = ((moves.indices[state, action] == next_state[:, None]) & self._slots[state, action]).int().argmax(-1)
        return place * moves.indices.shape[-1] + slot

    @cached_property
    def _slots(self) -> Tensor | None:
        """Which slots hold a successor, ``(S, A, K)``, where each has a reward of its own; else None."""
        process, moves = self.structure.process, self.structure.moves
        assert isinstance(process, TabularMDP)
        assert moves is not None
        return None if process.reward_table.dim() == 2 else (moves.entries >= 0) | (moves.probabilities > 0)

    # Of tables.

    @property
    def concentration(self) -> Tensor | None:
        """Dirichlet parameters of what follows each state and action, ``(S, A, S)``: 0 for what cannot follow.

        Rows that are known are 0 all over; None where all are, or the process is linear.
        """
        moves = self.structure.moves
        if moves is None or not bool((moves.entries >= 0).any()):
            return None
        return self._dense(torch.where(moves.entries >= 0, self.counts[moves.entries.clamp(min=0)], 0.0))

    @property
    def transition_mean(self) -> Tensor:
        """The mean of ``p(s'|s,a)``, ``(S, A, S)``."""
        return self._dense(self._shares)

    @property
    def reward_mean(self) -> Tensor:
        """The mean of the expected reward ``r(s,a)``, ``(S, A)`` in reward units; 0 in terminal states."""
        mean, _ = self._rewards
        return mean

    @property
    def reward_variance(self) -> Tensor:
        """How uncertain the expected reward ``r(s,a)`` is, its variance ``(S, A)``; 0 where it is known."""
        _, variance = self._rewards
        return variance

    def reward_cumulant(self, temperature: float | Tensor) -> Tensor:
        """Returns ``τ log E exp(r(s,a)/τ)`` over what is believed of the expected reward, ``(S, A)`` in reward units.

        That is ``mean + variance / 2τ``, exactly, since it is Gaussian; but where rewards hang on the next state and
        transitions are unknown, up to terms in ``1/τ²``.

        Args:
            temperature: τ > 0, in reward units per nat.
        """
        return self.reward_mean + self.reward_variance / (2 * temperature)

    @cached_property
    def _shares(self) -> Tensor:
        moves = self._moves
        entry = moves.entries.clamp(min=0)
        if len(self.counts) == 0:
            return moves.probabilities
        return torch.where(moves.entries >= 0, self._as_rows(self.counts)[entry], moves.probabilities)

    @property
    def _moves(self) -> Moves:
        if self.structure.moves is None:
            raise ValueError(
                "the family's process is linear-Gaussian: it has no tables; ask for mean() and covariance()"
            )
        return self.structure.moves

    @cached_property
    def _rewards(self) -> tuple[Tensor, Tensor]:
        numbers, process = self.structure.numbers, self.structure.process
        assert isinstance(process, TabularMDP)
        row = numbers.varying.clamp(min=0)
        open_ = numbers.varying >= 0
        mean, variance = numbers.offset.clone(), torch.zeros_like(numbers.offset)
        if len(numbers.slopes):
            mean = mean + torch.where(open_, (numbers.slopes * self.gaussian.means()[numbers.block]).sum(-1)[row], 0.0)
            spread = by_block(numbers.slopes, numbers.block, self.gaussian.roots())
            variance = torch.where(open_, spread.square().sum(-1)[row], 0.0)
        if self._slots is None:
            return mean.reshape(process.reward_table.shape), variance.reshape(process.reward_table.shape)
        shape = process.reward_table.shape
        mean, variance, share = mean.reshape(shape), variance.reshape(shape), self._shares
        expected = (share * mean).sum(-1)
        of_mean = torch.zeros_like(expected)
        if len(numbers.slopes):
            part = torch.where(open_.reshape(shape), share, 0.0)[..., None]
            whole = (part * spread[row].reshape(*shape, -1)).sum(-2)
            of_mean = whole.square().sum(-1)
        total = self._totals  # infinite where rows are known
        by_rows = ((share * mean.square()).sum(-1) - expected.square()).clamp(min=0) / (total + 1)
        once = (share * variance).sum(-1)
        return expected, by_rows + of_mean + (once - of_mean) / (total + 1)

    @cached_property
    def _totals(self) -> Tensor:
        """The Dirichlet parameters' sum of what follows each state and action, ``(S, A)``; infinite where known."""
        entries = self._moves.entries
        if len(self.counts) == 0:
            return torch.full(entries.shape[:2], torch.inf, dtype=torch.float64, device=entries.device)
        total = torch.where(entries >= 0, self.counts[entries.clamp(min=0)], 0.0).sum(-1)
        return torch.where((entries >= 0).any(-1), total, torch.inf)

    def _dense(self, slots: Tensor) -> Tensor:
        moves = self._moves
        out = slots.new_zeros(*slots.shape[:2], len(slots))
        return out.scatter_add(-1, moves.indices, slots)

    @cached_property
    def _num_rows(self) -> int:
        rows = self.structure.rows
        return int(rows[-1]) + 1 if len(rows) else 0

    def _as_rows(self, entries: Tensor) -> Tensor:
        """Returns positive entries ``(*batch, E)`` divided by the sums of their rows."""
        rows = self.structure.rows
        if len(rows) == 0:
            return entries
        totals = entries.new_zeros(*entries.shape[:-1], self._num_rows).index_add(-1, rows, entries)
        return entries / totals[..., rows]

    def by_site(self, entries: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        """Returns Dirichlet entries ``(*batch, E)`` and Gaussian numbers ``(*batch, n)`` as values of the sites."""
        return {
            name: site.value(numbers if site.kind == "normal" else entries)
            for name, site in self.structure.sites.items()
        }
