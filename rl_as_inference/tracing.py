"""The tensor operations of a function, taken down once as a graph without its Python."""

from __future__ import annotations

import contextlib
import linecache
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = ["in_direct_calls", "traced"]

_WORDS = """
    add amax amin bmm cat clamp div eq exp expand ge gt index_select le lerp log log1p logaddexp logical_and
    logical_not logsumexp lt masked_fill maximum mean minimum mm mul neg permute pow reciprocal relu rsub select
    softmax sqrt squeeze stack sub sum t tanh transpose unsqueeze view where
"""
_DIRECT = frozenset(_WORDS.split())
"""Operations whose functions in torch, or methods of a tensor, take the same arguments in the same order."""


def traced(
    function: Callable[..., Any],
    examples: Sequence[Tensor],
    decompositions: Mapping[Any, Callable[..., Any]] | None = None,
) -> fx.GraphModule:
    """Returns ``function`` as the operations that it performs on the examples.

    They are taken down beneath autograd and ``torch.func`` transforms, gradients included: modules, distributions,
    handlers and constructors leave nothing behind. All else that the function reads is a constant, and so is all that
    does not depend on its arguments. What its Python asked of values it will not ask again, so that it must not branch
    on what depends on its arguments (under ``torch.func.vmap`` it cannot).

    Args:
        function: of tensors; it returns tensors, nested in tuples, lists and dictionaries, or None.
        examples: its arguments, of the shapes that all later ones have. What it writes into them is written.
        decompositions: operations to be replaced by functions of the same arguments; one that returns NotImplemented
            leaves the operation as it is.

    Example:
        >>> double = traced(lambda x: (2 * x, x.sum()), [torch.ones(2)])
        >>> double(torch.tensor([1.0, 2.0]))
        (tensor([2., 4.]), tensor(3.))
    """
    tape = _Tape(examples, decompositions or {})
    with tape:
        returned = function(*examples)
    return tape.graph(returned)


def in_direct_calls(graph: fx.GraphModule) -> fx.GraphModule:
    """Returns the graph with calls of torch's own functions, which take a third less time than those by schema.

    It is for graphs that are run as they are; a compiler wants the operations.
    """
    for node in graph.graph.nodes:
        name = node.target._schema.name.partition("::")[2] if isinstance(node.target, torch._ops.OpOverload) else ""
        if name in _DIRECT:
            node.target = getattr(torch, name) if hasattr(torch, name) else getattr(Tensor, name)
    graph.recompile()
    return _without_source(graph)


class _Operation:
    """One operation: nested arguments in which names stand for tensors, and the numbers of its results."""

    def __init__(self, operation: Any, arguments: Any, results: list[int | None], answer: Any) -> None:
        self.operation, self.arguments, self.results = operation, arguments, results
        self.several = not isinstance(answer, Tensor)
        self.used = {leaf.number for leaf in tree_leaves(arguments) if isinstance(leaf, _Name)}
        self.made = {number for number in results if number is not None}


class _Name:
    """Stands for a tensor on the tape."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Tape(TorchDispatchMode):
    """Takes down every operation, in order: some write into tensors that others made."""

    def __init__(self, examples: Sequence[Tensor], decompositions: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[_Operation] = []
        self.count, self.decompositions = len(examples), decompositions
        self.tensors = list(examples)  # kept, so that no other is given the identity of one that is on the tape
        self._numbers = {id(example): number for number, example in enumerate(examples)}
        self.written: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or PyTorch loads its compiler, a second's work, to keep it from compiling this mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in self.decompositions:
            with self:
                result = self.decompositions[func](*args, **named)
            if result is not NotImplemented:
                return result
        arguments = tree_map(self._name, (args, named))
        if func._schema.is_mutable:
            self.written.update(_memory(leaf) for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor))
        result = func(*args, **named)
        leaves = tree_leaves(result)
        if all(leaf is None or isinstance(leaf, Tensor) for leaf in leaves):  # else it was a question about values
            self.steps.append(_Operation(func, arguments, [self._number(leaf) for leaf in leaves], result))
        return result

    def _number(self, result: Tensor | None) -> int | None:
        if result is None:
            return None
        self.tensors.append(result)
        self._numbers[id(result)] = len(self.tensors) - 1
        return len(self.tensors) - 1

    def _name(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        known = self._numbers.get(id(leaf))
        return _Name(self._number(leaf) if known is None else known)  # type: ignore[arg-type]

    def _is_same(self, step: _Operation) -> bool:
        """Returns whether a step gives its argument back, in the same memory and of the same shape."""
        first = step.arguments[0][0] if step.arguments[0] else None
        if step.several or not isinstance(first, _Name) or step.operation._schema.is_mutable:
            return False
        before, after = self.tensors[first.number], self.tensors[step.results[0]]  # type: ignore[index]
        alike = before.shape == after.shape and before.stride() == after.stride() and before.dtype == after.dtype
        return alike and before.data_ptr() == after.data_ptr() and _memory(before) == _memory(after)

    def graph(self, returned: Any) -> fx.GraphModule:
        """Returns the steps that depend on the arguments; what the others make is a constant."""
        returned = tree_map(self._name, returned)
        kept, varies = [], set(range(self.count))
        for step in self.steps:
            written = any(_memory(self.tensors[number]) in self.written for number in step.used | step.made)
            if step.used & varies or written or torch.Tag.nondeterministic_seeded in step.operation.tags:
                varies |= step.made
                kept.append(step)
        root, graph = nn.Module(), fx.Graph()
        nodes = {number: graph.placeholder(f"argument_{number}") for number in range(self.count)}

        def node_of(leaf: Any) -> Any:
            if not isinstance(leaf, _Name):
                return leaf
            if leaf.number not in nodes:
                constant, name = self.tensors[leaf.number], f"constant_{leaf.number}"
                if isinstance(constant, nn.Parameter):  # still told apart, for those who want none of them held
                    root.register_parameter(name, constant)
                else:
                    root.register_buffer(name, constant.detach())
                with graph.inserting_before(first):
                    nodes[leaf.number] = graph.get_attr(name)
            return nodes[leaf.number]

        first = graph.call_function(tuple)  # where constants go before; taken away below
        for step in kept:
            args, named = tree_map(node_of, step.arguments)
            if self._is_same(step):
                nodes[step.results[0]] = args[0]  # type: ignore[index]
                continue
            node = graph.call_function(step.operation, args, named)
            if not step.several:
                (number,) = step.results
                nodes[number] = node  # type: ignore[index]
                if torch.Tag.nondeterministic_seeded in step.operation.tags:
                    node.meta["val"] = self.tensors[number]  # type: ignore[index]
                continue
            for place, number in enumerate(step.results):  # no operation nests its results
                if number is not None:
                    nodes[number] = graph.call_function(operator.getitem, (node, place))
        leaves, spec = tree_flatten(returned)
        graph.output(tree_unflatten([node_of(leaf) for leaf in leaves], spec))
        graph.erase_node(first)
        graph.eliminate_dead_code()  # draws and writes stay
        return _without_source(fx.GraphModule(root, graph))


def _without_source(graph: fx.GraphModule) -> fx.GraphModule:
    """Returns the graph; PyTorch forgets the text of its code, which it otherwise keeps until the process ends."""
    name = type(graph).forward.__code__.co_filename
    with contextlib.suppress(AttributeError):  # of another version
        fx.graph_module._loader.eval_cache.pop(name, None)
    linecache.cache.pop(name, None)
    return graph


def _memory(tensor: Tensor) -> int:
    """Returns what tensors that share memory have in common."""
    return tensor.untyped_storage()._cdata
