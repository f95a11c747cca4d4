"""The time that learning takes."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl_as_inference.agents.learner import Learner

__all__ = ["Clock"]


class Clock:
    """Counts the time and the steps of learning."""

    def __init__(self, agent: Learner) -> None:
        self.agent = agent
        self._seconds = self._running = 0.0
        self._steps, self._start = 0, math.nan

    @property
    def seconds(self) -> float:
        """Of learning so far."""
        return self._seconds + (0.0 if math.isnan(self._start) else time.perf_counter() - self._start)

    def __enter__(self) -> None:
        self._start, self._from, self._compiling = time.perf_counter(), self.agent.num_steps, self.agent.compile_seconds

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._start
        self._seconds, self._start = self._seconds + seconds, math.nan
        compiled = self.agent.compile_seconds != self._compiling
        self._running += seconds - (self.agent.compile_seconds if compiled else 0.0)
        self._steps += self.agent.num_steps - self._from

    @property
    def steps_per_second(self) -> float:
        """Compiling not counted."""
        return self._steps / self._running if self._steps else math.nan
