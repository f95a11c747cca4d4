"""Noise that does not depend on how many ranks share a batch: each draws what the whole batch takes, and keeps its own.

So a computation on several ranks can be held to the same one on a single process, number for number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rl_as_inference.distributed import Ranks

__all__ = ["whole_noise"]

_ATEN = torch.ops.aten


@contextmanager
def whole_noise(ranks: Ranks, number: int) -> Iterator[None]:
    """Within it, draws that have a dimension of this rank's share of ``number`` are its part of a whole batch's draws.

    Other draws are the same on every rank. All ranks begin with generators in one state; the draws of a single process
    (:data:`rl_as_inference.distributed.ALONE`) are then those of the ranks together. It is slower, and is meant for
    tests; a batch's dimension is known by its size, so that no other should have it.

    Raises:
        NotImplementedError: for a batch of draws other than from normal, uniform, exponential, Bernoulli and
            categorical distributions.

    Example:
        >>> halves = []
        >>> for rank in range(2):
        ...     _ = torch.manual_seed(0)
        ...     with whole_noise(Ranks(rank, 2), 6):
        ...         halves.append(torch.randn(3))
        >>> _ = torch.manual_seed(0)
        >>> torch.equal(torch.cat(halves), torch.randn(6))
        True
    """
    before, ranks.draws_apart = ranks.draws_apart, True
    try:
        with _Whole(ranks, number):
            yield
    finally:
        ranks.draws_apart = before


class _Whole(TorchDispatchMode):
    """Takes the place of every operation that draws."""

    def __init__(self, ranks: Ranks, number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bounds, self.number = ranks.bounds(number), number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **named)
        drawn = _DRAWS.get(func)
        if drawn is not None and named.get("generator") is None:
            return drawn(self, *args, **named)
        result = func(*args, **named)
        if self._dim(result.shape) is not None:
            raise NotImplementedError(f"whole_noise: {func} draws in a way of its own; draw from another distribution")
        return result

    def _dim(self, shape: Sequence[int]) -> int | None:
        """Returns which dimension is the batch's."""
        begin, end = self.bounds
        return next((dim for dim, size in enumerate(shape) if size == end - begin), None)

    def part(self, shape: Sequence[int], draw: Callable[[list[int]], Tensor]) -> Tensor:
        """Returns this rank's part of a draw of such a shape."""
        dim = self._dim(shape)
        if dim is None:
            return draw(list(shape))
        whole = draw([*shape[:dim], self.number, *shape[dim + 1 :]])
        begin, end = self.bounds
        return whole.narrow(dim, begin, end - begin)


def _of_size(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(mode: _Whole, size: Sequence[int], **options: Any) -> Tensor:
        return mode.part(size, lambda shape: function(shape, **_known(options)))

    return drawn


def _like(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(mode: _Whole, like: Tensor, **options: Any) -> Tensor:
        made = {"dtype": options.get("dtype") or like.dtype, "device": options.get("device") or like.device}
        return mode.part(like.shape, lambda shape: function(shape, **made))

    return drawn


def _known(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in ("dtype", "device") and value is not None}


def _in_place(name: str) -> Callable[..., Tensor]:
    def drawn(mode: _Whole, into: Tensor, *args: Any, **options: Any) -> Tensor:
        return into.copy_(mode.part(into.shape, lambda shape: getattr(into.new_empty(shape), name)(*args)))

    return drawn


def _normal(mode: _Whole, mean: Any, std: Any = 1.0, **_: Any) -> Tensor:
    like = mean if isinstance(mean, Tensor) else std
    shape = torch.broadcast_shapes(*(each.shape for each in (mean, std) if isinstance(each, Tensor)))
    noise = mode.part(shape, lambda whole: torch.randn(whole, dtype=like.dtype, device=like.device))
    return mean + std * noise


def _bernoulli(mode: _Whole, probabilities: Tensor, **_: Any) -> Tensor:
    uniform = mode.part(probabilities.shape, lambda shape: torch.rand(shape, dtype=probabilities.dtype))
    return (uniform.to(probabilities.device) < probabilities).to(probabilities)


def _bernoulli_in_place(mode: _Whole, into: Tensor, probabilities: Any = 0.5, **_: Any) -> Tensor:
    uniform = mode.part(into.shape, lambda shape: torch.rand(shape, device=into.device))
    return into.copy_(uniform < probabilities)


def _multinomial(mode: _Whole, weights: Tensor, count: int, replacement: bool = False, **_: Any) -> Tensor:
    if count > 1 and not replacement:
        raise NotImplementedError("whole_noise: multinomial without replacement; draw from another distribution")
    begin, end = mode.bounds
    if mode._dim(weights.shape[:-1]) is None and weights.ndim > 1 and len(weights) % (end - begin) == 0:
        raise NotImplementedError("whole_noise: categorical draws in a plate within the batch's; draw Bernoulli ones")
    rows = (count, *weights.shape)  # one race of exponentials for each draw
    exponential = mode.part(rows, lambda shape: weights.new_empty(shape).exponential_())
    return (weights / exponential).argmax(-1).movedim(0, -1)


_DRAWS: dict[Any, Callable[..., Tensor]] = {
    _ATEN.rand.default: _of_size(torch.rand),
    _ATEN.randn.default: _of_size(torch.randn),
    _ATEN.rand_like.default: _like(torch.rand),
    _ATEN.randn_like.default: _like(torch.randn),
    _ATEN.uniform_.default: _in_place("uniform_"),
    _ATEN.normal_.default: _in_place("normal_"),
    _ATEN.exponential_.default: _in_place("exponential_"),
    _ATEN.normal.Tensor_Tensor: _normal,
    _ATEN.normal.Tensor_float: _normal,
    _ATEN.normal.float_Tensor: _normal,
    _ATEN.bernoulli.default: _bernoulli,
    _ATEN.bernoulli_.float: _bernoulli_in_place,
    _ATEN.bernoulli_.Tensor: _bernoulli_in_place,
    _ATEN.multinomial.default: _multinomial,
}
