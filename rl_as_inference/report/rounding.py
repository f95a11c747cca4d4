"""Numbers as a page holds them: rounded, and with None for what JSON cannot hold."""

import math
from typing import Any

import numpy as np

__all__ = ["plain", "rounded"]

Array = np.ndarray[Any, Any]


def rounded(array: Array, digits: int = 4) -> Array:
    """Returns the array with ``digits`` significant digits of its largest entry; integers as they are."""
    if not np.issubdtype(array.dtype, np.floating):
        return array
    finite = np.abs(array[np.isfinite(array)])
    largest = float(finite.max()) if finite.size else 0.0
    if largest == 0.0:
        return array.astype(float)
    return array.astype(float).round(digits - 1 - math.floor(math.log10(largest)))


def plain(array: Array) -> list[Any]:
    """Returns the array as lists, with None for what is not finite."""
    if np.isfinite(array).all():
        return list(array.tolist())
    held = array.astype(object)
    held[~np.isfinite(array)] = None
    return list(held.tolist())
