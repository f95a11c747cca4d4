"""The commands on problems: ``compare``, ``fit``; and ``bench``."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args

import torch
import typer

from rl_as_inference import exact
from rl_as_inference.checkpoints import save_policy
from rl_as_inference.cli.application import among, problem_names
from rl_as_inference.cli.common import (
    ONLY_CHECK,
    PROBLEM_OPTIONS,
    Distributed,
    Hidden,
    Out,
    Overwrite,
    Progress,
    Resume,
    Seed,
    app,
    check_least,
    check_seed,
    end_of_checks,
    own_names,
    parse_options,
    parse_sizes,
    plain_errors,
    settings_of,
)
from rl_as_inference.cli.runs import check_run_folder, new_run_folder, show
from rl_as_inference.compare import Comparison, GradientComparison, compare, compare_gradients
from rl_as_inference.distributed import present
from rl_as_inference.fit import FitEstimator, FitResult, fit
from rl_as_inference.guides import amortized_policy
from rl_as_inference.inference.posteriors import shared_posterior
from rl_as_inference.inference.spreading import SPREAD
from rl_as_inference.inspect import Method, plots, save_posterior
from rl_as_inference.model_card import CARD, Measure, model_card
from rl_as_inference.nouns import Process
from rl_as_inference.problems import load_problem
from rl_as_inference.processes import TabularMDP
from rl_as_inference.records import RunRecord
from rl_as_inference.run_folders import RunFolder
from rl_as_inference.tables import counted

__all__ = ["bench_command", "compare_command", "fit_command"]

Problem = Annotated[
    str,
    typer.Argument(
        metavar="PROBLEM",
        autocompletion=problem_names,
        help="A model (corridor), a Gymnasium id (FrozenLake-v1), or your Python file (lake.py or lake.py:name). "
        "Further options go to it: --map-name 8x8.",
    ),
]
Horizon = Annotated[int | None, typer.Option(help="Number of steps. A Gymnasium id's time limit by default.")]
Discount = Annotated[float | None, typer.Option(help="γ in [0, 1].")]
Temperature = Annotated[float | None, typer.Option(help="α, in reward units per nat.")]
Steps = Annotated[int, typer.Option(help="Gradient steps.")]
_ESTIMATORS = [str(each) for each in ("exact", *get_args(get_args(FitEstimator)[0]))]
EstimatorName = Annotated[
    str, typer.Option(help=f"One of: {', '.join(_ESTIMATORS)}.", autocompletion=among(*_ESTIMATORS))
]
Rollouts = Annotated[int, typer.Option(help="Rollouts for each sampled gradient.")]
LearningRate = Annotated[
    float, typer.Option(help="Adam's learning rate at the start; it falls to a twentieth along a cosine.")
]


@app.command("compare", context_settings=PROBLEM_OPTIONS)
@plain_errors
def compare_command(
    context: typer.Context,
    problem: Problem,
    horizon: Horizon = None,
    discount: Discount = None,
    temperature: Temperature = None,
    out: Out = None,
    overwrite: Overwrite = False,
    steps: Steps = 500,
    estimator: EstimatorName = "auto",
    fit_num_trajectories: Rollouts = 256,
    learning_rate: LearningRate = 2e-2,
    hidden_sizes: Hidden = "64,64",
    seed: Seed = 0,
    num_trajectories: Annotated[int, typer.Option(help="Rollouts for the comparison's estimates.")] = 4096,
    num_draws: Annotated[int, typer.Option(help="Posterior draws to write.")] = 1000,
    gradients: Annotated[
        bool,
        typer.Option("--gradients", help="Measure every gradient estimator and actor's loss at the trained guide."),
    ] = False,
    gradients_num_trajectories: Annotated[
        int, typer.Option(help="Trajectories for each row of --gradients.")
    ] = 100_000,
    progress: Progress = None,
    resume: Resume = False,
    distributed: Distributed = False,
) -> None:
    """Train a guide on the ELBO; show it beside SAC's objective and the exact answers."""
    check_least(
        num_trajectories=(num_trajectories, 2),
        num_draws=(num_draws, 1),
        gradients_num_trajectories=(gradients_num_trajectories, 100),
    )
    run = _GuideRun.start(context, problem, horizon, discount, temperature, out, overwrite, seed, resume)
    run.check(context, steps, estimator, fit_num_trajectories, learning_rate, hidden_sizes)
    fitted = run.train(steps, estimator, fit_num_trajectories, learning_rate, hidden_sizes, progress)
    comparison = compare(run.process, fitted.policy, num_trajectories=num_trajectories, distributed=run.ranks.size > 1)
    if not run.ranks.is_first:
        if out is not None and run.shares_draws:
            run.draws(fitted, num_draws)
        return
    measured = None
    if gradients:
        measured = compare_gradients(
            run.process, fitted.policy, num_trajectories=gradients_num_trajectories, progress=progress
        )
    if run.folder is not None:  # first of all, so that no trouble with the output loses it
        run.write_training(fitted, comparison.optimal_elbo)
        run.folder.write_json("comparison.json", "the table above", _with_units(comparison))
        if measured is not None:
            run.folder.write_json("gradients.json", "the table of gradients", _with_units(measured))
        run.write_draws(fitted, comparison, num_draws)
        run.finish(comparison.measures())
    print(comparison.table())
    print(f"trained {counted(steps, 'steps')} ({fitted.estimator}) in {fitted.seconds:.1f} s")
    if measured is not None:
        print(measured.table())
    run.show()


@app.command("fit", context_settings=PROBLEM_OPTIONS)
@plain_errors
def fit_command(
    context: typer.Context,
    problem: Problem,
    horizon: Horizon = None,
    discount: Discount = None,
    temperature: Temperature = None,
    out: Out = None,
    overwrite: Overwrite = False,
    steps: Steps = 500,
    estimator: EstimatorName = "auto",
    num_trajectories: Rollouts = 256,
    learning_rate: LearningRate = 2e-2,
    hidden_sizes: Hidden = "64,64",
    seed: Seed = 0,
    progress: Progress = None,
    resume: Resume = False,
    distributed: Distributed = False,
) -> None:
    """Train a guide on the ELBO and save it."""
    run = _GuideRun.start(context, problem, horizon, discount, temperature, out, overwrite, seed, resume)
    run.check(context, steps, estimator, num_trajectories, learning_rate, hidden_sizes)
    fitted = run.train(steps, estimator, num_trajectories, learning_rate, hidden_sizes, progress)
    if not run.ranks.is_first:
        return
    if run.folder is not None:
        best = None
        if exact.is_available(run.process):
            with contextlib.suppress(ValueError):  # too many beliefs, say
                best = float(exact.optimal_elbo(run.process))
        run.write_training(fitted, best)
        drawn = counted(num_trajectories, "trajectories")
        how = "exact" if fitted.estimator == "exact" else f"one estimate, from {drawn}"
        run.finish([Measure("elbo", "ELBO at the last step", float(fitted.elbo[-1]), "nats", {"over": how})])
    print(f"ELBO {float(fitted.elbo[-1]):.4g} nats at step {steps} ({fitted.estimator}), {fitted.seconds:.1f} s")
    run.show()


@app.command("bench")
@plain_errors
def bench_command(
    quick: Annotated[bool, typer.Option("--quick", help="A short version, to see that it runs.")] = False,
) -> None:
    """Run the benchmarks of a clone of the repository and print their table."""
    if not Path("benchmarks", "run.py").is_file():
        raise ValueError(
            "bench: the benchmarks come with the repository, not with the installed package; run it from the folder of "
            "a clone"
        )
    words = ["--quick"] if quick else []
    done = subprocess.run([sys.executable, "-m", "benchmarks.run", *words], check=False)
    raise typer.Exit(done.returncode)


_CHECKPOINT = "checkpoint.safetensors"
_MAY_WRITE = ("policy.safetensors", "history.json", "training.png", CARD, _CHECKPOINT)
_COMPARED = ("comparison.json", "gradients.json", "posterior.nc")
_PICTURES = ("gaps.png", "dynamics_gap.png", "states.png", "returns.png")
"""Files of a run: of both commands, and of ``compare`` alone."""


class _GuideRun:
    """One command's process, seed and folder."""

    def __init__(self, process: Process, out: Path | None, folder: RunFolder | None, record: RunRecord) -> None:
        self.process, self.ranks = process, present()
        self.out, self.folder = out, folder  # which rank 0 alone has taken
        self.record = record
        self.started = time.perf_counter()

    @classmethod
    def start(
        cls,
        context: typer.Context,
        problem: str,
        horizon: int | None,
        discount: float | None,
        temperature: float | None,
        out: Path | None,
        overwrite: bool,
        seed: int,
        resume: bool,
    ) -> Self:
        own = own_names(context)
        options = parse_options(context.args, own)
        check_seed(seed)
        first = present().is_first
        if resume and (out is None or overwrite):
            raise ValueError("--resume goes on with the run in --out FOLDER, which --overwrite would replace")
        if out is not None and first and not resume:
            # Before the work, so that an hour's training is not lost to a folder that is taken.
            check_run_folder(out, overwrite=overwrite)
        torch.manual_seed(seed)
        settings = settings_of(context) | ({"ranks": present().size} if present().size > 1 else {})
        record = RunRecord.of(str(context.info_name), problem, out, options=options, seed=seed, settings=settings)
        process = load_problem(problem, options, horizon=horizon, discount=discount, temperature=temperature, own=own)
        folder = None
        if out is not None and first:
            if resume:
                _check_same(RunRecord.read(out, "--resume", (record.command,), unfinished=True), record)
            folder = context.with_resource(RunFolder(out) if resume else new_run_folder(out, overwrite=overwrite))
            folder.begin(record, *_MAY_WRITE, *(_COMPARED + _PICTURES if record.command == "compare" else ()))
        return cls(process, out, folder, record)

    def check(
        self, context: typer.Context, steps: int, estimator: str, num_trajectories: int, rate: float, hidden: str
    ) -> None:
        """Where options are only to be checked, ends the command after a single step with them."""
        if context.obj == ONLY_CHECK:
            self.train(min(steps, 1), estimator, num_trajectories, rate, hidden, False)
        end_of_checks(context)

    def train(
        self, steps: int, estimator: str, num_trajectories: int, rate: float, hidden: str, progress: bool | None
    ) -> FitResult:
        sizes = parse_sizes(hidden)
        policy = amortized_policy(self.process, hidden_sizes=sizes)
        # And not fit(seed=...), after which what is drawn to compare would be what was drawn to train.
        torch.manual_seed(self.record.seed)
        fitted = fit(
            self.process,
            policy,
            steps=steps,
            estimator=estimator,  # type: ignore[arg-type]
            num_trajectories=num_trajectories,
            learning_rate=rate,
            progress=progress,
            checkpoint=None if self.out is None else self.out / _CHECKPOINT,
            distributed=self.ranks.size > 1,
        )
        self.record = self.record.changed(estimator=fitted.estimator)
        return fitted

    def write_training(self, fitted: FitResult, optimal_elbo: float | None) -> None:
        assert self.folder is not None
        with self.folder.writing("policy.safetensors", "the trained guide") as path:
            save_policy(fitted.policy, path, problem=self.record.problem, **self.record.settings)
        self.folder.write_json("history.json", "the ELBO at every step, in nats", fitted.elbo.tolist())
        drawn = plots.plot_elbo_history(fitted.elbo, optimal_elbo=optimal_elbo, temperature=fitted.temperature)
        self.picture("training.png", "the ELBO over training", drawn)

    @property
    def method(self) -> Method:
        """How the posterior is drawn."""
        return "exact" if exact.is_available(self.process) else "importance"

    @property
    def shares_draws(self) -> bool:
        """Whether other ranks must help drawing it."""
        return self.method in SPREAD and self.ranks.size > 1

    def draws(self, fitted: FitResult, count: int) -> Any:
        proposal, shared = None if self.method == "exact" else fitted.policy, self.shares_draws
        return shared_posterior(self.process, proposal, method=self.method, num_draws=count, distributed=shared)

    def write_draws(self, fitted: FitResult, comparison: Comparison, count: int) -> None:
        assert self.folder is not None
        method, draws = self.method, self.draws(fitted, count)
        with self.folder.writing("posterior.nc", f"{count} posterior draws ({method}), as ArviZ data") as path:
            save_posterior(draws, path, overwrite=True)  # a draft of the folder's own
        self.write_pictures(fitted, comparison, draws, count)

    def write_pictures(self, fitted: FitResult, comparison: Comparison, draws: Any, count: int) -> None:
        process, policy = self.process, fitted.policy
        if comparison.log_evidence is not None and comparison.policy_gap is not None:
            self.picture("gaps.png", "how the log evidence splits", plots.plot_gaps(comparison))
        if isinstance(process, TabularMDP) and process.horizon is not None:
            axes = plots.plot_dynamics_gap(process, policy)
            self.picture("dynamics_gap.png", "what luck dreams of and what acting on it gets", axes[0])
        elif draws.posterior["state"].ndim <= 4:
            self.picture("states.png", "the posterior's states over time", plots.plot_states(draws))
        with torch.no_grad():
            returns = {
                "action prior": process.rollout(None, count).returns().cpu(),
                "guide": process.rollout(policy, count).returns().cpu(),
                f"posterior ({draws.posterior.attrs['method']})": draws.sample_stats["return"].values,
            }
        self.picture("returns.png", "returns of prior, guide and posterior", plots.plot_returns(returns))

    def picture(self, name: str, meaning: str, ax: Any) -> None:
        assert self.folder is not None
        with self.folder.writing(name, meaning) as path:
            ax.figure.savefig(path, dpi=130)

    def finish(self, measures: Sequence[Measure]) -> None:
        """Writes the card, and that the run came to its end."""
        assert self.folder is not None
        with self.folder.writing(CARD, "the run for people, in the format of the Hugging Face Hub") as path:
            card = model_card(self.record, trained="guide", problem=self.process.name, measures=measures)
            path.write_text(card, encoding="utf-8")
        (self.folder.path / _CHECKPOINT).unlink(missing_ok=True)  # of a fit that needs none any more
        seconds = round(time.perf_counter() - self.started, 2)
        self.folder.settle(estimator=self.record.settings["estimator"], finished=True, seconds=seconds)

    def show(self) -> None:
        if self.folder is not None:
            show(self.folder.path, self.folder.written)


def _with_units(found: Comparison | GradientComparison) -> dict[str, Any]:
    """Returns a comparison as JSON holds it, with the unit of each number by its name."""
    return {**found.to_dict(), "units": dict(found.units)}


def _check_same(before: RunRecord, now: RunRecord) -> None:
    """Raises ValueError if a run that goes on says something else than it began with."""
    has = {"PROBLEM": before.problem, "options": dict(before.options), "seed": before.seed, **before.settings}
    says = {"PROBLEM": now.problem, "options": dict(now.options), "seed": now.seed, **now.settings}
    if before.finished:
        raise ValueError("--resume: the run has finished; begin another in a folder of its own")
    for name, value in says.items():
        if name not in ("estimator", "ranks") and has.get(name) != value:
            raise ValueError(f"--resume: the run has {name} {has.get(name)}, and this says {value}; say the same")
