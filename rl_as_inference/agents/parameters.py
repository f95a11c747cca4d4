"""The parameters of several modules as one vector, so that Adam and target averages are one operation each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor, nn

__all__ = ["FlatParameters", "Tree"]

Tree = dict[str, dict[str, Tensor]]
"""Tensors by module and parameter name."""

_ALIGNMENT = 16
"""Every tensor begins at a multiple of this many numbers: a cache line of float32."""


class FlatParameters:
    """Where each parameter of some modules lies in one vector.

    Args:
        modules: by name; the order is that of the vector. Or their tensors, by module and name.

    Example:
        >>> modules = {"policy": nn.Linear(3, 2), "critic": nn.Linear(2, 1)}
        >>> layout = FlatParameters(modules)
        >>> vector = layout.flatten(layout.tree(modules))
        >>> vector.shape, layout.unflatten(vector)["critic"]["weight"].shape
        (torch.Size([64]), torch.Size([1, 2]))
    """

    def __init__(self, modules: Mapping[str, nn.Module] | Tree) -> None:
        self.places: list[tuple[str, str, int, torch.Size]] = []
        self.spans: dict[str, slice] = {}
        offset = 0
        for module, parameters in self.tree(modules).items():
            start = offset
            for name, parameter in parameters.items():
                self.places.append((module, name, offset, parameter.shape))
                offset += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
            self.spans[module] = slice(start, offset)
        self.size = offset

    @staticmethod
    def tree(modules: Mapping[str, nn.Module] | Tree) -> Tree:
        """Returns the modules' parameters, detached, without those that do not ask for a gradient; a tree as it is."""
        return {
            name: {key: value.detach() for key, value in module.named_parameters() if value.requires_grad}
            if isinstance(module, nn.Module)
            else module
            for name, module in modules.items()
        }

    def unflatten(self, vector: Tensor) -> Tree:
        """Returns views into ``vector``, ``(size,)``, by module and parameter."""
        tree: Tree = {module: {} for module in self.spans}
        for module, name, offset, shape in self.places:
            tree[module][name] = vector[offset : offset + math.prod(shape)].view(shape)
        return tree

    def flatten(self, tree: Tree, stop: int | None = None) -> Tensor:
        """Returns the vector ``(size,)`` of a tree, zero between the parameters; or its part before ``stop``."""
        parts = []
        for module, name, offset, shape in self.places:
            if stop is not None and offset >= stop:
                break
            part = tree[module][name].reshape(-1)
            parts.append(part)
            if missing := -math.prod(shape) % _ALIGNMENT:
                parts.append(part.new_zeros(missing))
        return torch.cat(parts) if parts else torch.zeros(0)

    def attach(self, vector: Tensor, modules: Mapping[str, nn.Module]) -> None:
        """Makes the modules' tensors views into ``vector``: they follow it from now on."""
        tree = self.unflatten(vector)
        for name, module in modules.items():
            own = dict(chain(module.named_parameters(), module.named_buffers()))
            for key, view in tree.get(name, {}).items():
                own[key].data = view
