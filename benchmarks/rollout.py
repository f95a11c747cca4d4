"""Rollouts and exact answers of the 8 × 8 frozen lake: horizon 100, temperature 0.005, 4,096 trajectories."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measure import Advance, Row, Section, paired
from rl_as_inference import TabularMDP, exact
from rl_as_inference.guides import CategoricalPolicy, TabularPolicy

__all__ = ["STAGES", "measure"]

STAGES = 1


def measure(quick: bool, advance: Advance) -> Section:
    """Returns the table of rollouts and exact answers."""
    horizon, count, rounds = (20, 256, 2) if quick else (100, 4096, 7)
    lake = TabularMDP.from_gymnasium("FrozenLake-v1", map_name="8x8", horizon=horizon, temperature=0.005)
    torch.manual_seed(0)
    plan = exact.plan(lake)
    policies: dict[str, Any] = {
        "action prior": None,
        "table": TabularPolicy(lake.num_states, lake.num_actions, horizon=horizon),
        "network, 64 × 64": CategoricalPolicy(lake.state_space, lake.num_actions, horizon=horizon),
        "exact plan": plan,
    }

    def rollout(policy: Any) -> Callable[[], Any]:
        return torch.no_grad()(lambda: lake.rollout(policy, count))

    contestants: dict[tuple[str, str], Callable[[], Any]] = {
        ("rollout", name): rollout(policy) for name, policy in policies.items()
    }
    contestants |= {
        ("exact.plan", "causal"): lambda: exact.plan(lake),
        ("exact.plan", "posterior"): lambda: exact.plan(lake, "posterior"),
        ("exact.evaluate", "exact plan"): lambda: exact.evaluate(lake, plan),
    }
    timings = paired(contestants, rounds)
    advance("rollouts")
    rows = []
    for key in contestants:
        seconds = timings.seconds(key)
        steps = f"{horizon * count / seconds / 1e6:.2f} million steps/s" if key[0] == "rollout" else ""
        rows.append(Row(*key, 1e3 * seconds, timings.ratio(key, ("rollout", "action prior")), note=steps))
    settings = {"horizon": horizon, "trajectories": count, "rounds": rounds, "threads": torch.get_num_threads()}
    return Section("frozen lake, 8 × 8", "rollout of the action prior", settings, rows)
