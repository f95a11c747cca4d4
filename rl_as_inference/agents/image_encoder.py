"""Images to features: convolutions of a size that fits, shared by policy and critics."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from rl_as_inference.state_layout import LaidOut, Part, StateLayout, layout_of

__all__ = ["ImageEncoder"]

NUM_FEATURES = 128
"""Of each image."""


class _Convolution(NamedTuple):
    channels: int
    kernel: int
    stride: int


_BY_SIDE: tuple[tuple[int, tuple[_Convolution, ...]], ...] = (
    # Mnih et al. 2015, Nature 518, for 84 by 84
    (36, (_Convolution(32, 8, 4), _Convolution(64, 4, 2), _Convolution(64, 3, 1))),
    (18, (_Convolution(32, 4, 2), _Convolution(64, 3, 2))),
    # Young & Tian 2019, arXiv:1903.03176 (MinAtar), for 10 by 10
    (3, (_Convolution(16, 3, 1),)),
    (1, ()),
)
"""From which shorter side on, which convolutions."""


class ImageEncoder(nn.Module):
    """Features of states with images: ``encoder(state)`` is ``(*batch, num_features)``, of states ``(*batch, *state)``.

    Each image is divided by 255 and goes through convolutions with rectifiers, a linear layer to 128 numbers, layer
    normalisation and tanh, as in SAC-AE and DrQ (Yarats et al. 2021, arXiv:1910.01741, arXiv:2004.13649). The
    convolutions are chosen by the shorter side: those of DQN from 36 pixels on, two smaller ones from 18, one of 3 by 3
    with stride 1 (MinAtar's) below. Other parts come after the images, as :meth:`StateLayout.inputs` shows them, and a
    mask as it is.

    Args:
        state_space: with images in it.

    Attributes:
        space: of the features.

    Raises:
        ValueError: for a space without images.

    Example:
        >>> encoder = ImageEncoder(Box(0, 255, (10, 10, 3), np.uint8))
        >>> encoder(torch.zeros(5, 10, 10, 3)).shape
        torch.Size([5, 128])
        >>> encoder
        ImageEncoder(observation: image (10, 10, 3), channels last: 16 of 3x3 by 1, 128 features)
    """

    def __init__(self, state_space: gymnasium.Space[Any]) -> None:
        super().__init__()
        layout = layout_of(state_space)
        if layout is None or not layout.images:
            raise ValueError(f"state_space is {state_space}, in which there are no images")
        self.layout, self.state_dims = layout, len(state_space.shape or ())
        self.towers = nn.ModuleList(_tower(part) for part in layout.images)
        rest = [part for part in layout.parts if part.kind in ("box", "discrete")]
        self.rest = StateLayout.made_of(rest) if rest else None
        self.num_rest = sum(part.size for part in rest)
        # Numbers lie in front, but a mask may lie among them.
        self._rest_columns = [part.columns for part in rest]
        size = NUM_FEATURES * len(layout.images) + (0 if self.rest is None else self.rest.num_inputs)
        features = Box(-np.inf, np.inf, (size,))
        self.space: gymnasium.Space[Any] = features
        if layout.mask is not None:
            part = Part("features", "box", (size,), slice(0), features)
            self.space = LaidOut(StateLayout.made_of([part, layout.mask]))

    def forward(self, state: Tensor) -> Tensor:
        weight = next(self.towers.parameters())
        rows = state.flatten(-self.state_dims)
        batch = rows.shape[:-1]
        rows = rows.reshape(-1, rows.shape[-1])
        found = []
        for part, tower in zip(self.layout.images, self.towers, strict=True):
            image = rows[:, part.columns].to(weight.dtype).reshape(-1, *part.shape) / 255
            if part.channels is None:
                image = image[:, None]
            elif part.channels == "last":
                image = image.movedim(-1, 1)
            found.append(tower(image))
        if self.rest is not None:
            found.append(self.rest.inputs(torch.cat([rows[:, columns] for columns in self._rest_columns], -1)))
        if self.layout.mask is not None:
            found.append(rows[:, self.layout.mask.columns])
        features = found[0] if len(found) == 1 else torch.cat([each.to(weight.dtype) for each in found], -1)
        return features.reshape((*batch, features.shape[-1]))

    def __repr__(self) -> str:
        size = math.prod(self.space.shape or ())
        return f"ImageEncoder({'; '.join(map(_told, self.layout.images))}, {size} features)"


def _told(part: Part) -> str:
    said = [f"{each.channels} of {each.kernel}x{each.kernel} by {each.stride}" for each in _chosen(part)]
    return f"{part}: {', '.join(said) or 'flat'}"


def _sides(part: Part) -> tuple[int, int, int]:
    """Returns an image's channels, height and width."""
    if part.channels is None:
        return 1, part.shape[0], part.shape[1]
    if part.channels == "first":
        return part.shape[0], part.shape[1], part.shape[2]
    return part.shape[2], part.shape[0], part.shape[1]


def _chosen(part: Part) -> tuple[_Convolution, ...]:
    _, height, width = _sides(part)
    return next((convolutions for least, convolutions in _BY_SIDE if min(height, width) >= least), ())


def _tower(part: Part) -> nn.Module:
    channels, height, width = _sides(part)
    layers: list[nn.Module] = []
    for each in _chosen(part):
        layers += [nn.Conv2d(channels, *each), nn.ReLU()]
        channels = each.channels
        height, width = ((side - each.kernel) // each.stride + 1 for side in (height, width))
    linear = nn.Linear(channels * height * width, NUM_FEATURES)
    return nn.Sequential(*layers, nn.Flatten(1), linear, nn.LayerNorm(NUM_FEATURES), nn.Tanh())
