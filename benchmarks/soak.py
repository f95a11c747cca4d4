"""A long life: whether memory grows while everything is done again and again.

    python -m benchmarks.soak --minutes 60

One process trains an agent, evaluates it, writes and reads its checkpoint, opens its run and writes its page, fits a
guide, compares it and draws its posterior, in a loop. After each round the resident memory is read, once free memory
was given back to the system where the C library can do that. The growth is the Theil-Sen slope of these over the rounds
after the first third, in which caches fill; with its interval of 95 %. The agent's replay is full before the slope
begins.
"""

import argparse
import ctypes
import gc
import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from scipy.stats import theilslopes

import rl_as_inference as rlai
from rl_as_inference.agents import train
from rl_as_inference.report import draw_sources, render_report

RESULTS = Path(__file__).parent / "results" / "soak.json"
MIB = 2**20


def resident() -> float:
    """Returns the resident memory of this process, MiB."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def a_round(folder: Path, number: int) -> None:
    """Does everything once."""
    out = folder / "run"
    agent = rlai.SoftActorCritic(
        "Pendulum-v1",
        hidden_sizes=(16,),
        batch_size=32,
        learning_starts=50,
        buffer_size=300,
        seed=number,
        compile=False,
    )
    train(agent, 600, out, evaluate_every=300, evaluate_episodes=2, progress=False, problem="Pendulum-v1")
    agent.save(folder / "agent.safetensors")
    agent.restore(folder / "agent.safetensors")
    agent.close()
    run = rlai.load_run(out)
    assert run.agent is not None
    run.agent.evaluate(2)
    run.agent.close()
    shutil.rmtree(out)
    grid = rlai.models.gridworld(rows=3, columns=3, horizon=6)
    guide = rlai.guides.amortized_policy(grid, hidden_sizes=(16,))
    fitted = rlai.fit(grid, guide, steps=20, num_trajectories=32, seed=number, progress=False)
    compared = rlai.compare(grid, fitted.policy, num_trajectories=64, seed=number)
    rlai.posterior(grid, None, method="exact", num_draws=50, seed=number)
    for method in ("smc", "importance"):
        rlai.posterior(grid, fitted.policy, method=method, num_draws=50, seed=number)
    sources = draw_sources(grid, fitted.policy, method="exact", num_draws=50)
    (folder / "page.html").write_text(render_report(grid, sources, comparison=compared))


def main(arguments: list[str] | None = None) -> int:
    """Runs rounds for a while; returns 1 if memory grew by more than is promised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    hours: list[float] = []
    memory: list[float] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        while time.monotonic() - start < 60 * given.minutes:
            a_round(Path(name), len(hours))
            hours.append((time.monotonic() - start) / 3600)
            memory.append(resident())
            print(f"{60 * hours[-1]:.1f} min, {len(hours)} rounds: {memory[-1]:.2f} MiB", flush=True)
    settled = len(hours) // 3
    slope, _, low, high = theilslopes(memory[settled:], hours[settled:])
    found = {
        "minutes": round(60 * hours[-1], 1),
        "rounds": len(hours),
        "mib_an_hour": round(float(slope), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
        "settled_mib": round(memory[settled], 2),
        "last_mib": round(memory[-1], 2),
    }
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return int(low > 1)


if __name__ == "__main__":
    raise SystemExit(main())
