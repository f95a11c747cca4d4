"""``load``: an agent made anew from its file, and what the same word means of an agent that there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any, Protocol, TypeVar

from rl_as_inference.agents.checkpoint import Saved, load_saved
from rl_as_inference.nouns import EnvironmentLike

__all__ = ["Load"]


class _Agent(Protocol):
    def go_on_from(self, saved: Saved | str | Path) -> dict[str, Any]: ...

    def close(self) -> None: ...


Kind = TypeVar("Kind", bound=_Agent)


def _made_anew(kind: type[Kind], path: str | Path, env: EnvironmentLike | None = None, **changes: Any) -> Kind:
    """Returns an agent made anew from what ``save`` wrote to ``path``, at the point that was saved.

    Called on an agent, ``agent.load(path)`` brings that agent there, as ``restore`` does, and returns it.

    Args:
        path: the file. It names an environment that was given by its id, and holds all options.
        env: what to learn in; needed where the file cannot name it (an environment, a factory, a process).
        **changes: options in place of those in the file, such as ``device``; ``policy`` is needed where the
            agent had one of the user's.

    Raises:
        ValueError: as ``restore`` does, and where the file does not say enough to make the agent.
    """
    saved = load_saved(path)
    source, options = saved.making(kind.__name__, env, changes)
    make: Callable[..., Kind] = kind
    try:
        agent = make(source, **options)
    except TypeError as error:
        if changes:  # which may be what is wrong
            raise
        raise ValueError(f"path: {saved.path!r} says options that {kind.__name__} has not: {error}") from error
    try:
        agent.go_on_from(saved)
    except BaseException:
        agent.close()
        raise
    return agent


def _restored(agent: Kind, path: str | Path) -> Kind:
    """Brings the agent to where ``save`` wrote ``path``, and returns it."""
    agent.go_on_from(path)
    return agent


class Load:
    """A class's method that makes an agent; of an agent, it does not leave that agent as it was."""

    def __get__(self, agent: Kind | None, kind: type[Kind]) -> Callable[..., Kind]:
        return MethodType(_made_anew, kind) if agent is None else MethodType(_restored, agent)
