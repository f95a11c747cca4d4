"""CartPole's two actions hidden among fifty, of which the others are forbidden in every state.

``python -m benchmarks.distractors`` counts the steps until a return of 475, with and without the forbidden actions
(ten seeds of each, a quarter of an hour on one core), and writes them as data.
"""

import csv
import math
import statistics
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from rl_as_inference.progress import progress_bar

__all__ = ["HiddenAmong", "first_steps", "masked_cartpole"]

OUT = Path(__file__).parent / "results" / "distractors.csv"


class HiddenAmong(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment of few actions among many more, which ``info["action_mask"]`` forbids.

    Args:
        env: of a Discrete action space.
        places: where its actions stand among all.
        num_actions: how many there are then.

    Raises:
        ValueError: in a step, for an action that is forbidden.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], places: tuple[int, ...], num_actions: int) -> None:
        super().__init__(env)
        self.places, self.action_space = places, gymnasium.spaces.Discrete(num_actions)
        self.mask = np.isin(np.arange(num_actions), places).astype(np.int8)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        return observation, {**info, "action_mask": self.mask}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not self.mask[action]:
            raise ValueError(f"action {action} is forbidden; the mask allows {self.places}")
        observation, reward, terminated, truncated, info = self.env.step(self.places.index(int(action)))
        return observation, reward, terminated, truncated, {**info, "action_mask": self.mask}


def masked_cartpole() -> gymnasium.Env[Any, Any]:
    """Returns CartPole with its actions at places 17 and 42 of 50."""
    return HiddenAmong(gymnasium.make("CartPole-v1"), (17, 42), 50)


def first_steps(name: str, num_seeds: int, steps: int, every: int, wanted: float, seed: int = 100) -> list[int | None]:
    """Returns for each seed after how many steps a case of ``benchmarks.learning`` first earns what is wanted.

    All seeds learn in one batched update, and every so many steps 20 episodes of each are evaluated.
    """
    from benchmarks.learning import CASES

    case = CASES[name]
    agent = case.agent(case.env_id, seed=seed, seeds=num_seeds, compile=True, **case.config)
    first: list[int | None] = [None] * num_seeds
    with progress_bar(name, steps // every) as bar:
        while agent.num_steps < steps:
            agent.learn(every, progress=False)
            means = agent.evaluate(20).returns.reshape(num_seeds, -1).mean(1).tolist()
            first = [
                agent.num_steps if before is None and mean >= wanted else before
                for before, mean in zip(first, means, strict=True)
            ]
            bar.advance(f"{agent.num_steps:,} steps")
    agent.close()
    return first


def main() -> None:
    """Runs both, writes when each seed got there, and prints what tells them apart."""
    from scipy.stats import mannwhitneyu

    seeds, steps, every, wanted = 10, 14_000, 1_000, 475.0
    found = {name: first_steps(name, seeds, steps, every, wanted) for name in ("cartpole_sac", "cartpole_masked_sac")}
    with OUT.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "seed", "first_step"])
        rows.writerows(
            (name, 100 + index, first or "") for name, got in found.items() for index, first in enumerate(got)
        )
    ranks = [[first or math.inf for first in got] for got in found.values()]
    for name, got in zip(found, ranks, strict=True):
        print(f"{name}: {sorted(got)}, median {statistics.median(got)}")
    print(f"Mann-Whitney p = {mannwhitneyu(*ranks).pvalue:.2f}")


if __name__ == "__main__":
    main()
