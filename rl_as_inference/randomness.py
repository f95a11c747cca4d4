"""Random numbers: streams of one's own beside the global ones, and draws that compile."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import numpy as np
import pyro
import torch
from torch import Tensor

from rl_as_inference.turns import turn

__all__ = ["RandomStream", "drawing", "drawn_from_logits", "forked", "seeded"]


class RandomStream:
    """The state of PyTorch's generators, kept apart from the global one.

    Distributions draw from the global generator only, so this one is put in its place for a while, which is a turn
    (:class:`rl_as_inference.turns.Turn`). Within that while it may be entered again, which changes nothing.

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
        self._states = [torch.Generator().manual_seed(seed).get_state()]
        if self.device.type == "cuda":
            self._states.append(torch.Generator(self.device).manual_seed(seed).get_state())
        self._depth = 0

    @property
    def states(self) -> list[Tensor]:
        """Where the stream is: of the host's generator, and of the device's if it is a GPU."""
        return self._global() if self._depth else self._states

    @states.setter
    def states(self, states: list[Tensor]) -> None:
        if self._depth:
            self._put(states)
        else:
            self._states = states

    def __enter__(self) -> None:
        turn.__enter__()
        if not self._depth:
            others = self._global()
            self._put(self._states)
            self._states = others  # kept here until the stream is left
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        try:
            self._depth -= 1
            if not self._depth:
                own = self._global()
                self._put(self._states)
                self._states = own
        finally:
            turn.__exit__()

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """Within it draws come from the stream, and afterwards the stream is where it was."""
        before = [state.clone() for state in self.states]
        try:
            with self:
                yield
        finally:
            self.states = before

    def _global(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states

    def _put(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)


def drawn_from_logits(logits: Tensor) -> Tensor:
    """Returns draws from categorical distributions ``(*batch, A)``, by Gumbel's trick.

    The largest of the perturbed logits; unlike ``torch.multinomial`` it compiles into the kernels around it.

    Example:
        >>> drawn_from_logits(torch.tensor([[0.0, 100.0], [100.0, 0.0]]))
        tensor([1, 0])
    """
    tiny = torch.finfo(logits.dtype).tiny
    exponential = -torch.rand_like(logits).clamp(min=tiny).log()
    return (logits - exponential.clamp(min=tiny).log()).argmax(-1)


def forked() -> torch.Generator:
    """Returns a generator on the host whose seed is where PyTorch's own stands, which stays there.

    What is drawn from it follows ``pyro.set_rng_seed``, and changes nothing of what else is drawn.
    """
    state = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(state[:7], "little"))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds all random numbers (PyTorch's, GPUs' too, NumPy's and Python's), and afterwards puts them back.

    Pyro's own functions leave out those of GPUs.
    """
    with turn, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        before = pyro.util.get_rng_state()
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002  (of users' programs, which may draw from it)
            yield
        finally:
            pyro.util.set_rng_state(before)


@contextmanager
def drawing(seed: int | None = None, generator: torch.Generator | None = None) -> Iterator[None]:
    """Draws within it come from a seed or a generator, and afterwards the host's random numbers are where they were.

    Of neither they are the host's, from where :func:`pyro.set_rng_seed` or :func:`torch.manual_seed` left them.

    Args:
        seed: of PyTorch's, NumPy's and Python's random numbers.
        generator: of the host, as :class:`torch.Generator` makes it. It moves on by what is drawn; what is drawn on a
            GPU has a seed that follows from its state.

    Raises:
        ValueError: if both are given, the seed is no integer from 0 to 2**63 - 1, or the generator none of the host.

    Example:
        >>> with drawing(generator=torch.Generator().manual_seed(0)):
        ...     first = torch.rand(())
        >>> with drawing(seed=0):
        ...     bool(torch.rand(()) == first)
        True
    """
    if seed is None and generator is None:
        with turn:
            yield
        return
    if generator is None:
        if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**63:
            raise ValueError(f"seed must be an integer from 0 to 2**63 - 1, or None, got {seed!r}")
        with seeded(int(seed)):
            yield
        return
    if seed is not None:
        raise ValueError("seed and generator are two sources of the same random numbers; leave one of them out")
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise ValueError(f"generator must be one of the host's, torch.Generator(), or None, got {generator!r}")
    with turn, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        before = generator.get_state()
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(int(torch.randint(2**62, (), generator=generator)))
        torch.set_rng_state(before)
        try:
            yield
        finally:
            generator.set_state(torch.get_rng_state())
