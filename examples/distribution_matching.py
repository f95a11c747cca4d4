"""Does a policy that matches the exponentiated return cover all its modes, or seek one?

The target is p*(τ) ∝ p(τ) exp(R(τ)/α). Maximum-entropy RL makes the reverse divergence least, KL(π || p*)
= log p(O) - ELBO(π); imitating successes makes the forward one least, KL(p* || π). Two reasons can keep a
policy from matching p*, and both are measured here. Its family may be too small: one bump for two goals.
Or it cannot bend luck: on slippery ice no policy can, and the two nearest policies differ.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import exact, style, tables

F64 = torch.float64


def two_goals() -> tuple[rlai.TabularMDP, Tensor]:
    """Returns one choice among 61 places on a line, where two are worth going to, and the places."""
    place = torch.linspace(-3, 3, 61, dtype=F64)
    worth = 4 * (-((place + 1.5) ** 2) / 0.18).exp() + 3.6 * (-((place - 1.5) ** 2) / 0.18).exp()
    one = torch.ones(1, dtype=F64)
    return rlai.TabularMDP(torch.ones(1, 61, 1, dtype=F64), worth[None], one, horizon=1, temperature=0.7), place


def nearest_bump(mdp: rlai.TabularMDP, place: Tensor, direction: exact.Direction) -> Tensor:
    """Returns the policy nearest to the target among Gaussian bumps, ``(1, A)``: the best of several starts."""
    found = []
    for start in (-2.0, 0.5, 2.0):
        mean, log_scale = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (start, 0.0))
        optimizer = torch.optim.LBFGS([mean, log_scale], max_iter=100, line_search_fn="strong_wolfe")

        def bump(mean: Tensor = mean, log_scale: Tensor = log_scale) -> Tensor:
            return (-(((place - mean) / log_scale.exp()) ** 2) / 2).softmax(0)[None]

        def closure(bump=bump, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = exact.trajectory_kl(mdp, bump(), direction)
            loss.backward()
            return loss

        optimizer.step(closure)
        found.append(bump().detach())
    return min(found, key=lambda policy: float(exact.trajectory_kl(mdp, policy, direction)))


def main(quick: bool = False, picture: Path | None = None) -> None:
    torch.manual_seed(0)
    mdp, place = two_goals()
    target = exact.plan(mdp).policy[0]
    bumps = {f"nearest bump, {way}": nearest_bump(mdp, place, way) for way in ("reverse", "forward")}
    rows = []
    for name, policy in {"any policy": target, **bumps}.items():
        both = [float(exact.trajectory_kl(mdp, policy, way)) for way in ("reverse", "forward")]
        left = float(policy[0, place < 0].sum())
        rows.append([name, *(f"{abs(x):.4f}" for x in both), f"{left:.1%}"])
    title = "A family too small (nats; share that goes to the left goal)"
    print(tables.render(title, ["policy", "KL(π || p*)", "KL(p* || π)", "left"], rows, right=(1, 2, 3)))

    lake = rlai.models.frozen_lake("4x4", horizon=12, temperature=0.1, dtype=F64)
    goal = lake.num_states - 1
    evidence, best = exact.log_evidence(lake), exact.optimal_elbo(lake)
    rows = []
    for name, chosen in {
        "action prior": None,
        "nearest, reverse: causal plan": exact.plan(lake),
        "nearest, forward: posterior's actions": exact.plan(lake, "posterior"),
    }.items():
        both = [float(exact.trajectory_kl(lake, chosen, way)) for way in ("reverse", "forward")]
        rows.append([name, *(f"{x:.4f}" for x in both), f"{float(exact.occupancy(lake, chosen)[-1, goal]):.2%}"])
    rows.append(["p* itself", "0", "0", f"{float(exact.posterior_occupancy(lake)[-1, goal]):.2%}"])
    print(
        tables.render(
            "Slippery ice (nats; who arrives)",
            ["policy", "KL(π || p*)", "KL(p* || π)", "arrive"],
            rows,
            right=(1, 2, 3),
        )
    )
    print(f"dynamics gap, log p(O) - largest ELBO: {float(evidence - best):.4f} nats, the least reverse divergence\n")

    small = rlai.models.random_mdp(3, 2, horizon=4, discount=0.9, temperature=1.0, dtype=F64)
    draws = 2_000 if quick else 50_000
    count = len(exact.enumerate_trajectories(small).returns)
    print(f"The action prior of a random process with {count:,} trajectories, by every method (nats)")
    for method in ("exact", "enumeration", "posterior", "sample"):
        found = [
            rlai.trajectory_kl(small, None, direction=way, method=method, num_trajectories=draws)
            for way in ("reverse", "forward")
        ]
        print(f"  {method:<12} reverse {found[0]!s:<18} forward {found[1]}")
    if picture is not None:
        figure = drawn(place, target, bumps)
        figure.savefig(picture, dpi=110)
        print(f"written to {picture}")


def drawn(place: Tensor, target: Tensor, bumps: dict[str, Tensor]) -> plt.Figure:
    """Returns the picture of the target and the nearest bump in each direction."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
    for ax, (name, policy), colour in zip(axes, bumps.items(), (style.BLUE, style.ORANGE), strict=True):
        ax.fill_between(place, target[0], color=style.GREY, alpha=0.35, label="target p*")
        ax.plot(place, policy[0], color=colour, linewidth=2, label="nearest bump π")
        title = "reverse, KL(π || p*): seeks a mode" if "reverse" in name else "forward, KL(p* || π): covers both"
        style.tidy(ax, "place (length)", "probability" if ax is axes[0] else "", title)
        ax.legend(frameon=False, fontsize=8)
    plt.close(figure)
    return figure


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("distribution_matching.png"))
