"""The table of ``examples/active_inference.py`` with pymdp's agent as rows of it, from one run.

``make active-inference`` installs pymdp in an environment of its own under ``.peers/`` and runs
``python -m benchmarks.peers.against_pymdp``. pymdp says what it would do after every history
(:mod:`benchmarks.peers.pymdp_t_maze`); what that earns and costs is then exact, as of every other row.
"""

import argparse
import datetime
import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch

from benchmarks.run import _cpu as cpu
from rl_as_inference import History

__all__ = ["ask", "main"]

_ROOT = Path(__file__).parents[2]
_PEER = _ROOT / ".peers" / "pymdp" / "bin" / "python"
_RESULTS = _ROOT / "benchmarks" / "results" / "active_inference.json"


def ask(options: dict[str, float]) -> dict[str, Any]:
    """Returns pymdp's versions, and its answers by precision and history.

    Raises:
        RuntimeError: if pymdp is not installed, or fails.
    """
    if not _PEER.exists():
        raise RuntimeError(f"there is no {_PEER.relative_to(_ROOT)}; `make active-inference` installs it")
    script = _ROOT / "benchmarks" / "peers" / "pymdp_t_maze.py"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [str(_PEER), str(script), json.dumps(options)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"pymdp ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def policy_of(answers: dict[str, list[float]]) -> Any:
    """Returns the policy of histories that gives pymdp's answers."""

    def policy(seen: History, t: Any) -> Any:
        rows = []
        for n in range(seen.observations.shape[1]):
            line = [int(seen.observations[0, n])]
            for action, after in zip(seen.actions, seen.observations[1:], strict=True):
                line += [int(action[n]), int(after[n])]
            rows.append(answers[",".join(map(str, line))])
        return dist.Categorical(torch.tensor(rows, dtype=torch.float64))

    return policy


def _example() -> Any:
    spec = importlib.util.spec_from_file_location("active_inference", _ROOT / "examples" / "active_inference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str] | None = None) -> int:
    """Writes the table and its data; returns 2 if pymdp does not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.against_pymdp", description=__doc__)
    parser.add_argument("--out", type=Path, default=_RESULTS, help="file for the results (default: %(default)s)")
    out = parser.parse_args(arguments).out
    example, tables, versions, mazes = _example(), {}, {}, {}
    for title, own in example.MAZES.items():
        maze = example.maze_of(title)
        options = {"horizon": maze.horizon, "temperature": maze.temperature, "cue_validity": 1.0, **own}
        try:
            peer = ask(options)
        except RuntimeError as error:
            print(error)
            return 2
        found = example.rows(maze)
        for precision, answers in peer["answers"].items():
            name = f"pymdp {peer['versions']['inferactively-pymdp']}, γ = {float(precision):g}"
            found[name] = example.row(maze, policy_of(answers), "history")
        tables[title], mazes[title], versions = found, options, peer["versions"]
    print(example.table(tables))
    data = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu(),
        "versions": versions,
        "mazes": [
            {"maze": title, **mazes[title], "rows": [{"who": who, **one._asdict()} for who, one in found.items()]}
            for title, found in tables.items()
        ],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    print(f"Written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
