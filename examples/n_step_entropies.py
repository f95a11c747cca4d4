"""Should n-step soft returns take the entropies of the next steps analytically?

They are known, so one "should presumably use them". Taken alone they help far from the optimum and hurt near it: the
optimal policy makes ``Q/α + log p - log π`` the same for all actions, so that a *sampled* entropy cancels the noise of
the action's own worth, and an analytic one leaves that noise standing. With the soft Q's deviation from its mean
taken away as well, a control variate, analytic entropies are never noisier than sampled ones.

Measured along a path of policies from the action prior to the optimum, with exact critics: total variance of one
trajectory's gradient, relative to that with sampled entropies.
"""

import sys
from pathlib import Path
from typing import Any

import torch

import rl_as_inference as rlai
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.models import random_mdp

STEPS = (1, 2, 5)


def problems(quick: bool) -> dict[str, rlai.TabularMDP]:
    """Returns one set of rewards under random and under deterministic dynamics."""
    size = (4, 2, 6) if quick else (8, 3, 10)
    base = random_mdp(*size, temperature=0.5, dtype=torch.float64)
    after = torch.randint(size[0], size[:2], generator=torch.Generator().manual_seed(0))
    move = torch.nn.functional.one_hot(after, size[0]).double()
    options: dict[str, Any] = {"horizon": size[2], "discount": base.discount, "temperature": base.temperature}
    fixed = rlai.TabularMDP(move, base.reward_table, base.initial_probabilities, **options)
    return {"random dynamics": base, "deterministic dynamics": fixed}


def variances(mdp: rlai.TabularMDP, share: float, num_trajectories: int) -> dict[tuple[str, int], float]:
    """Returns the variance of each kind of n-step gradient ``share`` of the way to the optimum, nats²."""
    policy = TabularPolicy(mdp.num_states, mdp.num_actions, horizon=mdp.horizon).double()
    best: Any = rlai.exact.plan(mdp)
    with torch.no_grad():
        policy.logits.copy_((1 - share) * mdp.log_action_prior + share * best.log_policy)
    torch.manual_seed(0)
    blocks = min(100, num_trajectories // 50)
    found = rlai.compare_gradients(mdp, policy, num_trajectories=num_trajectories, num_blocks=blocks)
    names = ("sampled entropies", "analytic entropies alone", "analytic entropies")
    return {(name, n): found[f"{n}-step, {name}"].variance or 0.0 for name in names for n in STEPS}


def main(quick: bool = False, picture: Path | None = None) -> None:
    shares = (0.0, 0.95) if quick else (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
    measured = {}
    for title, mdp in problems(quick).items():
        print(f"{title}: variance relative to sampled entropies")
        print("way to the optimum " + "".join(f"  n = {n}: alone  with Q" for n in STEPS))
        for share in shares:
            found = measured[title, share] = variances(mdp, share, 1000 if quick else 20_000)
            cells = [
                f"{found['analytic entropies alone', n] / found['sampled entropies', n]:13.3g}"
                f"{found['analytic entropies', n] / found['sampled entropies', n]:8.3f}"
                for n in STEPS
            ]
            print(f"{share:18.2f} " + "".join(cells))
    if picture is not None:
        draw(measured, picture)


def draw(measured: dict[tuple[str, float], dict[tuple[str, int], float]], path: Path) -> None:
    from matplotlib.figure import Figure

    from rl_as_inference.style import BLUE, GREEN, GREY, ORANGE, tidy

    titles = list(dict.fromkeys(title for title, _ in measured))
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for ax, title in zip(panels, titles, strict=True):
        shares = [share for other, share in measured if other == title]
        for n, colour, mark in zip(STEPS, (BLUE, ORANGE, GREEN), "os^", strict=True):
            for name, line in (("analytic entropies alone", "--"), ("analytic entropies", "-")):
                cells = [measured[title, share] for share in shares]
                ratio = [cell[name, n] / cell["sampled entropies", n] for cell in cells]
                kind = "alone" if name.endswith("alone") else "with the soft Q"
                ax.plot(shares, ratio, line, color=colour, marker=mark, markersize=4, label=f"n = {n}, {kind}")
        ax.axhline(1, color=GREY, linewidth=1)
        ax.set_yscale("log")
        tidy(ax, "way from the action prior (0) to the optimum (1)", "", title)
    panels[0].set_ylabel("variance / variance with sampled entropies")
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("n_step_entropies.png"))
