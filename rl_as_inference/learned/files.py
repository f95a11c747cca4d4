"""Learned dynamics in a file: tensors and what makes them anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from rl_as_inference.checkpoints import load_tensors, save_tensors

if TYPE_CHECKING:
    from rl_as_inference.learned.dynamics import LearnedDynamics

__all__ = ["load_dynamics", "save_dynamics"]

_FORMAT = "rl-as-inference dynamics 1"
_FUNCTIONS = ("reward", "terminated", "initial")


def save_dynamics(dynamics: LearnedDynamics, path: str | Path) -> None:
    """Writes dynamics to ``path``."""
    record = {
        "format": _FORMAT,
        "state_space": _held_space(dynamics.state_space),
        "action_space": _held_space(dynamics.action_space),
        "options": {
            "ensemble": dynamics.ensemble,
            "hidden_sizes": list(dynamics.hidden_sizes),
            "prior_scale": dynamics.prior_scale,
            "horizon": dynamics.horizon,
            "discount": float(dynamics.discount),
            "temperature": float(dynamics.temperature),
            "dtype": str(dynamics.like.dtype).removeprefix("torch."),
        },
        "given": [name for name in _FUNCTIONS if getattr(dynamics, f"given_{name}") is not None],
    }
    save_tensors(path, dynamics.state_dict(), record)


def load_dynamics(kind: type[LearnedDynamics], path: str | Path, given: Mapping[str, Any]) -> LearnedDynamics:
    """Returns the dynamics at ``path``."""
    tensors, record = load_tensors(path)
    if record.get("format") != _FORMAT:
        raise ValueError(f"path: {str(path)!r} holds tensors, but no dynamics written by save()")
    try:
        given_then, options = list(record["given"]), dict(record["options"])
        options["dtype"] = {"float32": torch.float32, "float64": torch.float64}[options["dtype"]]
        spaces = [_space(record[name]) for name in ("state_space", "action_space")]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"path: {str(path)!r} is not as save() writes it: {error!r}") from error
    if missing := [name for name in given_then if name not in given]:
        raise ValueError(
            f"path: the dynamics in {str(path)!r} were made with {', '.join(missing)}, which a file cannot hold; "
            f"LearnedDynamics.load(path, {missing[0]}=...) with the same"
        )
    try:
        dynamics = kind(*spaces, **{**options, **given})
        dynamics.load_state_dict(tensors)
    except (TypeError, RuntimeError) as error:  # options that there are not; tensors that are missing, or others
        raise ValueError(f"path: {str(path)!r} is not as save() writes it: {' '.join(str(error).split())}") from error
    return dynamics


def _held_space(space: gymnasium.Space[Any]) -> dict[str, Any]:
    if isinstance(space, gymnasium.spaces.Discrete):
        return {"n": int(space.n)}
    assert isinstance(space, gymnasium.spaces.Box)
    bounds = {name: [repr(float(each)) for each in getattr(space, name)] for name in ("low", "high")}
    return {**bounds, "dtype": str(space.dtype)}  # as text, which has infinities


def _space(held: Mapping[str, Any]) -> gymnasium.Space[Any]:
    if "n" in held:
        return gymnasium.spaces.Discrete(held["n"])
    kind: Any = np.dtype(held["dtype"])
    low, high = (np.array([float(each) for each in held[name]], kind) for name in ("low", "high"))
    return gymnasium.spaces.Box(low, high, dtype=kind)
