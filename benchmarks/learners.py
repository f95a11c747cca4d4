"""Soft actor-critic on environments: whole loop, update alone, and the committed learning curves."""

import math
import statistics
import time
from typing import Any

import torch

from benchmarks import multi_goal
from benchmarks.learning import CASES, CURVES, final_returns, seconds_to
from benchmarks.measure import Advance, Claim, Row, Section
from rl_as_inference import SoftActorCritic

__all__ = ["STAGES", "matrix_ceiling", "measure", "update_gflop"]

STAGES = 4
ROUNDS = 5


def measure(quick: bool, advance: Advance) -> Section:
    """Returns the table of learners."""
    ceiling = matrix_ceiling()
    rows, claims = [], []
    sizes: dict[str, Any] = {"hidden_sizes": (64, 64), "batch_size": 100}
    cases: list[tuple[str, str, dict[str, Any], float | None]] = [
        ("HalfCheetah-v5, 256 × 256, batch 256", "HalfCheetah-v5", {}, None),
        ("Pendulum-v1, 64 × 64, batch 100", "Pendulum-v1", sizes, 1_200),
        ("Pendulum-v1, 64 × 64, batch 100, 8 seeds", "Pendulum-v1", {**sizes, "seeds": 8}, 3_500),
    ]
    for name, env_id, config, wanted in cases:
        agent = SoftActorCritic(env_id, learning_starts=100, compile=not quick, **config)
        agent.learn(150, progress=False)
        steps = 20 if quick else 500 if "HalfCheetah" in name else 1_000
        rates = []
        for _ in range(1 if quick else ROUNDS):
            start = time.perf_counter()
            agent.learn(steps, progress=False)
            rates.append(agent.num_seeds * steps / (time.perf_counter() - start))
        rate = statistics.median(rates)
        note = (
            f"{rate:,.0f} steps/s ({min(rates):,.0f} to {max(rates):,.0f}), compiled in {agent.compile_seconds:.0f} s"
        )
        rows.append(Row(name, "whole loop, 1 update per step", 1e3 / rate, note=note))
        if wanted is not None:
            text = f"{name}: environment steps per second, of all seeds"
            claims.append(Claim(text, rate, wanted, at_most=False, judged=not quick))
            claims.append(Claim(f"{name}: seconds to compile", agent.compile_seconds, 30, judged=not quick))
        else:
            updates = update_rate(agent, steps)
            share = updates * update_gflop(agent) / ceiling
            note = f"{updates:,.0f} updates/s, {share:.0%} of the fp32 matrix ceiling of {ceiling:,.0f} GFLOP/s"
            rows.append(Row(name, "update alone", 1e3 / updates, note=note))
        agent.close()
        advance(name)
    for case, config in CASES.items():
        finals = final_returns(case)
        if finals:
            shown = ", ".join(f"{value:,.0f}" for value in finals)
            note = f"return of {len(finals)} seeds at {config.steps:,} steps: {shown}; committed curves"
            rows.append(Row(case, "learning", note=note))
            value = statistics.mean(finals) if config.judged_by_mean else min(finals)
            claims.append(Claim(f"{case}: {config.wanted}", value, config.limit, at_most=False, judged=not quick))
    found, told = until_it_earns(6_000, judged=not quick)
    rows, claims = rows + found, claims + told
    rows += multi_goal.rows()
    claims += multi_goal.claims(judged=not quick)
    advance("learning curves")
    settings = {"rounds": ROUNDS, "threads": torch.get_num_threads(), "matrix_ceiling_gflops": round(ceiling, 1)}
    return Section("soft actor-critic on environments", "", settings, rows, claims)


def until_it_earns(wanted: float, *, judged: bool) -> tuple[list[Row], list[Claim]]:
    """Returns the seconds of learning, on one thread, until committed curves of HalfCheetah-v5 earn what is wanted.

    Another's that has not earned it counts with the seconds that it took, so that a ratio is at most what is said; a
    batch-normalised one would have to take for ever.
    """
    peers, ours = CURVES.parent, "this project, batch-normalised"
    paths = {
        ours: sorted(CURVES.glob("half_cheetah_batch_norm_seed*.csv")),
        "this project, plain": sorted(CURVES.glob("half_cheetah_sac_bfloat16_seed*.csv")),
        "Stable-Baselines3's SAC": [peers / "half_cheetah_stable_baselines3.csv"],
        "SBX's CrossQ": [peers / "half_cheetah_sbx_crossq.csv"],
    }
    rows, means = [], {}
    for name, files in paths.items():
        found = [each for path in files for each in seconds_to(wanted, path)]
        means[name] = statistics.mean(seconds for seconds, _ in found)
        shown = ", ".join(f"{'' if there else 'more than '}{seconds:,.0f} s" for seconds, there in found)
        rows.append(Row(name, f"until it earns {wanted:,.0f}", note=shown))
        if name == ours and not all(there for _, there in found):
            means[name] = math.inf
    first = means.pop(ours)
    return rows, [
        Claim(f"HalfCheetah-v5: seconds to {wanted:,.0f}, over those of {name}", first / other, limit, judged=judged)
        for (name, other), limit in zip(means.items(), (1.0, 0.6, 0.6), strict=True)
    ]


def update_rate(agent: Any, count: int) -> float:
    """Returns updates per second without the environment."""
    with torch.no_grad():
        start = time.perf_counter()
        for _ in range(count):
            agent._update.step()
        return count / (time.perf_counter() - start)


def update_gflop(agent: Any) -> float:
    """Returns the multiply-adds of one update's matrix products, in 10⁹ floating-point operations.

    In passes through a network: the policy 2 forward and 2 backward, each critic 2 forward for the
    target and the actor, 1 forward and 2 backward for its own loss, and 1 backward to the action.
    """

    def size(name: str) -> int:
        return sum(p.numel() for p in agent.modules[0][name].parameters() if p.dim() > 1)

    passes = 4 * size("policy") + 6 * size("critics")
    return 2e-9 * agent.batch_size * passes


def matrix_ceiling() -> float:
    """Returns what a large product of float32 matrices reaches, in GFLOP/s: the best of a few."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * 2048**3 / (time.perf_counter() - start) / 1e9)
    return best
