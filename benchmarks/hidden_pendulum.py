"""Soft actor-critic on Pendulum with the velocity hidden, by the last observation alone and by windows of them, as CSV.

    python -m benchmarks.hidden_pendulum 1 2 4        windows; adds to results/hidden_pendulum.csv

The agent sees the cosine and the sine of the angle. Networks of 64 x 64 units and learning rate 1e-3, everything else
at its default; five seeds at once. One row for each evaluation of each seed: mean and least return of the deterministic
policy over twenty episodes (the same for all), and environment steps of each seed for a second of learning.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from rl_as_inference import SoftActorCritic

RESULTS = Path(__file__).parent / "results" / "hidden_pendulum.csv"
STEPS, EVERY, EPISODES, SEEDS = 30_000, 5_000, 20, 5


def without_velocity() -> gymnasium.Env[Any, Any]:
    """Returns Pendulum-v1 that shows cosine and sine of the angle, and not how fast it turns."""
    shown = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    return gymnasium.wrappers.TransformObservation(gymnasium.make("Pendulum-v1"), lambda seen: seen[:2], shown)


def curve(history: int) -> Iterator[dict[str, float]]:
    """Yields one row for each evaluation and seed while all seeds learn."""
    agent = SoftActorCritic(
        without_velocity, seeds=SEEDS, history=history, hidden_sizes=(64, 64), learning_rate=1e-3, compile=True
    )
    seconds = 0.0
    while agent.num_steps < STEPS:
        started = time.perf_counter()
        agent.learn(EVERY, progress=False)
        seconds += time.perf_counter() - started
        for seed, returns in enumerate(agent.evaluate(EPISODES).returns):
            yield {
                "history": history,
                "seed": seed,
                "step": agent.num_steps,
                "mean_return": round(float(returns.mean()), 1),
                "least_return": round(float(returns.min()), 1),
                "steps_per_second": round(agent.num_steps / seconds),
            }
    agent.close()


def main(arguments: list[str] | None = None) -> None:
    """Learns with the windows from the command line, and adds each row to the results as it comes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hidden_pendulum", description=__doc__)
    parser.add_argument("windows", type=int, nargs="+")
    for history in parser.parse_args(arguments).windows:
        for row in curve(history):
            print(row, flush=True)
            is_new = not RESULTS.exists()
            with RESULTS.open("a", newline="") as file:
                writer = csv.DictWriter(file, row.keys())
                if is_new:
                    writer.writeheader()
                writer.writerow(row)


if __name__ == "__main__":
    main()
