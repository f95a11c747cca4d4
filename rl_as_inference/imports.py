"""What importing the package's libraries changes of the process, taken down before and put back after.

Rich draws from Python's random numbers, and PyTorch, Gymnasium and SciPy add filters of warnings. (Theirs stay where
they were imported before this package.) The environment variable that Gymnasium sets, so that pygame does not greet,
is left.
"""

import random
import warnings
from collections.abc import Sequence
from typing import Any

__all__ = ["put_back", "put_back_filters"]

_RANDOM, _FILTERS = random.getstate(), list(warnings.filters)


def put_back() -> None:
    """Puts back Python's random numbers and the filters of warnings, as they were when this module was imported."""
    random.setstate(_RANDOM)
    put_back_filters(_FILTERS)


def put_back_filters(filters: Sequence[Any]) -> None:
    """Has the filters of warnings be these again."""
    if warnings.filters != filters:
        warnings.filters[:] = filters  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]
