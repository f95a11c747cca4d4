"""A learner's file: what it goes on from, and what it must be to go on from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from rl_as_inference.checkpoints import load_tensors, save_tensors

__all__ = ["Snapshot", "load_snapshot", "save_snapshot"]

_FORMAT = "rl-as-inference agent 3"


class Snapshot(NamedTuple):
    """Everything that a learner goes on from."""

    tensors: dict[str, Tensor]
    progress: dict[str, Any]
    """Counts, histories and the environments' own state, as JSON holds them."""
    notes: dict[str, Any]


def save_snapshot(path: str | Path, snapshot: Snapshot, identity: Mapping[str, Any]) -> None:
    """Writes a snapshot to ``path``, whole or not at all, with what the learner is.

    Raises:
        ValueError: if the file cannot be written.
    """
    record = {
        "format": _FORMAT,
        "identity": dict(identity),
        "progress": snapshot.progress,
        "notes": snapshot.notes,
    }
    save_tensors(path, snapshot.tensors, record)


def load_snapshot(path: str | Path, identity: Mapping[str, Any], needed: Iterable[str]) -> Snapshot:
    """Returns the snapshot at ``path``.

    Args:
        path: a file that :func:`save_snapshot` wrote.
        identity: what the learner is that wants it, as the one that was saved must have been.
        needed: the names of tensors it cannot go on without.

    Raises:
        ValueError: if there is no such file, it is damaged or not a learner's, or another kind of learner wrote it.
    """
    tensors, record = load_tensors(path)
    path = str(path)
    if record.get("format") != _FORMAT:
        raise ValueError(f"path: {path!r} holds tensors, but no agent written by save()")
    if missing := sorted({*needed} - tensors.keys()):
        raise ValueError(f"path: {path!r} lacks {', '.join(missing)}, so save() did not write it as it is")
    for what, wanted in identity.items():
        found = record["identity"].get(what)
        if found != wanted:
            shown = f": it has {found}, and this agent {wanted}" if what != "network layout" else ""
            raise ValueError(f"path: {path!r} was written with another {what}{shown}; make the agent the same way")
    return Snapshot(tensors, record["progress"], record["notes"])
