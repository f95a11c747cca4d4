"""The command ``inspect``: a run as one HTML page."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated, get_args

import torch
import typer

from rl_as_inference.agents.logbook import evaluation_seed
from rl_as_inference.cli.application import among
from rl_as_inference.cli.common import Distributed, app, check_least, plain_errors
from rl_as_inference.cli.opening import Trust, open_run
from rl_as_inference.compare import Comparison, compare
from rl_as_inference.distributed import present
from rl_as_inference.inspect import Method
from rl_as_inference.processes import GymnasiumProcess
from rl_as_inference.report import Source, draw_sources, is_report, render_report
from rl_as_inference.report.foresight import foresight_picture
from rl_as_inference.run_folders import RunFolder
from rl_as_inference.runs import Run
from rl_as_inference.whole_files import written_whole

__all__ = ["inspect_command"]

_NAME = "report.html"
_NUM_DRAWS, _NUM_EPISODES, _NUM_ROLLOUTS = 1000, 50, 4096


@app.command("inspect")
@plain_errors
def inspect_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that compare, fit or train wrote with --out.")],
    out: Annotated[Path | None, typer.Option(help=f"The file to write; RUN/{_NAME} by default.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier report.")] = False,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"How the posterior is drawn: {', '.join(get_args(Method))} (guide: not at all). By default exact "
            f"where that is possible, else importance, and guide for simulators.",
            autocompletion=among(*get_args(Method)),
        ),
    ] = None,
    num_draws: Annotated[
        int | None,
        typer.Option(help=f"Draws of each distribution; {_NUM_DRAWS} by default, {_NUM_EPISODES} for simulators."),
    ] = None,
    trust: Trust = False,
    distributed: Distributed = False,
) -> None:
    """Write a run as one HTML page: the comparison, and trajectories to step through."""
    check_least(num_draws=(num_draws, 1))
    if method is not None and method not in get_args(Method):
        raise ValueError(f"--method must be one of {', '.join(get_args(Method))}; got {method!r}")
    target = run / _NAME if out is None else out
    if run.is_dir():  # else there is something worse to tell
        _check_target(target, overwrite)  # before the work, so that it is not lost to a file that is taken
    with contextlib.ExitStack() as stack:
        folder = None
        if present().is_first and run.is_dir() and target.resolve().parent == run.resolve():
            folder = stack.enter_context(RunFolder.of_run(run))  # the page is the run's own, and goes when it does
        inspected = open_run(run, None, trust)
        if inspected.agent is not None:
            stack.callback(inspected.agent.close)
        sources = _write(inspected, target, folder, method, num_draws)
    if not present().is_first:
        return
    print(f"written to {target} ({target.stat().st_size / 1e6:.1f} MB); open it in a browser")
    for source in sources:
        if source.diagnosis is not None:
            print(f"  {source.label}: {source.diagnosis.text}")


def _write(
    inspected: Run, target: Path, folder: RunFolder | None, method: str | None, num_draws: int | None
) -> tuple[Source, ...]:
    """Writes the page, into the run's own folder or elsewhere, and returns what is drawn on it.

    Ranks of a job share the work, and the first writes.
    """
    ranks = present()
    try:
        inspected.data  # noqa: B018 - to be read is to be checked
    except ValueError as error:
        print(f"rlai: warning: the run's draws are damaged ({error}); the page draws anew", file=sys.stderr)
    if inspected.agent is not None and inspected.agent.task.window is not None:
        raise ValueError(
            "RUN: the policy is asked with windows of observations (--history, --frame-stack), and a page is drawn of "
            "policies that are asked with one; rlai evaluate plays its episodes"
        )
    process, simulates = inspected.process, isinstance(inspected.process, GymnasiumProcess)
    torch.manual_seed(inspected.record.seed)
    count = num_draws or (_NUM_EPISODES if simulates else _NUM_DRAWS)
    rollouts = max(2, count) if simulates else _NUM_ROLLOUTS
    comparison: Comparison = inspected.comparison or compare(
        process,
        inspected.policy,
        num_trajectories=rollouts,
        critic=inspected.critic,
        distributed=ranks.size > 1 and not simulates,
    )
    chosen: Method | None = method or ("guide" if simulates else None)  # type: ignore[assignment]
    sources = draw_sources(process, inspected.policy, method=chosen, num_draws=count, distributed=ranks.size > 1)
    if not ranks.is_first:
        return sources
    foresight = foresight_picture(inspected.agent, seed=evaluation_seed(inspected.record.seed))
    page = render_report(process, sources, comparison=comparison, facts=_facts(inspected, count), foresight=foresight)
    with written_whole(target) if folder is None else folder.writing(target.name) as path:
        path.write_text(page, encoding="utf-8")
    return sources


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise ValueError(f"--out: {str(target)!r} is a folder; name a file, such as {str(target / _NAME)!r}")
    if not target.exists():
        if not target.parent.is_dir():
            raise ValueError(f"--out: there is no folder {str(target.parent)!r}; make it first, or name another file")
        return
    if not overwrite:
        raise ValueError(f"--out: {str(target)!r} exists already; choose another file with --out, or say --overwrite")
    if not is_report(target):
        raise ValueError(
            f"--out: {str(target)!r} is not a report, so --overwrite will not touch it; choose another file"
        )


def _facts(run: Run, count: int) -> list[tuple[str, str]]:
    """Returns what heads the page: names and values."""
    record, process = run.record, run.process
    facts = [("made by", f"rlai {record.command}"), ("seed", str(record.seed))]
    if run.problem_changed:
        facts.append(("problem", f"{record.problem}, which has changed since the run"))
    steps = record.settings.get("num_steps" if record.command == "train" else "steps")
    facts.append(("training steps", f"{steps:,}" if isinstance(steps, int) else "?"))
    if process.horizon is not None:
        facts.append(("horizon", f"{process.horizon} steps"))
    facts.append(("discount γ", f"{float(process.discount):.6g}"))
    facts.append(("temperature α", f"{float(process.temperature):.6g} reward units per nat"))
    return [*facts, ("draws", f"{count:,} of each distribution")]
