"""The command ``robustness``: a trained policy in environments that are not quite its own."""

import contextlib
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from rl_as_inference.agents.evaluation import mean_interval
from rl_as_inference.agents.perturbations import PerturbedReturns, has_charge, perturb, physics_of
from rl_as_inference.cli.common import Overwrite, Progress, app, check_least, plain_errors
from rl_as_inference.cli.opening import Deterministic, Device, EpisodeSeed, TrainedRun, Trust, open_trained
from rl_as_inference.cli.runs import check_run_folder, new_run_folder, show
from rl_as_inference.inspect import plots
from rl_as_inference.progress import progress_bar
from rl_as_inference.records import RunRecord
from rl_as_inference.run_folders import RunFolder
from rl_as_inference.tables import counted, render

__all__ = ["robustness_command"]

_NOISE_GRID, _PHYSICS_GRID = (0.0, 0.05, 0.1, 0.2, 0.4), (0.5, 0.75, 1.0, 1.5, 2.0)
_REWARD_GRID = (0.0, 0.5, 1.0, 2.0)
_FILES = ("robustness.png", "robustness.json")
_LABELS = {
    "observation": "noise on observations (their standard deviations)",
    "action": "noise on actions (half-widths)",
    "reward": "worst reward (multiples of α)",
}


@app.command("robustness")
@plain_errors
def robustness_command(
    run: TrainedRun,
    perturbations: Annotated[
        list[str] | None,
        typer.Option(
            "--perturb",
            metavar="NAME=SIZES",
            help="What to perturb, and how much: observation=0,0.1 action=0,0.2 reward=0,1 (noise, from 0), or physics "
            "by factors: body_mass=0.5,1,2 body_mass:torso=2 friction=0.5 (MuJoCo), l=0.5,2 (Pendulum), … Say it "
            "again for more. By default noise and the usual physics.",
        ),
    ] = None,
    num_episodes: Annotated[int, typer.Option(help="Episodes for each seed and size.")] = 20,
    seed: EpisodeSeed = None,
    deterministic: Deterministic = True,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; RUN by default.")] = None,
    overwrite: Overwrite = False,
    device: Device = None,
    trust: Trust = False,
    progress: Progress = None,
) -> None:
    """Perturb observations, actions, reward and physics, and plot what a run of train still returns."""
    check_least(num_episodes=(num_episodes, 1))
    wanted = [_parse(text) for text in perturbations or ()]
    RunRecord.read(run, "RUN", ("train",))
    into_run = out is None or out.resolve() == run.resolve()
    if into_run:
        there = [name for name in _FILES if (run / name).exists()]
        if there and not overwrite:
            raise ValueError(f"RUN: {str(run)!r} has {there[0]} already; choose a folder by --out, or say --overwrite")
    else:
        assert out is not None
        check_run_folder(out, overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(RunFolder.of_run(run)) if into_run else None
        agent, seed = open_trained(run, seed, device, trust)
        stack.callback(agent.close)
        options: Any = {"num_episodes": num_episodes, "seed": seed, "deterministic": deterministic}
        wanted = wanted or _usual(agent)
        total = sum(len(set(sizes)) for _, sizes in wanted)
        with progress_bar(f"Perturbing {agent.envs.name}", total, show=progress) as bar:
            answers = [perturb(agent, what, sizes, progress=bar, **options) for what, sizes in wanted]
        title = f"{type(agent).__name__} on {agent.envs.name}, {counted(agent.num_steps, 'steps')}"
        rows = [_summary(answer) for answer in answers]
        settings = {**options, "run": str(run), "environment": agent.envs.name}
        if folder is None:
            folder = stack.enter_context(new_run_folder(out, overwrite=overwrite))  # type: ignore[arg-type]
            folder.begin(RunRecord.of("robustness", None, None, seed=seed, settings=settings), *_FILES)
        picture, data = _FILES
        kept = [{**row, "returns": answer.returns.tolist()} for row, answer in zip(rows, answers, strict=True)]
        folder.write_json(data, "every episode's return, and 95 % intervals", {**settings, "perturbations": kept})
        with folder.writing(picture, "return against perturbation") as path:
            _draw(title, rows).savefig(path, dpi=110)
        if not into_run:
            folder.settle(finished=True)
    print(_table(title, rows))
    show(folder.path, folder.written)


def _parse(text: str) -> tuple[str, tuple[float, ...]]:
    name, equals, sizes = text.partition("=")
    try:
        numbers = tuple(float(size) for size in sizes.split(","))
    except ValueError:
        numbers = ()
    if not (name and equals and numbers and all(math.isfinite(number) for number in numbers)):
        raise ValueError(f"--perturb must be NAME=SIZES, such as action=0,0.1,0.2; got {text!r}")
    return name, numbers


def _usual(agent: Any) -> list[tuple[str, tuple[float, ...]]]:
    """Returns what is perturbed where nothing is said."""
    noise = ["action"] if agent.arena.observation_space.shape == () else ["observation", "action"]
    grids: list[tuple[str, tuple[float, ...]]] = [(name, _NOISE_GRID) for name in noise]
    grids += [("reward", _REWARD_GRID)] if has_charge(agent) else []
    return grids + [(name, _PHYSICS_GRID) for name in physics_of(agent)]


def _summary(answer: PerturbedReturns) -> dict[str, Any]:
    """Returns means and intervals, as JSON holds them."""
    intervals = [mean_interval(returns) for returns in answer.returns]
    return {
        "name": answer.name,
        "sizes": list(answer.sizes),
        "mean": [float(returns.mean()) for returns in answer.returns],
        "low": [None if interval is None else interval[0] for interval in intervals],
        "high": [None if interval is None else interval[1] for interval in intervals],
    }


def _table(title: str, rows: list[dict[str, Any]]) -> str:
    lines: list[list[str] | None] = []
    for row in rows:
        lines += [None] if lines else []
        for size, mean, low, high in zip(row["sizes"], row["mean"], row["low"], row["high"], strict=True):
            interval = "-" if low is None else f"{low:.4g} … {high:.4g}"
            lines.append([row["name"], f"{size:g}", f"{mean:.4g}", interval])
    return render(title, ["perturbation", "size", "mean return", "95 % interval"], lines, right=(1, 2))


def _draw(title: str, rows: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    columns = min(len(rows), 3)
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(0.8 + 3.4 * columns, 0.6 + 2.7 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for row, ax in zip(rows, axes, strict=False):
        whole = row["low"][0] is not None
        unchanged = 0.0 if row["name"] in _LABELS else 1.0
        nominal = row["mean"][row["sizes"].index(unchanged)] if unchanged in row["sizes"] else None
        plots.plot_perturbation(
            row["sizes"],
            row["mean"],
            row["low"] if whole else None,
            row["high"] if whole else None,
            nominal=nominal,
            xlabel=_LABELS.get(row["name"], f"{row['name']} (factor)"),
            ax=ax,
        )
    for ax in axes[len(rows) :]:
        ax.set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure
