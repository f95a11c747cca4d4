"""The options of learners on the command line, made from their one declaration."""

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer

from rl_as_inference.agents.made_again import ALGORITHMS
from rl_as_inference.agents.reading_options import Option, all_options, options_of
from rl_as_inference.cli.common import parse_sizes
from rl_as_inference.option_names import flag

__all__ = ["checked_options", "names_of_learner_options", "takes_learner_options"]

_NOT_HERE = {
    "seed": "every command has it",
    "policy": "an object",
    "critic": "an object",
    "reward_function": "an object",
    "env_kwargs": "what the command does not know goes there",
    "dtype": "a model's option, which goes to the problem",
}
"""Options that the command line leaves out, and why."""

Command = TypeVar("Command", bound=Callable[..., None])


def takes_learner_options(command: Command) -> Command:
    """Puts the options of learners, as parameters that are None where nothing is said, in place of ``**learner``."""
    signature = inspect.signature(command)
    kept = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    options: dict[str, list[Option]] = {}
    for option in all_options():
        if option.name not in _NOT_HERE:
            options.setdefault(option.name, []).append(option)
    made = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(several))
        for name, several in options.items()
    ]
    command.__signature__ = signature.replace(parameters=[*kept, *made])  # type: ignore[attr-defined]
    return command


def names_of_learner_options() -> list[str]:
    """Returns the names of the options that :func:`takes_learner_options` puts in."""
    return list(dict.fromkeys(option.name for option in all_options() if option.name not in _NOT_HERE))


def checked_options(algorithm: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that were said, as a learner takes them.

    Raises:
        ValueError: for an algorithm that there is not, or an option that only another one has.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"--algorithm must be one of {', '.join(ALGORITHMS)}; got {algorithm!r}")
    there = {option.name: option for option in options_of(ALGORITHMS[algorithm].options)}
    found = {}
    for name, value in said.items():
        if value is None:
            continue
        if name not in there:
            owner = next(option.of for option in all_options() if option.name == name)
            raise ValueError(f"{flag(name)} goes with --algorithm {owner}")
        found[name] = _parsed(there[name], value)
    return found


def _annotation(options: list[Option]) -> Any:
    """Returns what Typer makes an option of: one for all algorithms that have it."""
    option = options[0]
    default = _shown(option.default)
    words = option.help
    if option.choices:
        words += f": {', '.join(map(str, option.choices))}"
    if len(options) > 1:
        default = ", ".join(f"{each.default} of {each.of}" for each in options)
    elif option.of is not None:
        words = f"of {option.of}: {words}"
    words = words[0].upper() + words[1:] if words[0].isascii() else words  # α stays α
    told: dict[str, Any] = {"help": f"{words}.", "show_default": default or False}
    kinds, name = _kinds(option), flag(option.name)
    if bool in kinds:
        return Annotated[bool | None, typer.Option(f"{name}/--no-{name[2:]}", **told)]
    kind: Any = str
    if not option.name.endswith("hidden_sizes") and not option.choices and not _has_words(option):
        kind = next((each for each in (int, float) if each in kinds), str)
    return Annotated[kind | None, typer.Option(name, **told)]


def _kinds(option: Option) -> tuple[Any, ...]:
    """Returns what an option's value may be, each by itself."""
    return get_args(option.type) if get_origin(option.type) in (Union, UnionType) else (option.type,)


def _has_words(option: Option) -> bool:
    """Whether the value may be a number or a word, as α is."""
    return float in _kinds(option) and any(get_origin(kind) is Literal for kind in _kinds(option))


def _parsed(option: Option, value: Any) -> Any:
    if option.name.endswith("hidden_sizes"):
        return parse_sizes(value)
    if not _has_words(option) or value == "auto":
        return value
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{flag(option.name)} must be auto, or a number > 0; got {value!r}") from None


def _shown(default: Any) -> str:
    if default is None:
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:,}" if type(default) is int else str(default)
