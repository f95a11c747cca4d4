"""Prioritised replay: rows drawn in proportion to what their errors were, from a tree of sums on the device."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise

import torch
from torch import Tensor

__all__ = ["Priorities"]

_WIDTH = 32
"""Children of a node: a million rows are four levels, each one gather and one short cumulative sum."""
_LEAST = 1e-6
"""Added to every error, reward units, so that no row is lost (Schaul et al. 2016, section 3.3)."""


class Priorities:
    """Proportional priorities (Schaul, Quan, Antonoglou & Silver 2016, arXiv:1511.05952, section 3.3).

    A row is drawn with probability ``P(i) = p_i / Σ_j p_j``, ``p = (|TD error| + 1e-6)^α``, with replacement, and
    counts ``w = (N P)^-β`` over the largest such weight of its batch. New rows have the largest priority so far. With
    β = 1 the weights undo the priorities: ``E_P[(N P)^-1 f] = mean f``, the estimate of uniform replay. Priorities are
    the leaves of a tree whose other nodes are the sums of their children, anew at every change, so that nothing drifts.

    Args:
        capacity: rows of each learner.
        num_learners: learners.
        exponent: α; 0 is uniform, and needs none of this.
        importance_exponent: β at the start.
        importance_annealing: updates until β, which rises evenly, is 1; None keeps it.
        device: where the tree lives.

    Attributes:
        tree: ``(num_learners, nodes)`` float64: leaves, then the sums of each level.
        largest: ``(num_learners, 1)``: the largest priority so far; 1 at first.
        num_updates: ``(num_learners, 1)``: how often priorities were renewed, by which β rises.

    Example:
        >>> priorities = Priorities(3, exponent=1.0, importance_exponent=1.0)
        >>> priorities.begin(0, 3)
        >>> priorities.renew(*priorities.tensors, torch.tensor([[1]]), torch.tensor([[3.0]]))
        >>> priorities.tree[0, :3].round(decimals=5)
        tensor([1., 3., 1.], dtype=torch.float64)
    """

    def __init__(
        self,
        capacity: int,
        num_learners: int = 1,
        *,
        exponent: float,
        importance_exponent: float,
        importance_annealing: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.exponent, self.importance_exponent = exponent, importance_exponent
        self.importance_annealing = importance_annealing
        sizes = [_whole(capacity)]
        while sizes[-1] > _WIDTH:
            sizes.append(_whole(sizes[-1] // _WIDTH))
        self.starts = [0, *accumulate(sizes)][:-1]
        self.tree = torch.zeros(num_learners, sum(sizes), dtype=torch.float64, device=device)
        self.largest, self.num_updates = torch.ones_like(self.tree[:, :1]), torch.zeros_like(self.tree[:, :1])

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What an update reads and writes, each beginning with the dimension of learners."""
        return self.tree, self.largest, self.num_updates

    def begin(self, start: int, end: int) -> None:
        """Gives the rows from ``start`` to ``end``, which are new, the largest priority."""
        self.tree[:, start:end] = self.largest
        self._add_up(start, end)

    def draw(self, tree: Tensor, num_updates: Tensor, size: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns ``count`` rows of one learner, and what each counts, ``(count,)``; the largest weight is 1.

        A pure function of one learner's tensors and PyTorch's generator, that can be traced and batched over learners.

        Args:
            tree: ``(nodes,)``.
            num_updates: ``(1,)``.
            size: rows in use.
            count: how many to draw.
        """
        children = torch.arange(_WIDTH, device=tree.device)
        left = torch.rand(count, dtype=torch.float64, device=tree.device) * tree[self.starts[-1] :].sum()
        node = torch.zeros_like(left, dtype=torch.int64)
        for start in reversed(self.starts):
            of = start + node[:, None] * _WIDTH + children
            sums = tree.gather(0, of.reshape(-1)).reshape(count, _WIDTH).cumsum(-1)
            # The first child whose sum is past what is left; by rounding there may be none, and then the last that
            # has any priority.
            child = torch.minimum((sums <= left[:, None]).sum(-1), (sums < sums[:, -1:]).sum(-1))
            before = sums.gather(1, (child - 1).clamp(min=0)[:, None])[:, 0]
            left = left - torch.where(child > 0, before, 0.0)
            node = node * _WIDTH + child
        return node, self._weight(tree, num_updates, size, node)

    def _weight(self, tree: Tensor, num_updates: Tensor, size: Tensor, row: Tensor) -> Tensor:
        weight = (size * self.probability(tree, row)) ** -self._importance(num_updates)
        weight = torch.where(size > 0, weight, 1.0)  # tracing comes before the first row
        return weight / weight.amax()

    def probability(self, tree: Tensor, row: Tensor) -> Tensor:
        """Returns with what probability rows ``(count,)`` are drawn, of one learner's tree."""
        return tree.gather(0, row) / tree[self.starts[-1] :].sum()

    def _importance(self, num_updates: Tensor) -> float | Tensor:
        """Returns β."""
        if self.importance_annealing is None:
            return self.importance_exponent
        share = (num_updates / self.importance_annealing).clamp(max=1.0)
        return self.importance_exponent + (1 - self.importance_exponent) * share

    def renew(self, tree: Tensor, largest: Tensor, num_updates: Tensor, row: Tensor, error: Tensor) -> None:
        """Gives rows the priorities of their errors, in place.

        A function that can be traced. A row that was drawn twice has the larger of its errors.

        Args:
            tree, largest, num_updates: of all learners.
            row: ``(num_learners, count)``.
            error: of each, ``(num_learners, count)``, reward units.
        """
        priority = (error.abs().double() + _LEAST) ** self.exponent
        same = row[:, :, None] == row[:, None, :]
        priority = torch.where(same, priority[:, None, :], 0.0).amax(-1)  # of what is written twice, the same
        learner = torch.arange(len(row), device=row.device)[:, None]
        children = torch.arange(_WIDTH, device=row.device)
        tree.index_put_((learner, row), priority)
        for start, parents in pairwise(self.starts):
            row = row // _WIDTH
            of = start + row[:, :, None] * _WIDTH + children
            tree.index_put_((learner, parents + row), tree[learner[:, :, None], of].sum(-1))
        largest.copy_(torch.maximum(largest, priority.amax(-1, keepdim=True)))
        num_updates.add_(1)

    def _add_up(self, start: int, end: int) -> None:
        """Makes the sums above the leaves from ``start`` to ``end`` anew."""
        for level, above in pairwise(self.starts):
            start, end = start // _WIDTH, -(-end // _WIDTH)
            children = self.tree[:, level + start * _WIDTH : level + end * _WIDTH]
            self.tree[:, above + start : above + end] = children.unflatten(1, (-1, _WIDTH)).sum(-1)

    def state_dict(self, size: int) -> dict[str, Tensor]:
        """Returns the priorities of ``size`` rows in use, and all that goes with them."""
        above = self.tree[:, self.starts[1] :] if len(self.starts) > 1 else self.tree[:, :0]
        return {
            "priorities": self.tree[:, :size],
            "priority_sums": above,  # as they were added up, which is not bit for bit how one would do it now
            "largest_priority": self.largest,
            "priority_updates": self.num_updates,
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor], turn: int = 0) -> None:
        """Goes on from there; the rows have ``turn`` places moved, where the ring has another capacity."""
        size = tensors["priorities"].shape[1]
        self.tree.zero_()
        if not size:  # as if nothing had been stored
            self.largest.fill_(1.0)
            self.num_updates.zero_()
            return
        leaves, sums = tensors["priorities"].roll(turn, 1), tensors["priority_sums"]
        self.tree[:, :size] = leaves.to(self.tree)
        above = self.tree.shape[1] - self.starts[1] if len(self.starts) > 1 else 0
        if turn == 0 and sums.shape[1] == above:
            if above:
                self.tree[:, self.starts[1] :] = sums.to(self.tree)
        else:
            self._add_up(0, size)
        self.largest.copy_(tensors["largest_priority"])
        self.num_updates.copy_(tensors["priority_updates"])


def _whole(count: int) -> int:
    return -(-count // _WIDTH) * _WIDTH
