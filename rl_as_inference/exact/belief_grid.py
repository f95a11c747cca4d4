"""Bounds on the best ELBO of a finite process whose state is hidden and that has no horizon, by a grid of beliefs.

Soft values are convex in the belief, since ``V = log Σ_a p(a) e^{Q_a}`` of convex functions is. So values that are
interpolated between the points of a grid lie above them, and solve a finite process of the grid's points (Lovejoy 1991,
Operations Research 39(1)); and a controller whose memory is one of the points is a policy of the history, whose ELBO
lies below (Hansen 1998; Poupart & Boutilier 2003). Both are finite processes, and answered exactly.
"""

import math
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.exact import tabular
from rl_as_inference.exact.belief_tree import find, merged
from rl_as_inference.exact.beliefs import BeliefFilter, BeliefTables, first_beliefs, tables_of
from rl_as_inference.histories import History
from rl_as_inference.processes.tabular import TabularMDP
from rl_as_inference.processes.tabular_pomdp import TabularPOMDP

__all__ = ["StationaryBeliefPlan", "plan"]

_POINTS = 600
"""Points of the largest grid."""

_ENTRIES = 20_000_000
"""Numbers in the largest table that is held at once."""

_CLOSE = 1e-4
"""Nats between the bounds, relative to 1 + their size, at which no finer grid is tried."""

_UNKNOWNS = 1000
"""Pairs of a controller's memory and a state."""

_ROUNDS = 100
"""Improvements of a controller."""


@dataclass(frozen=True, eq=False)
class StationaryBeliefPlan:
    """A plan on beliefs for a process without horizon, and how good it is at least and at most.

    It is a policy ``(seen, t) -> Categorical`` of a :class:`rl_as_inference.History` or a belief ``(*batch, S)``, which
    looks one step ahead; its ELBO is at least the objective.

    Attributes:
        objective: an ELBO that a policy of the history reaches, 0-dimensional, in nats.
        error: no policy's is more than this above it, 0-dimensional, in nats.
        num_beliefs: points of the grid.
        soft_v: of each point's controller and each state, ``(num_beliefs, S)``, in reward units: what is linear in the
            belief, and below the value.
    """

    objective: Tensor
    error: Tensor
    num_beliefs: int
    soft_v: Tensor
    _tables: BeliefTables = field(repr=False)
    _values: Tensor = field(repr=False)  # soft_v in nats, in double
    _filter: BeliefFilter = field(repr=False)
    dynamics = "causal"
    sees = "belief"
    exact = True

    @property
    def process(self) -> TabularPOMDP:
        """The process that it is the plan of."""
        return self._filter.process

    @property
    def policy(self) -> "StationaryBeliefPlan":
        """The plan as a policy on beliefs."""
        return self

    def __call__(self, seen: Any, t: Any = 0) -> Any:
        """Returns the distribution over actions at a belief, or at a history."""
        if isinstance(seen, History):
            seen = self._filter.belief_of(seen)
        if not isinstance(seen, Tensor) or seen.shape[-1:] != self._tables.initial.shape:
            raise ValueError(
                f"belief must have shape (…, {len(self._tables.initial)}), got {tuple(getattr(seen, 'shape', ()))}"
            )
        flat = seen.detach().double().reshape(-1, seen.shape[-1])
        if bool((flat < -1e-9).any()) or bool(((flat.sum(-1) - 1).abs() > 1e-4).any()):
            raise ValueError("belief must hold probabilities >= 0 that sum to one over states")
        logits = self._tables.log_prior + _ahead(self._tables, flat, self._values).q
        return dist.Categorical(logits=logits.log_softmax(-1).to(self.soft_v.dtype).reshape(*seen.shape[:-1], -1))


def plan(pomdp: TabularPOMDP) -> StationaryBeliefPlan:
    """Returns a plan whose bounds are as close as a grid of a few thousand points makes them.

    Raises:
        ValueError: if even the coarsest grid is too large, or there is no fixed point.
    """
    tables = tables_of(pomdp).detached()
    going = tables.going.nonzero()[:, 0]
    if len(going) > _POINTS or len(tables.initial) * (first_beliefs(tables)[1] > 0).sum() > _UNKNOWNS:
        raise ValueError(
            f"transition: {len(going)} states, or what may be seen of them first, are too many for a grid of "
            f"beliefs; give the process a horizon, or fit a guides.BeliefPolicy"
        )
    best, upper, resolution = _below(tables), torch.inf, 1
    # The number of ways to share the resolution out among the states.
    while len(going) and math.comb(resolution + len(going) - 1, resolution) <= _POINTS:
        points = _grid(len(going), resolution).to(going.device)
        beliefs = tables.initial.new_zeros(len(points), len(tables.initial))
        beliefs[:, going] = points.to(beliefs) / resolution
        upper = min(upper, float(_above(tables, beliefs, points, going, resolution)))
        if upper - best.objective <= _CLOSE * (1 + abs(upper)):
            break
        resolution *= 2
    upper = upper if len(going) else 0.0
    dtype, alpha = pomdp.observation_table.dtype, pomdp.temperature
    objective = tables.initial.new_tensor(best.objective)
    return StationaryBeliefPlan(
        objective.to(dtype),
        objective.new_tensor(max(upper - best.objective, 0.0)).to(dtype),
        len(best.values),
        (alpha * best.values).to(dtype),
        tables,
        best.values,
        BeliefFilter(pomdp),
    )


def _grid(size: int, resolution: int) -> Tensor:
    """Returns all ways to share ``resolution`` out among ``size`` states, integers ``(n, size)``."""
    if size == 1:
        return torch.full((1, 1), resolution)
    # Non-increasing sums from the end; see Lovejoy 1991, section 2.
    tails = torch.tensor(list(combinations_with_replacement(range(resolution, -1, -1), size - 1)))
    sums = torch.cat([torch.full((len(tails), 1), resolution), tails, torch.zeros(len(tails), 1, dtype=torch.long)], 1)
    return sums[:, :-1] - sums[:, 1:]


def _keys(sums: Tensor, resolution: int) -> Tensor:
    powers = (resolution + 1) ** torch.arange(sums.shape[-1] - 1, -1, -1, device=sums.device)
    return (sums * powers).sum(-1)


def _interpolated(shares: Tensor, points: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Returns the grid points around beliefs and their weights, both ``(m, size)``: Freudenthal's triangulation.

    Args:
        shares: beliefs over the states that go on, ``(m, size)``.
        points: the grid, integers ``(n, size)``.
        resolution: of the grid.
    """
    sums = resolution * shares.flip(-1).cumsum(-1).flip(-1)
    sums[:, 0] = resolution
    rounded = sums.round()
    sums = torch.where((sums - rounded).abs() < 1e-9, rounded, sums).clamp(0, resolution)
    base = sums.floor()
    rest, order = (sums - base).sort(-1, descending=True)
    weights = torch.cat([1 - rest[:, :1], rest[:, :-1] - rest[:, 1:]], -1)  # rest of the first sum is 0, and last
    corners = [base]
    for k in range(shares.shape[1] - 1):
        corners.append(corners[-1].scatter_add(1, order[:, k : k + 1], torch.ones_like(rest[:, :1])))
    grid_sums = points.flip(-1).cumsum(-1).flip(-1)
    keys, place = _keys(grid_sums, resolution).sort()
    corner = torch.stack(corners, 1).long()
    # A corner of weight 0 may lie outside.
    index = torch.searchsorted(keys, _keys(corner, resolution)).clamp(max=len(keys) - 1)
    return place[index], weights


class _Ahead(NamedTuple):
    """One step ahead of beliefs ``(n, S)``."""

    q: Tensor
    """``Q(b, a)`` in nats, ``(n, A)``."""
    best: Tensor
    """Which of the values is best after each action and observation, ``(n, A, O)``."""


def _joint(tables: BeliefTables, beliefs: Tensor) -> Tensor:
    """Returns ``p(s', y, going on | b, a)``, ``(n, A, O, S)``."""
    after = (beliefs @ tables.transition.flatten(1)).unflatten(-1, tables.transition.shape[1:]) * tables.going
    return torch.einsum("nas,aso->naos", after, tables.observation)


def _ahead(tables: BeliefTables, beliefs: Tensor, values: Tensor) -> _Ahead:
    """Looks a step ahead with the largest of values that are linear in the belief, ``(k, S)``."""
    rows = []
    for part in beliefs.split(max(1, _ENTRIES // (tables.observation.numel() * max(1, len(values) // 8)))):
        worth, best = (_joint(tables, part) @ values.mT).max(-1)
        rows.append((part @ tables.reward + tables.discount * worth.sum(-1), best))
    return _Ahead(*(torch.cat(column) for column in zip(*rows, strict=True)))


def _above(tables: BeliefTables, beliefs: Tensor, points: Tensor, going: Tensor, resolution: int) -> Tensor:
    """Returns an upper bound: the best ELBO of the process whose beliefs are interpolated."""
    joint = _joint(tables, beliefs)
    mass = joint.sum(-1)
    shares = torch.where(mass[..., None] > 0, joint / mass.clamp(min=1e-300)[..., None], 0.0)[..., going]
    shares[..., 0] += mass == 0
    index, weights = _interpolated(shares.flatten(0, 2), points, resolution)
    n, actions, _ = mass.shape
    index = index.view(n, actions, -1)
    chances = (mass.flatten(0, 2)[:, None] * weights).view(n, actions, -1)
    # One more state is the end of the episode.
    over = torch.full((n, actions, 1), n, device=index.device)
    ended = (1 - chances.sum(-1, keepdim=True)).clamp(min=0)
    indices = torch.cat(
        [torch.cat([index, over], -1), torch.full((1, actions, index.shape[-1] + 1), n, device=index.device)]
    )
    chances = torch.cat([chances, ended], -1)
    chances = torch.cat([chances, chances.new_full((1, actions, chances.shape[-1]), 1 / chances.shape[-1])])
    initial = tables.initial.new_zeros(n + 1)
    first, sums = first_beliefs(tables)
    possible = sums > 0
    corner, weight = _interpolated((first[possible] / sums[possible][:, None])[:, going], points, resolution)
    initial.index_add_(0, corner.flatten(), (sums[possible][:, None] * weight).flatten())
    initial[n] += (1 - initial.sum()).clamp(min=0)
    reward = torch.cat([beliefs @ tables.reward, tables.reward.new_zeros(1, actions)])
    mdp = _process(indices, chances, reward, initial, tables, torch.arange(n + 1, device=index.device) == n)
    return tabular.plan(mdp).objective


def _process(
    indices: Tensor, chances: Tensor, reward: Tensor, initial: Tensor, tables: BeliefTables, terminal: Tensor
) -> TabularMDP:
    return TabularMDP.from_successors(
        indices,
        chances / chances.sum(-1, keepdim=True),
        reward,
        initial / initial.sum(),
        discount=tables.discount,
        action_prior=tables.log_prior.exp(),
        terminal=terminal,
    )


class _Controller(NamedTuple):
    objective: float
    values: Tensor
    """``(n, S)`` in nats."""


def _below(tables: BeliefTables) -> _Controller:
    """Returns a controller whose memory is one of the beliefs that are reached first, and its exact ELBO."""
    first, sums = first_beliefs(tables)
    if not bool((sums > 0).any()):  # every episode begins at its end
        return _Controller(0.0, first.new_zeros(1, first.shape[1]))
    beliefs = _reached(tables, first[sums > 0] / sums[sums > 0][:, None])
    # The action prior's own values, then those of choosing once before.
    nowhere = torch.zeros_like(tables.observation[:, 0, :], dtype=torch.long)[None]
    values = _solved(tables, tables.log_prior[None], nowhere)
    ahead = _ahead(tables, beliefs, values)
    values = _step(tables, (tables.log_prior + ahead.q).log_softmax(-1), ahead.best, values)
    best, reached = _Controller(-torch.inf, values), (beliefs @ values.mT).amax(-1)
    for _ in range(_ROUNDS):
        ahead = _ahead(tables, beliefs, values)
        values = _solved(tables, (tables.log_prior + ahead.q).log_softmax(-1), ahead.best)
        objective = float((first @ values.mT).amax(-1).sum())
        best = _Controller(objective, values) if objective > best.objective else best
        before, reached = reached, (beliefs @ values.mT).amax(-1)
        if bool((reached - before <= 0.01 * _CLOSE * (1 + reached.abs())).all()):
            break
    return best


def _reached(tables: BeliefTables, beliefs: Tensor) -> Tensor:
    """Returns the beliefs that are reached from the first ones, step by step, while there is room."""
    room = max(_UNKNOWNS // beliefs.shape[1], 1)
    found, _ = merged(beliefs)
    latest = found
    while len(latest) and len(found) < room:
        joint = _joint(tables, latest)[:, tables.log_prior > -torch.inf].flatten(0, 2)
        sums = joint.sum(-1)
        after, _ = merged(joint[sums > 0] / sums[sums > 0][:, None])
        latest = after[find(after, found) < 0]
        if len(found) + len(latest) > room:
            break
        found = torch.cat([found, latest])
    return found


def _solved(tables: BeliefTables, log_policy: Tensor, onward: Tensor) -> Tensor:
    """Returns a controller's values in every memory and state, ``(n, S)`` in nats.

    Args:
        tables: of the process.
        log_policy: of each memory, ``(n, A)``.
        onward: the next memory after each action and observation, ``(n, A, O)``.
    """
    n, states = len(log_policy), len(tables.initial)
    chance = log_policy.exp()
    joint = torch.einsum("saz,azo->saoz", tables.transition * tables.going, tables.observation)
    joint = joint * tables.going[:, None, None, None]
    moves = torch.zeros(n, states, n, states, dtype=chance.dtype, device=chance.device)
    memory = torch.arange(n, device=chance.device)
    for a in range(onward.shape[1]):
        for y in range(onward.shape[2]):
            # One entry for each memory, which leads to one.
            moves[memory, :, onward[:, a, y], :] += chance[:, a, None, None] * joint[:, a, y]
    own = _own(tables, log_policy) * tables.going
    identity = torch.eye(n * states, dtype=chance.dtype, device=chance.device)
    system = identity - tables.discount * moves.view(n * states, n * states)
    try:
        found: Tensor = torch.linalg.solve(system, own.flatten())
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise ValueError(
            "no fixed point: with no horizon and no discount every state must lead to a terminal one; set a horizon, "
            "or a discount below 1"
        ) from None
    return found.view(n, states)


def _own(tables: BeliefTables, log_policy: Tensor) -> Tensor:
    """Returns what a step earns less what it costs, ``(n, S)`` in nats."""
    chance = log_policy.exp()
    log_ratio = torch.where(chance > 0, tables.log_prior - log_policy, 0.0)
    return torch.einsum("na,sa->ns", chance, tables.reward) + (chance * log_ratio).sum(-1, keepdim=True)


def _step(tables: BeliefTables, log_policy: Tensor, onward: Tensor, values: Tensor) -> Tensor:
    """Returns the values of acting by a policy once, and then as the chosen values do, ``(n, S)`` in nats."""
    joint = torch.einsum("saz,azo->saoz", tables.transition * tables.going, tables.observation)
    moved = torch.einsum("na,saoz,naoz->ns", log_policy.exp(), joint, values[onward])
    return (_own(tables, log_policy) + tables.discount * moved) * tables.going
