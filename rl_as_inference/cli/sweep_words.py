"""The command lines of a sweep's runs: made from its options, checked as if typed, and carried out."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from rl_as_inference.cli import commands, training  # noqa: F401 - what runs are made of, and processes forked from this
from rl_as_inference.cli.blame import is_of_users_code
from rl_as_inference.cli.common import ONLY_CHECK, app
from rl_as_inference.option_names import flag
from rl_as_inference.problem_files import EnvironmentFactory, one_line
from rl_as_inference.problems import is_gymnasium_id, load_environment
from rl_as_inference.records import path_of
from rl_as_inference.sweeps.looking import State
from rl_as_inference.sweeps.plan import COMMANDS, Command, Plan, Task
from rl_as_inference.sweeps.space import Values, written

__all__ = ["absolute", "checked_plan", "perform", "refusal", "words_of"]

_NOT_SWEPT = {
    "seed": "say --seeds K for the seeds 0 … K - 1",
    "seeds": "say --seeds K: each seed is a run of its own",
    "out": "the sweep has --out, and each run a folder there",
    "overwrite": "what has finished is left alone; choose another --out",
    "resume": "a sweep goes on by itself",
    "progress": "it is the sweep's own",
    "trust": "it is the sweep's own",
    "problem": "a sweep is of one problem; run one for each",
    "distributed": "the runs of a sweep are one process each",
}
"""Options of commands that a sweep does not set, and what to do instead."""


_UsageError: Any = typer.BadParameter.__base__
"""What Typer raises for words that it cannot read, by whichever Click it stands on."""


def perform(words: Sequence[str]) -> int:
    """Runs a command line in this process, as a shell would, and returns its exit code."""
    try:
        app(args=list(words), prog_name="rlai")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def checked_plan(problem: str, command: Command | None, options: Values, corners: Sequence[Values]) -> Command:
    """Returns whose runs a sweep is of, when every configuration has been looked at as that command looks at it.

    Args:
        problem: as the user names it.
        command: as the user says; None for what the problem is made for: an environment is learned in (``train``), and
            on what has densities a guide is fitted (``fit``).
        options: the same in all configurations.
        corners: configurations to look at, of which the others have the values.

    Raises:
        ValueError: for an option that there is not, or a value that may not be; naming it.
    """
    command = command or _command_for(problem, dict(options))
    first = dict(corners[0])
    for values in corners:
        differs = [name for name in values if values[name] != first.get(name)]
        if (told := refusal(command, problem, {**options, **values})) is not None:
            where = f"--set {differs[0]}={written(values[differs[0]])}: " if differs else ""
            raise ValueError(f"{where}{told}")
    return command


def words_of(plan: Plan, task: Task, folder: Path, state: State, *, trust: bool) -> list[str]:
    """Returns the command line of a run that is in some state."""
    command, words = _commands()[plan.command], [str(plan.command)]
    if state == "begun":
        return [*words, f"--out={folder.resolve()}", "--resume", "--no-progress", *(["--trust"] if trust else [])]
    words += [absolute(plan.problem), *_option_words(command, {**plan.options, **task.values})]
    words += [f"--seed={task.seed}", f"--out={folder.resolve()}", "--no-progress"]
    return [*words, "--overwrite"] if state == "broken" else words


def absolute(problem: str) -> str:
    """Returns a problem whose file, if it is in one, is named from the root, for processes of another folder."""
    path = path_of(problem)
    return problem if path is None else problem.replace(str(path), str(path.resolve()), 1)


def _commands() -> Mapping[Command, Any]:
    group: Any = typer.main.get_command(app)
    return {name: group.commands[name] for name in COMMANDS}


def _command_for(problem: str, options: dict[str, Any]) -> Command:
    if is_gymnasium_id(problem):
        return "train"
    if path_of(problem) is None:
        return "fit"
    own = [each.name for command in _commands().values() for each in command.params if each.name]
    try:
        found = load_environment(problem, {name: value for name, value in options.items() if name not in own}, own=own)
    except ValueError as error:
        if "has no steps to learn from" in str(error):
            return "fit"
        raise
    return "train" if isinstance(found.env, EnvironmentFactory) else "fit"


def refusal(command: Command, problem: str, options: Values) -> str | None:
    """Returns what a command says against its options; None if nothing."""
    known = _commands()[command]
    words = [problem, *_option_words(known, options), "--seed=0", "--no-progress"]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = known.main(args=words, prog_name="rlai", standalone_mode=False, obj=ONLY_CHECK)
        except _UsageError as error:
            return error.format_message().rstrip(".")
        except Exception as error:
            if not is_of_users_code(error):
                raise
            return f"PROBLEM: {problem}: {one_line(error, path_of(problem) or Path())}"
    if not code:
        return None
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    return lines[-1].removeprefix("rlai: error: ") if lines else f"rlai {command} ended with code {code}"


def _option_words(command: Any, options: Values) -> list[str]:
    """Returns options as words: the command's own as it spells them, and what it does not know for the problem.

    Raises:
        ValueError: for an option that is not a sweep's to set.
    """
    words: list[str] = []
    for name, value in options.items():
        if name in _NOT_SWEPT:
            raise ValueError(f"--set {name}: {_NOT_SWEPT[name]}")
        own = next((each for each in command.params if name == each.name or flag(name) in each.opts), None)
        if own is None or not getattr(own, "is_flag", False):
            words.append(f"{flag(name) if own is None else own.opts[0]}={written(value)}")
        elif not isinstance(value, bool):
            raise ValueError(f"--set {name}={written(value)}: must be true or false")
        elif value:
            words.append(own.opts[0])
        elif own.secondary_opts:
            words.append(own.secondary_opts[0])
    return words
