"""Every gradient of the ELBO, and every actor's loss, on three random processes and the double integrator.

    python -m benchmarks.gradient_bridge

writes ``benchmarks/results/gradient_bridge.json``, from which docs/elbo-and-sac.md has its numbers. Policies are
half way to the optimum: their log probabilities, or gains, are halves of the optimal ones, plus noise.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

import rl_as_inference as rlai
from rl_as_inference.guides import LinearGaussianPolicy, TabularPolicy
from rl_as_inference.models import double_integrator, random_mdp

RESULTS = Path(__file__).parent / "results" / "gradient_bridge.json"


def cases() -> dict[str, tuple[Any, Any]]:
    """Returns processes and policies by name, in float64."""
    found: dict[str, tuple[Any, Any]] = {}
    for seed, (states, actions, horizon, discount, temperature) in enumerate(
        [(25, 4, 30, 0.95, 1.0), (8, 3, 10, 0.9, 0.5), (5, 2, 20, 1.0, 2.0)]
    ):
        mdp = random_mdp(states, actions, horizon, discount, temperature, seed, dtype=torch.float64)
        policy = TabularPolicy(states, actions, horizon=horizon if seed < 2 else None).double()
        best = rlai.exact.plan(mdp).log_policy
        noise = torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with torch.no_grad():
            policy.logits.copy_(0.5 * (best if seed < 2 else best.mean(0)) + 0.5 * noise)
        found[f"random process {seed}"] = (mdp, policy)
    system = double_integrator(dtype=torch.float64)
    plan: Any = rlai.exact.plan(system)
    rule = LinearGaussianPolicy(2, 1, horizon=20, initial_scale=0.8, dtype=torch.float64)
    with torch.no_grad():
        rule.gain.copy_(0.5 * plan.gain)
    found["double integrator"] = (system, rule)
    return found


def main(quick: bool = False) -> int:
    record = {}
    for name, (process, policy) in cases().items():
        torch.manual_seed(0)
        found = rlai.compare_gradients(process, policy, num_trajectories=2_000 if quick else 100_000, progress=None)
        print(f"{name}\n{found.table()}{found.seconds:.0f} s\n", flush=True)
        record[name] = found.to_dict()
    if not quick:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main("--quick" in sys.argv[1:]))
