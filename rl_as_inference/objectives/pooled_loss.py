"""One loss of several ranks, each of which evaluates its part: one sum over the ranks gives value and gradient."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from rl_as_inference.distributed import Ranks
from rl_as_inference.sharing import held_alike

__all__ = ["PooledLoss"]


class PooledLoss:
    """The sum over ranks of what each evaluates, with its gradient, bit for bit the same on every rank.

    The gradients of all parameters go over the wire as one vector, with the value beside them (Li et al. 2020,
    arXiv:2006.15704, without their buckets: trajectories take far longer than the parameters of a policy).

    Parameters are those that the program registers with Pyro, and others that the loss depends on when it is first
    evaluated. Whenever new ones come up, all ranks take rank 0's values of them.

    Args:
        policy: whose tables ranks compute in parts, as they all hold it alike; None for none.
    """

    def __init__(self, policy: Any = None) -> None:
        self._leaves: dict[str, Tensor] = {}
        self._policy = policy

    def __call__(self, ranks: Ranks, evaluate: Callable[[], Tensor]) -> Tensor:
        """Returns the sum, a number whose gradient is that of the sum.

        Args:
            ranks: all of which call this together.
            evaluate: returns this rank's part.

        Raises:
            ValueError: if ranks have other parameters: one that a rank meets must be in Pyro's store on all.
        """
        if ranks.size == 1:
            return evaluate()
        loss, found = self._evaluated(ranks, evaluate)
        if not torch.is_grad_enabled():
            return ranks.sum(loss)
        if not self._leaves and self._adopt(ranks, found, loss):
            loss, found = self._evaluated(ranks, evaluate)
        is_new, total, pooled = self._summed(ranks, loss, found)
        if is_new:  # a later batch may be the first to meet a parameter, on one rank alone
            self._adopt(ranks, found, loss)
            loss, found = self._evaluated(ranks, evaluate)
            _, total, pooled = self._summed(ranks, loss, found)
        learning = self._learning()
        store = pyro.get_param_store()
        for name, gradient in zip(learning, pooled, strict=True):
            if gradient is not None and name in store:  # met by some rank: Pyro's SVI is to step it on all
                pyro.param(name)
        return _WithGradients.apply(total, pooled, *learning.values())  # type: ignore[no-untyped-call]

    def _evaluated(self, ranks: Ranks, evaluate: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and the parameters that Pyro saw, by name."""
        # At first each asks for all of it: a policy that cannot answer at some steps then fails on every rank, and not
        # on one for which others wait.
        policy = self._policy if self._leaves else None
        with held_alike(ranks, policy), ranks.next_of_own_stream(), poutine.trace(param_only=True) as captured:
            loss = evaluate()
        sites = {name: site["value"].unconstrained() for name, site in sorted(captured.trace.nodes.items())}
        return loss, {name: value for name, value in sites.items() if value.requires_grad}

    def _learning(self) -> dict[str, Tensor]:
        return {name: leaf for name, leaf in self._leaves.items() if leaf.requires_grad}

    def _adopt(self, ranks: Ranks, found: dict[str, Tensor], loss: Tensor) -> bool:
        """Takes in parameters that are new; returns whether this rank's or another's values have changed."""
        held = pyro.get_param_store()._params
        leaves = {name: leaf for name, leaf in self._leaves.items() if held.get(name) is leaf}
        met = sorted({name for names in ranks.gather_objects([*found]) for name in names})
        named = {name: leaf for name in met if (leaf := found.get(name, held.get(name))) is not None}
        for name, leaf in (*named.items(), *((f"number {i}", leaf) for i, leaf in enumerate(_leaves_of(loss)))):
            if not any(leaf is other for other in leaves.values()):
                leaves[name] = leaf
        ranks.agree("parameters", {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in leaves.items()})
        ranks.check_devices(next(iter(leaves.values())).device if leaves else loss.device)
        self._leaves = leaves
        return take_first(ranks, leaves.values())

    def _summed(self, ranks: Ranks, loss: Tensor, found: dict[str, Tensor]) -> tuple[bool, Tensor, list[Tensor | None]]:
        """Returns whether a rank has met new parameters, and the sums over ranks of loss and gradients.

        A gradient is None where no rank's loss depends on the parameter. All of it goes over the wire together, since
        each time that ranks wait for one another costs more than the numbers do.
        """
        leaves = list(self._learning().values())
        gradients: Sequence[Tensor | None] = [None] * len(leaves)
        known = {id(leaf) for leaf in self._leaves.values()}
        is_new = any(id(value) not in known for value in found.values())
        if leaves and loss.requires_grad:
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        elif loss.requires_grad:  # all that was known has stopped learning
            is_new = True
        loss = loss.detach()
        dtype, device = loss.dtype, leaves[0].device if leaves else loss.device
        for leaf in leaves:
            dtype = torch.promote_types(dtype, leaf.dtype)
        pairs = list(zip(leaves, gradients, strict=True))
        parts = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in pairs]
        marks = torch.tensor([float(grad is not None) for grad in gradients] + [float(is_new)])
        flat = torch.cat([part.reshape(-1).to(device, dtype) for part in (*parts, marks, loss)])
        *pieces, counts, value = ranks.sum(flat).split([*(leaf.numel() for leaf in leaves), len(marks), 1])
        *is_used, is_new = (counts > 0).tolist()
        pooled = [
            piece.reshape(leaf.shape).to(leaf) if its else None
            for piece, leaf, its in zip(pieces, leaves, is_used, strict=True)
        ]
        return is_new, value.reshape(()).to(loss), pooled


def take_first(ranks: Ranks, tensors: Any) -> bool:
    """Fills tensors with rank 0's; returns whether they differed on any rank."""
    tensors = list(tensors)
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    if len(set(ranks.gather_objects(digest.hexdigest()))) == 1:
        return False
    ranks.broadcast_into(*tensors)
    return True


def _leaves_of(loss: Tensor) -> Iterator[Tensor]:
    """Yields the tensors that a loss depends on and that have a gradient of their own, in the graph's order."""
    stack, seen = [loss.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            yield leaf
        stack.extend(following for following, _ in reversed(node.next_functions))


class _WithGradients(torch.autograd.Function):
    """A value with gradients that are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        return None, None, *(None if each is None else upstream[0] * each for each in ctx.gradients)
