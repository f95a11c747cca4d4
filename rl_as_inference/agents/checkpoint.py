"""A learner's file: what it goes on from, what it must be to go on from it, and how to make it anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from rl_as_inference.agents.options import LearnerOptions
from rl_as_inference.agents.reading_options import as_held, from_held
from rl_as_inference.agents.snapshots_alike import Snapshot, differences
from rl_as_inference.checkpoints import open_tensors, save_tensors
from rl_as_inference.nouns import EnvironmentLike
from rl_as_inference.processes import MarkovDecisionProcess

__all__ = [
    "OBJECTS",
    "MadeOtherwiseError",
    "Saved",
    "check_whole",
    "how_made",
    "load_saved",
    "named_environment",
    "save_snapshot",
]

_FORMAT = "rl-as-inference agent 3"

OBJECTS = ("policy", "critic", "reward_function")
"""Options that are the user's own objects, which a file cannot hold."""

_MADE = {"options", "env", "env_kwargs", "env_given_as"}
"""What a file says of how a learner was made, beside such objects."""

_NOT_MADE_AGAIN = ("device", "distributed", "ray", "env_kwargs", *OBJECTS)
"""Options that a file does not hold: where an agent runs is not what it is, and env_kwargs is the environment's."""

_MAY_BE_LEFT = {"priority_exponent"}
"""What a learner need not be, though the file's was: its rows have all that uniform replay needs."""

_ADDED = {"seed"}
"""What files of earlier versions do not say."""


def check_whole(is_whole: bool) -> None:
    """Raises ValueError for a learner that was interrupted where nothing of it can be kept."""
    if not is_whole:
        raise ValueError(
            "the agent was interrupted inside a step (a second Ctrl-C does that), so that what it holds is of no "
            "step at all; restore its last checkpoint"
        )


class MadeOtherwiseError(ValueError):
    """A file is whole, and of a learner made in another way than the one that is to go on from it."""


class Saved(NamedTuple):
    """A learner's file."""

    path: str
    snapshot: Snapshot
    identity: dict[str, Any]
    """What the learner was, as another that goes on from here must be."""
    made: dict[str, Any] | None
    """How it was made; None in files of earlier versions."""
    notes: dict[str, Any]
    """What the user saved with it."""

    def check(self, identity: Mapping[str, Any], like: Snapshot) -> None:
        """Raises ValueError unless a learner may go on from here, MadeOtherwiseError if it is made otherwise.

        Args:
            identity: what the learner is.
            like: where it is now.
        """
        for what in (*identity, *(self.identity.keys() - identity.keys() - _MAY_BE_LEFT)):
            if what in _ADDED and what not in self.identity:
                continue
            found, wanted = self.identity.get(what), identity.get(what)
            if found != wanted:
                shown = f": it has {found}, and this agent {wanted}" if what != "network layout" else ""
                raise MadeOtherwiseError(
                    f"path: {self.path!r} was written with another {what}{shown}; make the agent the same way"
                )
        if wrong := differences(self.snapshot, like):
            raise ValueError(f"path: {self.path!r} {wrong}, so save() did not write it as it is")

    def making(
        self, kind: str, env: EnvironmentLike | None, changes: Mapping[str, Any]
    ) -> tuple[EnvironmentLike, dict[str, Any]]:
        """Returns the environment and the options to make the learner anew with.

        Args:
            kind: the name of its class.
            env: in place of the one that the file names.
            changes: options in place of those in the file.

        Raises:
            ValueError: if another class's learner was saved, or the file does not say enough.
        """
        if (found := self.identity.get("agent")) != kind:
            raise ValueError(f"path: {self.path!r} is of {found}, not of {kind}; use {found}.load")
        if self.made is not None and (lacking := _MADE - self.made.keys()):
            raise ValueError(
                f"path: {self.path!r} lacks {', '.join(sorted(lacking))} of how it was made; save() did not write it"
            )
        if self.made is None:
            raise ValueError(
                f"path: {self.path!r} was written by an earlier version, which did not note the agent's options; make "
                f"the agent the same way, and restore(path)"
            )
        for name in OBJECTS:
            if (held := self.made.get(name)) is not None and name not in changes:
                raise ValueError(
                    f"{name}: the agent in {self.path!r} has a {held} of the user's, which a file cannot hold; "
                    f"{kind}.load(path, {name}=...) with one made the same way"
                )
        options = from_held(self.made["options"])
        if env is None:
            env = self.made["env"]
            if env is None:
                raise ValueError(
                    f"env: the agent in {self.path!r} learned in {self.identity.get('environment')}, given as "
                    f"{self.made['env_given_as']}, which a file cannot hold; {kind}.load(path, env=...) with the same"
                )
            options["env_kwargs"] = self.made["env_kwargs"]
        return env, {**options, **changes}


def how_made(source: EnvironmentLike, options: LearnerOptions) -> dict[str, Any]:
    """Returns how a learner was made, as JSON holds it."""
    held = as_held(options)
    env, env_kwargs = named_environment(source, options["env_kwargs"] or {})
    return {
        "options": {name: value for name, value in held.items() if name not in _NOT_MADE_AGAIN},
        "env": env,
        "env_kwargs": env_kwargs,
        "env_given_as": _kind_of(source),
        **{name: held.get(name) for name in OBJECTS},
    }


def named_environment(
    source: EnvironmentLike, env_kwargs: Mapping[str, Any]
) -> tuple[str | None, dict[str, Any] | None]:
    """Returns the Gymnasium id that an environment was given by, and its options; None where a file cannot say them."""
    if isinstance(source, EnvSpec) and gymnasium.registry.get(source.id) == source:
        source = source.id
    if not isinstance(source, str) or not _is_json(dict(env_kwargs)):
        return None, None
    return source, dict(env_kwargs)


def _kind_of(source: EnvironmentLike) -> str:
    """Returns how an environment was given, in words."""
    if isinstance(source, str):
        return "an id with options that JSON cannot hold"
    if callable(source) and not isinstance(source, gymnasium.Env | VectorEnv | MarkovDecisionProcess):
        return "a factory"
    return f"an object, {type(source).__name__}"


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def save_snapshot(
    path: str | Path,
    snapshot: Snapshot,
    identity: Mapping[str, Any],
    made: Mapping[str, Any],
    notes: Mapping[str, Any],
) -> None:
    """Writes a snapshot to ``path``, whole or not at all, with what the learner is and how it was made.

    Raises:
        ValueError: if the file cannot be written.
    """
    record = {
        "format": _FORMAT,
        "identity": dict(identity),
        "made": dict(made),
        "progress": snapshot.progress,
        "notes": dict(notes),
    }
    save_tensors(path, snapshot.tensors, record)


def load_saved(path: str | Path) -> Saved:
    """Returns the file at ``path``, which :func:`save_snapshot` wrote.

    Raises:
        ValueError: if there is no such file, it is damaged or not a learner's.
    """
    tensors, record = open_tensors(path)
    if record.get("format") != _FORMAT:
        raise ValueError(f"path: {str(path)!r} holds tensors, but no agent written by save()")
    for name in ("progress", "identity", "notes", *(["made"] if record.get("made") is not None else [])):
        if not isinstance(record.get(name), dict):
            raise ValueError(f"path: {str(path)!r} lacks {name}, so save() did not write it as it is")
    snapshot = Snapshot(tensors, record["progress"])
    return Saved(str(path), snapshot, record["identity"], record.get("made"), record["notes"])
