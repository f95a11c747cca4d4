"""What is left of a policy's return when the world turns against it, and does randomness help?

Small random processes are attacked within the sets of Eysenbach & Levine: the bound, the relaxation and the
return under the attack found, over the temperature. Then a corridor is closed on policies that were made for it open.
"""

import sys
from pathlib import Path

import torch

from rl_as_inference import TabularMDP, exact, models, worst_case
from rl_as_inference.inspect.plots import BLUE, GREEN, GREY, ORANGE
from rl_as_inference.style import tidy

BUDGET = 0.5


def cold(mdp: TabularMDP) -> torch.Tensor:
    """The plain optimal policy, ties broken by the lower action."""
    plan = exact.plan(mdp.at_temperature(1e-4))
    return torch.nn.functional.one_hot(plan.policy.argmax(-1), mdp.num_actions).to(plan.policy)


def process(seed: int) -> TabularMDP:
    mdp = models.random_mdp(3, 3, horizon=4, seed=seed, dtype=torch.float64)
    return mdp.replace(reward=0.1 + mdp.reward_table.abs())


def maze(longer: int, closed: bool) -> TabularMDP:
    """Two ways round a block: the lower one can be closed, the upper one is longer by twice ``longer`` steps."""
    rows, start = 5 + longer, 2 + longer
    block = [(row, column) for row in range(1, rows - 1) for column in (1, 2, 3)]
    walls = block + ([(rows - 1, 2)] if closed else [])
    return models.gridworld(rows, 5, 30, start=(start, 0), goal=(start, 4), walls=walls, slip=0.05, dtype=torch.float64)


def main(quick: bool = False, picture: Path | None = None) -> None:
    print(f"attack on the dynamics, budget {BUDGET} nats")
    print(f"{'α':>9} {'nominal':>8} {'robust':>8} {'relaxed':>8} {'bound':>8}")
    rows = []
    temperatures = (0.1, 1.0) if quick else (0.03, 0.1, 0.3, 1.0, 3.0)
    seeds = range(1 if quick else 4)
    policies = [("optimal", cold)] + [
        (f"{alpha:g}", lambda mdp, alpha=alpha: exact.plan(mdp.at_temperature(alpha)).policy) for alpha in temperatures
    ]
    for name, make in policies:
        found = [worst_case(process(seed), make(process(seed)), dynamics_budget=BUDGET) for seed in seeds]
        assert all(worst.bound <= worst.robust_return for worst in found if worst.bound is not None)
        row = [
            sum(float(getattr(worst, part)) for worst in found) / len(found)
            for part in ("nominal_return", "robust_return", "relaxed_return", "bound")
        ]
        rows.append(row)
        print(f"{name:>9} " + " ".join(f"{number:8.4f}" for number in row))

    print("the usual corridor closes; the other is as long, or two steps longer")
    print(f"{'α':>9} {'open':>8} {'closed':>8} {'open':>8} {'closed':>8}")
    blocked = []
    grid = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
    for alpha in (None, *grid):
        row = []
        for longer in (0, 1):
            before = maze(longer, False)
            policy = cold(before) if alpha is None else exact.plan(before.at_temperature(alpha)).policy
            row += [float(exact.expected_return(mdp, policy)) for mdp in (before, maze(longer, True))]
        blocked.append(row)
        print(f"{alpha or 'optimal':>9} " + " ".join(f"{number:8.4f}" for number in row))
    if picture is not None:
        _draw(rows, temperatures, blocked, grid).savefig(picture, dpi=110)


def _draw(rows, temperatures, blocked, grid):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = drawn.subplots(1, 2)
    looks = [
        ("nominal", GREY, ":"),
        ("under attack", BLUE, "-"),
        ("relaxation", GREEN, "--"),
        ("bound f(J)", ORANGE, "-."),
    ]
    doors = [
        ("open", GREY, ":"),
        ("closed, other as long", BLUE, "-"),
        (None, GREY, ":"),
        ("closed, other longer", ORANGE, "-"),
    ]
    for ax, at, table, styles in ((left, temperatures, rows, looks), (right, grid, blocked, doors)):
        for column, (label, color, line) in enumerate(styles):
            ax.plot(at, [row[column] for row in table[1:]], line, color=color, marker="o", markersize=4, label=label)
            ax.plot(at[0] / 3, table[0][column], "s", color=color, markersize=6)
    left.set_yscale("log")
    for ax, place, title in (
        (left, "lower right", f"worst dynamics, {BUDGET} nats"),
        (right, (0.02, 0.62), "the usual corridor closes"),
    ):
        ax.set_xscale("log")
        ax.legend(frameon=False, fontsize=8, loc=place)
        tidy(ax, "temperature α (reward units per nat); squares: optimal", "return (reward units)", title)
    return drawn


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:], picture=Path("robustness.png"))
