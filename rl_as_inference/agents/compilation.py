"""Making a pure function of tensors fast: traced once, then compiled whole, or captured as a CUDA graph."""

from __future__ import annotations

import contextlib
import errno
import getpass
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rl_as_inference.host import in_turn, levels_to_the_user
from rl_as_inference.threads import rounds_one_by_one
from rl_as_inference.tracing import in_direct_calls, traced

__all__ = ["CompileCost", "accelerate", "compiled_if_possible", "draws_apart", "repays"]

Made = TypeVar("Made")

aten = torch.ops.aten

_COLD = 20.0
"""Seconds that compiling an update takes where nothing like it was compiled before."""
_WARM = 0.3
"""What it takes of that once it is in TorchInductor's cache."""
_OF_THE_DISK = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT)
"""No room, read-only, not allowed, over quota."""
_WORTH_ROUNDING = 2**23
"""Multiplications of a product from which rounding repays itself: 256 rows and 128 × 128 gain nothing."""
_GAIN = 0.45
"""Of an uncompiled update's time, what a compiled one saves at least: nine tenths at 64 units, half at 256."""


def accelerate(
    function: Callable[..., Any],
    written: Sequence[Tensor],
    read: Sequence[Tensor],
    *,
    compile: bool,
    may_round: bool = True,
) -> Callable[..., Any]:
    """Returns a function with the effect of ``function(*written, *read)``, without its Python.

    The function is run once, so that modules, distributions and ``torch.func`` transforms
    leave only tensor operations. These run as they are (``compile=False``), compiled by TorchInductor
    (which caches its work between runs), and on CUDA inside one captured graph. Random numbers come from PyTorch's
    generator, and are the same whether or not it is compiled (on CUDA: where no draw depends on values, as one of a
    gamma does). The function must not depend on values, only on shapes.

    Args:
        function: pure but for writes into its first arguments; it returns nothing.
        written: the tensors that it writes into; they are left as they are until the first call.
        read: the tensors that it only reads, which may be large. On CUDA every call is on these very tensors.
        compile: whether to compile.
        may_round: whether matrix products are taken in bfloat16, where :func:`~rl_as_inference.threads.products_in`
            asks for it; large ones, on the host.

    Raises:
        ValueError: if the function reads a module's parameter that is not among its arguments.
    """
    inputs = (*written, *read)
    examples: list[Any] = [*(tensor.clone() for tensor in written), *read]
    on_host = inputs[0].device.type == "cpu"
    decompositions: dict[Any, Any] = {aten.addmm.default: _biased_product} if on_host else {}
    if rounds := on_host and may_round and rounds_one_by_one():
        decompositions |= {each.default: partial(_rounded_product, each.default) for each in (aten.mm, aten.bmm)}
    graph: Any = traced(function, examples, decompositions)
    held = [str(node.target) for node in graph.graph.find_nodes(op="get_attr")]
    if held := [name for name in held if isinstance(leaf := getattr(graph, name), nn.Parameter) and leaf.requires_grad]:
        raise ValueError(
            f"{len(held)} parameters are read past their module (from a list kept beside them, say, or a slice of a "
            f"ParameterList), so that learning would not reach them; read each as an attribute of its module"
        )
    if compile and (reason := _why_not(inputs[0].device)):
        _warn(reason)
        compile = False
    fast = _compiled(graph, examples, on_host, rounds) if compile else in_direct_calls(graph)
    if inputs[0].device.type == "cuda":
        fast = _captured(fast, written, read)
    return fast


@in_turn
def _compiled(graph: Any, examples: list[Any], on_host: bool, rounds: bool) -> Callable[..., Any]:
    """Returns the graph compiled by TorchInductor, whose import alone adds to filters of warnings and environment."""
    from torch import _inductor as inductor

    draw: Callable[[], list[Tensor]] = list
    if not on_host:
        draw = draws_apart(graph)
        examples = [*examples, *draw()]
    for node in graph.graph.nodes:  # what tracing noted of values would be taken for the compiler's own notes
        node.meta.clear()
    options = {
        # The same random numbers as without compiling, from PyTorch's own generator.
        "fallback_random": True,
        # On the host the calls are in C++: at 64 units Python's own are two fifths of an update.
        "cpp_wrapper": on_host,
        # What is told of whole columns (a batch's statistics) is computed once, and not again for every element: a
        # batch-normalised update takes four fifths of the time. Roundings are operations too.
        "realize_opcount_threshold": 12 if rounds else 6,
    }
    compiled: Any = inductor.compile(graph, examples, options)
    return compiled if on_host else lambda *tensors: compiled(*tensors, *draw())


def _biased_product(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Returns what ``torch.addmm`` does, with the bias added by the kernel that follows.

    On the host the library copies the bias out over the whole result first, which costs as much as a small
    product. The dimension in between keeps the compiler from putting the two together again.
    """
    product = torch.mm(left, right)
    return (alpha * product[None] + beta * bias)[0]


def _rounded_product(product: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Any:
    """Returns a product of rounded factors, for processors that multiply bfloat16 but do not round by themselves."""
    if left.dtype != torch.float32 or left.numel() * right.shape[-1] < _WORTH_ROUNDING:
        return NotImplemented
    return product(left.to(torch.bfloat16), right.to(torch.bfloat16)).to(torch.float32)  # whose sums are of float32


def draws_apart(graph: Any) -> Callable[[], list[Tensor]]:
    """Takes draws out of a traced graph, which then takes them as arguments after its own, and returns what draws them.

    TorchInductor puts a graph for CUDA in an order of its own, draws included, so that other numbers fall to each.
    Draws that depend on values (of a gamma, say) are left where they are.
    """
    operations: list[Callable[[], Tensor]] = []
    nodes = list(graph.graph.nodes)
    last = [node for node in nodes if node.op == "placeholder"][-1]
    for node in nodes:
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        arguments = node.args
        if node.target in (aten.rand_like.default, aten.randn_like.default):
            of = node.meta["val"]  # tracing's note, of a tensor without values
            like = torch.empty_strided(of.size(), of.stride(), dtype=of.dtype, device=of.device)
            arguments = (like, *arguments[1:])
        elif node.all_input_nodes:
            continue
        operations.append(partial(node.target, *arguments, **node.kwargs))
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"draw_{len(operations)}")
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
    graph.recompile()
    return lambda: [operation() for operation in operations]


def compiled_if_possible(make: Callable[[bool], Made], device: torch.device) -> Made:
    """Returns ``make(True)``, which compiles; where that cannot be, ``make(False)``, after one warning.

    It cannot be without a C++ compiler, and where what is compiled cannot be written: the folder is another user's or
    may only be read, or the disk is full, of which some is only found out on the way.
    """
    reason = _why_not(device)
    if reason is None:
        try:
            return make(True)
        except Exception as error:
            reason = _not_written(error)
            if reason is None:
                raise
    _warn(reason)
    return make(False)


def _warn(reason: str) -> None:
    warnings.warn(f"compile: {reason}, or say compile=False", UserWarning, stacklevel=levels_to_the_user())


def _why_not(device: torch.device) -> str | None:
    """Returns why nothing can be compiled, and what to do about it; None if it can."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return (
            "there is no C++ compiler (g++ or clang++) on this machine, so updates run uncompiled, several times "
            "slower; install one"
        )
    try:
        _cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=_cache()):
            return None
    except OSError as error:
        return _not_written(error)


def _not_written(error: BaseException) -> str | None:
    """Returns that what is compiled cannot be written, if that is what an error comes from, and what to do about it.

    The compiler's own errors are known by what they say.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) or any(os.strerror(code) in str(cause) for code in _OF_THE_DISK):
            return (
                f"what is compiled cannot be written ({cause}), so updates run uncompiled, several times slower; set "
                f"TORCHINDUCTOR_CACHE_DIR to a folder that can be written to"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _cache() -> Path:
    """Returns the folder of TorchInductor's cache, whose import alone would take a second."""
    if given := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        return Path(given)
    try:
        user = getpass.getuser()
    except (KeyError, ImportError, OSError):  # of a container's user without a name
        user = f"uid_{os.getuid()}"
    return Path(tempfile.gettempdir()) / f"torchinductor_{user}"


class CompileCost:
    """What compiling something costs on this machine: what it did last, which lies beside TorchInductor's cache.

    Args:
        what: tells it from other things; the same text is compiled to the same code.

    Example:
        >>> CompileCost("never compiled").seconds
        20.0
    """

    def __init__(self, what: str) -> None:
        self._key = hashlib.sha256(f"{torch.__version__} {torch.get_num_threads()} {what}".encode()).hexdigest()[:32]

    @property
    def seconds(self) -> float:
        """Seconds that the compiler will take."""
        try:
            return float(self._file().read_text())
        except (OSError, ValueError):
            return _COLD

    def note(self, seconds: float) -> None:
        """Takes in what it took; what was not in the cache will take less when it is."""
        file = self._file()
        # A cache that cannot be written to is said elsewhere, and the next run guesses again.
        with contextlib.suppress(OSError):
            was_there = file.exists()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{seconds if was_there else seconds * _WARM:.2f}")

    def _file(self) -> Path:
        return _cache() / "rl_as_inference" / f"{self._key}.seconds"


def repays(num_updates: float, seconds: float, cost: CompileCost) -> bool:
    """Returns whether compiling an update repays the compiler's time.

    Args:
        num_updates: how many there will be.
        seconds: what one takes uncompiled.
        cost: of compiling it.

    Example:
        >>> cost = CompileCost("never compiled")
        >>> repays(3_000, 0.004, cost), repays(100_000, 0.004, cost)
        (False, True)
    """
    return num_updates * seconds * _GAIN > cost.seconds


def _captured(function: Callable[..., Any], written: Sequence[Tensor], read: Sequence[Tensor]) -> Callable[..., Any]:
    """Returns the replay of one CUDA graph of ``function`` on these very tensors."""
    with torch.cuda.device(written[0].device):
        before, random_state = [tensor.clone() for tensor in written], torch.cuda.get_rng_state()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries that start lazily must not do so inside the graph
                function(*written, *read)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function(*written, *read)
        for tensor, kept in zip(written, before, strict=True):
            tensor.copy_(kept)
        torch.cuda.set_rng_state(random_state)
    return lambda *_: graph.replay()
