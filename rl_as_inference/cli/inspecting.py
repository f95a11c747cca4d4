"""The command ``inspect``: a run as one HTML page."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer

from rl_as_inference.agents import Learner
from rl_as_inference.agents.training import CHECKPOINT, evaluation_seed
from rl_as_inference.checkpoints import load_policy, written_whole
from rl_as_inference.cli.common import app, plain_errors
from rl_as_inference.cli.problems import load_problem
from rl_as_inference.cli.runs import RunFolder
from rl_as_inference.cli.training import make_agent
from rl_as_inference.compare import ActionRule, Comparison, Identity, compare
from rl_as_inference.guides import amortized_policy
from rl_as_inference.inspect import Method, load_posterior
from rl_as_inference.processes import GymnasiumProcess
from rl_as_inference.processes.programs import as_process
from rl_as_inference.report import draw_sources, is_report, render_report

__all__ = ["inspect_command"]

_NAME = "report.html"
_RECORD, _COMPARISON, _POLICY = "run.json", "comparison.json", "policy.safetensors"
_DRAWS = "posterior.nc"
_NUM_DRAWS, _NUM_EPISODES, _NUM_ENVS = 1000, 50, 10
_NUM_ROLLOUTS = 4096


@dataclass(frozen=True)
class _Inspected:
    """What a run folder was rebuilt to."""

    process: Any
    policy: Any
    comparison: Comparison | None
    record: dict[str, Any]
    critic: Any = None

    @property
    def is_simulator(self) -> bool:
        """Whether trajectories cost an environment's steps."""
        return isinstance(self.process, GymnasiumProcess)


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
            f"where that is possible, else importance, and guide for simulators."
        ),
    ] = None,
    num_draws: Annotated[
        int | None,
        typer.Option(help=f"Draws of each distribution; {_NUM_DRAWS} by default, {_NUM_EPISODES} for simulators."),
    ] = None,
) -> None:
    """Write a run as one HTML page: the comparison, and trajectories to step through."""
    if num_draws is not None and num_draws < 1:
        raise ValueError(f"--num-draws must be >= 1, got {num_draws}")
    if method is not None and method not in get_args(Method):
        raise ValueError(f"--method must be one of {', '.join(get_args(Method))}; got {method!r}")
    record = _read_record(run)
    target = run / _NAME if out is None else out
    _check_target(target, overwrite)  # before the work, so that it is not lost to a file that is taken
    inspected = _load(run, record)
    if (run / _DRAWS).exists():
        try:
            load_posterior(run / _DRAWS)
        except ValueError as error:
            print(f"rlai: warning: {str(run / _DRAWS)!r} is damaged ({error}); the page draws anew", file=sys.stderr)
    torch.manual_seed(record["seed"])
    count = num_draws or (_NUM_EPISODES if inspected.is_simulator else _NUM_DRAWS)
    comparison = inspected.comparison or _compare(inspected, count)
    chosen: Any = method or ("guide" if inspected.is_simulator else None)
    sources = draw_sources(inspected.process, inspected.policy, method=chosen, num_draws=count)
    facts = _facts(inspected, count)
    page = render_report(inspected.process, sources, comparison=comparison, facts=facts)
    with written_whole(target) as path:
        path.write_text(page, encoding="utf-8")
    _list(run, record, target)
    print(f"written to {target} ({target.stat().st_size / 1e6:.1f} MB); open it in a browser")
    for source in sources:
        if source.diagnosis is not None:
            print(f"  {source.label}: {source.diagnosis.text}")


def _read_record(run: Path) -> dict[str, Any]:
    """Returns what ``run.json`` says.

    Raises:
        ValueError: if the folder is not one of a run that can be inspected.
    """
    if not run.is_dir():
        missing = "is a file, not a folder" if run.exists() else "does not exist"
        raise ValueError(f"RUN: {str(run)!r} {missing}; name a folder that compare, fit or train wrote with --out")
    if not (run / _RECORD).is_file():
        raise ValueError(
            f"RUN: {str(run)!r} is not a run folder (it has no {_RECORD}); name one that compare, fit or train wrote "
            f"with --out"
        )
    record = _read_json(run / _RECORD)
    command = record.get("command")
    if command is None and record.get("finished") is False:
        raise ValueError(f"RUN: the run in {str(run)!r} did not finish; run it again with --overwrite")
    if command not in ("compare", "fit", "train"):
        raise _damaged(run / _RECORD, f"its command is {command!r}")
    if type(record.get("seed")) is not int:
        raise _damaged(run / _RECORD, f"its seed is {record.get('seed')!r}")
    return record


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(found, dict):
        raise _damaged(path, f"it holds a {type(found).__name__}")
    return found


def _damaged(path: Path, cause: object) -> ValueError:
    return ValueError(f"RUN: {str(path)!r} is damaged ({cause}); run it again with --overwrite")


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


def _load(run: Path, record: dict[str, Any]) -> _Inspected:
    return _load_agent(run, record) if record["command"] == "train" else _load_guide(run, record)


def _load_guide(run: Path, record: dict[str, Any]) -> _Inspected:
    """Returns what a run of ``compare`` or ``fit`` left."""
    try:
        problem, options = str(record["problem"]), dict(record["options"])
        common = {name: record[name] for name in ("horizon", "discount", "temperature")}
        sizes = tuple(int(size) for size in record["hidden_sizes"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(run / _RECORD, f"{type(error).__name__}: {error}") from error
    process = as_process(load_problem(problem, options, **common))
    policy = amortized_policy(process, hidden_sizes=sizes)
    try:
        load_policy(policy, run / _POLICY)
    except ValueError as error:
        raise _damaged(run / _POLICY, str(error).removeprefix("path: ")) from error
    comparison = _read_comparison(run / _COMPARISON) if record["command"] == "compare" else None
    return _Inspected(process, policy, comparison, record)


def _read_comparison(path: Path) -> Comparison:
    found = _read_json(path)
    try:
        rules = tuple(ActionRule(**rule) for rule in found["rules"])
        identities = tuple(Identity(**identity) for identity in found.get("identities", ()))
        return Comparison(**{**found, "rules": rules, "identities": identities})
    except (KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _load_agent(run: Path, record: dict[str, Any]) -> _Inspected:
    """Returns what a run of ``train`` left: the first seed's policy, and its problem at the temperature it reached."""
    if not (run / CHECKPOINT).is_file():
        raise ValueError(f"RUN: {str(run)!r} has no {CHECKPOINT} yet; go on with rlai train --out {run} --resume")
    device = record.get("device") if torch.cuda.is_available() else "cpu"
    agent: Learner = make_agent({**record, "compile": False, "device": device}, "RUN")
    try:
        agent.restore(run / CHECKPOINT)
    except ValueError as error:
        raise _damaged(run / CHECKPOINT, str(error).removeprefix("path: ")) from error
    finally:
        agent.close()
    # Algorithms without entropy have no temperature; then the problem's own stands, or 1.
    temperature = agent.temperatures[0] if agent.temperatures[0] > 0 else None
    if agent.process is not None:
        process = agent.process if temperature is None else agent.process.at_temperature(temperature)
        return _Inspected(process, agent.policy, None, record)
    simulator = GymnasiumProcess(
        record["problem"],
        num_envs=_NUM_ENVS,
        discount=agent.discount,
        temperature=temperature,
        seed=evaluation_seed(agent.seed),
        **record["options"],
    )
    has_soft_values = getattr(agent.critic, "objective", "maxent") == "maxent"
    return _Inspected(simulator, agent.policy, None, record, agent.critic if has_soft_values else None)


def _compare(inspected: _Inspected, count: int) -> Comparison | None:
    """Returns the comparison of a run that has none of its own."""
    rollouts = max(2, count) if inspected.is_simulator else _NUM_ROLLOUTS
    return compare(inspected.process, inspected.policy, num_trajectories=rollouts, critic=inspected.critic)


def _list(run: Path, record: dict[str, Any], target: Path) -> None:
    """Lists a report inside the run's folder among the run's files, so that a run in its place takes it away."""
    files = record.get("files", [])
    if target.resolve().parent == run.resolve() and isinstance(files, list) and target.name not in files:
        record = {**record, "files": [*files, target.name]}
        RunFolder(run).write_json(_RECORD, "what was run, with versions and seed", record)


def _facts(inspected: _Inspected, count: int) -> list[tuple[str, str]]:
    record, process = inspected.record, inspected.process
    horizon = getattr(process, "horizon", None)
    facts = [("made by", f"rlai {record['command']}"), ("seed", str(record["seed"]))]
    facts.append(("training steps", f"{record['steps']:,}" if isinstance(record.get("steps"), int) else "?"))
    facts += [] if horizon is None else [("horizon", f"{horizon} steps")]
    for name, symbol, unit in (("discount", "γ", ""), ("temperature", "α", " reward units per nat")):
        value = getattr(process, name, None)
        facts += [] if value is None else [(f"{name} {symbol}", f"{float(value):.6g}{unit}")]
    return [*facts, ("draws", f"{count:,} of each distribution")]
