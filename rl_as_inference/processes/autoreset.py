"""When a vector environment starts the next episode: what it says, held to what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

__all__ = ["Autoreset"]

_FINAL = ("final_obs", "final_observation")
"""Where the last observations of ended episodes are: in Gymnasium, and in Gymnasium before 1.0."""


class Autoreset:
    """When a vector environment starts the next episode.

    One that does not say so is warned of, as Gymnasium's own wrappers do. They then take it for one that resets in
    the next step; here the first end of an episode shows it, as only one that resets in the same step has final
    observations to give.

    Args:
        metadata: the environment's.
        name: the environment's, for messages.

    Attributes:
        ended: which environments' episodes ended in the last step, ``(num_envs,)`` bool.
    """

    ended: np.ndarray[Any, Any]

    def __init__(self, metadata: Mapping[str, Any] | None, name: str) -> None:
        self._name = name
        self._mode: AutoresetMode | None = None
        self._said = True
        if metadata is None:  # no vector environment
            return
        mode = metadata.get("autoreset_mode")
        if mode is not None:
            self._mode = AutoresetMode(getattr(mode, "value", mode))
            return
        self._said = False
        gymnasium.logger.warn(
            f"{name} is missing `autoreset_mode` in its metadata; whether it resets in the same step or in the next "
            f"is seen where the first episode ends, by 'final_obs' in its info"
        )

    @property
    def skips_steps(self) -> bool:
        """Whether the step after an end only starts the next episode, as far as one knows."""
        return self._mode in (None, AutoresetMode.NEXT_STEP)

    def final_observations(self, info: Mapping[str, Any]) -> Any:
        """Returns the last observations of the episodes that ended in a step; None where they are the step's own.

        Raises:
            ValueError: if the environment contradicts what it says of itself, or what it did before.
        """
        final = next((info[name] for name in _FINAL if name in info), None)
        if self._mode is None:
            self._mode = AutoresetMode.NEXT_STEP if final is None else AutoresetMode.SAME_STEP
        if self._mode is AutoresetMode.SAME_STEP and final is None:
            raise ValueError(
                f"{self._name} resets in the same step, and its info lacks 'final_obs', so the last observation of "
                f"an episode is lost; use AutoresetMode.NEXT_STEP"
            )
        if self._mode is not AutoresetMode.SAME_STEP and final is not None:
            raise ValueError(
                f"{self._name} is taken for one of AutoresetMode.{self._mode.name}, and its info has 'final_obs' where "
                f"an episode ended, as only one that resets in the same step has; set metadata['autoreset_mode'] to "
                f"what it does"
            )
        return final

    def check_starts(self, rewards: np.ndarray[Any, Any], ended: np.ndarray[Any, Any]) -> None:
        """Holds a step that is taken for one that only starts episodes, where one ended before, to be no other.

        Args:
            rewards: of the step, ``(num_envs,)``.
            ended: which episodes it ends, ``(num_envs,)`` bool.

        Raises:
            ValueError: if such a step ends an episode; or if it earns something in an environment that does not say
                when it resets.
        """
        wrong = self.ended & (ended if self._said else ended | (rewards != 0))
        if wrong.any():
            index = int(np.flatnonzero(wrong)[0])
            what = "ends an episode again" if ended[index] else f"earns {float(rewards[index]):g}"
            raise ValueError(
                f"{self._name} is taken for one of AutoresetMode.NEXT_STEP, whose step after an end only starts the "
                f"next episode, and there environment {index} {what}; set metadata['autoreset_mode'] to what it does "
                f"(one that resets in the same step gives 'final_obs' in its info)"
            )
