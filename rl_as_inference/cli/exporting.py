"""The command that takes a policy out of a run: ``export``."""

import contextlib
from pathlib import Path
from typing import Annotated, get_args

import typer

from rl_as_inference.agents.export import SUFFIXES, Format
from rl_as_inference.cli.common import app, plain_errors
from rl_as_inference.cli.opening import Best, TrainedRun, Trust, open_trained
from rl_as_inference.run_folders import RunFolder

__all__ = ["export_command"]


@app.command("export")
@plain_errors
def export_command(
    run: TrainedRun,
    format: Annotated[
        str, typer.Option(help="torch (a torch.export program, policy.pt2) or onnx (policy.onnx).")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default policy.onnx or policy.pt2 in RUN.")
    ] = None,
    best: Best = False,
    seed_index: Annotated[int, typer.Option(help="Whose policy, of a run with several seeds.")] = 0,
    normalization: Annotated[
        bool,
        typer.Option(
            "--normalization/--no-normalization",
            help="Running statistics of observations, if the run has any, are part of the program.",
        ),
    ] = True,
    trust: Trust = False,
) -> None:
    """Write the policy of a run of train as a program that acts without this package."""
    kinds = get_args(Format)
    if format not in kinds:
        raise ValueError(f"--format must be {' or '.join(kinds)}, got {format!r}")
    path = run / f"policy{SUFFIXES[format]}" if out is None else out  # type: ignore[index]
    with contextlib.ExitStack() as stack:
        agent, _ = open_trained(run, None, "cpu", trust, best=best)
        stack.callback(agent.close)
        if out is None:  # the file is the run's own then, and a run in its place takes it away
            stack.enter_context(RunFolder.of_run(run)).tell(path.name)
        try:
            written = agent.export(path, format=format, seed_index=seed_index, normalization=normalization)  # type: ignore[arg-type]
        except ImportError as error:
            raise ValueError(str(error)) from error
    print(f"{written.path}  step {agent.num_steps}; actions as the agent's in {written.num_compared} states")
