"""What stands behind an encoder: networks on its features, and modules on states that are encoded first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from rl_as_inference.agents.functional import Networks

__all__ = ["Heads", "OnStates"]


class Heads(Networks):
    """Networks on features, of whose losses only the critics' reaches the encoder."""

    def __init__(self, networks: Networks, *, reaching: bool) -> None:
        super().__init__(networks.modules, networks.tree, networks.statistics)  # which learn for both
        self._reaching = reaching

    def __call__(self, name: str, *args: Any) -> Any:
        if args and not (self._reaching and name == "critics"):
            args = (args[0].detach(), *args[1:])
        return super().__call__(name, *args)

    def frozen(self) -> Networks:
        return Heads(super().frozen(), reaching=False)


class OnStates(nn.Module):
    """A module on features as one on states: ``(state, ...)`` is encoded first."""

    def __init__(self, encode: Callable[..., Tensor], encoder: nn.Module, inner: Any) -> None:
        super().__init__()
        self._encode, self.encoder, self.inner = encode, encoder, inner

    def forward(self, state: Tensor, *args: Any, **options: Any) -> Any:
        return self.inner(self._encode(self.encoder, state), *args, **options)
