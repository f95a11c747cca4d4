"""What the commands on runs share: opening one, and options that several have."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rl_as_inference.agents import Learner
from rl_as_inference.agents.logbook import evaluation_seed
from rl_as_inference.cli.common import check_seed
from rl_as_inference.records import RunRecord
from rl_as_inference.runs import Run, load_run

__all__ = ["Best", "Deterministic", "Device", "EpisodeSeed", "TrainedRun", "Trust", "open_run", "open_trained"]

TrainedRun = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of rlai train.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; by default the run's, where there is one.")]
EpisodeSeed = Annotated[int | None, typer.Option(help="Seed of the episodes; by default those of the training.")]
Deterministic = Annotated[
    bool, typer.Option("--deterministic/--stochastic", help="The policy's mode acts, or actions are drawn.")
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        "--allow-changed",
        help="Run the problem's Python file though it is not the one recorded here: it has changed since, or came with "
        "a run from elsewhere.",
    ),
]
Best = Annotated[bool, typer.Option("--best", help="The agent of the best evaluation, of a run with --keep-best.")]


def open_run(folder: Path, device: str | None, trust: bool, *, best: bool = False) -> Run:
    """Returns the run in ``folder``; that its problem has changed is said."""
    run = load_run(folder, device=device, trust=trust, best=best)
    if run.problem_changed:
        print(f"rlai: warning: {run.record.problem} has changed since the run in {folder} began", file=sys.stderr)
    return run


def open_trained(
    folder: Path, seed: int | None, device: str | None, trust: bool, *, best: bool = False
) -> tuple[Learner, int]:
    """Returns the agent of a run of ``train``, and the seed of the episodes that it is to play."""
    if seed is not None:
        check_seed(seed)
    RunRecord.read(folder, "RUN", ("train",))
    agent = open_run(folder, device, trust, best=best).agent
    assert agent is not None
    return agent, evaluation_seed(agent.seed) if seed is None else seed
