"""Work that ranks share: they agree on what it is before they begin."""

from __future__ import annotations

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rl_as_inference.distributed import Ranks, joined, present

__all__ = ["agree_on", "failing_together", "held_alike", "in_shares", "parts_of", "sharing"]

_DEPTH = 6
"""How far objects are looked into."""

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.Size, type(None))


@contextmanager
def sharing(distributed: bool, process: Any, policy: Any, **options: Any) -> Iterator[Ranks]:
    """Yields the ranks that share a computation, once they have found that it is the same for all.

    Raises:
        ValueError: on every rank, if the process, the policy or an option differs on one; it names the part and the
            rank.
    """
    with joined(distributed) as ranks:
        agree_on(ranks, process=process, policy=policy)
        ranks.agree("options", options)
        held = next(policy.parameters(), None) if isinstance(policy, nn.Module) else None
        ranks.check_devices(torch.device("cpu") if held is None else held.device)
        yield ranks


@contextmanager
def failing_together(ranks: Ranks) -> Iterator[None]:
    """Raises on every rank the ValueError that one meets within it: the others would wait for that one."""
    failure: ValueError | None = None
    try:
        yield
    except ValueError as error:
        failure = error
    told = ranks.gather_objects(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for rank, words in enumerate(told):
        if words is not None:
            raise ValueError(f"{words} (on rank {rank})")


def agree_on(ranks: Ranks, **objects: Any) -> None:
    """Checks that objects are the same on all ranks, by hashes of their parts.

    Raises:
        ValueError: if not; it names the part.
    """
    if ranks.size > 1:
        for name, value in objects.items():
            ranks.agree(name, parts_of(value))


@contextmanager
def held_alike(ranks: Ranks, policy: Any) -> Iterator[None]:
    """Within it all ranks have the same parameters of a policy, and ask it for the same tables in the same order."""
    ranks.alike, before = policy, ranks.alike
    try:
        yield
    finally:
        ranks.alike = before


def in_shares(policy: Any, number: int, ask: Callable[[slice], Tensor], meanwhile: Callable[[], None]) -> Tensor:
    """Returns what a policy answers to ``number`` questions; of one that is :func:`held_alike` each rank asks a part.

    Args:
        policy: who is asked.
        number: of questions.
        ask: returns the answers to a part of them, ``(size of the part, ...)``.
        meanwhile: what is to be done after that and needs no answer; others' answers come while it is done.

    Returns:
        ``(number, ...)``, bit for bit the same on every rank. Its gradient is passed on by the rank that asked, so that
        the ranks' gradients sum to that of the sum of their losses.
    """
    ranks = present()
    if ranks.size == 1 or ranks.alike is None or ranks.alike is not policy or number < ranks.size:
        answers = ask(slice(number))
        meanwhile()
        return answers
    part = slice(*ranks.bounds(number))
    sizes = [number // ranks.size + (rank < number % ranks.size) for rank in range(ranks.size)]
    of_all: Tensor = _OfAllRanks.apply(ask(part), ranks, sizes, meanwhile)  # type: ignore[no-untyped-call]
    return of_all


class _OfAllRanks(torch.autograd.Function):
    """The rows of all ranks, of which each has computed some."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks, sizes: list[int], meanwhile: Callable[[], None]) -> Tensor:
        ctx.ranks, ctx.sizes = ranks, sizes
        for_all = rows.expand(ranks.size, *rows.shape).flatten(0, 1)
        return ranks.exchange(for_all, [len(rows)] * ranks.size, sizes, meanwhile)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        ranks, own = ctx.ranks, ctx.sizes[ctx.ranks.rank]
        parts = ranks.exchange(upstream[0], ctx.sizes, [own] * ranks.size)
        return parts.unflatten(0, (ranks.size, own)).sum(0), None, None, None


def parts_of(value: Any) -> dict[str, str]:
    """Returns what an object is, as text: its type, and each public attribute, of which long ones are hashed.

    Example:
        >>> parts_of(torch.nn.Linear(1, 1, bias=False).requires_grad_(False)).keys()
        dict_keys(['type', 'in_features', 'out_features', 'weight'])
    """
    name = type(value).__qualname__
    if isinstance(value, dict):
        return {key: _short(_text(each, _DEPTH, set())) for key, each in value.items()}
    if not hasattr(value, "__dict__"):
        return {"type": name, "value": _short(_text(value, _DEPTH, set()))}
    if isinstance(value, types.FunctionType | functools.partial | types.MethodType):
        return {"type": name, "code": _short(_text(value, _DEPTH, set()))}
    parts = {"type": name}
    for key, each in _attributes(value):
        parts[key] = _short(_text(each, _DEPTH, {id(value)}))
    return parts


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields the public attributes that make an object what it is; caches, and what is private, do not."""
    for name in ("horizon", "discount", "temperature", "kernel"):
        own = name in vars(value) or (name != "kernel" and _is_computed(value, name))
        if not own and (each := getattr(value, name, None)) is not None:
            yield name, each
    for name, each in vars(value).items():
        if not name.startswith("_") and name != "training" and not _is_computed(value, name):
            yield name, each
    if isinstance(value, nn.Module):
        yield from value.state_dict().items()


def _is_computed(value: Any, name: str) -> bool:
    return isinstance(inspect.getattr_static(type(value), name, None), property | functools.cached_property)


def _text(value: Any, depth: int, seen: set[int]) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        held = value.detach().cpu().contiguous()
        return f"{value.dtype} {tuple(value.shape)} {_hash(held.reshape(-1).view(torch.uint8).numpy().tobytes())}"
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype} {value.shape} {_hash(np.ascontiguousarray(value).tobytes())}"
    if isinstance(value, torch.device):
        return value.type  # which of its kind is each rank's own
    if isinstance(value, gymnasium.Space):
        return repr(value)
    if not depth or id(value) in seen:
        return type(value).__qualname__
    further = functools.partial(_text, depth=depth - 1, seen=seen | {id(value)})
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {further(each)}' for key, each in value.items())}}}"
    if isinstance(value, Set):
        return f"{{{', '.join(sorted(further(each) for each in value))}}}"
    if isinstance(value, Sequence):
        return f"[{', '.join(further(each) for each in value)}]"
    if isinstance(value, functools.partial):
        return f"partial {further(value.func)} {further(value.args)} {further(value.keywords)}"
    if isinstance(value, types.MethodType):
        return f"method {further(value.__func__)} of {further(value.__self__)}"
    if isinstance(value, types.FunctionType):
        return f"{value.__qualname__} {further(list(_of_function(value)))}"
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return f"{type(value).__qualname__} {further(dict(_attributes(value)))}"


def _of_function(function: types.FunctionType) -> Iterator[Any]:
    """Yields what a function does and what it does it with."""
    yield from _of_code(function.__code__)
    yield function.__defaults__
    yield function.__kwdefaults__
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for name in function.__code__.co_names:
        if isinstance(each := function.__globals__.get(name), (*_PLAIN, Tensor, np.ndarray)):
            yield each


def _of_code(code: types.CodeType) -> Iterator[Any]:
    yield _hash(code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant)
        else:
            yield constant


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:24]}… ({_hash(text.encode())})"


def _hash(held: bytes) -> str:
    return hashlib.sha256(held).hexdigest()[:12]
