"""A stream of random numbers of one's own, beside PyTorch's global one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["RandomStream"]


class RandomStream:
    """The state of PyTorch's generators, kept apart from the global one.

    Distributions draw from the global generator only, so this one is put in its place for a while.

    Attributes:
        states: of the host's generator, and of the device's if it is a GPU.

    Example:
        >>> stream = RandomStream(0)
        >>> with stream:
        ...     first = torch.rand(())
        >>> with stream:
        ...     second = torch.rand(())
        >>> torch.equal(torch.stack([first, second]), torch.rand(2, generator=torch.Generator().manual_seed(0)))
        True
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.states = [torch.Generator().manual_seed(seed).get_state()]
        if self.device.type == "cuda":
            self.states.append(torch.Generator(self.device).manual_seed(seed).get_state())
        self._others: list[list[Tensor]] = []

    def __enter__(self) -> None:
        self._others.append(self._swap(self.states))

    def __exit__(self, *_: object) -> None:
        self.states = self._swap(self._others.pop())

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """Within it draws come from the stream, and afterwards the stream is where it was."""
        before = [state.clone() for state in self.states]
        with self:
            yield
        self.states = before

    def _swap(self, states: list[Tensor]) -> list[Tensor]:
        others = [torch.get_rng_state()]
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            others.append(torch.cuda.get_rng_state(self.device))
            torch.cuda.set_rng_state(states[1], self.device)
        return others
