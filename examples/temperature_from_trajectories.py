"""Is one long walk worth as much as several short ones, to learn how rational the walker is?

The rewards are known and the temperature is not. A walker on a grid is watched for the same number of steps in two
ways: once for a long time, or several times from the start. On the way to the goal every step shows how much the walker
prefers progress; once there, nothing depends on the action any more, and further steps say nothing. So several short
walks say more, and how much more is the ratio of the posterior's spreads. The prior is on a grid of temperatures, so
that the posterior is a sum and nothing is sampled.
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

STEPS = 48
TRUTH = 0.4
WAYS = {"one of 48 steps": 1, "eight of 6 steps": 8}
TOWN = gridworld(4, 4, horizon=None, discount=0.9, slip=0.0, dtype=torch.float64)
LOGS = torch.linspace(-4.0, 2.0, 61, dtype=torch.float64)
"""Logarithms of the temperatures that are thought possible."""
PRIOR = torch.softmax(-((LOGS + 1) ** 2) / 2, 0)


def family() -> Any:
    return TOWN.at_temperature(LOGS[int(pyro.sample("place", dist.Categorical(PRIOR)))].exp())


def watch(num_walks: int) -> Any:
    """Returns ``num_walks`` walks of a walker at the true temperature, with as many steps in all."""
    policy = rlai.exact.plan(TOWN.at_temperature(TRUTH))
    return TOWN.replace(horizon=STEPS // num_walks, discount=1.0).rollout(policy, num_walks)


def posterior(walks: Any) -> Tensor:
    """Returns the posterior probability of each temperature of the grid."""
    data = rlai.infer_agent(family, walks, num_draws=1, num_chains=1)
    return torch.as_tensor(data.sample_stats["probability_place"].values)[0, 0]


def draw(found: dict[str, Tensor], path: Path) -> None:
    from matplotlib.figure import Figure

    from rl_as_inference.style import BLUE, GREY, ORANGE, tidy

    ax = Figure(figsize=(6.4, 3.4), layout="constrained").subplots()
    width = float(LOGS[1] - LOGS[0])
    for (name, chance), color in zip({"prior": PRIOR, **found}.items(), (GREY, ORANGE, BLUE), strict=True):
        ax.fill_between(LOGS.exp(), chance / width, color=color, alpha=0.35, label=name, linewidth=1.5)
        ax.plot(LOGS.exp(), chance / width, color=color)
    ax.axvline(TRUTH, color="black", linewidth=1, linestyle="--", label="truth")
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, title=f"{STEPS} steps watched")
    tidy(ax, "temperature α (reward units per nat)", "density of log α")
    ax.figure.savefig(path, dpi=130)


def main(quick: bool = False, picture: Path | None = None) -> None:
    num_walkers = 3 if quick else 50
    print(f"posterior standard deviation of log α after {STEPS} steps, mean of {num_walkers} walkers (prior 1.00)")
    first = {}
    for name, num_walks in WAYS.items():
        spreads = []
        for seed in range(num_walkers):
            torch.manual_seed(seed)
            chance = posterior(watch(num_walks))
            first.setdefault(name, chance)
            spreads.append(float(((chance * LOGS**2).sum() - (chance * LOGS).sum() ** 2).sqrt()))
        print(f"  {name:<17} {sum(spreads) / num_walkers:.2f}")
    if picture is not None:
        draw(first, picture)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("temperature_from_trajectories.png"))
