"""The tensor operations of a function, recorded once and replayed without its Python."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
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
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about how it came by its operations
        script: Callable[[Tensor], Any] = torch.jit.trace(_Replay(tape, returned), (example,), check_trace=False)
    return script


@dataclass(frozen=True)
class _Name:
    """Stands for a tensor on the tape."""

    number: int


class _Step(NamedTuple):
    operation: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    results: list[int | None]


class _Tape(TorchDispatchMode):
    """Takes down every operation, in order: some write into tensors that others made."""

    def __init__(self, example: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[_Step] = []
        self.tensors = [example]  # kept, so that no other is given the identity of one that is on the tape
        self._numbers = {id(example): 0}
        self.written: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or PyTorch loads its compiler, a second's work, to keep it from compiling this mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        arguments, keywords = self.named((args, named))
        if func._schema.is_mutable:
            self.written.update(_memory(leaf) for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor))
        result = func(*args, **named)
        leaves = tree_leaves(result)
        if all(leaf is None or isinstance(leaf, Tensor) for leaf in leaves):  # else it was a question about values
            self.steps.append(_Step(func, arguments, keywords, [self._number(leaf) for leaf in leaves]))
        return result

    def _number(self, result: Tensor | None) -> int | None:
        if result is None:
            return None
        self.tensors.append(result)
        self._numbers[id(result)] = len(self.tensors) - 1
        return len(self.tensors) - 1

    def named(self, tree: Any) -> Any:
        """Returns nested arguments or results with names in place of their tensors, numbering those it did not know."""
        return tree_map(self._name, tree)

    def _name(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        known = self._numbers.get(id(leaf))
        return _Name(self._number(leaf) if known is None else known)  # type: ignore[arg-type]


class _Replay(nn.Module):
    """The steps that depend on the argument; what the others make is a constant."""

    def __init__(self, tape: _Tape, returned: Any) -> None:
        super().__init__()
        self._steps, self._returned = [], tape.named(returned)
        varies = {0}
        for step in tape.steps:
            used = {leaf.number for leaf in tree_leaves((step.arguments, step.named)) if isinstance(leaf, _Name)}
            touched = [*used, *(number for number in step.results if number is not None)]
            written = any(_memory(tape.tensors[number]) in tape.written for number in touched)
            if used & varies or written or torch.Tag.nondeterministic_seeded in step.operation.tags:
                varies.update(number for number in step.results if number is not None)
                self._steps.append(step)
        needed = tree_leaves(([step[1:3] for step in self._steps], self._returned))
        for number in {leaf.number for leaf in needed if isinstance(leaf, _Name)} - varies:
            # Not constants of the script: it would fold them, and where they are 0-dimensional, in single precision.
            self.register_buffer(f"constant_{number}", tape.tensors[number].detach())

    def forward(self, argument: Tensor) -> Any:
        made = {0: argument}

        def given(leaf: Any) -> Any:
            if not isinstance(leaf, _Name):
                return leaf
            found = made.get(leaf.number)
            return getattr(self, f"constant_{leaf.number}") if found is None else found

        for operation, arguments, named, results in self._steps:
            answer = operation(*tree_map(given, arguments), **tree_map(given, named))
            for number, result in zip(results, tree_leaves(answer), strict=True):
                if number is not None:
                    made[number] = result
        return tree_map(given, self._returned)


def _memory(tensor: Tensor) -> int:
    """Returns what tensors that share memory have in common."""
    return tensor.untyped_storage()._cdata
