"""What does she want, and what did she believe, who looked around the corner and turned back?

On a campus a Korean food truck stands in plain sight. Another spot is hidden by a building. A student walks to where
she can see it, finds a Lebanese truck there, turns round and eats at the Korean one. Nobody has seen a Mexican truck;
and yet that is what she wanted most, and she thought that it might be there.

Desires and the belief that she set out with are unknown, and the walk is the data: each step has the probability that
the best plan on her own beliefs gives it. Both are inferred together, after every step.

After Baker, Jara-Ettinger, Saxe & Tenenbaum, "Rational quantitative attribution of beliefs, desires and percepts in
human mentalizing", Nature Human Behaviour 1, 2017.
"""

import itertools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference.models import food_truck
from rl_as_inference.models.food_truck import CAMPUS, FAR, TRUCKS

LEFT, DOWN, RIGHT, UP, EAT = range(5)
ACTIONS = ("left", "down", "right", "up", "eat")
HIDDEN = FAR[1:]  # what may stand at the far spot, since the Korean truck stands at the near one

LOOKS_AND_TURNS_BACK = [RIGHT, RIGHT, LEFT, LEFT, LEFT, LEFT, EAT]
LOOKS_AND_GOES_ON = [RIGHT, RIGHT, UP, UP, EAT]
GOES_AT_ONCE = [LEFT, LEFT, EAT]

LEVELS = torch.tensor([0.0, 0.75, 1.5], dtype=torch.float64)
"""What a meal may be worth, in reward units; a step costs 0.1."""


def walk(actions: list[int], far: str = "Lebanese") -> tuple[Tensor, Tensor, Tensor]:
    """Returns states, actions and observations of a walk from the start, with a truck at the far spot."""
    campus = food_truck(belief=torch.tensor([float(thing == far) for thing in FAR]))
    moves = campus.fully_observed.kernel.dense()
    states = [int(campus.fully_observed.initial_probabilities.argmax())]
    for action in actions:
        states.append(int(moves[states[-1], action].argmax()))
    return torch.tensor(states), torch.tensor(actions), campus.observation_table[states].argmax(-1)


def beliefs(parts: int) -> Tensor:
    """Returns points all over the beliefs in what may be hidden, ``(K, 3)``, without the quite certain ones."""
    shares = [share for share in itertools.product(range(parts + 1), repeat=3) if sum(share) == parts]
    return (torch.tensor(shares, dtype=torch.float64) + 0.5) / (parts + 1.5)


def student(grid: Tensor) -> Callable[[], Any]:
    """Returns the family of students: what each meal is worth to her, and what she believes before she looks."""

    def family() -> Any:
        level = [pyro.sample(truck, dist.Categorical(torch.ones(len(LEVELS)))) for truck in TRUCKS]
        belief = grid[pyro.sample("belief", dist.Categorical(torch.ones(len(grid))))]
        return food_truck(LEVELS[torch.stack(level)], torch.cat([belief.new_zeros(1), belief]), horizon=11)

    return family


def inferred(grid: Tensor, shown: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns 4,000 posterior draws of utilities ``(D, 3)``, and of the first belief ``(D, 3)``."""
    draws = rlai.infer_agent(student(grid), [shown], num_draws=4000, num_chains=1, seed=0).posterior
    level = torch.stack([torch.as_tensor(draws[truck].values[0]) for truck in TRUCKS], -1)
    return LEVELS[level], grid[torch.as_tensor(draws["belief"].values[0])]


def show(what: str, utility: Tensor, belief: Tensor) -> None:
    worth = "".join(f"{number:6.2f}" for number in utility.mean(0).tolist())
    held = "".join(f"{number:6.2f}" for number in belief.mean(0).tolist())
    print(f"  {what:<28}{worth}    {held}")


def draw(shown: tuple[Tensor, Tensor, Tensor], steps: list[tuple[Tensor, Tensor]], path: Path) -> None:
    from matplotlib.figure import Figure

    from rl_as_inference.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, tidy

    colors = {"Korean": BLUE, "Lebanese": ORANGE, "Mexican": GREEN, "nothing": PURPLE}
    figure = Figure(figsize=(11, 3.7), layout="constrained")
    ground, *panels = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    letters = np.array([list(row) for row in CAMPUS])
    ground.imshow(letters == "#", cmap="Greys", vmin=0, vmax=2.5)
    free = np.argwhere(letters != "#")
    here = np.array([free[int(state) % len(free)] for state in shown[0][:-1]], dtype=float)
    corner = here[int(here[:, 1].argmax())]
    start, near, far = (np.argwhere(letters == letter)[0] for letter in "SNF")
    arrow = {"arrowstyle": "-|>", "color": BLACK, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
    for before, after, shift in ((start, corner, -0.1), (corner, near + np.array([0, 0.3]), 0.1)):
        ends = [(float(place[1]), float(place[0]) + shift) for place in (after, before)]
        ground.annotate("", *ends, arrowprops=arrow)
    ground.plot([corner[1], far[1]], [corner[0] - 0.15, far[0] + 0.3], color=GREY, linestyle=":", linewidth=2)
    ground.text(corner[1] + 0.17, 1, "sees L", ha="center", va="center", rotation=90, fontsize=8)
    for place, name, truck in ((near, "K", "Korean"), (far, "L", "Lebanese")):
        box = {"boxstyle": "round", "facecolor": colors[truck], "edgecolor": "none"}
        ground.text(place[1], place[0], name, ha="center", va="center", color="white", weight="bold", bbox=box)
    ground.text(start[1], start[0] - 0.25, "start", ha="center", va="center", fontsize=8)
    ground.set_xticks(np.arange(0.5, 4), [])
    ground.set_yticks(np.arange(0.5, 2), [])
    ground.grid(color=GREY, alpha=0.3)
    ground.tick_params(length=0)
    ground.set_title("she looks, and turns back", fontsize=10)
    ticks = ["before", *(ACTIONS[int(action)] for action in shown[1])]
    for ax, index, names, label, title in (
        (panels[0], 0, TRUCKS, "utility (reward units)", "what she wants"),
        (panels[1], 1, HIDDEN, "probability", "what she believed was there"),
    ):
        ends = {name: [float(each[index][:, column].mean()) for each in steps] for column, name in enumerate(names)}
        low = -1.0
        for name, values in sorted(ends.items(), key=lambda item: item[1][-1]):
            ax.plot(values, color=colors[name], marker="o", markersize=3.5, linewidth=2)
            low = max(values[-1], low + (0.09, 0.05)[index])  # so that no two names overlap
            ax.text(len(ticks) - 0.75, low, name, color=colors[name], va="center", fontsize=9)
        top = (1.6, 0.8)[index]
        ax.axvline(2, color=GREY, linestyle=":", linewidth=1.5)
        ax.text(2.1, 0.97 * top, "sees L", va="center", fontsize=8)
        ax.set_xticks(range(len(ticks)), ticks, rotation=60, fontsize=8)
        tidy(ax, "", label, title)
        ax.set_ylim(-0.03 * top, top)
        ax.set_xlim(-0.2, len(ticks) + 1.2)
    figure.savefig(path, dpi=130)


def main(quick: bool = False, picture: Path | None = None) -> None:
    # One walk cannot say all: what stays at its prior is no news here.
    warnings.filterwarnings("ignore", message="the demonstrations say nothing")
    grid = beliefs(1 if quick else 3)
    states, actions, observations = walk(LOOKS_AND_TURNS_BACK)
    prior = LEVELS.mean().expand(1, 3), grid.mean(0, keepdim=True)
    steps = [prior]
    print("posterior means                utility of         belief at the start in")
    print("                              K     L     M         L     M  nothing")
    print("she looks, and turns back")
    show("before", *prior)
    for t in (len(actions),) if quick else range(1, len(actions) + 1):
        steps.append(inferred(grid, (states[: t + 1], actions[:t], observations[: t + 1])))
        seen = ", and sees L" if t == 2 else ""
        show(f"{t} {ACTIONS[int(actions[t - 1])]}{seen}", *steps[-1])
    utility, belief = steps[-1]
    korean, lebanese, mexican = utility.unbind(-1)
    print(f"  P(M > K > L) = {((mexican > korean) & (korean > lebanese)).double().mean():.2f}, before: 0.04")
    print(f"  P(M was the likeliest) = {(belief.argmax(-1) == 1).double().mean():.2f}")
    print("she looks, and goes on")
    utility, belief = inferred(grid, walk(LOOKS_AND_GOES_ON))
    show("all of it", utility, belief)
    print(f"  P(L > K) = {(utility[:, 1] > utility[:, 0]).double().mean():.2f}")
    print("she goes to K at once")
    utility, belief = inferred(grid, walk(GOES_AT_ONCE))
    show("all of it", utility, belief)
    liked = utility[:, 0] >= utility[:, 2]
    print(f"  P(M > K) = {(~liked).double().mean():.2f}")
    held = [f"{belief[who, 1].mean():.2f}" for who in (~liked, liked)]
    print(f"  belief in M, if she wants M more than K: {held[0]}, if not: {held[1]}")
    if picture is not None:
        draw((states, actions, observations), steps, picture)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("food_truck.png"))
