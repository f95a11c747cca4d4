"""Observations of several parts (``Dict``, ``Tuple``, images) as one flat row, and what networks see of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeGuard

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from torch import Tensor

__all__ = [
    "MASK",
    "Channels",
    "LaidOut",
    "Part",
    "PartError",
    "StateLayout",
    "channels_of",
    "check_not_pixels",
    "is_image",
    "layout_of",
]

Array = np.ndarray[Any, Any]
Channels = Literal["first", "last"]
"""Where an image's channels are among its dimensions."""

MASK = "action_mask"
"""The key of a ``Dict`` observation that says which actions are allowed."""


class PartError(ValueError):
    """An observation does not fit its space.

    Attributes:
        fault: what is wrong, to be said after "an observation that".
    """

    def __init__(self, fault: str) -> None:
        super().__init__(f"observation {fault}")
        self.fault = fault


def is_image(space: gymnasium.Space[Any]) -> TypeGuard[Box]:
    """Returns whether a space is one of images: ``Box`` of ``uint8`` with two or three dimensions.

    Example:
        >>> is_image(Box(0, 255, (84, 84, 4), np.uint8)), is_image(Box(0, 255, (128,), np.uint8))
        (True, False)
    """
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def channels_of(shape: tuple[int, ...]) -> Channels | None:
    """Returns where the channels of an image are; None of one without, ``(height, width)``.

    Two equal sides are height and width; else the shorter end is the channels. Where that decides nothing they are
    last, as Gymnasium has them.

    Example:
        >>> channels_of((84, 84, 4)), channels_of((3, 64, 64)), channels_of((210, 160, 3)), channels_of((7, 7, 20))
        ('last', 'first', 'last', 'last')
    """
    if len(shape) < 3:
        return None
    first, middle, last = shape
    if (first == middle) != (middle == last):
        return "last" if first == middle else "first"
    return "first" if first < last else "last"


@dataclass(frozen=True)
class Part:
    """A part of an observation, and where it lies in the row.

    Attributes:
        name: its keys and indices, joined by dots: ``"camera"``, ``"arm.0"``; ``"observation"`` where it is all.
        kind: ``"box"``; ``"discrete"``, integers, which count from 0 in the row; ``"image"``; or ``"mask"``, 1 for
            actions that are allowed, 0 for others, which networks do not see.
        shape: of it in an observation.
        columns: of the row.
        space: the environment's own.
        path: its keys and indices.
    """

    name: str
    kind: Literal["box", "discrete", "image", "mask"]
    shape: tuple[int, ...]
    columns: slice
    space: gymnasium.Space[Any]
    path: tuple[str | int, ...] = ()

    @property
    def size(self) -> int:
        """How many columns it has."""
        return math.prod(self.shape)

    @property
    def channels(self) -> Channels | None:
        """Where an image's channels are; None of one without."""
        return channels_of(self.shape)

    @property
    def counts(self) -> tuple[int, ...]:
        """Of integers: how many values each may have."""
        if isinstance(self.space, Discrete):
            return (int(self.space.n),)
        return tuple(self.space.nvec.reshape(-1).tolist()) if isinstance(self.space, MultiDiscrete) else ()

    @property
    def start(self) -> Any:
        """Of integers: what each counts from."""
        return self.space.start if isinstance(self.space, Discrete | MultiDiscrete) else 0

    def __str__(self) -> str:
        where = f", channels {self.channels}" if self.kind == "image" and self.channels else ""
        return f"{self.name}: {self.kind} {self.shape}{where}"


class StateLayout:
    """How an observation of several parts lies in one flat row of numbers.

    Integers are a column each and count from 0; images are columns from 0 to 255, behind all other parts. Leaves of
    ``Dict`` and ``Tuple`` may be ``Box``, ``Discrete``, ``MultiDiscrete`` and ``MultiBinary``.

    Args:
        space: the environment's: ``Dict`` or ``Tuple``, nested or not, or a leaf, which is then the only part.
        mask: how long the mask is that comes beside the observation (in ``info``); None where there is none, or it is
            a key ``"action_mask"`` of the observation.

    Attributes:
        parts: in the order of the columns.
        size: how many columns there are.
        num_numbers: how many of them, the first, are not of images.
        mask: the part that says which actions are allowed, or None.

    Raises:
        ValueError: for a space that is not supported.

    Example:
        >>> layout = StateLayout(Dict({"where": Discrete(3, start=1), "speed": Box(-1, 1, (2,))}))
        >>> layout.flatten({"where": 3, "speed": np.array([0.5, 0.25])})
        array([0.5 , 0.25, 2.  ], dtype=float32)
        >>> layout.inputs(torch.tensor([0.5, 0.25, 2.0]))  # integers are one-hot to networks
        tensor([0.5000, 0.2500, 0.0000, 0.0000, 1.0000])
        >>> layout
        StateLayout(speed: box (2,); where: discrete ())
    """

    def __init__(self, space: gymnasium.Space[Any], *, mask: int | None = None) -> None:
        leaves = list(_leaves(space, ()))
        if mask is not None:
            if any(part.kind == "mask" for part in leaves):
                raise ValueError(f"observation_space has a part {MASK!r}, and a mask of {mask} actions comes beside it")
            leaves.append(Part(MASK, "mask", (mask,), slice(0), MultiBinary(mask)))
        self._arrange(leaves, beside=mask is not None)

    @classmethod
    def made_of(cls, parts: Iterable[Part]) -> StateLayout:
        """Returns a layout of rows with such parts, whatever they are made from."""
        layout = cls.__new__(cls)
        layout._arrange(list(parts), beside=False)
        return layout

    def _arrange(self, leaves: list[Part], *, beside: bool) -> None:
        leaves.sort(key=lambda part: part.kind == "image")  # which keeps the order of the others
        edges = np.cumsum([0, *(part.size for part in leaves)]).tolist()
        self.parts = tuple(
            replace(part, columns=slice(*ends)) for part, ends in zip(leaves, pairwise(edges), strict=True)
        )
        if not edges[-1]:
            raise ValueError("observation_space has no part in which there is anything to see")
        self.size = int(edges[-1])
        self.num_numbers = sum(part.size for part in self.parts if part.kind != "image")
        self.mask = next(
            (part for part in reversed(self.parts) if part.kind == "mask"), None
        )  # of a window, the latest
        self._beside = beside

    @property
    def images(self) -> tuple[Part, ...]:
        """The parts that are images."""
        return tuple(part for part in self.parts if part.kind == "image")

    @property
    def bounds(self) -> tuple[Array, Array]:
        """The least and the greatest row, ``(size,)`` each."""
        low, high = np.zeros(self.size, np.float32), np.ones(self.size, np.float32)
        for part in self.parts:
            space = part.space
            if isinstance(space, Box):
                with np.errstate(over="ignore"):
                    low[part.columns], high[part.columns] = space.low.reshape(-1), space.high.reshape(-1)
            elif part.kind == "discrete":
                high[part.columns] = np.subtract(part.counts, 1)
        return low, high

    def unbounded(self) -> StateLayout:
        """Returns the same layout with boxes that have no bounds, as of numbers on another scale."""
        return StateLayout.made_of(
            replace(part, space=Box(-np.inf, np.inf, part.shape, np.float32)) if part.kind == "box" else part
            for part in self.parts
        )

    def flatten(self, observation: Any, mask: Any = None) -> Array:
        """Returns an observation of the environment's, or a batch of them, as rows ``(*batch, size)`` float32.

        Args:
            observation: with arrays of one more dimension each for a batch, as Gymnasium batches them.
            mask: the mask beside it, ``(*batch, actions)``, where there is such.

        Raises:
            PartError: for a part that is lacking, has another shape, or integers that its space does not have.
        """
        values = [
            np.asarray(mask if self._beside and part.kind == "mask" else _found(observation, part.path, part.name))
            for part in self.parts
        ]
        batch = values[0].shape[: max(values[0].ndim - len(self.parts[0].shape), 0)]
        rows = np.empty((*batch, self.size), np.float32)
        with np.errstate(over="ignore"):
            for part, value in zip(self.parts, values, strict=True):
                if value.shape != (*batch, *part.shape):
                    wanted = (*batch, *part.shape)
                    raise PartError(f"has part {part.name!r} of shape {value.shape}, and its space says {wanted}")
                if fault := _wrong_values(value, part):
                    raise PartError(f"has part {part.name!r} that {fault}")
                counted = value - part.start if part.kind == "discrete" else value
                rows[..., part.columns] = counted.reshape(*batch, part.size)
        return rows

    def part(self, state: Tensor, name: str) -> Tensor:
        """Returns a part of rows ``(*batch, size)``, ``(*batch, *part)``; integers count from 0.

        Raises:
            ValueError: if there is no such part.
        """
        part = self.named(name)
        return state[..., part.columns].reshape((*state.shape[:-1], *part.shape))

    def named(self, name: str) -> Part:
        """Returns a part by its name.

        Raises:
            ValueError: if there is none.
        """
        for part in self.parts:
            if part.name == name:
                return part
        raise ValueError(f"observation has no part {name!r}; its parts are {', '.join(p.name for p in self.parts)}")

    def part_at(self, column: int) -> Part:
        """Returns the part that a column belongs to."""
        return next(part for part in self.parts if part.columns.start <= column < part.columns.stop)

    @property
    def num_inputs(self) -> int:
        """How many numbers :meth:`inputs` gives."""
        return sum(part.size if part.kind in ("box", "image") else sum(part.counts) for part in self.parts)

    def inputs(self, state: Tensor) -> Tensor:
        """Returns what a network of layers sees of rows ``(*batch, size)``: ``(*batch, num_inputs)``.

        Numbers as they are, integers one-hot, images flat and divided by 255, and no mask.
        """
        seen = []
        for part in self.parts:
            columns = state[..., part.columns]
            if part.kind == "discrete":
                for index, count in enumerate(part.counts):
                    codes = torch.arange(count, device=state.device)
                    seen.append((columns[..., index, None] == codes).to(state.dtype))
            elif part.kind != "mask":
                seen.append(columns / 255 if part.kind == "image" else columns)
        return seen[0] if len(seen) == 1 else torch.cat(seen, -1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StateLayout) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"StateLayout({'; '.join(str(part) for part in self.parts)})"


class LaidOut(Box):
    """The agent's state space of observations in parts: rows of :class:`StateLayout`.

    Args:
        layout: how they lie there.

    Example:
        >>> space = LaidOut(StateLayout(Dict({"camera": Box(0, 255, (2, 2), np.uint8), "on": Discrete(2)})))
        >>> space
        LaidOut(on: discrete (); camera: image (2, 2))
        >>> space.shape, space.layout.size
        ((5,), 5)
    """

    def __init__(self, layout: StateLayout) -> None:
        super().__init__(*layout.bounds, dtype=np.float32)
        self.layout = layout

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LaidOut) and self.layout == other.layout

    def __hash__(self) -> int:
        return hash(self.layout)

    def __repr__(self) -> str:
        return f"LaidOut({'; '.join(str(part) for part in self.layout.parts)})"


def layout_of(space: gymnasium.Space[Any]) -> StateLayout | None:
    """Returns how states of a space lie in rows if these have parts, or are images; None of a plain Box or Discrete."""
    if isinstance(space, LaidOut):
        return space.layout
    return StateLayout(space) if is_image(space) else None


def _leaves(space: gymnasium.Space[Any], path: tuple[str | int, ...]) -> Iterator[Part]:
    """Yields the parts of a space, of which the columns are still to be said."""
    if isinstance(space, Dict | Tuple):
        inner: Any = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        for key, each in inner:
            yield from _leaves(each, (*path, key))
        return
    name = ".".join(str(key) for key in path) or "observation"
    shape, kind = tuple(space.shape or ()), "box"
    if path == (MASK,):
        is_flags = isinstance(space, MultiBinary) or (
            isinstance(space, Box) and bool((space.low >= 0).all() and (space.high <= 1).all())
        )
        if not is_flags or len(shape) != 1:
            raise ValueError(
                f"observation_space has {MASK!r} of {space}, and it must say of each action whether it is allowed: "
                f"MultiBinary(number of actions)"
            )
        kind = "mask"
    elif isinstance(space, Discrete | MultiDiscrete):
        kind = "discrete"
    elif is_image(space):
        kind = "image"
    elif isinstance(space, Box):
        check_not_pixels(space, name)
    elif not isinstance(space, MultiBinary):
        raise ValueError(
            f"observation_space has part {name!r} of {type(space).__name__}, and Box, Discrete, MultiDiscrete and "
            f"MultiBinary in Dict and Tuple are supported; turn it into one of these with "
            f"gymnasium.wrappers.TransformObservation"
        )
    yield Part(name, kind, shape, slice(0), space, path)  # type: ignore[arg-type]


def check_not_pixels(space: Box, name: str) -> None:
    """Raises ValueError for images whose numbers look like bytes and are not: nothing would scale them."""
    if len(space.shape) not in (2, 3) or space.dtype == np.uint8:
        return
    if (space.low == 0).all() and (space.high == 255).all():
        raise ValueError(
            f"observation_space has {name!r} of {space.dtype} from 0 to 255, which looks like an image and would be "
            f"taken as it is, unscaled; give it as bytes, Box(0, 255, {space.shape}, np.uint8), which are scaled in "
            f"the encoder, or divide by 255 in the environment"
        )


def _found(observation: Any, path: tuple[str | int, ...], name: str) -> Any:
    for key in path:
        try:
            observation = observation[key]
        except (KeyError, IndexError, TypeError) as error:
            raise PartError(f"lacks part {name!r}: it is {type(observation).__name__}, without {key!r}") from error
    return observation


def _wrong_values(value: Array, part: Part) -> str | None:
    """Returns what is wrong with the type or the integers of a part, or None."""
    if part.kind == "discrete":
        if value.dtype.kind not in "iu":
            return f"is of {value.dtype}, and its space is {part.space}, of integers"
        counted = (value - part.start).reshape(-1, len(part.counts))
        if ((counted < 0) | (counted >= np.array(part.counts))).any():
            return f"is {value}, outside {part.space}"
    elif part.kind == "image":
        if value.dtype.kind not in "biu" or (value.dtype != np.uint8 and ((value < 0) | (value > 255)).any()):
            return f"is of {value.dtype}, and its space is of bytes, 0 to 255"
    elif value.dtype.kind not in "biuf":
        return f"is of {value.dtype}, and must be numbers"
    return None
