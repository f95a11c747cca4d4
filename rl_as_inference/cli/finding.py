"""The commands ``list``, what there is to name on the command line, and ``open``, a run's page in the browser."""

import importlib
import inspect
import textwrap
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from rl_as_inference import guides, models
from rl_as_inference.agents.made_again import ALGORITHMS
from rl_as_inference.cli.common import Progress, app, plain_errors
from rl_as_inference.cli.inspecting import REPORT, write_report
from rl_as_inference.cli.opening import Trust
from rl_as_inference.problems import load_environment
from rl_as_inference.processes import Environments
from rl_as_inference.records import RunRecord
from rl_as_inference.report import is_report

__all__ = ["list_command", "open_command"]

_SWEEP = "sweep.html"


def _problems() -> Iterator[tuple[str, str]]:
    width = max(map(len, models.__all__))
    for name in models.__all__:
        takes = "compare, fit, train" if _has_steps(name) else "compare, fit"
        yield f"{name:<{width}}  {takes}", _told(importlib.import_module(f"{models.__name__}.{name}"))


def _has_steps(model: str) -> bool:
    """Returns whether a learner can learn in a model as it is by default: it is looked at as rlai train does."""
    try:
        Environments.make(load_environment(model, {}).env).close()
    except ValueError:  # a Pyro program, or actions that no learner has
        return False
    return True


def _guides() -> Iterator[tuple[str, str]]:
    for name in guides.__all__:
        found = getattr(guides, name)
        if inspect.isclass(found) and issubclass(found, nn.Module):
            yield name, _told(found)


def _learners() -> Iterator[tuple[str, str]]:
    for name, algorithm in ALGORITHMS.items():
        yield name, f"{algorithm.learner.__name__}: {_told(algorithm.learner)}"


_KINDS = {
    "problems": ("a PROBLEM of these commands of rlai, beside Gymnasium ids and your own Python files", _problems),
    "guides": ("classes of rl_as_inference.guides, for fit and compare in Python", _guides),
    "learners": ("rlai train --algorithm NAME", _learners),
}


@app.command("list")
@plain_errors
def list_command(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help=f"{', '.join(_KINDS)}; all of them by default.")
    ] = None,
) -> None:
    """Say which problems, guides and learners there are, with a line about each."""
    if kind is not None and kind not in _KINDS:
        raise ValueError(f"KIND must be one of {', '.join(_KINDS)}; got {kind!r}")
    for name, (about, found) in _KINDS.items():
        if kind in (None, name):
            rows = list(found())
            width = max(len(each) for each, _ in rows)
            print(f"{name} ({about}):")
            for each, told in rows:
                print(f"  {each:<{width}}  {textwrap.shorten(told, 136 - width, placeholder=' …')}")


@app.command("open")
@plain_errors
def open_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or of a sweep.")],
    trust: Trust = False,
    progress: Progress = None,
) -> None:
    """Open a run's page in the browser; one that is not there is written first, as rlai inspect does."""
    record = RunRecord.read(run, "RUN", ("compare", "fit", "train", "sweep"))
    page = run / (_SWEEP if record.command == "sweep" else REPORT)
    if record.command == "sweep":
        if not page.is_file():
            raise ValueError(f"RUN: {str(run)!r} has no {_SWEEP} yet; go on with the same rlai sweep command")
    elif not page.exists():
        write_report([run], page, trust=trust, progress=progress)
    elif not is_report(page):
        raise ValueError(f"RUN: {str(page)!r} is not a report; move it away, and it is written")
    print(f"{page}: {'opened in the browser' if _opened(page) else 'there is no browser here; open it where there is'}")


def _opened(page: Path) -> bool:
    try:
        return webbrowser.open(page.resolve().as_uri())
    except webbrowser.Error:
        return False


def _told(thing: Any) -> str:
    """Returns the first sentence of a docstring, in one line."""
    first, _, _ = (inspect.getdoc(thing) or "").partition("\n\n")
    return " ".join(first.split())
