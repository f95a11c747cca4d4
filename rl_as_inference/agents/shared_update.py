"""One step of learning that several ranks take together: each on a batch of its own replay, with one gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.agents.compilation import CompileCost, accelerate
from rl_as_inference.agents.update import Update
from rl_as_inference.distributed import Ranks

__all__ = ["SharedUpdate"]


class SharedUpdate(Update):
    """An update in two halves, between which the gradients are summed over ranks, in one vector.

    Each half is traced (and compiled) once. The learned numbers of the ranks are bit for bit the same, as are reported
    numbers and running statistics, which are means over ranks; actions are drawn by each for its own environments.

    Args:
        *args: those of :class:`Update`.
        ranks: that learn together.
        **options: those of :class:`Update`.
    """

    def __init__(self, *args: Any, ranks: Ranks, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ranks = ranks
        self.take_first()

    def take_first(self) -> None:
        """Goes on with the learned numbers of rank 0."""
        self.ranks.broadcast_into(*self.tensors.values())

    def begin_anew(self, modules: Any) -> None:
        super().begin_anew(modules)
        self.take_first()

    def repays_compiling(self, num_updates: float) -> tuple[bool, CompileCost | None]:
        repays, cost = super().repays_compiling(num_updates)
        return self.ranks.broadcast(repays), cost  # compiled arithmetic rounds in its own way

    def _accelerated(self, compile: bool) -> list[Callable[..., Any]]:
        return [_Halves(self, whole, compile) for whole in ([True, False] if self.late else [True])]


class _Halves:
    """A step with a sum over ranks in the middle; called with the tensors that it writes, and those that it reads."""

    def __init__(self, update: SharedUpdate, whole: bool, compile: bool) -> None:
        self.update, self.whole = update, whole
        written, read = update._written, update._read
        self.count = len(update.tensors)
        sizes = [update._stop(whole), update.tensors["sums"].shape[-1], update.statistics_layout.size]
        self.sizes = [size for size in sizes if size]
        lead = () if update.num_seeds == 1 else (update.num_seeds,)
        self.sent = written[0].new_zeros(*lead, sum(self.sizes))
        learned, action, ranked = self._parted(written)
        first, second = [self.sent, *ranked], [*learned, action]
        self.measure = accelerate(self._write_slope, first, [*learned, *read[2:]], compile=compile)
        self.move = accelerate(self._write_moved, second, [self.sent, *read[:2]], compile=compile)
        if compile and written[0].device.type != "cuda":
            # What a compiler leaves for the first call is done on copies.
            self.measure(*(each.clone() for each in first), *learned, *read[2:])
            self.move(*(each.clone() for each in second), self.sent, *read[:2])

    def __call__(self, *tensors: Tensor) -> None:
        written, read = tensors[: len(self.update._written)], tensors[len(self.update._written) :]
        learned, action, ranked = self._parted(written)
        self.measure(self.sent, *ranked, *learned, *read[2:])
        self.update.ranks.add_up(self.sent)
        self.move(*learned, action, self.sent, *read[:2])

    def _parted(self, written: Any) -> tuple[Any, Tensor, Any]:
        """Returns the learned numbers, the actions, and replay's priorities."""
        return written[: self.count], written[self.count], written[self.count + 1 :]

    def _write_slope(self, sent: Tensor, *tensors: Tensor) -> None:
        update = self.update
        ranks = len(update._ranked)
        ranked, learned, read = tensors[:ranks], tensors[ranks : ranks + self.count], tensors[ranks + self.count :]

        def one(*of_seed: Tensor) -> tuple[Tensor, ...]:
            own, rest = of_seed[:ranks], of_seed[ranks:]
            slope, seen = update._slope(self.whole, own, rest[: self.count], *rest[self.count :])
            return torch.cat(slope), *seen

        function: Any = one
        of_seed: Any = ranked
        if update.num_seeds > 1:
            in_dims = (0,) * (ranks + self.count + 1) + (None, None)
            function = torch.func.vmap(one, in_dims=in_dims, randomness="different")
        else:
            of_seed = [tensor[0] for tensor in ranked]
        total, *seen = function(*of_seed, *learned, *read)
        sent.copy_(total)
        if update._priorities is not None:
            tree, largest, num_updates = ranked
            row, error = (each.reshape(update.num_seeds, -1) for each in seen)
            update._priorities.renew(tree, largest, num_updates, row, error)

    def _write_moved(self, *tensors: Tensor) -> None:
        written, (sent, observation, time) = tensors[: self.count + 1], tensors[self.count + 1 :]
        function: Any = partial(self._moved_by)
        if self.update.num_seeds > 1:
            function = torch.func.vmap(function, randomness="different")
        for old, value in zip(written, function(sent, observation, time, *written[:-1]), strict=True):
            old.copy_(value)

    def _moved_by(self, sent: Tensor, observation: Tensor, time: Tensor, *learned: Tensor) -> tuple[Tensor, ...]:
        slope = (sent / self.update.ranks.size).split(self.sizes)
        return self.update._moved(self.whole, slope, learned, observation, time)
