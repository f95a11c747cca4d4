"""The application ``rlai``, and its commands before they are imported: what lists of them show, and shells complete."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

__all__ = ["COMMANDS", "among", "app", "load", "problem_names"]


def problem_names(incomplete: str) -> list[str]:
    """Returns the problems whose names begin so: models, which have a file of their name each, and Gymnasium's ids."""
    spec = find_spec("rl_as_inference.models")
    folder = Path(spec.origin or "").parent if spec is not None else Path()
    names = sorted(path.stem for path in folder.glob("[a-z]*.py") if path.stem != "families")
    if incomplete[:1].isupper():
        names = sorted(importlib.import_module("gymnasium").registry)
    return [name for name in names if name.startswith(incomplete)]


def among(*words: str) -> Callable[[str], list[str]]:
    """Returns what completes one of some words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def _of_problem(problem: Annotated[str, typer.Argument(autocompletion=problem_names)]) -> None: ...


def _of_run(run: Path) -> None: ...


def _of_nothing() -> None: ...


class _Unloaded(NamedTuple):
    module: str
    """In this package; it enters the command itself, in place of this."""
    arguments: Callable[..., None]
    help: str
    """The first line of what the command itself says."""


COMMANDS = {
    "compare": _Unloaded(
        "commands", _of_problem, "Train a guide on the ELBO; show it beside SAC's objective and the exact answers."
    ),
    "fit": _Unloaded("commands", _of_problem, "Train a guide on the ELBO and save it."),
    "bench": _Unloaded(
        "commands", _of_nothing, "Run the benchmarks of a clone of the repository and print their table."
    ),
    "export": _Unloaded(
        "exporting", _of_run, "Write the policy of a run of train as a program that acts without this package."
    ),
    "inspect": _Unloaded(
        "inspecting",
        _of_run,
        "Write a run, or two side by side, as one HTML page: tables, learning, values, trajectories to step through.",
    ),
    "list": _Unloaded(
        "finding", _of_nothing, "Say which problems, guides and learners there are, with a line about each."
    ),
    "open": _Unloaded(
        "finding",
        _of_run,
        "Open a run's page in the browser; one that is not there is written first, as rlai inspect does.",
    ),
    "robustness": _Unloaded(
        "perturbing",
        _of_run,
        "Perturb observations, actions, reward and physics, and plot what a run of train still returns.",
    ),
    "sweep": _Unloaded(
        "sweeping",
        _of_problem,
        "Run train, fit or compare over options and seeds, and go on where a sweep was stopped.",
    ),
    "train": _Unloaded(
        "training",
        _of_problem,
        "Learn a policy on an environment by soft actor-critic, soft Q-learning or MPO, or in a model of it.",
    ),
    "evaluate": _Unloaded("training", _of_run, "Play episodes with the policy of a run of train."),
}


def load(*names: str) -> None:
    """Imports the modules of commands; of all, if none is named."""
    for name in names or COMMANDS:
        importlib.import_module(f"rl_as_inference.cli.{COMMANDS[name].module}")


class _Commands(TyperGroup):
    """A group whose commands are imported when one of them is to run, and not to list them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS and not _completes_first_argument(ctx, args):
            load(args[0])
            self.commands.update(typer.main.get_group(app).commands)
        return super().resolve_command(ctx, args)


def _completes_first_argument(ctx: Any, args: list[str]) -> bool:
    """Whether a shell asks what may follow a command, and it is no option."""
    if not ctx.resilient_parsing or len(args) > 1:
        return False
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    return not any(word.startswith("-") for word in line.split())


app = typer.Typer(
    name="rlai",
    help="Reinforcement learning written as probabilistic inference.",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _name, _command in COMMANDS.items():
    app.command(_name, help=_command.help)(_command.arguments)
