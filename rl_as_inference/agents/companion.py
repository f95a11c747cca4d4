"""What may learn and act beside an algorithm's update, between steps of the environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from rl_as_inference.agents.replay import Replay

__all__ = ["Companion"]


class Companion(Protocol):
    """What an algorithm has beside its update: it is asked between steps, and need not be a pure function."""

    @property
    def replay(self) -> Replay:
        """The transitions that updates learn from, in place of those that were lived."""

    def learn(self, replay: Replay, num_steps: int) -> None:
        """Learns from what was lived, where that is due; before the updates of a step."""

    def actions(self, state: Tensor, lengths: np.ndarray[Any, Any]) -> Tensor | None:
        """Returns exploring actions ``(num_seeds, num_envs, *action)`` in place of the algorithm's; None for its own.

        Args:
            state: ``(num_seeds, num_envs, *state)``.
            lengths: of the running episodes so far, ``(num_seeds · num_envs,)``.
        """

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns everything that it goes on from: tensors, and what JSON holds."""

    def check(self, tensors: Mapping[str, Tensor], progress: dict[str, Any]) -> None:
        """Raises ValueError where it cannot go on from there; names, and shapes that do not vary, are known to fit."""

    def restore(self, tensors: Mapping[str, Tensor], progress: dict[str, Any]) -> None:
        """Goes on from there."""
