"""Learners of several ranks: what they may be, when they stop, and what each keeps in files."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rl_as_inference.agents.checkpoint import Saved, load_saved
from rl_as_inference.agents.options import LearnerOptions
from rl_as_inference.agents.reading_options import as_held
from rl_as_inference.agents.snapshots_alike import Snapshot
from rl_as_inference.distributed import ALONE, Ranks, stay_joined
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.sharing import agree_on, failing_together

__all__ = ["agree_on_environments", "device_of", "file_of_rank", "of_this_rank", "ranks_of", "signal_to_stop"]

_EVERY = 16
"""Steps between those at which ranks ask each other whether one is to stop; each asks the same number of times."""

_NOT_TOGETHER: Mapping[str, Any] = {
    "target_return": None,
    "normalize_observations": False,
    "normalize_rewards": False,
    "noise_repeats": 1,
}
"""Options whose numbers each rank would keep for itself, so that they would learn different things."""


def ranks_of(options: LearnerOptions) -> Ranks:
    """Returns the ranks that learn together, once they agree on the options.

    Raises:
        ValueError: if there are options that do not go together, this is no rank of a job, or they disagree.
    """
    if not options["distributed"]:
        return ALONE
    every: dict[str, Any] = {**options}
    usual = {**_NOT_TOGETHER, **({"reward_scaling": False} if every.get("architecture") == "residual" else {})}
    if "planner" in every:  # whichever acts: a model of the world is fitted by each rank to what it saw itself
        raise ValueError("distributed: model-based agents fit a model of the world on each rank; leave one of them out")
    for option, value in usual.items():
        if option in every and every[option] != value:
            raise ValueError(
                f"distributed does not go with {option}={every[option]!r}, whose numbers each rank would keep by what "
                f"it sees itself; leave one of them out"
            )
    ranks = stay_joined()
    ranks.agree("options", {key: value for key, value in as_held(options).items() if key != "device"})
    return ranks


def device_of(ranks: Ranks, device: Any) -> Any:
    """Returns the device of this rank: where none is said, or just ``"cuda"``, a GPU of its own if there are GPUs.

    Raises:
        ValueError: if there are fewer GPUs than ranks on a machine.
    """
    if ranks.size == 1 or not torch.cuda.is_available() or (device is not None and str(device) != "cuda"):
        return device
    own = ranks.device
    if own.type == "cpu":
        count = torch.cuda.device_count()
        raise ValueError(
            f"device: there are fewer GPUs ({count}) than ranks on this machine, and each needs its own; start as "
            f"many ranks, or say device='cpu'"
        )
    return own


def agree_on_environments(ranks: Ranks, source: Any, envs: Any) -> None:
    """Raises ValueError, on every rank, if they learn in different environments, or two of them on one GPU."""
    ranks.agree("env", {"name": envs.name, "spaces": (envs.state_space, envs.action_space)})
    if isinstance(source, MarkovDecisionProcess):
        agree_on(ranks, env=source)


def signal_to_stop(ranks: Ranks, asked: Sequence[int], step: int, *, now: bool = False) -> int | None:
    """Returns the signal by which some rank was asked to stop, if there is one; the same on all ranks.

    Args:
        ranks: that take the same steps.
        asked: signals that came to this rank.
        step: how many steps this call of ``learn`` has taken; ranks ask each other at every sixteenth.
        now: ask whatever the step.
    """
    if ranks.size == 1:
        return asked[0] if asked else None
    if step % _EVERY and not now:
        return None
    flags = torch.tensor([signal.SIGINT in asked, signal.SIGTERM in asked], dtype=torch.int64)
    ranks.add_up(flags)
    interrupted, terminated = (flags > 0).tolist()
    return signal.SIGTERM if terminated else signal.SIGINT if interrupted else None


def file_of_rank(path: str | Path, rank: int) -> Path:
    """Returns where a rank saves what others save at ``path``, which is rank 0's file.

    Example:
        >>> str(file_of_rank("run/checkpoint.safetensors", 1))
        'run/checkpoint.rank1.safetensors'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}") if rank else path


def of_this_rank(
    saved: Saved | str | Path, ranks: Ranks, identity: Mapping[str, Any], present: Snapshot
) -> tuple[Saved, bool]:
    """Returns what a rank goes on from, and whether that is where it was itself.

    That is its own file of the same step as rank 0's, if there is one. Else (there were fewer ranks, or it was killed
    before it saved) it is rank 0's, with the transitions of a file of its own or of another rank, and new episodes.

    Args:
        saved: rank 0's file, or where that is.
        ranks: of now.
        identity: what the learner is.
        present: a snapshot of this rank, as it was made.

    Raises:
        ValueError: on every rank, if one cannot go on: its file is damaged, or of another learner.
    """
    with failing_together(ranks):
        saved, exact = _of_this_rank(saved if isinstance(saved, Saved) else load_saved(saved), ranks, present)
        saved.check(identity, present)
    return saved, exact


def _of_this_rank(saved: Saved, ranks: Ranks, present: Snapshot) -> tuple[Saved, bool]:
    if not ranks.rank:
        return saved, True
    before = int((saved.made or {}).get("ranks", 1))
    file = file_of_rank(saved.path, ranks.rank % before)
    own = load_saved(file) if file != Path(saved.path) and file.exists() else saved
    steps = saved.snapshot.progress["num_steps"]
    if own is not saved and ranks.rank < before and own.snapshot.progress["num_steps"] == steps:
        return own, True
    mine = ("env.", "walk.", "random.")
    tensors = {name: each for name, each in present.tensors.items() if name.startswith(mine)}
    rows = {name: own.snapshot.tensors[name] for name in own.snapshot.tensors if name.startswith("replay.")}
    learned = {
        name: saved.snapshot.tensors[name] for name in saved.snapshot.tensors if not name.startswith((*mine, "replay."))
    }
    progress = {**saved.snapshot.progress, "action_is_fresh": False, "envs": present.progress["envs"]}
    progress |= {name: present.progress[name] for name in ("returns", "lengths")}
    return saved._replace(snapshot=Snapshot({**learned, **tensors, **rows}, progress)), False
