"""What the commands of ``rlai`` share: the application, its errors, and options that several have."""

import functools
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "PROBLEM_OPTIONS",
    "Hidden",
    "Out",
    "Overwrite",
    "Progress",
    "Seed",
    "app",
    "check_seed",
    "main",
    "parse_sizes",
    "plain_errors",
    "versions",
]

app = typer.Typer(
    name="rlai",
    help="Reinforcement learning written as probabilistic inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PROBLEM_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}

Out = Annotated[Path | None, typer.Option(help="Folder to write to; nothing is written without it.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier run in --out.")]
Hidden = Annotated[str, typer.Option(help="Widths of the networks' hidden layers, as 64,64.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Progress = Annotated[bool | None, typer.Option("--progress/--no-progress", help="A bar; by default on a terminal.")]


def main() -> None:
    """Runs the command line."""
    app()


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns what the user can mend into one line on standard error and exit code 2."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ValueError as error:
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            print(f"rlai: error: {' '.join(f'{error}{notes}'.split())}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stop:
            notes = "".join(f"; {note}" for note in getattr(stop, "__notes__", ()))
            print(f"rlai: interrupted{notes}", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


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


def versions(*more: str) -> dict[str, str]:
    """Returns the versions of the packages on which results depend."""
    return {name: version(name) for name in ("rl-as-inference", "torch", "pyro-ppl", "gymnasium", *more)}


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if show_version:
        print(f"rlai {version('rl-as-inference')}")
        raise typer.Exit
