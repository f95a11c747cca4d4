"""The commands on learners: ``train`` and ``evaluate``."""

import hashlib
import json
import math
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer

from rl_as_inference.agents import Learner, SoftActorCritic, SoftQLearning, Training, record_videos, train
from rl_as_inference.agents.soft_actor_critic import Objective
from rl_as_inference.agents.training import CHECKPOINT, CURVE, DIVERGED, TENSORBOARD, evaluation_seed
from rl_as_inference.agents.videos import check_videos
from rl_as_inference.cli.common import (
    PROBLEM_OPTIONS,
    Hidden,
    Out,
    Overwrite,
    Progress,
    Seed,
    app,
    check_seed,
    parse_sizes,
    plain_errors,
    versions,
)
from rl_as_inference.cli.problems import is_gymnasium_id, load_problem, parse_options, path_of
from rl_as_inference.cli.runs import RunFolder, check_run_folder, new_run_folder, read_record
from rl_as_inference.inspect import plots
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.tables import render

__all__ = ["ROBUSTNESS", "evaluate_command", "make_agent", "mark", "train_command"]

_ALGORITHMS: dict[str, Callable[..., Learner]] = {"sac": SoftActorCritic, "sql": SoftQLearning}
_OWN: dict[str, dict[str, Any]] = {"sac": {"objective": "maxent", "policy_components": 1}, "sql": {"double": False}}
"""Options that only one algorithm has, with their defaults."""
_SINCE: dict[str, Any] = {"target_return": None}
"""Options that the first runs did not have, with what they did."""
_OF_AGENTS = (
    "num_envs",
    "batch_size",
    "buffer_size",
    "learning_rate",
    "learning_starts",
    "discount",
    "temperature",
    "target_entropy",
    "target_return",
    "updates_per_step",
    "n_step",
    "compile",
)
_NOT_OF_RUNS = ("out", "overwrite", "resume", "progress", "video")
"""Options of a command that say nothing about what is learned."""
ROBUSTNESS = ("robustness.png", "robustness.json")
"""What the command robustness writes into a run."""
_PICTURE, _VIDEOS = "learning_curve.png", "videos"
_MEANINGS = {
    CHECKPOINT: "the agent as it ended: rlai evaluate, --resume",
    DIVERGED: "the agent when it was no longer finite",
    CURVE: "every evaluation",
    _PICTURE: "the same as a picture",
}

Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. A GPU by default, if there is one.")]
Video = Annotated[int, typer.Option(help="Episodes to film, of the first seed, into videos/.")]


@app.command("train", context_settings=PROBLEM_OPTIONS)
@plain_errors
def train_command(
    context: typer.Context,
    env_id: Annotated[
        str | None,
        typer.Argument(
            metavar="ENV_ID",
            help="A Gymnasium id (Pendulum-v1), or a problem in parts: a model (point_mass) or your Python file. "
            "Further options go to it: --g 9.8.",
        ),
    ] = None,
    algorithm: Annotated[str, typer.Option(help="sac (soft actor-critic) or sql (soft Q-learning).")] = "sac",
    steps: Annotated[int, typer.Option(help="Environment steps in all, of each seed.")] = 100_000,
    out: Out = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out from its last checkpoint, as if never stopped."),
    ] = False,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option(help="Learn this many seeds at once, in one batched update.")] = 1,
    num_envs: Annotated[int, typer.Option(help="Environments stepped together, for each seed.")] = 1,
    hidden_sizes: Hidden = "256,256",
    batch_size: Annotated[int, typer.Option(help="Transitions an update.")] = 256,
    buffer_size: Annotated[int, typer.Option(help="Transitions that replay holds, for each seed.")] = 1_000_000,
    learning_rate: Annotated[float, typer.Option(help="Adam's learning rate.")] = 3e-4,
    learning_starts: Annotated[int, typer.Option(help="Steps by the action prior before learning.")] = 1000,
    discount: Annotated[float | None, typer.Option(help="γ in [0, 1]; 0.99, or the problem's own.")] = None,
    temperature: Annotated[
        str | None, typer.Option(help="α, in reward units per nat: a number, or auto, to tune it to a target entropy.")
    ] = None,
    target_entropy: Annotated[
        float | None, typer.Option(help="Nats; -d for d continuous actions, half of log|A| for discrete ones.")
    ] = None,
    target_return: Annotated[
        float | None,
        typer.Option(help="Reward units: tune α so that the exploring policy earns this an episode (satisficing)."),
    ] = None,
    updates_per_step: Annotated[float, typer.Option(help="Gradient steps an environment step; may be below 1.")] = 1.0,
    n_step: Annotated[int, typer.Option(help="Steps of reward before a critic bootstraps.")] = 1,
    objective: Annotated[str, typer.Option(help=f"Of sac: {', '.join(get_args(Objective))}.")] = "maxent",
    policy_components: Annotated[int, typer.Option(help="Of sac: Gaussians in a mixture policy.")] = 1,
    double: Annotated[bool, typer.Option("--double", help="Of sql: soft double Q-learning.")] = False,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Compile the update; by default where it repays.")
    ] = None,
    device: Device = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Steps; a twentieth of the run by default.")] = None,
    evaluate_episodes: Annotated[int, typer.Option(help="Episodes of an evaluation, for each seed.")] = 10,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 10_000,
    progress: Progress = None,
    video: Video = 0,
) -> None:
    """Learn a policy on an environment by soft actor-critic or soft Q-learning."""
    if video < 0:
        raise ValueError(f"--video must be >= 0, got {video}")
    if out is None and (resume or video):
        raise ValueError(f"--{'resume' if resume else 'video'} needs --out FOLDER")
    if resume:
        assert out is not None
        if overwrite:
            raise ValueError("--resume goes on with a run and --overwrite replaces it; say one of them")
        record = _resumed(context, out)
    else:
        if out is not None:
            check_run_folder(out, overwrite=overwrite)
        record = _new(context)
    agent = make_agent(record)
    if video:
        check_videos(agent)
    # Settled now, by all the steps: a part of the run could not tell.
    record |= {"compile": agent.settle_compile(record["steps"]), "device": str(agent.device)}
    folder = None if out is None else RunFolder(out) if resume else new_run_folder(out, overwrite=overwrite)
    if folder is not None:
        mark(folder, record)
    try:
        training = train(
            agent,
            record["steps"],
            out,
            evaluate_every=record["evaluate_every"],
            evaluate_episodes=record["evaluate_episodes"],
            checkpoint_every=record["checkpoint_every"],
            resume=resume,
            progress=progress,
            on_row=None if folder is None else lambda row: mark(folder, record),
        )
    except KeyboardInterrupt as stop:
        if out is not None:
            stop.add_note(f"go on with: rlai train --out {shlex.quote(str(out))} --resume")
        raise
    finally:
        agent.close()
        if folder is not None:
            mark(folder, record)
    print(_training_table(agent, training))
    if folder is None:
        return
    ax: Any = plots.plot_learning_curve(training.curve, title=f"{type(agent).__name__} on {agent.envs.name}")
    with folder.writing(_PICTURE, _MEANINGS[_PICTURE]) as path:
        ax.figure.savefig(path, dpi=130)
    if video:
        record_videos(agent, folder.path / _VIDEOS, video, seed=evaluation_seed(agent.seed))
    mark(folder, {**record, "finished": True, "seconds": round(training.seconds, 2)})
    _show(folder)


@app.command("evaluate")
@plain_errors
def evaluate_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of rlai train.")],
    episodes: Annotated[int, typer.Option(help="Episodes for each seed.")] = 10,
    seed: Annotated[int | None, typer.Option(help="Seed of the episodes; by default those of the training.")] = None,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Draw actions; else the policy's mode acts.")
    ] = False,
    device: Device = None,
    video: Video = 0,
) -> None:
    """Play episodes with the policy of a run of train."""
    for name, value, least in (("--episodes", episodes, 1), ("--video", video, 0)):
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    if seed is not None:
        check_seed(seed)
    record = read_record(run, "train", "RUN")
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    agent = make_agent({**record, "compile": False, "device": device or record.get("device")}, "RUN")
    if video:
        check_videos(agent)
    agent.restore(run / CHECKPOINT)
    seed = evaluation_seed(agent.seed) if seed is None else seed
    played = agent.evaluate(episodes, seed=seed, deterministic=not stochastic)
    agent.close()
    shape = agent.num_seeds, episodes
    print(_evaluation_table(agent, played.returns.reshape(shape), played.lengths.reshape(shape), stochastic))
    if video:
        files = record_videos(agent, run / _VIDEOS, video, seed=seed, deterministic=not stochastic)
        mark(RunFolder(run), record)
        print(f"filmed {', '.join(str(file) for file in files)}")


def _settings(context: typer.Context) -> dict[str, Any]:
    """Returns what this command line says, or has by default, of a run, as JSON holds it."""
    settings = {name: value for name, value in context.params.items() if name not in _NOT_OF_RUNS}
    problem, words = settings.pop("env_id"), list(context.args)
    if problem is not None and problem.startswith("--"):  # an option of the problem's, where no problem is named
        words, problem = [problem, *words], None
    path = None if problem is None else path_of(problem)
    if path is not None:
        problem = problem.replace(str(path), str(path.resolve()), 1)
    settings["hidden_sizes"] = list(parse_sizes(settings["hidden_sizes"]))
    settings["temperature"] = _temperature(settings["temperature"])
    return {"problem": problem, "options": parse_options(words), **settings}


def _new(context: typer.Context) -> dict[str, Any]:
    """Returns all that makes the run of this command line what it is."""
    settings = _settings(context)
    if settings["problem"] is None:
        raise ValueError("ENV_ID is missing; name an environment first, such as Pendulum-v1 (or say --resume)")
    if settings["algorithm"] not in _ALGORITHMS:
        raise ValueError(f"--algorithm must be one of {', '.join(_ALGORITHMS)}; got {settings['algorithm']!r}")
    for owner, options in _OWN.items():
        for name, default in options.items():
            if owner != settings["algorithm"] and settings[name] != default:
                raise ValueError(f"{_flag(name)} goes with --algorithm {owner}")
    for name in ("steps", "seeds", "evaluate_every", "evaluate_episodes", "checkpoint_every"):
        if settings[name] is not None and settings[name] < 1:
            raise ValueError(f"{_flag(name)} must be >= 1, got {settings[name]}")
    check_seed(settings["seed"])
    settings["evaluate_every"] = settings["evaluate_every"] or max(settings["steps"] // 20, 1)
    return {
        "command": "train",
        **settings,
        "problem_sha256": _fingerprint(settings["problem"]),
        "versions": versions("numpy"),
    }


def _resumed(context: typer.Context, out: Path) -> dict[str, Any]:
    """Returns what is recorded of the run in ``out``, with which the command line must agree where it says more."""
    record, settings = read_record(out, "train", "--resume"), _settings(context)
    said = [name for name in settings if name in context.params and _is_said(context, name)]
    said += [name for name in ("problem", "options") if settings[name]]
    for name in said:
        if settings[name] != record.get(name):
            raise ValueError(
                f"--resume: the run in {str(out)!r} has {_flag(name)} {record.get(name)}, and this says "
                f"{settings[name]}; leave it out, or begin another run"
            )
    if _fingerprint(str(record.get("problem"))) != record.get("problem_sha256"):
        raise ValueError(f"--resume: {record['problem']} has changed since the run began; begin another run")
    return record


def _is_said(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _flag(name: str) -> str:
    return "ENV_ID" if name == "problem" else "--" + name.replace("_", "-")


def _temperature(text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--temperature must be auto, or a number > 0; got {text!r}") from None


def _fingerprint(problem: str) -> str | None:
    """Returns the hash of the Python file that a problem names; None if it names none."""
    path = path_of(problem)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else None


def make_agent(record: dict[str, Any], argument: str = "--resume") -> Learner:
    """Returns the agent of a run as it began.

    Raises:
        ValueError: if the agent cannot be made, or the record lacks something.
    """
    try:
        problem, algorithm = str(record["problem"]), record["algorithm"]
        seeds = None if record["seeds"] == 1 else record["seeds"]
        config = {name: {**_SINCE, **record}[name] for name in (*_OF_AGENTS, *_OWN[algorithm])}
        config |= {"seed": record["seed"], "seeds": seeds, "hidden_sizes": tuple(record["hidden_sizes"])}
        config["device"], options = record["device"], dict(record["options"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{argument}: run.json is not as rlai train writes it: {type(error).__name__}: {error}"
        ) from error
    config["compile"] = "auto" if config["compile"] is None else config["compile"]
    if is_gymnasium_id(problem):
        return _ALGORITHMS[algorithm](problem, env_kwargs=options, **config)
    process = load_problem(problem, options)
    if not isinstance(process, MarkovDecisionProcess):
        raise ValueError(
            f"ENV_ID: {problem} is a Pyro program, which runs whole trajectories and has no steps to learn from; give "
            f"it in parts (a MarkovDecisionProcess), or train a guide on it with rlai fit"
        )
    return _ALGORITHMS[algorithm](process, **config)


def mark(folder: RunFolder, record: dict[str, Any]) -> None:
    """Writes ``run.json``, with the files that are there by now."""
    own = (*_MEANINGS, *ROBUSTNESS, f"{TENSORBOARD}/events.out.tfevents.*", f"{_VIDEOS}/episode-*.mp4")
    files = [str(path.relative_to(folder.path)) for pattern in own for path in sorted(folder.path.glob(pattern))]
    with folder.writing("run.json", "what was run, with versions and seed") as path:
        path.write_text(json.dumps({"finished": False, **record, "files": files}, indent=2) + "\n")


def _show(folder: RunFolder) -> None:
    """Prints what is in the folder of a run that has ended."""
    meanings = {**_MEANINGS, TENSORBOARD: "for tensorboard --logdir", _VIDEOS: "episodes of the policy"}
    folder.written = [(name, meaning) for name, meaning in meanings.items() if (folder.path / name).exists()]
    folder.written.append(("run.json", "what was run, with versions and seed"))
    folder.show()


def _training_table(agent: Learner, training: Training) -> str:
    """Returns what a run came to, as a table."""
    returns, last = training.evaluation.returns, training.curve[-agent.num_seeds :]
    several, count = agent.num_seeds > 1, returns.shape[1]
    interval = training.interval
    over = f"{agent.num_seeds} seeds, {count} episodes each" if several else f"{count} episodes"
    note = over if interval is None else f"{interval[0]:.4g} … {interval[1]:.4g} (95 %, bootstrap over {over})"
    rows: list[list[str] | None] = [
        ["environment steps", f"{agent.num_steps:,}", "steps", "of each seed" if several else ""],
        ["gradient steps", f"{agent.num_updates:,}", "steps", "of each seed" if several else ""],
        ["evaluation return", f"{float(returns.mean()):.4g}", "reward", note],
    ]
    if several:
        rows += [
            [
                f"  seed {row.seed}",
                f"{row.mean_return:.4g}",
                "reward",
                f"its episodes {row.least_return:.4g} … {row.largest_return:.4g}",
            ]
            for row in last
        ]
    goal = "fixed"
    if agent.target_entropy is not None:
        goal = f"tuned to an entropy of {agent.target_entropy:.4g} nats"
    elif agent.constraint is not None:
        recent = statistics.fmean(agent.constraint.recent)
        latest = (
            "no episode of the policy has ended" if math.isnan(recent) else f"latest exploring episodes {recent:.4g}"
        )
        goal = f"tuned to a return of {agent.constraint.target:.4g}; {latest}"
    speed = training.steps_per_second
    rows += [
        ["temperature α", f"{agent.temperature:.4g}", "reward/nat", goal],
        [
            "policy entropy",
            f"{statistics.fmean(row.entropy for row in last):.4g}",
            "nats",
            "mean over the latest batches",
        ],
    ]
    if not math.isnan(speed):  # as it is where a finished run was resumed
        note = _speed_note(agent, speed, training.seconds)
        rows.append(["speed", f"{speed * agent.num_seeds:,.0f}", "steps/s", note])
    title = f"{type(agent).__name__} on {agent.envs.name}"
    return render(title, ["quantity", "value", "unit", ""], rows, right=(1,))


def _speed_note(agent: Learner, speed: float, seconds: float) -> str:
    each = f"{speed:,.0f} for each seed; " if agent.num_seeds > 1 else ""
    compiling = f", {agent.compile_seconds:.1f} s of it compiling" if agent.settle_compile(0) else ""
    return f"{each}{seconds:.1f} s of learning{compiling}"


def _evaluation_table(agent: Learner, returns: torch.Tensor, lengths: torch.Tensor, stochastic: bool) -> str:
    """Returns the episodes' returns in figures, of every seed and of all."""

    def row(name: str, returns: torch.Tensor, lengths: torch.Tensor) -> list[str]:
        spread = f"{float(returns.std()):.4g}" if returns.numel() > 1 else "-"
        least, most = int(lengths.min()), int(lengths.max())
        length = str(least) if least == most else f"{float(lengths.double().mean()):.1f} ({least} … {most})"
        numbers = (f"{float(value):.4g}" for value in (returns.min(), returns.max()))
        return [name, str(returns.numel()), f"{float(returns.mean()):.4g}", spread, *numbers, length]

    rows: list[list[str] | None] = [
        row(f"seed {index}", *pair) for index, pair in enumerate(zip(returns, lengths, strict=True))
    ]
    if len(returns) > 1:
        rows += [None, row("all seeds", returns, lengths)]
    acts = ", actions drawn" if stochastic else ""
    title = f"{type(agent).__name__} on {agent.envs.name}, {agent.num_steps:,} steps{acts}"
    header = ["return (reward)", "episodes", "mean", "std", "min", "max", "length (steps)"]
    return render(title, header, rows, right=range(1, 7))
