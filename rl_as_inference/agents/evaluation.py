"""Playing whole episodes with a policy, and what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rl_as_inference.agents.windows import WindowedEnvironments
from rl_as_inference.guides.modes import mode_of
from rl_as_inference.processes.environments import Environments

__all__ = ["Evaluation", "mean_interval", "mode_of", "play"]


class Evaluation(NamedTuple):
    """Whole episodes of a policy, or of the policy of each seed."""

    returns: Tensor
    """Undiscounted return of each episode in reward units, ``(num_episodes,)`` or ``(num_seeds, num_episodes)``."""
    lengths: Tensor
    """Steps of each episode, of the same shape."""

    @property
    def mean(self) -> float:
        """The mean return over everything."""
        return float(self.returns.mean())


def mean_interval(returns: Tensor) -> tuple[float, float] | None:
    """Returns the 95 % bootstrap interval of the mean of ``(num_seeds, num_episodes)`` returns; None for one number.

    Over the seeds' means if there are several seeds, else over the episodes; percentiles of 9,999 resamples.
    """
    table = returns.numpy()
    values = table.mean(1) if len(table) > 1 else table[0]
    if len(values) < 2:
        return None
    from scipy.stats import bootstrap

    interval = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(interval.low), float(interval.high)


def play(envs: Environments | WindowedEnvironments, choose: Callable[[Any, Any], Any], num_episodes: int) -> Evaluation:
    """Returns ``num_episodes`` whole episodes; each environment plays its share, so that short ones count no more.

    Args:
        envs: the environments; they are reset first.
        choose: ``(states, times) -> actions``, arrays in the agent's units; times count from 0 in each episode.
        num_episodes: ≥ 1.
    """
    slots = envs.num_envs
    returns = torch.zeros(num_episodes, dtype=torch.float64)
    lengths = torch.zeros(num_episodes, dtype=torch.int64)
    shares = [range(slot, num_episodes, slots) for slot in range(slots)]
    playing, total, length = [0] * slots, np.zeros(slots), np.zeros(slots, int)
    state = envs.reset()
    while any(playing[slot] < len(shares[slot]) for slot in range(slots)):
        step = envs.step(choose(state, length.copy()))
        total += step.earned * step.valid
        length += step.valid
        for slot in np.flatnonzero(step.terminated | step.truncated):
            if playing[slot] < len(shares[slot]):
                episode = shares[slot][playing[slot]]
                returns[episode], lengths[episode] = float(total[slot]), int(length[slot])
                playing[slot] += 1
            total[slot] = length[slot] = 0
        state = step.state
    return Evaluation(returns, lengths)
