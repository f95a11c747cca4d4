"""What a fit tells of itself on the way."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rl_as_inference.checks import check_count

__all__ = ["FitReports"]


class FitReports:
    """Tells every so many steps, and after the last, how a fit stands.

    Args:
        told: who is told; None for nobody.
        every: steps between two reports; None for a hundredth of them all.
        steps: of the fit.
    """

    def __init__(self, told: Callable[[dict[str, float]], None] | None, every: int | None, steps: int) -> None:
        if every is not None:
            check_count("report_every", every)
        self.told, self.last = told, steps - 1
        self.every = max(steps // 100, 1) if every is None else every

    def tell(self, step: int, **numbers: float) -> None:
        """Tells of the policy as it was after so many steps, if it is time."""
        if self.told is not None and (step % self.every == 0 or step == self.last):
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # what is drawn there moves nothing
                self.told({"step": float(step), **numbers})
