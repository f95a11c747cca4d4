"""Telling that a reward was written where nothing is earned any more: in a terminal state."""

import sys
import warnings

import torch
from torch import Tensor

__all__ = ["levels_to_the_user", "warn_of_silent_rewards"]


def warn_of_silent_rewards(name: str, silent: Tensor, earned: Tensor, states: Tensor) -> None:
    """Warns of rewards in terminal states that are not 0 and that no other state has.

    What all states cost alike, such as -1 a step, is meant to end with the episode, and is no news.

    Args:
        name: of the process.
        silent: the rewards that terminal states would give, of any shape.
        earned: the rewards of other states.
        states: which terminal state each of ``silent`` is of, of its leading shape.
    """
    rounding = 1e-6 * earned.abs().max() if earned.numel() else 0.0
    lost = (silent.abs() > rounding) & silent.isfinite() & ~torch.isin(silent, earned)
    if not bool(lost.any()):
        return
    where = lost.reshape(*states.shape[:1], -1).any(1)
    told = ", ".join(str(state) for state in states[where].unique()[:3].tolist())
    more = ", …" if len(states[where].unique()) > 3 else ""
    warnings.warn(
        f"reward of {name} is {float(silent[lost][0]):.4g} in the terminal state {told}{more}, where it is silent: an "
        f"episode that has ended earns nothing more; give it to the transition that enters the state, r(s, a, s')",
        UserWarning,
        stacklevel=levels_to_the_user(),
    )


def levels_to_the_user() -> int:
    """Returns how far up the stack the package was called from, as seen by who asks."""
    frame, levels = sys._getframe(1), 1
    ours = ("rl_as_inference", "torch.utils._contextlib")  # torch.no_grad() stands between some of ours
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(ours):
        frame, levels = frame.f_back, levels + 1
    return levels
