"""Soft actor-critic on Pendulum at learning rate 1e-3, seed by seed, as CSV.

    python -m benchmarks.pendulum_seeds 900 901 902                  adds to results/pendulum_seeds.csv
    python -m benchmarks.pendulum_seeds 900 901 --learning-starts 100

Everything else is at its default. One row for each evaluation of each seed: mean and least return of the deterministic
policy over twenty episodes (the same for all), and how many of them end below -500: those that never come to rest.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

from rl_as_inference import SoftActorCritic

RESULTS = Path(__file__).parent / "results" / "pendulum_seeds.csv"
STEPS, EVERY, EPISODES = 5_000, 500, 20
NEVER_AT_REST = -500


def curve(seed: int, learning_starts: int) -> Iterator[dict[str, float]]:
    """Yields one row for each evaluation while a seed learns."""
    agent = SoftActorCritic("Pendulum-v1", seed=seed, learning_rate=1e-3, learning_starts=learning_starts, compile=True)
    while agent.num_steps < STEPS:
        agent.learn(EVERY, progress=False)
        returns = agent.evaluate(EPISODES).returns
        yield {
            "learning_starts": learning_starts,
            "seed": seed,
            "step": agent.num_steps,
            "mean_return": round(float(returns.mean()), 1),
            "least_return": round(float(returns.min()), 1),
            "never_at_rest": int((returns < NEVER_AT_REST).sum()),
        }
    agent.close()


def main(arguments: list[str] | None = None) -> None:
    """Learns seeds from the command line, and adds each row to the results as it comes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pendulum_seeds", description=__doc__)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--learning-starts", type=int, default=1000)
    given = parser.parse_args(arguments)
    for seed in given.seeds:
        for row in curve(seed, given.learning_starts):
            print(row, flush=True)
            is_new = not RESULTS.exists()
            with RESULTS.open("a", newline="") as file:
                writer = csv.DictWriter(file, row.keys())
                if is_new:
                    writer.writeheader()
                writer.writerow(row)


if __name__ == "__main__":
    main()
