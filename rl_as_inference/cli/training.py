"""The commands on learners: ``train`` and ``evaluate``."""

import contextlib
import datetime
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rl_as_inference.agents import record_videos, train
from rl_as_inference.agents.logbook import RUN_FILES, VIDEO_FILES, VIDEOS, evaluation_seed
from rl_as_inference.agents.made_again import ALGORITHMS, make_agent
from rl_as_inference.agents.reading_options import as_held
from rl_as_inference.agents.videos import check_videos
from rl_as_inference.cli.application import among, problem_names
from rl_as_inference.cli.common import (
    ONLY_CHECK,
    PROBLEM_OPTIONS,
    Overwrite,
    Progress,
    Seed,
    app,
    check_least,
    check_seed,
    end_of_checks,
    own_names,
    parse_options,
    plain_errors,
)
from rl_as_inference.cli.learner_options import checked_options, takes_learner_options
from rl_as_inference.cli.opening import (
    Best,
    Deterministic,
    Device,
    EpisodeSeed,
    TrainedRun,
    Trust,
    open_trained,
)
from rl_as_inference.cli.runs import check_run_folder, new_run_folder, show
from rl_as_inference.cli.training_tables import evaluation_table, training_table
from rl_as_inference.distributed import RankError, present
from rl_as_inference.option_names import flag
from rl_as_inference.problems import load_environment
from rl_as_inference.records import RunRecord, path_of
from rl_as_inference.run_folders import RunFolder

__all__ = ["evaluate_command", "train_command"]

_LENGTHS = ("num_steps", "evaluate_every", "evaluate_episodes", "checkpoint_every")
"""Arguments of ``train`` that a record has among its settings; and ``keep_best``, which older ones lack."""

Video = Annotated[int, typer.Option(help="Episodes to film, of the first seed, into videos/.")]


@app.command("train", context_settings=PROBLEM_OPTIONS)
@plain_errors
@takes_learner_options
def train_command(
    context: typer.Context,
    problem: Annotated[
        str | None,
        typer.Argument(
            metavar="PROBLEM",
            autocompletion=problem_names,
            help="A Gymnasium id (Pendulum-v1), a model in parts (point_mass), or your Python file, with a process in "
            "parts or a Gymnasium environment. Further options go to it: --g 9.8.",
        ),
    ] = None,
    algorithm: Annotated[
        str,
        typer.Option(
            "--algorithm",
            "--learner",
            help="sac (soft actor-critic), sql (soft Q-learning), mpo (MPO) or model-based.",
            autocompletion=among(*ALGORITHMS),
        ),
    ] = "sac",
    num_steps: Annotated[
        int,
        typer.Option(
            "--num-steps",
            "--steps",
            help="Environment steps in all, of each seed; with --resume also past the run's end.",
        ),
    ] = 100_000,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; by default a new one under runs/, which is said.")
    ] = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out from its last checkpoint, as if never stopped."),
    ] = False,
    seed: Seed = 0,
    evaluate_every: Annotated[int | None, typer.Option(help="Steps; a twentieth of the run by default.")] = None,
    evaluate_episodes: Annotated[int, typer.Option(help="Episodes of an evaluation, for each seed.")] = 10,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 10_000,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="And the longest time between them, minutes; 0 for no limit.")
    ] = 5.0,
    keep_best: Annotated[
        bool, typer.Option("--keep-best", help="Keep the agent of the best evaluation too, without replay.")
    ] = False,
    progress: Progress = None,
    video: Video = 0,
    trust: Annotated[
        bool, typer.Option("--trust", help="With --resume: run the Python file of a run that comes from elsewhere.")
    ] = False,
    **learner: Any,
) -> None:
    """Learn a policy on an environment by soft actor-critic, soft Q-learning or MPO, or in a model of it."""
    check_least(
        num_steps=(num_steps, 1),
        evaluate_every=(evaluate_every, 1),
        evaluate_episodes=(evaluate_episodes, 1),
        checkpoint_every=(checkpoint_every, 1),
        video=(video, 0),
    )
    if not 0 <= checkpoint_minutes < math.inf:
        raise ValueError(f"--checkpoint-minutes must be a number >= 0, got {checkpoint_minutes:g}")
    check_seed(seed)
    problem, options = _named(context, problem)
    together = present().size > 1
    learner.pop("distributed", None)  # with whom, which may change
    lengths: dict[str, Any]
    if resume:
        if out is None:
            raise ValueError("--resume needs --out FOLDER")
        if overwrite:
            raise ValueError("--resume goes on with a run and --overwrite replaces it; say one of them")
        record = RunRecord.read(out, "--resume", ("train",))
        found = record.find_problem(out, "--resume", trust=trust, may_change=False)
        lengths = _agreed(context, out, record, (problem, found.name), options, learner)
        made = load_environment(found.name, dict(record.options))
        # Its actors and ranks may be elsewhere by now.
        agent = make_agent(record, *made, argument="--resume", ray=learner.get("ray"), distributed=together or None)
    else:
        if problem is None:
            raise ValueError("PROBLEM is missing; name an environment first, such as Pendulum-v1 (or say --resume)")
        if out is not None and present().is_first:
            check_run_folder(out, overwrite=overwrite)
        config = checked_options(algorithm, learner)
        made = load_environment(problem, options, own=own_names(context))
        agent = ALGORITHMS[algorithm].make(
            made.env, seed=seed, env_kwargs=made.env_kwargs, **config, distributed=together
        )
        lengths = {name: context.params[name] for name in (*_LENGTHS, "keep_best")}
        lengths["checkpoint_minutes"] = checkpoint_minutes or None
    if video:
        check_videos(agent)
    ranks = present()
    if context.obj == ONLY_CHECK:
        agent.close()
    end_of_checks(context)
    if problem is not None and out is None:
        out = ranks.broadcast(_kept_in(problem) if ranks.is_first else None)
    assert out is not None
    folder: RunFolder | Path = out
    if ranks.is_first:
        folder = context.with_resource(RunFolder(out) if resume else new_run_folder(out, overwrite=overwrite))
    try:
        training = train(
            agent, folder=folder, resume=resume, progress=progress, problem=problem, options=options, **lengths
        )
        if not isinstance(folder, RunFolder):
            return
        if video:
            folder.tell(VIDEO_FILES)
            record_videos(agent, out / VIDEOS, video, seed=evaluation_seed(agent.seed))
            folder.settle()
    except KeyboardInterrupt as stop:
        stop.add_note(f"go on with: {_again(ranks.size, out)}")
        raise
    except RankError as lost:
        lost.add_note(f"with fewer or more, too: {_again(ranks.size, out)}")
        raise
    finally:
        agent.close()
    print(training_table(agent, training))
    show(out, {name: meaning for name, meaning in RUN_FILES.items() if (out / name).exists()})


@app.command("evaluate")
@plain_errors
def evaluate_command(
    run: TrainedRun,
    num_episodes: Annotated[int, typer.Option(help="Episodes for each seed.")] = 10,
    seed: EpisodeSeed = None,
    deterministic: Deterministic = True,
    device: Device = None,
    trust: Trust = False,
    best: Best = False,
    video: Video = 0,
) -> None:
    """Play episodes with the policy of a run of train."""
    check_least(num_episodes=(num_episodes, 1), video=(video, 0))
    with contextlib.ExitStack() as stack:
        agent, seed = open_trained(run, seed, device, trust, best=best)
        stack.callback(agent.close)
        if video:
            check_videos(agent)
            folder = stack.enter_context(RunFolder.of_run(run))
        played = agent.evaluate(num_episodes, seed=seed, deterministic=deterministic)
        if video:
            folder.tell(VIDEO_FILES)
            files = record_videos(agent, run / VIDEOS, video, seed=seed, deterministic=deterministic)
            folder.settle()
    shape = agent.num_seeds, num_episodes
    print(evaluation_table(agent, played.returns.reshape(shape), played.lengths.reshape(shape), not deterministic))
    if video:
        print(f"filmed {', '.join(str(file) for file in files)}")


def _named(context: typer.Context, problem: str | None) -> tuple[str | None, dict[str, Any]]:
    """Returns the problem and its options; an option where the problem should stand is one of them."""
    words = list(context.args)
    if problem is not None and problem.startswith("--"):
        words, problem = [problem, *words], None
    return problem, parse_options(words, own_names(context))


def _agreed(
    context: typer.Context,
    out: Path,
    record: RunRecord,
    problem: tuple[str | None, str],
    options: dict[str, Any],
    learner: dict[str, Any],
) -> dict[str, Any]:
    """Returns how long a run that goes on is to be, and how it is evaluated.

    Args:
        context: of the command.
        out: the run's folder.
        record: what it is.
        problem: as the command line says, or None, and as it is found.
        options: of the problem, as the command line says.
        learner: the learner's, likewise.

    Raises:
        ValueError: if the command line says something else than the run has, other than more steps.
    """
    lengths = {name: record.setting(name, "--resume") for name in _LENGTHS}
    lengths["keep_best"] = bool(record.settings.get("keep_best", False)) or context.params["keep_best"]
    minutes = record.settings.get("checkpoint_minutes", context.params["checkpoint_minutes"])
    says_minutes = _is_said(context, "checkpoint_minutes")  # of which learning knows nothing
    lengths["checkpoint_minutes"] = (context.params["checkpoint_minutes"] if says_minutes else minutes) or None
    has = {**record.settings, "seed": record.seed, "options": dict(record.options)}
    says = {name: context.params[name] for name in ("algorithm", "seed", *_LENGTHS) if _is_said(context, name)}
    says |= as_held(checked_options(record.setting("algorithm", "--resume"), {**learner, "ray": None}))
    says |= {"options": options} if options else {}
    if says.get("num_steps", 0) > lengths["num_steps"]:
        lengths["num_steps"] = says.pop("num_steps")
    where = f"--resume: the run in {str(out)!r} has"
    said, found = problem
    if said is not None and not _same(said, record.problem, found):
        raise ValueError(f"{where} PROBLEM {record.problem}, and this says {said}; leave it out, or begin another run")
    for name, value in says.items():
        if value != has.get(name):
            more = "say more to go on past its end" if name == "num_steps" else "leave it out, or begin another run"
            raise ValueError(f"{where} {flag(name)} {has.get(name)}, and this says {value}; {more}")
    return lengths


def _same(said: str, *names: str | None) -> bool:
    """Whether two problems are the same, be it by another way to the same file."""

    def settled(name: str) -> str:
        path = path_of(name)
        return name if path is None else name.replace(str(path), str(path.resolve()), 1)

    return any(name is not None and settled(said) == settled(name) for name in names)


def _again(size: int, out: Path) -> str:
    """Returns the command that goes on with a run."""
    together = f"torchrun --nproc-per-node {size} --no-python ", " --distributed"
    before, after = together if size > 1 else ("", "")
    return f"{before}rlai train --out {shlex.quote(str(out))} --resume{after}"


def _is_said(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _kept_in(problem: str) -> Path:
    """Returns a new folder under ``runs/``, named for the problem and the time, and says so."""
    path = path_of(problem)
    name = problem if path is None else path.stem + problem.partition(":")[2].join(("-" if ":" in problem else "", ""))
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-").lower()
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        folder = Path("runs", f"{stem}-{now}" + (f"-{number}" if number > 1 else ""))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(
                f"--out: cannot make the folder {str(folder)!r}: {error.strerror}; name another with --out"
            ) from error
        print(f"rlai: the run is kept in {folder} (another folder: --out)", file=sys.stderr)
        return folder
    raise ValueError("--out: runs/ is full of runs of this second; name a folder")
