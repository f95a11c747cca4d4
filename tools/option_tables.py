"""Writes the tables of options in the documentation from the declarations themselves.

A table stands between ``<!-- options: WHAT -->`` and ``<!-- end -->``. WHAT is ``compare, fit`` (commands of ``rlai``;
an option that not all of them have says which) or ``learners``. ``python tools/option_tables.py`` writes them anew.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import typer

from rl_as_inference.agents.reading_options import Option, all_options
from rl_as_inference.cli import app
from rl_as_inference.cli.application import load

__all__ = ["PAGES", "with_tables"]

PAGES = tuple(Path(__file__).parent.parent / "docs" / name for name in ("command-line.md", "learners.md", "report.md"))
_TABLE = re.compile(r"(<!-- options: (.+?) -->\n).*?(<!-- end -->)", re.S)
_ALGORITHMS = {
    None: "all",
    "sac": "`SoftActorCritic`",
    "sql": "`SoftQLearning`",
    "mpo": "`MPO`",
    "model-based": "`ModelBasedAgent`",
}


def with_tables(text: str) -> str:
    """Returns a page with its tables as they ought to be."""
    return _TABLE.sub(lambda found: f"{found[1]}{_table(found[2])}{found[3]}", text)


def _table(what: str) -> str:
    if what == "learners":
        header, rows = ("option", "default", "of", "what it is"), list(map(_row_of_learner, all_options()))
    else:
        header, rows = ("option", "default", "what it is"), list(_rows_of_commands(what.split(", ")))
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _row_of_learner(option: Option) -> tuple[str, ...]:
    default = str(option.default) if isinstance(option.default, torch.dtype) else repr(option.default)
    words = f": {', '.join(f'`{choice}`' for choice in option.choices)}" if option.choices else ""
    return f"`{option.name}`", f"`{default}`", _ALGORITHMS[option.of], option.help + words


def _rows_of_commands(commands: list[str]) -> Iterator[tuple[str, ...]]:
    load()
    every: Any = typer.main.get_command(app)
    # One that two commands have with another meaning has two rows.
    options: dict[tuple[Any, ...], tuple[Any, list[str]]] = {}
    for command in commands:
        for option in every.commands[command].params:
            if option.param_type_name == "option":
                options.setdefault((option.name, option.help), (option, []))[1].append(command)
    for option, having in options.values():
        names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
        of = "" if having == commands else f"(`{'`, `'.join(having)}`) "
        yield names, _default(option), f"{of}{option.help}"


def _default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return f"`{option.show_default}`"
    if option.default is None or option.default is False or callable(option.default):
        return ""
    if option.is_flag:
        return f"`{option.opts[0]}`"
    return f"`{option.default:,}`" if type(option.default) is int else f"`{option.default}`"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
