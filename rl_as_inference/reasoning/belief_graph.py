"""The beliefs that the agents of a family may come to, and their plans there, with slopes.

A plan on beliefs is exact on the tree of histories, in which those that lead to equal beliefs are one
(:mod:`rl_as_inference.exact.belief_tree`). Beliefs that are equal by chance, at some values of the unknowns, move
apart with them, and a tree that takes these for one has wrong slopes. So histories are merged here where their beliefs
agree at a mixture, with weights in general position, of the tables that the family gave at several values: they are
rational functions of the tables, and agree there only if they do everywhere. Then what leads where is the same for all
members of the family, and their plans are sums and products on one graph, which has slopes and can be batched.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_as_inference.checks import holds
from rl_as_inference.exact.belief_tree import tree
from rl_as_inference.exact.beliefs import BeliefTables, first_beliefs

__all__ = ["BeliefGraph", "Edges", "Planned"]


class Edges(NamedTuple):
    """What leads from the beliefs of one step to those of the next, ``(E,)`` each."""

    parent: Tensor
    action: Tensor
    observation: Tensor
    child: Tensor
    number: Tensor
    """Of the edge of a belief, an action and an observation, ``(n, A, O)``; -1 for none."""
    first: Tensor
    """One edge to each belief of the next step, ``(n',)``."""
    row: Tensor
    """Of the belief and the action among all pairs of them."""
    view: Tensor
    """Of the action and the observation, likewise."""


class Planned(NamedTuple):
    """A plan on a graph's beliefs, in nats."""

    log_policy: list[Tensor]
    """``log π_t(a|b)``, ``T`` tensors ``(n_t, A)``."""
    start: Tensor
    """The probability of what is seen first, ``(O,)`` or ``(1,)``."""
    mass: list[Tensor]
    """The probability that the agent gives to going on along each edge, ``T-1`` tensors ``(E_t,)``."""


class BeliefGraph:
    """The beliefs of a family's agents, step by step, with what leads where.

    Attributes:
        roots: the first step's belief by what is seen first, ``(O,)`` or ``(1,)``; -1 for what cannot be seen.
        edges: ``T - 1`` of them.
        sizes: the number of beliefs of each step.
    """

    def __init__(self) -> None:
        self._mixture: BeliefTables | None = None
        self._count = 0
        self._horizon = 0
        self._grown = False
        self.roots = torch.empty(0)
        self.edges: list[Edges] = []
        self.sizes: list[int] = []

    def add(self, tables: BeliefTables, horizon: int) -> None:
        """Takes note of tables that an agent of the family has."""
        numbers = tables.detached()
        self._count += 1
        self._grown, self._horizon = self._grown and self._horizon == horizon, horizon
        if self._mixture is None:
            self._mixture = numbers
            return
        mixed: list[Any] = []
        for index, (old, new) in enumerate(zip(self._mixture, numbers, strict=True)):
            # Nearly equal weights, no two of which are in a simple ratio.
            weight = (0.5 + (2**0.5 * self._count + 3**0.5 * index) % 1) / self._count
            if isinstance(old, Tensor) and isinstance(new, Tensor) and not torch.equal(old, new):
                self._grown = False
                old = torch.where(old == new, old, old + min(weight, 0.9) * (new - old))
            mixed.append(old)
        allowed = torch.maximum(self._mixture.log_prior, numbers.log_prior)
        self._mixture = BeliefTables(*mixed)._replace(log_prior=allowed)

    def plan(self, tables: BeliefTables, horizon: int) -> Planned:
        """Returns the plan of an agent with these tables, differentiable in them.

        Raises:
            ValueError: if there are too many beliefs (how many is said).
        """
        if self._mixture is None or self._horizon != horizon:
            self.add(tables, horizon)
        if not holds(self._covers(tables)):  # possible here, and not in what was seen of the family before
            self.add(tables, horizon)
        if not self._grown:
            self._grow()
        beliefs, start, mass = self._forward(tables)
        value: Tensor | None = None
        log_policy = []
        for t in reversed(range(horizon)):
            q = beliefs[t] @ tables.reward
            if value is not None:
                edges = self.edges[t]
                onward = mass[t] * value.index_select(0, edges.child)
                q = q + tables.discount * onward.new_zeros(q.numel()).index_add(0, edges.row, onward).reshape(q.shape)
            logits = tables.log_prior + q
            value = torch.logsumexp(logits, -1)
            log_policy.append(logits - value[:, None])
        return Planned(log_policy[::-1], start, mass)

    def _covers(self, tables: BeliefTables) -> Tensor:
        """Returns whether nothing is possible in the tables that is not in the mixture, bool ``()``."""
        assert self._mixture is not None
        names = ("initial", "transition", "observation", "going", "first_observation")
        known, now = (one._asdict() for one in (self._mixture, tables))
        parts = [((known[name] > 0) | (now[name].detach() == 0)).all() for name in names if known[name] is not None]
        allowed = (self._mixture.log_prior > -torch.inf) | (tables.log_prior.detach() == -torch.inf)
        return torch.stack([*parts, allowed.all()]).all()

    def _grow(self) -> None:
        assert self._mixture is not None
        with torch.no_grad():
            levels, _, self.roots = tree(self._mixture, self._horizon)
        self.sizes = [len(level.beliefs) for level in levels]
        self.edges = []
        for level, size in zip(levels, self.sizes[1:], strict=False):
            assert level.child is not None
            parent, action, observation = (level.child >= 0).nonzero().unbind(-1)
            child = level.child[parent, action, observation]
            number = torch.full_like(level.child, -1)
            number[parent, action, observation] = order = torch.arange(len(child), device=child.device)
            first = child.new_zeros(size).index_put((child.flip(0),), order.flip(0))
            _, actions, seen = level.child.shape
            row, view = parent * actions + action, action * seen + observation
            self.edges.append(Edges(parent, action, observation, child, number, first, row, view))
        self._grown = True

    @property
    def width(self) -> int:
        """The numbers in the largest table of a step, roughly."""
        assert self._mixture is not None
        states = len(self._mixture.initial)
        return max([states * len(edges.child) for edges in self.edges], default=states)

    def _forward(self, tables: BeliefTables) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Returns the beliefs of all steps, the probability of what is seen first, and those of the edges."""
        joint, start = first_beliefs(tables)
        first = torch.arange(len(self.roots), device=self.roots.device)[self.roots >= 0]
        order = first.new_zeros(self.sizes[0]).index_put((self.roots[first],), first)
        beliefs, mass = [_divided(joint[order])], []
        states, moves, views = joint.shape[1], tables.transition.flatten(1), tables.observation.mT.flatten(0, 1)
        for edges in self.edges:
            after = (beliefs[-1] @ moves).reshape(-1, states) * tables.going
            arrived = after.index_select(0, edges.row) * views.index_select(0, edges.view)
            mass.append(arrived.sum(-1))
            beliefs.append(_divided(arrived.index_select(0, edges.first)))
        return beliefs, start, mass

    def edges_along(self, observations: Tensor, actions: Tensor, sees_first: bool) -> tuple[Tensor, Tensor]:
        """Returns the beliefs on the way of histories, ``(T, N)``, and the edges to them; -1 from the impossible on.

        The first row of the edges is the index of ``roots``.

        Args:
            observations: ``(T, N)``, of which the first row is unused where nothing is seen first.
            actions: ``(T, N)``; the last row is unused.
            sees_first: whether something is seen before the first action.
        """
        edge = observations[0] if sees_first else torch.zeros_like(observations[0])
        node = self.roots[edge]
        nodes, numbers = [node], [torch.where(node < 0, -1, edge)]
        for edges, action, seen in zip(self.edges, actions, observations[1:], strict=False):
            number = torch.where(node < 0, -1, edges.number[node.clamp(min=0), action, seen])
            child = edges.child if len(edges.child) else edges.child.new_full((1,), -1)
            node = torch.where(number < 0, -1, child[number.clamp(min=0)])
            nodes.append(node)
            numbers.append(number)
        return torch.stack(nodes), torch.stack(numbers)


def _divided(joint: Tensor) -> Tensor:
    """Returns rows divided by their sums; those that are impossible stay 0."""
    sums = joint.sum(-1, keepdim=True)
    return joint / torch.where(sums > 0, sums, 1.0)
