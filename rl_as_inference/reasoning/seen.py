"""What a posterior density asks of data."""

from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

__all__ = ["Seen"]


class Seen(Protocol):
    """What was seen of a family's process, and how likely it was: entries, each with a log probability."""

    noun: ClassVar[str]
    """What messages call it."""
    advice: ClassVar[str]
    """What to say to those whom it tells nothing."""

    @property
    def tally(self) -> Tensor:
        """How often each entry was seen in all, ``(M,)``."""

    @property
    def mask(self) -> Tensor:
        """Which steps were seen of which ``N``, ``(T, N)``."""

    def by_one(self, logs: Tensor) -> Tensor:
        """Returns the sums of ``(*batch, M)`` over the entries of each, ``(*batch, N)``."""

    def to(self, device: torch.device) -> Self:
        """Returns the same on a device."""

    def check(self, process: Any) -> None:
        """Raises ValueError where it is not of this process."""

    def within(self, process: Any) -> Self:
        """Returns what counts of it for a process."""

    def log_probabilities(self, process: Any, acting: Any) -> Tensor:
        """Returns the log probability of each entry, ``(M,)`` in nats."""

    def refuted(self, process: Any, acting: Any, logs: Tensor) -> str | None:
        """Returns what was seen that the process cannot do; None where there is nothing."""

    def improbable(self, entry: int) -> str:
        """Returns that an entry has no probability in any process of the family."""
