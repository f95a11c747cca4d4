"""The command ``inspect``: a run as one HTML page, or two runs side by side."""

import contextlib
import math
import sys
from pathlib import Path
from typing import Annotated, get_args

import torch
import typer

from rl_as_inference.agents import Training
from rl_as_inference.agents.evaluation import Evaluation
from rl_as_inference.agents.logbook import evaluation_seed
from rl_as_inference.cli.application import among
from rl_as_inference.cli.common import Distributed, Progress, app, check_least, plain_errors
from rl_as_inference.cli.opening import Trust, open_run
from rl_as_inference.cli.training_tables import training_table
from rl_as_inference.compare import Comparison, compare
from rl_as_inference.distributed import present
from rl_as_inference.inspect import Method
from rl_as_inference.processes import GymnasiumProcess
from rl_as_inference.progress import ProgressBar, progress_bar
from rl_as_inference.report import ShownRun, draw_sources, is_report, render_page, value_maps
from rl_as_inference.report.foresight import foresight_picture
from rl_as_inference.report.learning import curves_of
from rl_as_inference.run_folders import RunFolder
from rl_as_inference.runs import Run
from rl_as_inference.tables import Table, counted
from rl_as_inference.whole_files import written_whole

__all__ = ["REPORT", "inspect_command", "write_report"]

REPORT = "report.html"
_NUM_DRAWS, _NUM_EPISODES, _NUM_ROLLOUTS = 1000, 50, 4096
_STAGES = 5


@app.command("inspect")
@plain_errors
def inspect_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that compare, fit or train wrote with --out.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Another, to be shown beside it.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=f"The file to write; RUN/{REPORT} by default, of two runs RUN/beside-OTHER.html."),
    ] = None,
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
    progress: Progress = None,
    distributed: Distributed = False,
) -> None:
    """Write a run, or two side by side, as one HTML page: tables, learning, values, trajectories to step through."""
    check_least(num_draws=(num_draws, 1))
    if method is not None and method not in get_args(Method):
        raise ValueError(f"--method must be one of {', '.join(get_args(Method))}; got {method!r}")
    runs = [run] if other is None else [run, other]
    target = out or (run / REPORT if other is None else run / f"beside-{other.resolve().name}.html")
    shown = write_report(
        runs, target, overwrite=overwrite, method=method, num_draws=num_draws, trust=trust, progress=progress
    )
    if not present().is_first:
        return
    print(f"written to {target} ({target.stat().st_size / 1e6:.1f} MB); open it in a browser")
    for each in shown:
        for source in each.sources:
            if source.diagnosis is not None:
                name = source.label if other is None else f"{each.name}, {source.label}"
                print(f"  {name}: {source.diagnosis.text}")


def write_report(
    runs: list[Path],
    target: Path,
    *,
    overwrite: bool = False,
    method: str | None = None,
    num_draws: int | None = None,
    trust: bool = False,
    progress: bool | None = None,
) -> list[ShownRun]:
    """Writes the page of one run or two, and returns what is on it.

    Ranks of a job share the work, and the first writes.

    Raises:
        ValueError: if a folder is not a run's, its files are damaged, or the page may not be written there.
    """
    if runs[0].is_dir():  # else there is something worse to tell
        _check_target(target, overwrite)  # before the work, so that it is not lost to a file that is taken
    names = _names(runs)
    first = present().is_first
    with contextlib.ExitStack() as stack:
        folder = None
        if first and runs[0].is_dir() and target.resolve().parent == runs[0].resolve():
            folder = stack.enter_context(RunFolder.of_run(runs[0]))  # the page is the run's own, and goes when it does
        opened = []
        for path in runs:
            opened.append(open_run(path, None, trust))
            if (agent := opened[-1].agent) is not None:
                stack.callback(agent.close)
        bar = stack.enter_context(progress_bar("rlai inspect", _STAGES * len(runs) + 1, show=progress and first))
        shown = [_shown(each, name, method, num_draws, bar) for each, name in zip(opened, names, strict=True)]
        if first:
            bar.say("writing the page")
            page = render_page(shown)
            with written_whole(target) if folder is None else folder.writing(target.name) as path:
                path.write_text(page, encoding="utf-8")
            bar.advance("written")
    return shown


def _names(runs: list[Path]) -> list[str]:
    """Returns what two runs are called on their page: their folders' names, or paths where these are alike."""
    if len(runs) == 1:
        return [""]
    paths = [path.resolve() for path in runs]
    if paths[0].name != paths[1].name:
        return [path.name for path in paths]
    return [str(path) for path in runs]


def _shown(run: Run, name: str, method: str | None, num_draws: int | None, bar: ProgressBar) -> ShownRun:
    """Returns what the page shows of a run; ``bar`` moves on by ``_STAGES``."""
    ranks = present()
    try:
        run.data  # noqa: B018 - to be read is to be checked
    except ValueError as error:
        print(f"rlai: warning: the run's draws are damaged ({error}); the page draws anew", file=sys.stderr)
    if run.agent is not None and run.agent.task.window is not None:
        raise ValueError(
            "RUN: the policy is asked with windows of observations (--history, --frame-stack), and a page is drawn of "
            "policies that are asked with one; rlai evaluate plays its episodes"
        )
    process, simulates = run.process, isinstance(run.process, GymnasiumProcess)
    torch.manual_seed(run.record.seed)
    count = num_draws or (_NUM_EPISODES if simulates else _NUM_DRAWS)
    rollouts = max(2, count) if simulates else _NUM_ROLLOUTS
    bar.say("comparing")
    comparison: Comparison = run.comparison or compare(
        process,
        run.policy,
        num_trajectories=rollouts,
        critic=run.critic,
        distributed=ranks.size > 1 and not simulates,
    )
    bar.advance("drawing trajectories")
    chosen: Method | None = method or ("guide" if simulates else None)  # type: ignore[assignment]
    sources = draw_sources(process, run.policy, method=chosen, num_draws=count, distributed=ranks.size > 1)
    bar.advance("soft values and policies")
    if not ranks.is_first:
        return ShownRun(process, sources, name)
    values = value_maps(process, run.policy)
    bar.advance("learning curves")
    curves, training = curves_of(run), _training(run)
    gradients = None if run.gradients is None else run.gradients.as_table()
    bar.advance("what it foresaw")
    foresight = foresight_picture(run.agent, seed=evaluation_seed(run.record.seed))
    bar.advance("")
    return ShownRun(
        process,
        sources,
        name,
        comparison=comparison,
        facts=_facts(run, count),
        curves=curves,
        values=values,
        training=training,
        gradients=gradients,
        foresight=foresight,
    )


def _training(run: Run) -> Table | None:
    """Returns the table that ``train`` printed, but for its speed, which no file tells.

    The last evaluation is played again, which has the same episodes.
    """
    agent, settings = run.agent, run.record.settings
    if agent is None:
        return None
    curve = run.curve
    episodes = settings.get("evaluate_episodes")
    if not curve or curve[-1].step != agent.num_steps or not isinstance(episodes, int):
        return None
    played = agent.evaluate(episodes, seed=evaluation_seed(agent.seed))
    shape = agent.num_seeds, episodes
    evaluation = Evaluation(played.returns.reshape(shape), played.lengths.reshape(shape))
    return training_table(agent, Training(curve, evaluation, math.nan, math.nan))


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise ValueError(f"--out: {str(target)!r} is a folder; name a file, such as {str(target / REPORT)!r}")
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
        facts.append(("horizon", counted(process.horizon, "steps")))
    facts.append(("discount γ", f"{float(process.discount):.6g}"))
    facts.append(("temperature α", f"{float(process.temperature):.6g} reward units per nat"))
    return [*facts, ("draws", f"{count:,} of each distribution")]
