"""Target entropies that a policy can reach."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import gymnasium

from rl_as_inference.spaces import uniform_log_density

__all__ = ["check_target_entropy"]


def check_target_entropy(target_entropy: float | None, action_space: gymnasium.Space[Any]) -> float:
    """Returns the target entropy in nats; by default half of ``log|A|`` for discrete actions, ``-d`` for others.

    ``-d`` is soft actor-critic's own (arXiv:1812.05905, appendix D), of a density about a fifth of the
    box wide in every dimension. Discrete actions have no density: their entropy lies between 0 and
    ``log|A|``. Near the top (0.98 log|A| in arXiv:1910.07207) a policy may hardly prefer any action, and
    α grows without bound wherever it should; near 0 nothing is explored and α vanishes. At half, two
    of four actions stay open on average, or one of two is taken eight times in nine.

    Raises:
        ValueError: if no policy can reach it.

    Example:
        >>> check_target_entropy(None, gymnasium.spaces.Discrete(4)) == 0.5 * math.log(4)
        True
    """
    most = -uniform_log_density(action_space)
    discrete = isinstance(action_space, gymnasium.spaces.Discrete)
    if target_entropy is None:
        return 0.5 * most if discrete else -float(math.prod(action_space.shape or ()))
    if isinstance(target_entropy, bool) or not isinstance(target_entropy, Real):
        raise ValueError(f"target_entropy must be a number of nats, or None for the default, got {target_entropy!r}")
    if not math.isfinite(target_entropy) or target_entropy >= most:
        name = f"log {round(math.exp(most))}" if discrete else "d log 2"
        raise ValueError(
            f"target_entropy is {target_entropy} nats, which no policy on {action_space} can hold: the uniform one has "
            f"{name} = {most:.4g} nats, and no other has as much; choose less, {0.5 * most:.3g} say"
        )
    if discrete and target_entropy < 0:
        raise ValueError(
            f"target_entropy is {target_entropy} nats, and the entropy of discrete actions is never below 0; choose "
            f"between 0 and {most:.4g}"
        )
    return float(target_entropy)
