"""Is one long walk worth as much as several short ones, to learn how rational the walker is?

The rewards are known and the temperature is not. A walker on a grid is watched for the same number of steps in two
ways: once for a long time, or several times from the start. On the way to the goal every step shows how much the walker
prefers progress; once there, nothing depends on the action any more, and further steps say nothing. So several short
walks say more, and how much more is the ratio of the posterior's spreads.
"""

import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch

import rl_as_inference as rlai
from rl_as_inference.models import gridworld

STEPS = 48
TRUTH = 0.4
WAYS = {"one of 48 steps": 1, "eight of 6 steps": 8}


def family() -> Any:
    temperature = pyro.sample("temperature", dist.LogNormal(torch.tensor(-1.0).double(), 1.0))
    return gridworld(4, 4, horizon=None, discount=0.9, slip=0.0, temperature=temperature, dtype=torch.float64)


def watch(num_walks: int) -> Any:
    """Returns ``num_walks`` walks of a walker at the true temperature, with as many steps in all."""
    town = gridworld(4, 4, horizon=None, discount=0.9, slip=0.0, temperature=TRUTH, dtype=torch.float64)
    policy = rlai.exact.plan(town)
    return town.replace(horizon=STEPS // num_walks, discount=1.0).rollout(policy, num_walks)


def picture(draws: dict[str, Any], path: Path) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    from rl_as_inference.inspect.plots.style import BLUE, GREY, ORANGE, tidy

    ax = Figure(figsize=(6.4, 3.4), layout="constrained").subplots()
    edges = np.geomspace(0.05, 5, 45)
    prior = next(iter(draws.values())).prior["temperature"].values.ravel()
    for name, values, color in (
        ("prior", prior, GREY),
        *(
            (name, data.posterior["temperature"].values.ravel(), c)
            for (name, data), c in zip(draws.items(), (ORANGE, BLUE), strict=True)
        ),
    ):
        density = np.histogram(np.log(values), np.log(edges), density=True)[0]
        ax.stairs(density, edges, color=color, fill=True, alpha=0.35, label=name)
    ax.axvline(TRUTH, color="black", linewidth=1, linestyle="--", label="truth")
    ax.set_xscale("log")
    ax.legend(frameon=False, title="48 steps watched:" if len(draws) else None)
    tidy(ax, "temperature α (reward units per nat)", "density of log α")
    ax.figure.savefig(path, dpi=130)


def main(quick: bool = False, figure: Path | None = None) -> None:
    num_worlds = 4 if quick else 20
    print(f"temperature {TRUTH}; posterior standard deviation of log α, {num_worlds} walkers each")
    drawn = {}
    for name, num_walks in WAYS.items():
        spreads, off = [], []
        for seed in range(num_worlds):
            pyro.set_rng_seed(seed)
            data = rlai.infer_agent(family, watch(num_walks), method="svi", num_draws=1000, seed=seed)
            logs = torch.as_tensor(data.posterior["temperature"].values).log().flatten()
            spreads.append(float(logs.std()))
            off.append((float(logs.mean()) - torch.tensor(TRUTH).log().item()) / spreads[-1])
            drawn.setdefault(name, data)
        mean = sum(spreads) / num_worlds
        print(
            f"  {name:<17} {mean:.3f} (prior 1.000), error {(sum(z * z for z in off) / num_worlds) ** 0.5:.2f} spreads"
        )
    if figure is not None:
        picture(drawn, figure)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], figure=Path(sys.argv[-1]) if sys.argv[-1].endswith(".png") else None)
