"""How near expectation maximization and path consistency come to the optimum of random processes.

    python -m benchmarks.projection

writes ``benchmarks/results/projection.json``, from which docs/projection.md has its numbers: policy gaps, exact, in
nats, on five random processes of sizes that no test uses, with their own dynamics and with deterministic ones.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.models import random_mdp

RESULTS = Path(__file__).parent / "results" / "projection.json"

SIZES = [(7, 3, 9, 1.0, 0.6), (9, 4, 7, 0.95, 1.0), (12, 2, 10, 0.9, 0.4), (8, 5, 6, 1.0, 0.8), (10, 3, 12, 0.97, 1.5)]
"""States, actions, horizon, discount, temperature; the seed of the tables is 100 and the place in this list."""

METHODS: dict[str, dict[str, Any]] = {
    "EM, exact messages": {"estimator": "em", "steps": 600, "learning_rate": 0.2},
    "EM, exact messages, KL ≤ 0.05": {"estimator": "em", "epsilon": 0.05, "steps": 600, "learning_rate": 0.2},
    "EM, learned soft Q": {"estimator": "em", "critic": "soft q", "steps": 1500, "learning_rate": 0.05},
    "path consistency, trajectories": {"estimator": "path_consistency", "steps": 800, "learning_rate": 0.1},
    "the same, off-policy": {"estimator": "path_consistency", "steps": 800, "learning_rate": 0.1, "behavior": "prior"},
    "path consistency, one step": {"estimator": "path_consistency", "n": 1, "steps": 1000, "learning_rate": 0.05},
    "the same step, off-policy": {
        "estimator": "path_consistency",
        "n": 1,
        "steps": 1000,
        "learning_rate": 0.05,
        "behavior": "prior",
    },
}


def deterministic(mdp: rlai.TabularMDP, seed: int) -> rlai.TabularMDP:
    """Returns the process with one next state, drawn at random, for every state and action."""
    generator = torch.Generator().manual_seed(seed)
    shape = (mdp.num_states, mdp.num_actions)
    move = torch.nn.functional.one_hot(torch.randint(shape[0], shape, generator=generator), shape[0])
    return rlai.TabularMDP(
        move.to(mdp.reward_table),
        mdp.reward_table,
        mdp.initial_probabilities,
        horizon=mdp.horizon,
        discount=mdp.discount,
        temperature=mdp.temperature,
    )


def fitted(mdp: rlai.TabularMDP, options: dict[str, Any], scale: float) -> dict[str, float]:
    """Returns the exact gap after training, and the seconds that it took."""
    options = {**options, "steps": max(1, int(scale * options["steps"]))}
    if options.get("behavior") == "prior":
        options["behavior"] = lambda state, t: mdp.prior_at(state)
    if options.get("critic") == "soft q":
        options["critic"] = rlai.critics.SoftQ(mdp.state_space, mdp.num_actions, horizon=mdp.horizon)
    policy = TabularPolicy(mdp.num_states, mdp.num_actions, horizon=mdp.horizon)
    started = time.perf_counter()
    rlai.fit(mdp, policy, seed=0, **options)
    seconds = time.perf_counter() - started
    gap = float(exact.optimal_elbo(mdp) - exact.elbo(mdp, policy).detach())
    return {"gap": gap, "seconds": seconds}


def main(quick: bool = False) -> int:
    record: dict[str, Any] = {"sizes": SIZES, "processes": {}}
    for place, size in enumerate(SIZES[:1] if quick else SIZES):
        stochastic = random_mdp(*size, seed=100 + place)
        torch.manual_seed(0)
        for kind, mdp in (("stochastic", stochastic), ("deterministic", deterministic(stochastic, 100 + place))):
            name = f"{kind} {place}"
            prior = float(exact.optimal_elbo(mdp) - exact.elbo(mdp, None))
            rows: dict[str, Any] = {"action prior": {"gap": prior, "seconds": 0.0}}
            for method, options in METHODS.items():
                if kind == "stochastic" and method in ("path consistency, trajectories", "the same, off-policy"):
                    continue  # refused: consistency does not hold along whole trajectories
                rows[method] = fitted(mdp, options, 0.02 if quick else 1.0)
                print(f"{name:<16} {method:<32} gap {rows[method]['gap']:.5f} nats", flush=True)
            record["processes"][name] = rows
    if not quick:
        RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main("--quick" in sys.argv[1:]))
