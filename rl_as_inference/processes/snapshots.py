"""Where runs of environments begin and go on from: seeds of episodes, and snapshots."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["checked_snapshot", "episode_seed"]

Array = np.ndarray[Any, Any]


def episode_seed(seed: int, index: int, episode: int) -> int:
    """Returns the seed that an environment's episode is reset with."""
    sequence = np.random.SeedSequence(seed, spawn_key=(index, episode))
    return int(sequence.generate_state(1)[0] >> 1)  # environments may hold it in a signed 32-bit integer


def checked_snapshot(snapshot: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    """Returns the two parts of a snapshot of :class:`~rl_as_inference.processes.environments.Environments`.

    Raises:
        ValueError: if it is none.
    """
    try:
        json, arrays = dict(snapshot["json"]), dict(snapshot["arrays"])
        missing = {"name", "num_envs", "seed", "num_steps", "episodes"} - json.keys()
    except (TypeError, KeyError, ValueError):
        missing = {"json or arrays"}
    if missing:
        raise ValueError(f"snapshot lacks {', '.join(sorted(missing))}; pass what Environments.snapshot() returned")
    return json, arrays
