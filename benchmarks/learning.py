"""Learning curves: every seed of every case, as CSV.

    python -m benchmarks.learning                     all cases but the long one
    python -m benchmarks.learning HalfCheetah-v5      one case; --seeds 0 1 2 for some of its seeds

A curve is a file ``results/curves/<case>_seed<seed>.csv`` with one row for each evaluation: environment
step, mean and least return of the deterministic policy, α, entropy, seconds of learning so far.
"""

import argparse
import csv
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_as_inference.agents import SoftActorCritic

CURVES = Path(__file__).parent / "results" / "curves"


@dataclass(frozen=True)
class Case:
    """One environment and method, and what its seeds must reach."""

    env_id: str
    agent: Any
    steps: int
    every: int
    seeds: tuple[int, ...]
    episodes: int
    wanted: str
    config: dict[str, Any] = field(default_factory=dict)


CASES = {
    "pendulum_sac": Case(
        "Pendulum-v1",
        SoftActorCritic,
        5_000,
        500,
        (0, 1, 2, 3, 4),
        20,
        "every seed >= -200 at 5,000 steps",
        {"hidden_sizes": (64, 64), "batch_size": 100, "learning_rate": 1e-3, "learning_starts": 500},
    ),
    "half_cheetah_sac": Case(
        "HalfCheetah-v5",
        SoftActorCritic,
        100_000,
        10_000,
        (0, 1, 2),
        10,
        "mean of the seeds >= 5,500 at 100,000 steps",
        {"learning_starts": 5_000, "learning_rate": 1e-3},
    ),
}


def run(name: str, seed: int, show: bool = True) -> list[dict[str, float]]:
    """Learns one seed of one case, and returns (and writes) its curve."""
    case = CASES[name]
    agent = case.agent(case.env_id, seed=seed, compile=True, **case.config)
    rows: list[dict[str, float]] = []
    seconds = 0.0
    while agent.num_steps < case.steps:
        started = time.perf_counter()
        agent.learn(case.every, progress=False)
        seconds += time.perf_counter() - started
        returns = agent.evaluate(case.episodes, seed=10_000 + seed).returns
        last = agent.history[-1]
        row = {
            "step": agent.num_steps,
            "mean_return": round(float(returns.mean()), 3),
            "least_return": round(float(returns.min()), 3),
            "temperature": round(agent.temperature, 6),
            "entropy": round(last.get("entropy", float("nan")), 4),
            "seconds": round(seconds, 2),
        }
        rows.append(row)
        if show:
            print(name, "seed", seed, row, flush=True)
        write(name, seed, rows)
    return rows


def write(name: str, seed: int, rows: list[dict[str, float]]) -> None:
    CURVES.mkdir(parents=True, exist_ok=True)
    with (CURVES / f"{name}_seed{seed}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="all but half_cheetah_sac by default")
    parser.add_argument("--seeds", type=int, nargs="+")
    given = parser.parse_args(arguments)
    for name in given.cases or [name for name in CASES if name != "half_cheetah_sac"]:
        for seed in given.seeds or CASES[name].seeds:
            run(name, seed)


if __name__ == "__main__":
    main()
