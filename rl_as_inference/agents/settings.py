"""What a learner can be told, and what it can learn in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_as_inference.checks import check_count, check_positive

__all__ = ["ActionPrior", "check_settings", "choose_device", "skips_steps"]

ActionPrior = Literal["uniform", "flat"]


def check_settings(
    *,
    target_average: float,
    learning_rate: float,
    updates_per_step: float,
    action_prior: str,
    compile: bool | str,
    dtype: torch.dtype,
    env_kwargs: Any,
    seeds: int | None,
    **counts: int,
) -> None:
    """Raises ValueError for a setting out of range; ``counts`` are integers ≥ 1."""
    for name, value in {**counts, "seeds": 1 if seeds is None else seeds}.items():
        check_count(name, value)
    check_positive("learning_rate", learning_rate)
    check_positive("updates_per_step", updates_per_step)
    check_positive("target_average", target_average)
    if target_average > 1:
        raise ValueError(f"target_average must be in (0, 1], got {target_average}")
    if action_prior not in get_args(ActionPrior):
        raise ValueError(f"action_prior must be one of {', '.join(get_args(ActionPrior))}; got {action_prior!r}")
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {compile!r}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}")
    if not isinstance(env_kwargs, Mapping | None):
        raise ValueError(f"env_kwargs must be a mapping of options for gymnasium.make, got {env_kwargs!r}")


def choose_device(device: torch.device | str | None) -> torch.device:
    """Returns the device, by default a GPU if there is one."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}") from error
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device is {device!r}, which this machine does not have; leave it out, or say 'cpu'")
    return chosen


def skips_steps(env: Any) -> bool:
    """Returns whether the step after an end of this vector environment only starts the next episode."""
    if not isinstance(env, VectorEnv):
        return False
    mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    return AutoresetMode(getattr(mode, "value", mode)) is AutoresetMode.NEXT_STEP
