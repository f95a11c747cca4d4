"""The tensor operations of a function, recorded once and replayed without its Python."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["recorded"]


def recorded(function: Callable[[Tensor], Any], example: Tensor) -> Callable[[Tensor], Any]:
    """Returns ``function`` as the operations that it performs on ``example``, run by TorchScript.

    They are taken down beneath autograd and ``torch.func`` transforms, gradients included: distributions, handlers
    and constructors leave nothing behind. All else that the function reads is a constant, and what its Python asked of
    values it will not ask again, so that it must not branch on what depends on its argument (under
    ``torch.func.vmap`` it cannot).

    Args:
        function: of one tensor; it returns tensors.
        example: of the shape that all later arguments have.

    Example:
        >>> double = recorded(lambda x: (2 * x, x.sum()), torch.ones(2))
        >>> double(torch.tensor([1.0, 2.0]))
        (tensor([2., 4.]), tensor(3.))
    """
    tape = _Tape(example)
    with tape:
        returned = function(example)
    wanted = tape.named(returned)

    def replay(argument: Tensor) -> Any:
        made = {0: argument}

        def given(tree: Any) -> Any:
            return tree_map(lambda leaf: made[leaf.number] if isinstance(leaf, _Name) else leaf, tree)

        for operation, arguments, named, results in tape.steps:
            for name, result in zip(results, tree_leaves(operation(*given(arguments), **given(named))), strict=True):
                made[name] = result
        return given(wanted)

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about how it came by its operations
        script: Callable[[Tensor], Any] = torch.jit.trace(replay, (example,), check_trace=False)
    return script


@dataclass(frozen=True)
class _Name:
    """Stands for a tensor on the tape."""

    number: int


class _Step(NamedTuple):
    operation: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    results: list[int]


class _Tape(TorchDispatchMode):
    """Takes down every operation, in order: some write into tensors that others made."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self._kept = [example]  # so that no other tensor is given the identity of one that is on the tape
        self._numbers = {id(example): 0}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or PyTorch loads its compiler, a second's work, to keep it from compiling this mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments, named = self.named((args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        numbers = [self._number(leaf) for leaf in tree_leaves(result) if leaf is not None]
        if -1 not in numbers:  # what is not a tensor was a question about values
            self.steps.append(_Step(func, arguments, named, numbers))
        return result

    def _number(self, result: Any) -> int:
        if not isinstance(result, Tensor):
            return -1
        self._kept.append(result)
        self._numbers[id(result)] = len(self._kept) - 1
        return len(self._kept) - 1

    def named(self, tree: Any) -> Any:
        """Returns nested arguments or results with names in place of tensors that are on the tape."""

        def name(leaf: Any) -> Any:
            known = isinstance(leaf, Tensor) and id(leaf) in self._numbers
            return _Name(self._numbers[id(leaf)]) if known else leaf

        return tree_map(name, tree)
