"""Where a program jumps as its actions move, which no pathwise gradient sees."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from rl_as_inference.program.sites import is_action, step_of
from rl_as_inference.randomness import seeded

__all__ = ["Jumps", "Note", "jump_in"]

_VALUES = frozenset(
    {"__array__", "__bool__", "__complex__", "__contains__", "__float__", "__index__", "__int__", "allclose", "equal"}
    | {"is_nonzero", "item", "numpy", "tolist"}
)
"""What tells Python the value of a tensor."""

_STEPS = frozenset(
    {"__floordiv__", "__mod__", "__rfloordiv__", "__rmod__", "ceil", "ceil_", "fix", "floor", "floor_", "floor_divide"}
    | {"fmod", "frac", "heaviside", "remainder", "round", "round_", "sgn", "sign", "trunc", "trunc_"}
)
"""Functions from floating-point numbers to such that jump."""

_CUTS = frozenset({"detach", "detach_"})
"""What a gradient does not pass."""

_OF_SHAPE = frozenset(
    {"empty_like", "full_like", "isfinite", "isinf", "isnan", "isneginf", "isposinf", "new_empty", "new_full"}
    | {"new_ones", "new_tensor", "new_zeros", "ones_like", "rand_like", "randn_like", "zeros_like"}
)
"""What does not depend on values, or only asks whether they are numbers."""

_WRAPPERS = (__name__, "torch._tensor", "torch.functional", "torch.nn.functional", "torch.overrides")
_LIBRARIES = ("torch", "pyro", "zuko", "rl_as_inference")

_SINGLE_TRIALS = 8
"""Trials at first of a program whose runs are of one trajectory, and may go another way each time."""

_watch: Note | None = None


class Jumps:
    """What trial runs found out about programs, kept as long as the programs are.

    A choice that depended on the draws that a gradient is made of would bias it. So trials are runs of their own,
    under random numbers of their own: at the first time that a program is asked about, and again at the second,
    fourth, eighth, …, in which a rare course of it may show.
    """

    def __init__(self) -> None:
        self._notes: weakref.WeakKeyDictionary[Any, weakref.WeakKeyDictionary[Any, Note]] = weakref.WeakKeyDictionary()

    def note(self, program: Any, actor: Any) -> Note:
        """Returns what is known of a program under a policy or guide."""
        try:
            by_actor = self._notes.setdefault(program, weakref.WeakKeyDictionary())
            return by_actor.setdefault(actor, Note())
        except TypeError:  # it cannot be kept
            return Note()

    def look(self, program: Any, actor: Any, run: Callable[[], Any]) -> Note:
        """Returns what trials have shown so far, after another if one is due.

        Args:
            program, actor: what to keep the answer by.
            run: one run of the program with actions drawn by ``rsample``.
        """
        note = self.note(program, actor)
        note.calls += 1
        if note.found is None and note.calls & (note.calls - 1) == 0:
            for trial in range(_SINGLE_TRIALS if note.calls == 1 else 1):
                seen = jump_in(run, note.names, seed=note.calls + trial)
                note.found, note.ends = seen.found, note.ends or seen.ends
                if seen.found is not None or not seen.single:
                    break
        return note


@dataclass
class Note:
    """What trials have shown of a program.

    Attributes:
        found: where it jumps as its actions move, in words; None if it did not.
        ends: whether ``terminate`` was called before an action.
        single: whether its runs are of one trajectory.
        calls: how often it was asked about.
        names: of action sites that a guide does not mark as such.
    """

    found: str | None = None
    ends: bool = False
    single: bool = False
    calls: int = 0
    names: set[str] = field(default_factory=set)


def jump_in(run: Callable[[], Any], names: Collection[str] = (), seed: int = 0) -> Note:
    """Returns what one run shows, as its reparameterized actions move.

    Actions, and all that is computed from them, are tensors that notice when Python asks for their value (``if``,
    ``while``, ``float``, ``.item()``, …), and when a number is made of a step function of them (a comparison, rounding,
    an index), or without its gradient (``detach``). What torch, Pyro and this library ask for, such as whether
    arguments are valid, does not count; endings by ``terminate`` are noted apart. Draws that are not
    reparameterized stop it: their scores are taken. Python that leaves tensors behind without asking
    (``buffer[0] = action``) is not followed.
    """
    global _watch
    seen, before = Note(), _watch
    _watch = seen
    try:
        # Whatever is wrong with the program will be told by the run that counts.
        with contextlib.suppress(Exception), seeded(seed), torch.enable_grad(), _Following(names, seen):
            run()
    finally:
        _watch = before
    return seen


def _tell(what: str, frame: Any) -> None:
    if _watch is not None and _watch.found is None:
        _watch.found = f"{what} in line {frame.f_lineno} of {frame.f_code.co_name}()"


class _Following(Messenger):
    """Makes reparameterized actions tensors that are followed."""

    def __init__(self, names: Collection[str], seen: Note) -> None:
        super().__init__()
        self.names, self.seen = names, seen

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if not isinstance(value, Tensor) or msg["is_observed"]:
            return
        reparameterized = getattr(msg["fn"], "has_rsample", False)
        if reparameterized and (is_action(msg) or msg["name"] in self.names):
            self.seen.ends |= step_of(msg)["alive"] is not None
            self.seen.single = value.shape[: value.dim() - msg["fn"].event_dim].numel() == 1
            msg["value"] = _followed(value, jumps=False)
        elif not reparameterized:
            msg["value"] = value.as_subclass(Tensor)


class _Followed(Tensor):
    """A tensor computed from an action; ``jumps`` says that it is a step function of it."""

    jumps: bool

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **named)
        name = func.__name__
        if _watch is None or name in _OF_SHAPE or name == "as_subclass":
            return result
        jumps = any(leaf.jumps for leaf in tree_leaves((args, named)) if isinstance(leaf, _Followed))
        if name in _VALUES or name in _STEPS or name in _CUTS or func == Tensor.data.__get__:  # type: ignore[attr-defined]
            if (frame := _user()) is not None:
                _tell(f"{name.strip('_')} of what depends on an action", frame)
        elif name == "__setitem__":
            if jumps:
                _tell("numbers chosen by a step function of an action", sys._getframe(1))
            return result
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not leaves:
            return result
        if jumps and any(leaf.is_floating_point() for leaf in leaves):
            _tell("a number made of a step function of an action", _user() or sys._getframe(1))
        if not torch.is_grad_enabled() and (frame := _user()) is not None:
            _tell("a number computed without gradients from an action", frame)
        steps = jumps or _user() is not None

        def wrapped(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if leaf.is_floating_point():
                return _followed(leaf, jumps=False)
            return _followed(leaf, jumps=True) if steps else leaf

        return tree_map(wrapped, result)


def _followed(value: Tensor, jumps: bool) -> Tensor:
    followed = value.as_subclass(Tensor).as_subclass(_Followed)
    followed.jumps = jumps
    return followed


def _user() -> Any:
    """Returns the frame that called torch, if it is none of a library's own; models are programs as any other."""
    frame: Any = sys._getframe(1)
    while frame is not None and (module := frame.f_globals.get("__name__", "")) in _WRAPPERS:
        frame = frame.f_back
    if frame is None or (module.partition(".")[0] in _LIBRARIES and not module.startswith("rl_as_inference.models")):
        return None
    return frame
