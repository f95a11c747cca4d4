"""What does it cost a planner to reckon on luck?

A planner infers the next steps from where it stands, and takes the first. Particles that are weighed by what they
earned find lucky futures, and the usual planners by sequential Monte Carlo act as if luck were theirs to choose. One
that averages over luck before it exponentiates does not. Both are told nothing but the dynamics and see the same
futures; the difference in nats and in return is the price of naive weights. A trained guide stands beside them.
"""

import sys
from pathlib import Path
from typing import Any

import torch

import rl_as_inference as rlai
from rl_as_inference import exact, models
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.inspect import plots

NAMES = {"causal": "averages over luck", "posterior": "reckons on luck"}


def planned(problem: rlai.TabularMDP, particles: int, walks: int) -> dict[str, rlai.Trajectories]:
    """Returns walks of a trained guide, and of both planners."""
    torch.manual_seed(0)
    guide = TabularPolicy(problem.num_states, problem.num_actions, horizon=problem.horizon)
    rlai.fit(problem, guide, steps=400, seed=0, progress=False)
    with torch.no_grad():
        found = {"the guide": problem.rollout(guide, walks)}
    for dynamics, name in NAMES.items():
        planner = rlai.SMCPlanner(problem, look_ahead=problem.horizon, num_particles=particles, dynamics=dynamics)
        found[name] = problem.rollout(planner, walks)
    return found


def main(quick: bool = False, picture: Path | None = None) -> None:
    if quick:
        lake, cliff = models.frozen_lake("4x4", horizon=20, temperature=0.02), models.cliff(horizon=20, slip=0.2)
    else:
        lake, cliff = models.frozen_lake("8x8", horizon=100, temperature=0.005), models.cliff(horizon=50, slip=0.2)
    rows = []
    for problem in (lake, cliff):
        walks = planned(problem, 512, 200 if quick else 2000)
        best = float(exact.optimal_elbo(problem))
        print(f"{problem.name}: largest ELBO {best:.2f} nats")
        for name, draws in walks.items():
            elbo, earned = draws.log_weight(), draws.returns()
            error = float(elbo.std()) / len(elbo) ** 0.5
            print(
                f"  {name:<20} ELBO {float(elbo.mean()):8.2f} ± {error:.2f} nats   return {float(earned.mean()):7.3f}"
            )
        price = float(walks[NAMES["causal"]].log_weight().mean() - walks[NAMES["posterior"]].log_weight().mean())
        print(f"  the price of naive weights: {price:.1f} nats")
        rows.append((problem, walks))
    if picture is not None:
        drawn(rows).savefig(picture, dpi=110)


def drawn(rows: list[Any]) -> Any:
    """Returns where planners went, a problem a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.4, 5.2), layout="constrained")
    axes = figure.subplots(2, 3, height_ratios=[1.6, 1], squeeze=False)
    for (problem, walks), line in zip(rows, axes, strict=True):
        shares = {}
        for name, draws in walks.items():
            visits = torch.nn.functional.one_hot(draws.states, problem.num_states).float().mean(1)
            shares[name] = visits
        limit = max(float(share.mean(0).sort().values[-3]) for share in shares.values())
        for ax, (name, share) in zip(line, shares.items(), strict=True):
            plots.plot_occupancy(share, layout=problem.layout, ax=ax, title=name, colour_limit=limit, colour_bar=False)
            ax.set_xlabel(f"return {float(walks[name].returns().mean()):.3g}", fontweight="bold")
    figure.suptitle("Planning to the end (brighter: more of the time spent there)", fontsize=11)
    return figure


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("planning.png"))
