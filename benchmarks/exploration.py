"""How long it takes to solve DeepSea, what exact exploration is worth, and whether K-learning keeps its bound.

    python -m benchmarks.exploration [PART ...] [--picture] [--quick]

writes its parts of ``benchmarks/results/exploration.json`` (deep_sea, soft_q, bandit, bound, vapor, dirichlet and
whole_rows; all of them by default), from which the page
docs/unknown-dynamics.md has its numbers, and with ``--picture`` the figure docs/figures/deep_sea.png from that file.
Every count is of episodes until solved, as ``Exploration.solved_after`` has it: 10 seeds a size.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import rl_as_inference as rlai
from rl_as_inference import exact, models
from rl_as_inference.models import families

RESULTS = Path(__file__).parent / "results" / "exploration.json"
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "deep_sea.png"
F64 = torch.float64

NAMES = {
    "posterior_sampling": "posterior sampling",
    "k_learning": "K-learning",
    "vapor": "VAPOR",
    "k_learning_dirichlet": "K-learning, transitions' cumulant too",
    "soft_q": "soft Q-learning",
}


LEAST = {"posterior_sampling": 10, "k_learning": 10}
"""The size from which on growth is fitted."""


def dives(strategy: str, size: int, limit: int, seeds: int = 10, reach: int | None = 1, **options: Any) -> Any:
    """Returns the episodes until solved of each seed, and the seconds that an episode of all of them took."""
    started = time.perf_counter()
    found = rlai.explore(
        families.deep_sea(size, reach=reach, dtype=F64),
        models.deep_sea(size, mapping_seed=size, dtype=F64),
        strategy=strategy,
        num_episodes=limit,
        num_seeds=seeds,
        stop_when_solved=True,
        **options,
    )
    seconds = (time.perf_counter() - started) / found.returns.shape[1]
    print(f"{strategy:<20} size {size:>2}: {found.solved_after}, {1000 * seconds:.0f} ms an episode", flush=True)
    return {"solved_after": found.solved_after, "limit": limit, "seconds_an_episode": seconds}


def deep_sea(quick: bool) -> dict[str, Any]:
    """Posterior sampling and K-learning within 40 · size episodes."""
    sizes = (4, 6) if quick else (5, 10, 20, 30, 40)
    return {
        strategy: {size: dives(strategy, size, 40 * size) for size in sizes}
        for strategy in ("posterior_sampling", "k_learning")
    }


def dirichlet(quick: bool) -> dict[str, Any]:
    """K-learning whose values bound the best return also where transitions are unknown."""
    sizes = (3, 4) if quick else (4, 6, 8, 10)
    return {
        "k_learning_dirichlet": {
            size: dives("k_learning", size, 100 * size, transition_term="dirichlet") for size in sizes
        }
    }


def vapor(quick: bool) -> dict[str, Any]:
    """VAPOR, whose convex program is solved before every episode of every seed."""
    return {"vapor": {size: dives("vapor", size, 40 * size) for size in ((4,) if quick else (5, 10, 20))}}


def soft_q(quick: bool) -> dict[str, Any]:
    """The counterexample, as far as 40,000 episodes."""
    sizes = (2, 3, 4) if quick else range(2, 12)
    return {"soft_q": {size: dives("soft_q", size, 40_000, temperature=0.1) for size in sizes}}


def whole_rows(quick: bool) -> dict[str, Any]:
    """The family in which a diver may come to any column: Dirichlet(1/N) over the whole next row."""
    sizes = (4,) if quick else (5, 10, 20)
    return {
        f"{strategy}, whole rows": {size: dives(strategy, size, 40 * size, reach=None) for size in sizes}
        for strategy in ("posterior_sampling", "k_learning")
    }


def bandit(quick: bool) -> dict[str, Any]:
    """The exact Bayes-adaptive value of a two-armed bandit against dynamic programming over counts and enumeration."""
    rows = []
    for pulls in (1, 2, 3) if quick else range(1, 13):
        life = rlai.bayes_adaptive(families.bandit(2, dtype=F64), num_episodes=pulls)
        cold = 1e-11
        value = cold * float(exact.plan(life.process.at_temperature(cold)).objective)
        row = {"pulls": pulls, "hyperstates": len(life.states), "value": value, "error": abs(value - counted(pulls))}
        if pulls <= 6:
            row["soft_error"] = max(
                abs(float(exact.plan(life.process.at_temperature(t)).objective) * t - remembered(pulls, t))
                for t in (0.05, 0.3, 2.0)
            )
        rows.append(row)
        print(row, flush=True)
    return {"bandit": rows}


def counted(pulls: int) -> float:
    """Returns the value by dynamic programming over counts."""

    @cache
    def value(wins: tuple[int, int], losses: tuple[int, int], left: int) -> float:
        if left == 0:
            return 0.0
        worth = []
        for arm in (0, 1):
            chance = (1 + wins[arm]) / (2 + wins[arm] + losses[arm])
            more = (
                tuple(n + (a == arm) for a, n in enumerate(wins)),
                tuple(n + (a == arm) for a, n in enumerate(losses)),
            )
            won, lost = value(more[0], losses, left - 1), value(wins, more[1], left - 1)
            worth.append(chance * (1 + won) + (1 - chance) * lost)
        return max(worth)

    return value((0, 0), (0, 0), pulls)


def remembered(pulls: int, temperature: float, history: tuple[tuple[int, int], ...] = ()) -> float:
    """Returns the soft value by enumerating histories, whose chances are integrals over Beta densities."""
    if len(history) == pulls:
        return 0.0

    def evidence(story: tuple[tuple[int, int], ...]) -> float:
        total = 0.0
        for arm in (0, 1):
            wins, losses = (sum(1 for a, won in story if a == arm and won == w) for w in (1, 0))
            total += math.lgamma(wins + 1) + math.lgamma(losses + 1) - math.lgamma(wins + losses + 2)
        return total

    worth = []
    for arm in (0, 1):
        q = 0.0
        for won in (0, 1):
            story = (*history, (arm, won))
            chance = math.exp(evidence(story) - evidence(history))
            q += chance * (won + remembered(pulls, temperature, story))
        worth.append(q)
    top = max(worth)
    return top + temperature * math.log(sum(math.exp((q - top) / temperature) for q in worth) / 2)


LAYERS, WIDTH, ACTIONS = 4, 3, 2


def layered(rewards: torch.Tensor) -> Callable[[], rlai.TabularMDP]:
    """Returns a family of layered processes: known rewards in [0, 1], and Dirichlet(1, …, 1) rows to the next layer."""
    states = LAYERS * WIDTH
    layer = torch.arange(states) // WIDTH
    successors = ((layer + 1) % LAYERS * WIDTH)[:, None, None] + torch.arange(WIDTH).expand(states, ACTIONS, WIDTH)
    first = torch.zeros(states, dtype=F64)
    first[0] = 1.0

    def family() -> rlai.TabularMDP:
        ones = torch.ones(states, ACTIONS, WIDTH, dtype=F64)
        rows = pyro.sample("transition", dist.Dirichlet(ones).to_event(2))
        return rlai.TabularMDP.from_successors(successors, rows, rewards, first, horizon=LAYERS)

    return family


def regret_bound(episodes: int) -> float:
    """Returns the largest Bayesian regret of K-learning after so many episodes, in reward units.

    ``2 sqrt(N T log A · U)`` with ``U = Σ_t (T-t-1)²/8 · S_t A log(1 + N/(S_t A α))``: what entropy and unknown rows
    can add to the values that bound the best return, summed over visits; see docs/unknown-dynamics.md.
    """
    unknown, alpha = 0.0, float(WIDTH)
    for t in range(LAYERS):
        pairs = (1 if t == 0 else WIDTH) * ACTIONS
        unknown += (LAYERS - t - 1) ** 2 / 8 * pairs * math.log(1 + episodes / (pairs * alpha))
    return 2 * math.sqrt(episodes * LAYERS * math.log(ACTIONS) * unknown)


def bound(quick: bool) -> dict[str, Any]:
    """K-learning's regret on processes drawn from the prior, evaluated exactly, as a share of its bound."""
    count, episodes = (3, 10) if quick else (200, 100)
    shares, final = [], []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        rewards = torch.rand(LAYERS * WIDTH, ACTIONS, generator=generator, dtype=F64)
        family = layered(rewards)
        pyro.set_rng_seed(seed)
        truth = family()
        found = rlai.explore(
            family,
            truth,
            strategy="k_learning",
            num_episodes=episodes,
            seed=seed,
            transition_term="dirichlet",
            reward_range=1.0,
        )
        total = found.regret.cumsum(0)
        shares.append([float(total[n - 1]) / regret_bound(n) for n in range(1, episodes + 1)])
        final.append(float(total[-1]))
    table = np.array(shares)
    answer = {
        "processes": count,
        "episodes": episodes,
        "bound": regret_bound(episodes),
        "mean_regret": float(np.mean(final)),
        "largest_regret": max(final),
        "mean_share": float(table[:, -1].mean()),
        "largest_share": float(table.max()),
        "largest_share_at": int(table.max(0).argmax()) + 1,
    }
    print(answer, flush=True)
    return {"bound": answer}


PARTS = {
    "deep_sea": deep_sea,
    "soft_q": soft_q,
    "bandit": bandit,
    "bound": bound,
    "vapor": vapor,
    "dirichlet": dirichlet,
    "whole_rows": whole_rows,
}


def growth(counts: dict[str, Any], exponential: bool = False, least: int = 0) -> dict[str, float]:
    """Returns the slope of log episodes in log size (or in size), with a bootstrap interval over seeds."""
    sizes = [int(size) for size in counts if int(size) >= least and None not in counts[size]["solved_after"]]
    values = [np.log(counts[str(size)]["solved_after"]) for size in sizes]
    x = np.array(sizes, dtype=float) if exponential else np.log(sizes)

    def slope(rows: list[Any]) -> float:
        every = np.concatenate([np.full(len(row), place) for row, place in zip(rows, x, strict=True)])
        return float(np.polyfit(every, np.concatenate(rows), 1)[0])

    random = np.random.default_rng(0)
    draws = [slope([random.choice(row, len(row)) for row in values]) for _ in range(2000)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"slope": slope(values), "low": float(low), "high": float(high)}


def picture(record: dict[str, Any]) -> None:
    """Draws episodes until solved against size, log-log."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    ax = figure.subplots()
    colours = {
        "posterior_sampling": "C0",
        "k_learning": "C2",
        "vapor": "C1",
        "k_learning_dirichlet": "C4",
        "soft_q": "C3",
    }
    for strategy, name in NAMES.items():
        if strategy not in record:
            continue
        counts = {int(size): row["solved_after"] for size, row in record[strategy].items()}
        solved = {size: np.array(row, dtype=float) for size, row in counts.items() if None not in row}
        sizes = sorted(solved)
        low, middle, high = (np.array([np.quantile(solved[s], q) for s in sizes]) for q in (0.1, 0.5, 0.9))
        ax.plot(sizes, middle, "o-", ms=4, color=colours[strategy], label=name)
        ax.fill_between(sizes, low, high, color=colours[strategy], alpha=0.2, lw=0)
    sizes = np.array([2, 40])
    ax.plot(sizes, 40 * sizes, ":", color="0.5", lw=1)
    ax.annotate("40 · size", (15, 880), color="0.4", fontsize=8)
    steep = np.arange(2, 15)
    ax.plot(steep, 2.0**steep, "--", color="0.5", lw=1)
    ax.annotate(r"$2^{\mathrm{size}}$", (14.4, 14_000), color="0.4", fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="size of the sea", ylabel="episodes until solved", ylim=(0.9, 30_000))
    ticks = [2, 3, 5, 10, 20, 30, 40]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    ax.set_title("DeepSea: ignorance is not luck (medians of 10 seeds, bands 10-90 %)", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(FIGURE, dpi=130)


def main(arguments: list[str]) -> int:
    quick = "--quick" in arguments
    chosen = [part for part in arguments if not part.startswith("--")]
    if unknown := set(chosen) - set(PARTS):
        raise SystemExit(f"no such part: {sorted(unknown)}; there are {sorted(PARTS)}")
    record: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if "--picture" not in arguments or chosen:
        for part in chosen or PARTS:
            record.update(json.loads(json.dumps(PARTS[part](quick))))
            record["growth"] = {
                name: growth(record[name], exponential=name == "soft_q", least=LEAST.get(name, 0))
                for name in NAMES
                if name in record and len(record[name]) > 2
            }
            if not quick:
                RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    if "--picture" in arguments:
        picture(record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
