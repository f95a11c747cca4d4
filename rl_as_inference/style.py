"""Colours, axes and labels that all pictures share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "QUALITATIVE",
    "RED",
    "SKY",
    "YELLOW",
    "Numbers",
    "new_axes",
    "tidy",
    "whole_numbers",
]

Numbers: TypeAlias = Tensor | np.ndarray[Any, Any] | Sequence[Any]
"""What is drawn."""

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
"""Eight colours that the colour-blind can tell apart (Okabe & Ito 2008)."""

GREY = "#7F7F7F"
"""For what a picture compares with: priors, bounds, single draws."""

QUALITATIVE = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW, BLACK)
"""The order in which things without an order of their own take colours."""


def new_axes(ax: "Axes | None", width: float = 6.4, height: float = 4.0) -> "Axes":
    """Returns ``ax``, or axes on a figure of their own, in inches."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    # A figure of its own, without pyplot: nothing to close, and no screen needed.
    return Figure(figsize=(width, height), layout="constrained").subplots()


def tidy(ax: "Axes", xlabel: str = "", ylabel: str = "", title: str = "") -> "Axes":
    """Returns ``ax`` with labels and without the lines that hold nothing."""
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if title:
        ax.set_title(title, fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def whole_numbers(*axes: "Axis") -> None:
    """Puts ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(integer=True))
