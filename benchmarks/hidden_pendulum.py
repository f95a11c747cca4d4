"""Soft actor-critic on Pendulum with the velocity hidden: without memory, by windows, and by a GRU, as CSV.

    python -m benchmarks.hidden_pendulum history=1 history=4 memory=gru        adds to results/hidden_pendulum.csv

The agent sees the cosine and the sine of the angle; five seeds learn at once. One row for each evaluation of each
seed: mean and least return of the deterministic policy over twenty episodes (the same for all).
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from benchmarks.learning import SMALL
from rl_as_inference import SoftActorCritic

RESULTS = Path(__file__).parent / "results" / "hidden_pendulum.csv"
STEPS, EVERY, EPISODES, SEEDS = 30_000, 5_000, 20, 5
SETTINGS: dict[str, Any] = {**SMALL, "batch_size": 100, "learning_starts": 200, "updates_per_step": 2}


def without_velocity() -> gymnasium.Env[Any, Any]:
    """Returns Pendulum-v1 that shows cosine and sine of the angle, and not how fast it turns."""
    shown = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    return gymnasium.wrappers.TransformObservation(gymnasium.make("Pendulum-v1"), lambda seen: seen[:2], shown)


def curve(option: str) -> Iterator[dict[str, str | float]]:
    """Yields one row for each evaluation and seed while all seeds learn."""
    name, _, value = option.partition("=")
    remembers: dict[str, Any] = {name: int(value) if value.isdigit() else value}
    agent = SoftActorCritic(without_velocity, seeds=SEEDS, compile=True, **remembers, **SETTINGS)
    while agent.num_steps < STEPS:
        agent.learn(EVERY, progress=False)
        for seed, returns in enumerate(agent.evaluate(EPISODES).returns):
            yield {
                "option": option,
                "seed": seed,
                "step": agent.num_steps,
                "mean_return": round(float(returns.mean()), 1),
                "least_return": round(float(returns.min()), 1),
            }
    agent.close()


def main(arguments: list[str] | None = None) -> None:
    """Learns with each option from the command line, and adds each row to the results as it comes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hidden_pendulum", description=__doc__)
    parser.add_argument("options", nargs="+", metavar="OPTION=VALUE")
    for option in parser.parse_args(arguments).options:
        for row in curve(option):
            print(row, flush=True)
            is_new = not RESULTS.exists()
            with RESULTS.open("a", newline="") as file:
                writer = csv.DictWriter(file, row.keys())
                if is_new:
                    writer.writeheader()
                writer.writerow(row)


if __name__ == "__main__":
    main()
