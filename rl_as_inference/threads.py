"""How many of torch's threads a computation uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread_if_small"]

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
    before = torch.get_num_threads()
    if num_numbers < _THREADED_FROM:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
