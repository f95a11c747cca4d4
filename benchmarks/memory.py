"""Memory: what the largest things take at their peak, beside the data that they are of.

    python -m benchmarks.memory [CASE ...]

Each case runs in a process of its own, whose peak resident memory (``ru_maxrss``) is that of the whole: interpreter,
libraries and all. ``above_start`` is what it grew by after everything was imported and had run once on little data.

- ``smc``: ``posterior(lake, method="smc", num_draws=100_000)`` on FrozenLake 8x8, T = 100, beside the data returned.
- ``checkpoint``: ``SoftActorCritic.load(path)`` of a checkpoint whose replay is a gibibyte, beside the file.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "results" / "memory.json"
MIB = 2**20


def _peak() -> float:
    """Returns the largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MIB


def smc() -> dict[str, Any]:
    """A hundred thousand draws of a posterior by particle filters."""
    import rl_as_inference as rlai
    from rl_as_inference.arviz_data import groups_of

    lake = rlai.models.frozen_lake(horizon=100)
    rlai.posterior(lake, method="smc", num_draws=100)
    start, began = _peak(), time.perf_counter()
    data = rlai.posterior(lake, method="smc", num_draws=100_000)
    size = sum(group.nbytes for group in groups_of(data).values()) / MIB
    return {"data": size, "start": start, "seconds": time.perf_counter() - began}


def checkpoint() -> dict[str, Any]:
    """A learner's checkpoint, most of which is replay."""
    from rl_as_inference import SoftActorCritic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "agent.safetensors"
        made = subprocess.run([sys.executable, "-m", __spec__.name, "--write", str(path)], check=True)
        assert made.returncode == 0
        SoftActorCritic("Pendulum-v1", hidden_sizes=(8,), buffer_size=100).close()
        size, start, began = path.stat().st_size / MIB, _peak(), time.perf_counter()
        agent = SoftActorCritic.load(path)
        seconds = time.perf_counter() - began
        assert len(agent.replay) == agent.replay.capacity
        return {"data": size, "start": start, "seconds": seconds}


def _write(path: Path) -> None:
    """Writes the checkpoint of a learner whose replay is full."""
    from rl_as_inference import SoftActorCritic

    agent = SoftActorCritic("Pendulum-v1", hidden_sizes=(64, 64), buffer_size=24_000_000)
    agent.replay.storage.zero_()
    agent.replay._size = agent.replay.capacity
    agent.replay.size.fill_(agent.replay.capacity)
    agent.save(path)


CASES: dict[str, Callable[[], dict[str, Any]]] = {"smc": smc, "checkpoint": checkpoint}


def main(names: list[str]) -> None:
    """Runs the cases, each in its own process, and notes them."""
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name in names or CASES:
        command = [sys.executable, "-m", __spec__.name, "--case", name]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[name] = row = json.loads(answer.splitlines()[-1])
        print(f"{name}: data {row['data']:.0f} MiB, peak {row['peak']:.0f} MiB, {row['peak'] / row['data']:.2f} times")
    OUT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        row = CASES[sys.argv[2]]()
        row |= {"peak": _peak()}
        row |= {"above_start": row["peak"] - row["start"], "cores": os.cpu_count()}
        print(json.dumps({name: round(value, 1) for name, value in row.items()}))
    elif sys.argv[1:2] == ["--write"]:
        _write(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
