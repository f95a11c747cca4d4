"""Problems of a hidden state: what is exact, how fast, and what policies with a memory learn of it.

    python -m benchmarks.hidden_state            five seeds each; writes results/hidden_state.json

Gaps are exact: the largest ELBO of any policy of the history, by the tree of beliefs, less the ELBO of the policy that
was learned, by all histories (or by Kalman's filter). Everything is at its default but what a row says.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch

from benchmarks.measure import Claim
from rl_as_inference import exact, fit, models
from rl_as_inference.guides import BeliefPolicy, RecurrentPolicy
from rl_as_inference.progress import progress_bar

RESULTS = Path(__file__).parent / "results" / "hidden_state.json"
STEPS = 1500


def seconds(call: Any, repeats: int = 3) -> float:
    """Returns the least time of a few calls."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def learned(name: str, process: Any, policy: torch.nn.Module, seed: int, **options: Any) -> dict[str, Any]:
    """Returns what one seed learned."""
    found = fit(process, policy, seed=seed, progress=False, **options)
    with torch.no_grad():
        gap = exact.optimal_elbo(process) - exact.elbo(process, policy)
    return {
        "problem": name,
        "policy": type(policy).__name__,
        "seed": seed,
        "steps": options["steps"],
        "estimator": found.estimator,
        "seconds": round(found.seconds, 1),
        "gap": float(gap),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hidden_state", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args(arguments)
    long, wide = models.tiger(10), models.tiger(20)
    weights = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    on_beliefs = BeliefPolicy(wide, lambda belief, t: dist.Categorical(logits=belief @ weights))
    times = {"tiger, the tree of 10 steps": seconds(lambda: exact.plan(long))}
    with torch.no_grad():
        times["10^5 trajectories of 20 steps, exact beliefs"] = seconds(lambda: wide.rollout(on_beliefs, 100_000))
    rows: list[dict[str, Any]] = []
    tiger, maze, dark = models.tiger(8), models.t_maze(), models.light_dark_linear()
    with progress_bar("seeds", 3 * given.seeds) as bar:
        for seed in range(given.seeds):
            for name, process in (("tiger, 8 steps", tiger), ("T-maze", maze)):
                torch.manual_seed(seed)
                rows.append(learned(name, process, RecurrentPolicy.of(process), seed, steps=STEPS))
                bar.advance(name)
            torch.manual_seed(seed)
            rows.append(learned("light-dark, linear", dark, BeliefPolicy(dark), seed, steps=STEPS // 3))
            bar.advance("light-dark, linear")
    worst = {name: max(row["gap"] for row in rows if row["problem"] == name) for name in {r["problem"] for r in rows}}
    slowest = max(row["seconds"] for row in rows if row["policy"] == "RecurrentPolicy")
    claims = [Claim(f"{name}: largest gap of {given.seeds} seeds, nats", gap, 0.05) for name, gap in worst.items()]
    claims.append(Claim("a memory's slowest seed, seconds", slowest, 120))
    claims.append(Claim("tiger, the tree of 10 steps, seconds", times["tiger, the tree of 10 steps"], 1))
    claims.append(
        Claim("10^5 trajectories of 20 steps, seconds", times["10^5 trajectories of 20 steps, exact beliefs"], 2)
    )
    for claim in claims:
        print(claim)
    machine = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    RESULTS.write_text(json.dumps({**machine, "seconds": times, "learned": rows}, indent=1) + "\n")
    return int(any(not claim.holds for claim in claims))


if __name__ == "__main__":
    raise SystemExit(main())
