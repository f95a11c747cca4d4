"""How torch computes for a while: on how many threads, and how precisely it multiplies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from rl_as_inference.turns import turn

__all__ = [
    "Precision",
    "check_precision",
    "multiplies_in_bfloat16",
    "one_thread_if_small",
    "products_in",
    "rounds_one_by_one",
]

Precision = Literal["float32", "bfloat16"]

_THREADED_FROM = 4_000_000
"""Numbers (parameters times batch) from which a second thread gains more than its barriers cost."""


@contextmanager
def one_thread_if_small(num_numbers: int) -> Iterator[None]:
    """Uses one thread for small networks, where a second one's barriers cost more than it gains.

    Beside another busy process the barriers are most of the time: a thread that waits its turn holds up all others.

    Args:
        num_numbers: parameters times the batch that passes through them.

    Example:
        >>> before = torch.get_num_threads()
        >>> with one_thread_if_small(1_000):
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    with turn:
        before = _NUMBER.enter()
        torch.set_num_threads(1 if num_numbers < _THREADED_FROM else before)
        try:
            yield
        finally:
            _NUMBER.leave(before)


class _Number:
    """The number of threads that the host asked for.

    PyTorch keeps one for each of its callers' threads, which takes the process's when it first computes. A thread that
    did so in another's turn would compute on one thread ever after, and pass that on as the process's own.
    """

    def __init__(self) -> None:
        self.depth, self.was_lowered = 0, False

    def enter(self) -> int:
        """Returns the number, before it is changed."""
        number = torch.get_num_threads()
        if not self.depth and number == 1 and self.was_lowered:
            found: list[int] = []
            asker = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
            asker.start()
            asker.join()
            number = found[0]
        self.depth += 1
        self.was_lowered = self.was_lowered or number > 1
        return number

    def leave(self, number: int) -> None:
        """Puts the number back."""
        torch.set_num_threads(number)
        self.depth -= 1


_NUMBER = _Number()


class _Asked(threading.local):
    """The precision that :func:`products_in` was given; PyTorch's own setting may be the user's."""

    precision: Precision = "float32"


_ASKED = _Asked()


def rounds_one_by_one() -> bool:
    """Returns whether products in bfloat16 are asked for of a processor that multiplies so and does not round itself.

    oneDNN rounds factors of float32 where there are AMX tiles, and leaves them as they are on other processors.
    """
    asked = _ASKED.precision == "bfloat16"
    return asked and torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def multiplies_in_bfloat16() -> bool:
    """Returns whether this processor multiplies matrices of bfloat16 itself."""
    if torch.cpu._is_avx512_supported():
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:  # PyTorch was built without oneDNN
        return False


def check_precision(precision: Precision, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError if matrix products cannot be taken in this precision, or it would change nothing."""
    if precision == "float32":
        return
    if dtype != torch.float32:
        raise ValueError(
            f"precision={precision!r} rounds products of float32, and dtype is {dtype}; leave one of them out"
        )
    if device.type == "cpu" and not multiplies_in_bfloat16():
        raise ValueError(
            f"precision={precision!r} needs a processor that multiplies so (AMX, AVX-512's or Arm's bfloat16), and "
            f"this one does not; leave it out"
        )


@contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """Takes matrix products of float32 with factors rounded to bfloat16, and sums in float32, if asked.

    The processor's matrix units do so at several times the speed; where they do not round by themselves, what is traced
    meanwhile does (``agents/compilation.py``), and rounds the product too. A GPU rounds to TensorFloat-32 instead,
    whose mantissa is three bits longer. It is the whole process's setting meanwhile.

    Example:
        >>> with products_in("bfloat16"):
        ...     torch.get_float32_matmul_precision()
        'medium'
    """
    with turn:
        before, asked = torch.get_float32_matmul_precision(), _ASKED.precision
        _ASKED.precision = precision
        if precision == "bfloat16":
            torch.set_float32_matmul_precision("medium")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
            _ASKED.precision = asked
