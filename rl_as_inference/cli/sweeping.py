"""The command ``sweep``, and the same in Python."""

import functools
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_count
from rl_as_inference.cli import common
from rl_as_inference.cli.application import among, problem_names
from rl_as_inference.cli.common import PROBLEM_OPTIONS, app, check_least, own_names, parse_options, plain_errors
from rl_as_inference.cli.learner_options import names_of_learner_options
from rl_as_inference.cli.runs import show
from rl_as_inference.cli.sweep_words import checked_plan, perform, words_of
from rl_as_inference.host import as_found
from rl_as_inference.nursery import Nursery
from rl_as_inference.records import RunRecord
from rl_as_inference.run_folders import RunFolder
from rl_as_inference.sweeps.conducting import conduct
from rl_as_inference.sweeps.display import Display
from rl_as_inference.sweeps.looking import look, step_of
from rl_as_inference.sweeps.page import render_sweep
from rl_as_inference.sweeps.plan import COMMANDS, Command, Plan, Search, check_place, read_plan
from rl_as_inference.sweeps.processes import LocalProcesses, answer_of, num_processors, nursery_of
from rl_as_inference.sweeps.ray_cluster import RayCluster
from rl_as_inference.sweeps.results import COLUMNS, FILES, Sweep, gathered
from rl_as_inference.sweeps.sources import STUDY, source_of
from rl_as_inference.sweeps.space import Axis, Range, Values, axis_of, read_set
from rl_as_inference.sweeps.workers import Workers

__all__ = ["sweep", "sweep_command"]

_MORE = {"runs": "the run folders: rlai inspect, rlai evaluate", "logs": "what each run has said"}


@app.command("sweep", context_settings=PROBLEM_OPTIONS)
@plain_errors
def sweep_command(
    context: typer.Context,
    problem: Annotated[
        str | None,
        typer.Argument(
            metavar="PROBLEM",
            autocompletion=problem_names,
            help="As for train and fit. Further options are those of all runs, of the command and of the problem: "
            "--num-steps 5000. Without PROBLEM, the sweep in --out goes on.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=V1,V2",
            help="An option and its values, as learning_rate=1e-3,3e-4 or hidden_sizes=(64,64),(256,256); for a random "
            "search or Optuna also a range, as learning_rate=1e-4..1e-2:log. As often as needed.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each configuration, with the seeds 0, 1, …")] = 1,
    command: Annotated[
        str | None,
        typer.Option(
            help="Of which command: train, fit or compare; by default train for environments, fit for problems that "
            "are written down.",
            autocompletion=among(*COMMANDS),
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes at a time, of one thread each; by default as many as processors.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster instead: host:port, ray://… or auto.")
    ] = None,
    search: Annotated[
        str, typer.Option(help=f"One of: {', '.join(get_args(Search))}.", autocompletion=among(*get_args(Search)))
    ] = "grid",
    trials: Annotated[int | None, typer.Option(help="Configurations, of a random search or Optuna.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; the sweep there goes on.")] = None,
    progress: Annotated[
        bool, typer.Option("--progress/--no-progress", help="Bars on a terminal, plain lines elsewhere.")
    ] = True,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the Python file of a sweep that comes from elsewhere.")
    ] = False,
) -> None:
    """Run train, fit or compare over options and seeds, and go on where a sweep was stopped."""
    check_least(seeds=(seeds, 1), jobs=(jobs, 1), trials=(trials, 1))
    if out is None:
        raise ValueError("--out is missing; name the folder that the sweep is kept in, --out DIR")
    words, own = list(context.args), [*own_names(context), *names_of_learner_options()]
    if problem is not None and problem.startswith("--"):
        words, problem = [problem, *words], None
    options = parse_options(words, own)
    axes: dict[str, Axis] = {}
    for text in set_ or ():
        name, axis = read_set(text)
        if name in axes:
            raise ValueError(f"--set {name} is said twice; give all its values at once, {name}=v1,v2")
        axes[name] = axis
    said = [name for name in ("set_", "seeds", "command", "search", "trials") if _is_said(context, name)]
    if problem is not None and not axes and not {"seeds", "search"} & {*said}:
        raise ValueError(
            "--set is missing, which says what differs between runs: --set learning_rate=1e-3,3e-4; for runs that "
            "differ in their seed alone say --seeds K"
        )
    if problem is None and (said or options):
        raise ValueError("PROBLEM is missing; name it first (or say --out alone, and the sweep there goes on)")
    # Nothing but imports has happened in this process, and on Linux it can be forked.
    with nursery_of(perform, here=common.is_main and sys.platform == "linux") as nursery:
        if problem is None:
            plan = read_plan(out, trust=trust)
        else:
            plan = _planned(nursery, problem, axes, seeds, options, command, search, trials)
        done = _swept(nursery, plan, out, jobs, ray, trust, show=progress, is_told=problem is not None)
    print(done.table())
    folder = {name: told for name, told in {**FILES, **_MORE}.items() if (out / name).exists()}
    show(out, folder)
    failed = done.runs[done.runs["status"] != "finished"]
    if len(failed):
        first = failed.iloc[0]
        raise ValueError(
            f"{len(failed)} of {len(done.runs)} runs have not finished, {first['run']} first: {first['reason']} (its "
            f"log is in {out / 'logs'}); the same command begins them again"
        )


@checked
def sweep(
    problem: str,
    values: Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    seeds: int = 1,
    options: Mapping[str, Any] | None = None,
    command: Command | None = None,
    search: Search = "grid",
    trials: int | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    trust: bool = False,
    progress: bool | None = None,
) -> Sweep:
    """Returns what came of runs over options and seeds, when all have ended: ``rlai sweep`` in Python.

    Each run is one of ``rlai train``, ``fit`` or ``compare`` in a folder of its own, ``out/runs/NAME``, in a process of
    its own with one thread. Called again, also after it was killed, also with more values or seeds, it leaves runs
    alone that have finished, and goes on with others from their checkpoints; parameters are bit for bit those of runs
    that nobody stopped. Options are checked before anything begins, as the command line checks its own.

    The host is left as it is found: everything is done in other processes.

    Args:
        problem: a model's name, a Gymnasium id or a Python file, as for ``rlai``.
        values: of each option that differs, a list, or a :class:`rl_as_inference.sweeps.Range`. Options are named as
            in :func:`rl_as_inference.fit` and the learners, or are the problem's own.
        out: the folder of the sweep, which is made if need be.
        seeds: runs of each configuration, with the seeds 0 … ``seeds - 1``.
        options: those that are the same in all runs.
        command: whose runs; None is ``"train"`` for environments and ``"fit"`` for problems that are written down.
        search: every combination, or ``trials`` of them, drawn at random or chosen by Optuna's TPE (Bergstra et al.
            2011) by the mean over seeds of the return (``train``) or the ELBO.
        trials: configurations of ``"random"`` and ``"optuna"``.
        jobs: processes at a time; None is as many as this process may use processors.
        ray: the address of a Ray cluster that runs them instead; ``out`` must be a folder that its nodes share.
        trust: run a problem's Python file that came with a sweep from elsewhere.
        progress: say on standard error how far it is; None does on a terminal.

    Raises:
        ValueError: for an option that there is not or a value that may not be; a folder that has another sweep, or that
            another process writes to, which is named; a problem's file that has changed since the sweep began; or a
            Ray address that does not answer. Runs that fail raise nothing: ``runs["status"]`` says so.

    Example:
        >>> import tempfile
        >>> import rl_as_inference as rlai
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     options = {"steps": 20, "hidden_sizes": (8,)}
        ...     found = rlai.sweep("corridor", {"learning_rate": [0.001, 0.1]}, out=folder, options=options)
        >>> found.best, found.is_finished, list(found.runs["status"])
        ({'learning_rate': 0.1}, True, ['finished', 'finished'])
    """
    axes: dict[str, Axis] = {}
    for name, axis in (values or {}).items():
        try:
            axes[name] = axis_of(axis)
        except ValueError as error:
            raise ValueError(f"values: {name}: {error}") from None
    fixed: dict[str, Any] = {}
    for name, value in (options or {}).items():
        try:
            axis = axis_of([value])
        except ValueError as error:
            raise ValueError(f"options: {name}: {error}") from None
        assert not isinstance(axis, Range)
        fixed[name] = axis[0]
    check_count("seeds", seeds)
    for argument, count in {"trials": trials, "jobs": jobs}.items():
        if count is not None:
            check_count(argument, count)
    shows = sys.stderr.isatty() if progress is None else progress
    with nursery_of(perform) as nursery:
        plan = _planned(nursery, problem, axes, seeds, fixed, command, search, trials)
        return _swept(nursery, plan, Path(out), jobs, ray, trust, show=shows, is_told=True)


def _planned(
    nursery: Nursery,
    problem: str,
    axes: Mapping[str, Axis],
    seeds: int,
    options: Values,
    command: str | None,
    search: str,
    trials: int | None,
) -> Plan:
    """Returns a plan whose options have been checked, in a process apart."""
    if command is not None and command not in COMMANDS:
        raise ValueError(f"--command must be one of {', '.join(COMMANDS)}; got {command!r}")
    if search not in get_args(Search):
        raise ValueError(f"--search must be one of {', '.join(get_args(Search))}; got {search!r}")
    if (trials is None) == (search != "grid"):
        what = "a grid has all combinations; leave it out, or say --search random"
        raise ValueError(f"--trials: {what}" if trials is not None else f"--search {search} needs --trials N")
    for name, axis in axes.items():
        if name in COLUMNS:
            raise ValueError(f"--set {name}: a column of the sweep's own table has this name; rename the option")
        if isinstance(axis, Range) and search == "grid":
            raise ValueError(
                f"--set {name}: a range is for --search random or optuna; a grid needs values, {name}=v1,v2"
            )
        if name in options:
            raise ValueError(f"--set {name}: said once for all runs, too, as --{name.replace('_', '-')}; leave one out")
    if search != "grid" and not axes:
        raise ValueError(f"--search {search} has nothing to choose; say --set learning_rate=1e-4..1e-2:log")
    plan = Plan("train", problem, options, axes, seeds, search, trials)  # type: ignore[arg-type]
    found = answer_of(nursery, checked_plan, problem, command, dict(options), plan.corners())
    return Plan(found, problem, options, axes, seeds, search, trials)  # type: ignore[arg-type]


def _swept(
    nursery: Nursery,
    plan: Plan,
    out: Path,
    jobs: int | None,
    ray: str | None,
    trust: bool,
    *,
    show: bool,
    is_told: bool,
) -> Sweep:
    """Carries a plan out, and writes what came of it."""
    if ray is not None and jobs is not None:
        raise ValueError("--jobs is for processes of this machine, and --ray for those of a cluster; say one of them")
    if (there := check_place(out)) is not None and is_told:
        plan.check_goes_on(there, out)
    workers: Workers = (
        RayCluster(perform, ray, out.resolve())
        if ray is not None
        else LocalProcesses(perform, jobs or num_processors(), nursery)
    )
    folder = None
    try:
        folder = RunFolder(out)
        check_place(out)  # as it is now that nobody else writes
        record = plan.record(out)
        _check_trust(plan, out, record, trust)
        folder.begin(record, *FILES, STUDY)
        source = source_of(plan, out)
    except BaseException:
        workers.close()
        if folder is not None:
            folder.close()
        raise
    with folder:
        display = Display(
            f"rlai {plan.command} {plan.problem}",
            lambda: source.total,
            lambda task: step_of(plan.command, task.folder(out)),
            show,
        )
        try:
            reports = conduct(
                plan,
                out,
                workers,
                source,
                functools.partial(words_of, plan, trust=trust),
                display,
                record.problem_sha256,
                lambda: record.find_problem(out, "--out", trust=True, may_change=False),
            )
        except KeyboardInterrupt as stop:
            told = f"{display.num_finished} of {source.total} runs have finished"
            stop.add_note(f"{told}; go on with: rlai sweep --out {shlex.quote(str(out))}")
            raise
        with as_found():  # Plotly brings filters of warnings
            done = gathered(plan, out, source.configurations(), reports)
            page = render_sweep(done)
        done.write(folder, page)
        folder.settle(finished=done.is_finished)
    return done


def _check_trust(plan: Plan, out: Path, record: RunRecord, trust: bool) -> None:
    """Raises ValueError if a run that goes on would run a file that is not to be trusted, before any does."""
    for values in plan.configurations():
        for task in plan.tasks(values):
            folder = task.folder(out)
            if look(folder, record.problem_sha256) == "begun":
                RunRecord.read(folder).find_problem(folder, "--out", trust=trust, may_change=False)


def _is_said(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
