"""Which policies keep four goals of equal worth: shares of trajectories that reach each, as CSV.

    python -m benchmarks.multi_goal        eight minutes; writes results/multi_goal.csv

The problem and the learners are those of ``examples/multi_goal.py``, here with three seeds each.
"""

import csv
from pathlib import Path

import torch

from benchmarks.measure import Claim, Row
from examples.multi_goal import STEPS, learners, problem, shares
from rl_as_inference.progress import progress_bar

__all__ = ["claims", "main", "rows"]

_RESULTS = Path(__file__).parent / "results" / "multi_goal.csv"
_GOALS = ("east", "north", "west", "south")
_SEEDS, _COUNT = (0, 1, 2), 1_000


def main() -> None:
    """Learns every policy with every seed and writes the shares."""
    mdp, table = problem(), []
    with progress_bar("multi-goal", len(_SEEDS) * len(learners(STEPS, compile=True))) as bar:
        for seed in _SEEDS:
            for name, make in learners(STEPS, compile=True, seed=seed).items():
                agent = make(mdp)
                agent.learn(STEPS, progress=False)
                torch.manual_seed(seed)
                with torch.no_grad():
                    found = shares(mdp, mdp.rollout(agent.policy, _COUNT).states)
                table.append({"learner": name, "seed": seed, **dict(zip(_GOALS, found.tolist(), strict=True))})
                bar.advance(f"{name}, seed {seed}")
    with _RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys())
        writer.writeheader()
        writer.writerows({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()} for row in table)


def rows() -> list[Row]:
    """Returns the table's lines: of every learner, the shares by seed."""
    lines = []
    for name, seeds in _shares().items():
        shown = "; ".join(" ".join(f"{share:.0%}" for share in shares) for shares in seeds)
        lines.append(Row("four goals", name, note=f"shares {shown}; committed results"))
    return lines


def claims(judged: bool) -> list[Claim]:
    """Returns what the shares are held to."""
    answer = []
    for name, seeds in _shares().items():
        if "one Gaussian" in name:
            largest = min(max(shares) for shares in seeds)
            answer.append(Claim(f"four goals: {name} goes to one, share", largest, 0.9, at_most=False, judged=judged))
        else:
            least = min(min(shares) for shares in seeds)
            answer.append(Claim(f"four goals: {name}, least share", least, 0.1, at_most=False, judged=judged))
    return answer


def _shares() -> dict[str, list[list[float]]]:
    """Returns the committed shares, by learner and seed."""
    found: dict[str, list[list[float]]] = {}
    with _RESULTS.open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["learner"], []).append([float(row[goal]) for goal in _GOALS])
    return found


if __name__ == "__main__":
    main()
