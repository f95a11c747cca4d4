"""Policies from data alone: the mixed replay of half a run of soft actor-critic, in every way of learn_offline.

    python -m benchmarks.offline                       the pendulum
    python -m benchmarks.offline half_cheetah          --seeds 0 1 2: of the data and of what learns from them

The data are the replay of the first half of a run: whatever was tried while it learned. A method is judged by how far
of the way from the data's mean episode to its best one its policy comes, ``(return - mean)/(best - mean)``; behaviour
cloning stands beside. Results go to ``results/offline.json``.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rl_as_inference import SoftActorCritic, learn_offline

RESULTS = Path(__file__).parent / "results" / "offline.json"
METHODS = ("iql", "awr", "mpo", "bc")


@dataclass(frozen=True)
class Case:
    """Whose replay is learned from, and how."""

    env_id: str
    steps: int
    """Half of a run."""
    episodes: int
    """Of an evaluation."""
    updates: dict[str, int]
    sac: dict[str, Any]
    offline: dict[str, Any]


# Implicit Q-learning's values come step by step from the rewards that they are made of; λ-returns are there at once.
CASES = {
    "pendulum": Case(
        "Pendulum-v1",
        5_000,
        50,
        {"iql": 40_000, "awr": 20_000, "mpo": 20_000, "bc": 20_000},
        # A run of 10,000 steps, which swings up after some 3,000.
        {"hidden_sizes": (64, 64), "learning_rate": 1e-3, "batch_size": 100, "learning_starts": 200},
        {"hidden_sizes": (64, 64), "learning_rate": 1e-3, "expectile": 0.8},
    ),
    "half_cheetah": Case(
        "HalfCheetah-v5",
        50_000,
        10,
        {"iql": 60_000, "awr": 15_000, "mpo": 15_000, "bc": 15_000},
        {"learning_starts": 5_000, "learning_rate": 1e-3, "compile": True},
        {"learning_rate": 1e-3, "target_average": 0.01, "expectile": 0.8},
    ),
}


def way(value: float, mean: float, best: float) -> float:
    """Returns how far of the way from ``mean`` to ``best`` a return is."""
    return (value - mean) / (best - mean)


def data_of(case: Case, seed: int, folder: Path | None) -> SoftActorCritic:
    """Returns the agent of half a run, from the file of an earlier call where there is one."""
    path = None if folder is None else folder / f"{case.env_id}-{case.steps}-seed{seed}"
    if path is not None and path.exists():
        return SoftActorCritic.load(path)
    agent = SoftActorCritic(case.env_id, seed=seed, **case.sac)
    agent.learn(case.steps)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        agent.save(path)
    return agent


def run(name: str, seed: int, methods: list[str], folder: Path | None) -> dict[str, Any]:
    """Returns the data's returns and every method's, and writes them down."""
    case = CASES[name]
    agent = data_of(case, seed, folder)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    row = found.get(f"{name}_seed{seed}", {"methods": {}})
    for method in methods:
        started = time.perf_counter()
        result = learn_offline(
            agent.replay,
            method=method,  # type: ignore[arg-type]
            num_updates=case.updates[method],
            seed=seed,
            evaluate_episodes=case.episodes,
            **case.offline,
        )
        data = result.data_returns
        mean, best = float(data.mean()), float(data.max())
        assert result.evaluation is not None
        reached = result.evaluation.mean
        row |= {
            "env": case.env_id,
            "steps": len(agent.replay),
            "episodes": len(data),
            "evaluated_episodes": case.episodes,
            "mean": round(mean, 2),
            "best": round(best, 2),
        }
        row["methods"][method] = {
            "updates": case.updates[method],
            "return": round(reached, 2),
            "way": round(way(reached, mean, best), 3),
            "seconds": round(time.perf_counter() - started, 1),
        }
        print(f"{name} seed {seed}: mean {mean:.0f}, best {best:.0f}; {method} {row['methods'][method]}", flush=True)
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        there = found.get(f"{name}_seed{seed}", {"methods": {}})["methods"]  # of another process too
        row["methods"] = there | {method: row["methods"][method]}
        found[f"{name}_seed{seed}"] = row
        RESULTS.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    return row


def main(arguments: list[str] | None = None) -> None:
    """Learns from data from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offline", description=__doc__)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; by default the pendulum")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--data", type=Path, help="folder to keep the agents in whose replay is learned from")
    given = parser.parse_args(arguments)
    for name in given.cases:
        if name not in CASES:
            parser.error(f"there is no case {name!r}; choose from {', '.join(CASES)}")
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")  # products in bfloat16, where the processor has them
    for name in given.cases or ["pendulum"]:
        for seed in given.seeds:
            run(name, seed, given.methods, given.data)


if __name__ == "__main__":
    main()
