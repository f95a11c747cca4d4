"""By how much rewards are divided before critics learn their sum, kept up from the returns that are seen."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ReturnScale"]

_LEAST = 1e-8
"""Beside the variance."""


class ReturnScale:
    """The size of a learner's returns, so that a critic of a bounded range can say them.

    After every step the discounted sum of the rewards so far, ``G ← γ G + r`` from the start of each episode, is one
    draw more of how large a return is. With the standard deviation ``σ`` of all of them so far and the largest
    ``|G|``, the scale is ``max(σ, max|G| / bound)``: returns over it vary by about 1, and lie within ``±bound``. It is
    the reward scaling of SimbaV2 (Lee et al. 2025, arXiv:2502.15280), which FlashSAC has too (Kim et al. 2026,
    arXiv:2604.04539), where ``bound`` is ``G_max``; an episode's sum begins anew with its first step, as in
    ``NormalizeReward``, and not with its last. While nothing has been earned the scale is 1.

    Args:
        bound: how far from 0 a return over the scale may lie.
        discount: γ.
        num_seeds, num_envs: learners, and environments of each.

    Example:
        >>> scale, flags = ReturnScale(5.0, discount=0.5, num_seeds=1, num_envs=1), np.array([False])
        >>> scale.observe(np.array([20.0]), ended=flags, valid=~flags)  # one return, 20: it does not vary
        array([4.])
        >>> scale.observe(np.array([-10.0]), ended=flags, valid=~flags)  # now 20 and 0
        array([10.])
    """

    def __init__(self, bound: float, *, discount: float, num_seeds: int, num_envs: int) -> None:
        self.bound, self.discount, self.num_seeds = bound, discount, num_seeds
        self._returns = np.zeros(num_seeds * num_envs)
        self._of_seeds = {name: np.zeros(num_seeds) for name in ("count", "mean", "square", "largest")}

    def observe(self, reward: Any, *, ended: Any, valid: Any) -> Any:
        """Takes in a step of every environment, and returns each seed's scale, ``(num_seeds,)``, reward units.

        Args:
            reward: of the step, ``(num_seeds · num_envs,)``.
            ended: whether the episode ended with it.
            valid: false where the step was only a reset.
        """
        self._returns = np.where(valid, self.discount * self._returns + reward, self._returns)
        returns, counts = (np.reshape(each, (self.num_seeds, -1)) for each in (self._returns, valid))
        old, new = self._of_seeds, counts.sum(1)
        some = np.maximum(new, 1)
        mean = (returns * counts).sum(1) / some
        apart, total = mean - old["mean"], np.maximum(old["count"] + new, 1)
        # Chan, Golub & LeVeque 1983: sums of squares about the mean, put together
        square = (np.square(returns - mean[:, None]) * counts).sum(1) + apart**2 * old["count"] * new / total
        self._of_seeds = {
            "count": old["count"] + new,
            "mean": old["mean"] + apart * new / total,
            "square": old["square"] + square,
            "largest": np.maximum(old["largest"], (np.abs(returns) * counts).max(1)),
        }
        self._returns[np.asarray(ended)] = 0.0
        return self.values

    @property
    def values(self) -> Any:
        """Each seed's scale, ``(num_seeds,)``, reward units."""
        found = self._of_seeds
        deviation = np.sqrt(found["square"] / np.maximum(found["count"], 1) + _LEAST)
        return np.where(found["largest"] > 0, np.maximum(deviation, found["largest"] / self.bound), 1.0)

    def restart(self, which: Any = slice(None)) -> None:
        """Forgets the running episodes, or which of them, in whose place new ones begin."""
        self._returns[which] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Returns all that it goes on from, as JSON holds it."""
        return {"returns": self._returns.tolist(), **{name: each.tolist() for name, each in self._of_seeds.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._returns = np.array(state["returns"], float)
        self._of_seeds = {name: np.array(state[name], float) for name in self._of_seeds}
