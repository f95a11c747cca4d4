"""What the commands of ``rlai`` share: errors, and options that several have."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import rl_as_inference
from rl_as_inference.cli.application import app
from rl_as_inference.cli.narrow import write_narrowly
from rl_as_inference.option_names import flag, meant, typed
from rl_as_inference.stops import Terminated, stoppable

if TYPE_CHECKING:
    from rl_as_inference.distributed import Ranks

__all__ = [
    "ONLY_CHECK",
    "PROBLEM_OPTIONS",
    "Distributed",
    "Hidden",
    "Out",
    "Overwrite",
    "Progress",
    "Resume",
    "Seed",
    "app",
    "check_least",
    "check_seed",
    "end_of_checks",
    "main",
    "own_names",
    "parse_options",
    "parse_sizes",
    "plain_errors",
    "settings_of",
]

ONLY_CHECK = "only check"
"""A context's object that ends a command where its work would begin: a sweep asks so what it thinks of its options."""

PROBLEM_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}

_NOT_OF_RUNS = ("problem", "seed", "out", "overwrite", "resume", "progress", "video", "trust", "distributed")
"""Parameters of a command that are none of a run's settings: those that a record has apart, or not at all."""

Out = Annotated[Path | None, typer.Option(help="Folder to write to; nothing is written without it.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier run in --out.")]
Hidden = Annotated[str, typer.Option(help="Widths of the networks' hidden layers, as 64,64.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="Share the trajectories with the other ranks of a job: torchrun --nproc-per-node N --no-python rlai …",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out from its last checkpoint.")]
Progress = Annotated[bool | None, typer.Option("--progress/--no-progress", help="A bar; by default on a terminal.")]


is_main = False
"""Whether this process is ``rlai`` itself, and has done nothing but import."""


def main() -> None:
    """Runs the command line."""
    global is_main
    is_main = True
    try:
        write_narrowly()
        app()
    except KeyboardInterrupt:  # before a command began: options were being read
        print("rlai: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns what the user can mend into one line on standard error and exit code 2, and SIGTERM into a clean end.

    An error of the user's own code keeps its traceback, which says where it arose.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        # Not sooner: they import PyTorch, and who asks for help or the version need not wait for that.
        from rl_as_inference.cli.blame import is_of_users_code
        from rl_as_inference.distributed import RankError, joined
        from rl_as_inference.memory import keep_freed_memory

        if is_main:
            keep_freed_memory()
        speaks = True
        try:
            with stoppable(), joined(bool(kwargs.get("distributed"))) as ranks:
                try:
                    with silent_but_first(ranks):
                        command(*args, **kwargs)
                except BaseException as error:
                    speaks = ranks.speaks_of(error)
                    raise
        except RankError as error:
            _say(speaks, f"error: {error}{_notes_of(error)}")
            raise typer.Exit(1) from None
        except (ValueError, OSError) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if is_of_users_code(error) or not (full or isinstance(error, ValueError)):
                raise
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            _say(speaks, " ".join(f"error: {error}{notes}".split()))
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stop:
            how, code = ("terminated", 143) if isinstance(stop, Terminated) else ("interrupted", 130)
            _say(speaks, f"{how}{_notes_of(stop)}")
            raise typer.Exit(code) from None

    return run


def _notes_of(error: BaseException) -> str:
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


def _say(speaks: bool, text: str) -> None:
    if speaks:  # of several ranks that end alike, one
        print(f"rlai: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def silent_but_first(ranks: Ranks) -> Iterator[None]:
    """Within it only rank 0 prints."""
    if ranks.is_first:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def end_of_checks(context: typer.Context) -> None:
    """Ends a command that is only to check its options."""
    if context.obj == ONLY_CHECK:
        raise typer.Exit


def parse_sizes(text: str) -> tuple[int, ...]:
    """Returns ``64,64`` as ``(64, 64)``.

    Raises:
        ValueError: if it is something else.
    """
    try:
        return tuple(int(size) for size in text.split(",") if size)
    except ValueError:
        raise ValueError(f"--hidden-sizes must be widths such as 64,64; got {text!r}") from None


def check_seed(seed: int) -> None:
    """Says whether PyTorch can be seeded with ``seed``.

    Raises:
        ValueError: if not.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed must be in 0 … 2^63 - 1, got {seed}")


def own_names(context: typer.Context) -> list[str]:
    """Returns the names of a command's own options, as their Python arguments are called."""
    return [each.name for each in context.command.params if each.name and each.param_type_name == "option"]


def settings_of(context: typer.Context) -> dict[str, Any]:
    """Returns what a command line says, or has by default, of a run, as JSON holds it."""
    settings = {name: value for name, value in context.params.items() if name not in _NOT_OF_RUNS}
    return {**settings, "hidden_sizes": list(parse_sizes(settings["hidden_sizes"]))}


def parse_options(words: Sequence[str], own: Sequence[str] = ()) -> dict[str, Any]:
    """Returns ``--map-name 8x8 --no-is-slippery`` as ``{"map_name": "8x8", "is_slippery": False}``.

    Values become integers, floats or booleans where they look like them. ``--name=value`` is the
    same; ``--name`` alone is true, ``--no-name`` false.

    Args:
        words: what the command itself does not know.
        own: the names of the command's own options, one of which a stray word may have meant.

    Raises:
        ValueError: for a word that is not an option.
    """
    options: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            guess = meant(word, own)
            wanted = (
                "options of the problem look like --name value" if guess is None else f"did you mean {flag(guess)}?"
            )
            raise ValueError(f"unexpected argument {word!r}; {wanted}")
        name, equals, value = word[2:].partition("=")
        if "_" in name and meant(name, own, 1.0) is not None:  # said so here, since a problem might take it
            raise ValueError(f"--{name}: did you mean {flag(name)}?")
        name = name.replace("-", "_")
        if equals:
            options[name] = typed(value)
        elif rest and not rest[0].startswith("--"):
            options[name] = typed(rest.pop(0))
        elif name.startswith("no_"):
            options[name[3:]] = False
        else:
            options[name] = True
    return options


def check_least(**values: tuple[int | None, int]) -> None:
    """Raises ValueError for an option's value below its least; None is none."""
    for name, (value, least) in values.items():
        if value is not None and value < least:
            raise ValueError(f"{flag(name)} must be >= {least}, got {value}")


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if show_version:
        print(f"rlai {rl_as_inference.__version__}")
        raise typer.Exit
