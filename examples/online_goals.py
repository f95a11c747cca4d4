"""Where is she going, and from which step on can one tell?

A walker on a grid has one of three goals. After every step the posterior over the goals is what an onlooker should
believe: it stays undecided while the steps serve several goals, and settles where the ways part, long before she
arrives. The goal is a discrete unknown, summed over exactly, so that nothing is sampled.
"""

import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference.models import gridworld

GOALS = {"top right": (0, 6), "bottom right": (6, 6), "bottom left": (6, 0)}
START = (0, 0)
LEFT, DOWN, RIGHT, UP = range(4)
WALK = [RIGHT] * 3 + [DOWN, DOWN, RIGHT, DOWN, RIGHT, DOWN, RIGHT, DOWN, DOWN]
SIZE = 7


def family() -> Any:
    goal = pyro.sample("goal", dist.Categorical(torch.ones(3).double() / 3))
    place = list(GOALS.values())[int(goal)]
    return gridworld(SIZE, SIZE, None, 0.9, 0.2, 0.0, start=START, goal=place, dtype=torch.float64)


def followed(actions: list[int]) -> tuple[Tensor, Tensor]:
    """Returns the states and actions of a walk from the start."""
    row, column = START
    states = [row * SIZE + column]
    for action in actions:
        down, right = ((0, -1), (1, 0), (0, 1), (-1, 0))[action]
        row, column = row + down, column + right
        states.append(row * SIZE + column)
    return torch.tensor(states), torch.tensor(actions)


def beliefs() -> list[list[float]]:
    """Returns the posterior of the goals after 0, 1, … steps."""
    rows = [[1 / 3] * 3]
    for count in range(1, len(WALK) + 1):
        data = rlai.infer_agent(family, [followed(WALK[:count])], num_draws=1, num_chains=1)
        rows.append(data.sample_stats["probability_goal"].values.mean((0, 1)).tolist())
    return rows


def draw(rows: list[list[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    from rl_as_inference.style import BLUE, GREEN, ORANGE, tidy, whole_numbers

    left, right = Figure(figsize=(9, 3.6), layout="constrained").subplots(1, 2, width_ratios=(1, 1.6))
    states = followed(WALK)[0]
    left.plot(states % SIZE, states // SIZE, color="black", linewidth=2)
    left.plot(START[1], START[0], "ko", markersize=7)
    left.set_xlim(-0.7, SIZE - 0.3)
    left.set_ylim(SIZE - 0.3, -0.7)
    left.set_aspect("equal")
    left.set_xticks([x - 0.5 for x in range(SIZE + 1)], [])
    left.set_yticks([x - 0.5 for x in range(SIZE + 1)], [])
    left.grid(color="0.85")
    for (name, (row, column)), values, color in zip(
        GOALS.items(), zip(*rows, strict=True), (BLUE, ORANGE, GREEN), strict=True
    ):
        left.plot(column, row, marker="*", color=color, markersize=16, linestyle="")
        right.plot(range(len(rows)), values, color=color, marker="o", label=name)
    right.set_ylim(-0.03, 1.03)
    right.legend(frameon=False, loc="center right")
    whole_numbers(right.xaxis)
    tidy(right, "steps seen", "posterior probability of the goal")
    right.figure.savefig(path, dpi=130)


def main(quick: bool = False, picture: Path | None = None) -> None:
    rows = beliefs()  # quick enough as it is
    print("steps seen   " + "   ".join(f"{name:>12}" for name in GOALS))
    for count, row in enumerate(rows):
        print(f"{count:>10}   " + "   ".join(f"{p:>12.3f}" for p in row))
    settled = next(count for count, row in enumerate(rows) if row[1] > 0.95)
    print(f"settled after {settled} of {len(WALK)} steps")
    if picture is not None:
        draw(rows, picture)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("online_goals.png"))
