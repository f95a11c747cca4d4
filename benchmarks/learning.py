"""Learning curves: every seed of every case, as CSV.

    python -m benchmarks.learning                       all cases but the long ones
    python -m benchmarks.learning half_cheetah_sac      one case; --seeds 0 1 2 for some of its seeds
    python -m benchmarks.learning half_cheetah_mpo --keep FOLDER      goes on there from the last evaluation

The seeds of a case learn in one batched update, with the agent's seed 0; those of MuJoCo's environments one by one. A
curve is a file ``results/curves/<case>_seed<seed>.csv`` with one row for each evaluation: environment step, mean and
least return of the deterministic policy, α, entropy, seconds of learning so far (of all seeds together,
where they learn so).
"""

import argparse
import csv
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium

from benchmarks.distractors import masked_cartpole
from benchmarks.pixel_gridworld import most, pixel_gridworld
from rl_as_inference.agents import MPO, SoftActorCritic, SoftQLearning
from rl_as_inference.nouns import EnvironmentLike

CURVES = Path(__file__).parent / "results" / "curves"


SMALL: dict[str, Any] = {"hidden_sizes": (64, 64), "learning_rate": 1e-3}
DISCRETE: dict[str, Any] = {**SMALL, "batch_size": 128, "target_average": 0.05, "target_entropy": 0.2}
# Twice the updates at half the rate: the actor of a discrete policy otherwise falls behind its critic now and then.
SLOWER: dict[str, Any] = {
    "learning_rate": 5e-4,
    "updates_per_step": 2,
    "batch_size": 256,
    "target_average": 0.02,
    "learning_starts": 1_000,
}
# Random actions swing the acrobot up in one episode of forty. What finds the way is hope: values start at 0, far above
# those of a reward of -1 a step, and one critic keeps that where the least of two would not; a low fixed temperature
# follows it, where a tuned one sinks before the first success.
HOPEFUL: dict[str, Any] = {
    "hidden_sizes": (64, 64),
    "learning_rate": 6e-4,
    "batch_size": 128,
    "target_average": 0.01,
    "temperature": 0.05,
    "n_step": 3,
    "num_critics": 1,
    "learning_starts": 1_000,
}


@dataclass(frozen=True)
class Case:
    """One environment (its id, or a factory) and method, and what its seeds must reach."""

    env_id: EnvironmentLike
    agent: Any
    steps: int
    every: int
    seeds: tuple[int, ...]
    episodes: int
    limit: float
    wanted: str
    judged_by_mean: bool = False
    together: bool = True
    config: dict[str, Any] = field(default_factory=dict)


FIVE = (0, 1, 2, 3, 4)
SMALL_BATCH_NORM: dict[str, Any] = {
    "architecture": "batch_norm",
    "updates_per_step": 1,
    "hidden_sizes": (64, 64),
    "critic_hidden_sizes": (128, 128),
}
BATCH_NORM: dict[str, Any] = {"architecture": "batch_norm", "precision": "bfloat16"}


def _crossq(env_id: str, limit: float, why: str, **config: Any) -> Case:
    """Returns the case of batch-normalised critics on an environment of MuJoCo, beside CrossQ's published curve."""
    return Case(
        env_id,
        SoftActorCritic,
        100_000,
        10_000,
        (0, 1, 2),
        10,
        limit,
        f"mean return of 3 seeds at 100,000 steps ({why})",
        judged_by_mean=True,
        together=False,
        config={**BATCH_NORM, **config},
    )


CASES = {
    "pendulum_sac": Case(
        "Pendulum-v1",
        SoftActorCritic,
        5_000,
        500,
        tuple(range(20)),
        20,
        -200,
        "return of the worst of 20 seeds at 5,000 steps",
        config={**SMALL, "batch_size": 256, "learning_starts": 200, "updates_per_step": 2, "target_average": 0.01},
    ),
    "cartpole_sac": Case(
        "CartPole-v1",
        SoftActorCritic,
        20_000,
        2_500,
        FIVE,
        100,
        475,
        "return of the worst of 5 seeds at 20,000 steps",
        config={**DISCRETE, **SLOWER},
    ),
    "cartpole_masked_sac": Case(
        masked_cartpole,
        SoftActorCritic,
        20_000,
        2_500,
        FIVE,
        100,
        475,
        "return of the worst of 5 seeds at 20,000 steps, with 48 forbidden actions beside the two",
        config={**DISCRETE, **SLOWER},
    ),
    "cartpole_sql": Case(
        "CartPole-v1",
        SoftQLearning,
        30_000,
        5_000,
        FIVE,
        100,
        475,
        "return of the worst of 5 seeds at 30,000 steps",
        config={**DISCRETE, "num_critics": 2},
    ),
    "acrobot_sac": Case(
        "Acrobot-v1",
        SoftActorCritic,
        60_000,
        10_000,
        FIVE,
        20,
        -100,
        "mean return of 5 seeds at 60,000 steps",
        judged_by_mean=True,
        config=HOPEFUL,
    ),
    "acrobot_sql": Case(
        "Acrobot-v1",
        SoftQLearning,
        60_000,
        10_000,
        FIVE,
        20,
        -100,
        "mean return of 5 seeds at 60,000 steps",
        judged_by_mean=True,
        config=HOPEFUL,
    ),
    "pixel_gridworld_sql": Case(
        pixel_gridworld,
        SoftQLearning,
        10_000,
        1_000,
        (0, 1, 2),
        5,
        most(),
        "return of the worst of 3 seeds at 10,000 steps; no policy earns more",
        config={
            "hidden_sizes": (64,),
            "learning_rate": 1e-3,
            "batch_size": 128,
            "learning_starts": 3_000,
            "updates_per_step": 0.25,
            "num_envs": 4,
            "n_step": 3,
            "discount": 0.97,
            "target_average": 0.05,
            "temperature": 0.05,
            "buffer_size": 20_000,
        },
    ),
    # Every option at its default. Stable-Baselines3's in the same setting: benchmarks/peers/curve_stable_baselines3.py.
    "half_cheetah_sac": Case(
        "HalfCheetah-v5",
        SoftActorCritic,
        100_000,
        10_000,
        FIVE,
        10,
        5_418,
        "mean return of 5 seeds at 100,000 steps (the published mean less a standard deviation, 6,156 ± 738)",
        judged_by_mean=True,
        together=False,
    ),
    # Bhatt et al. 2024, ten seeds: 8,112 ± 944, 2,764 ± 823, 3,914 ± 1,730 and 2,299 ± 1,347 at 100,000 steps.
    "half_cheetah_batch_norm": _crossq("HalfCheetah-v5", 8_100, "CrossQ's published mean"),
    "hopper_batch_norm": _crossq("Hopper-v5", 1_941, "CrossQ's less a standard deviation", updates_per_step=1),
    "walker2d_batch_norm": _crossq("Walker2d-v5", 2_184, "CrossQ's less a standard deviation", updates_per_step=1),
    "ant_batch_norm": _crossq("Ant-v5", 952, "CrossQ's less a standard deviation", updates_per_step=1),
    # Kim et al. 2026, five seeds: 9,815 ± 174. It wants a GPU.
    "half_cheetah_residual": Case(
        "HalfCheetah-v5",
        SoftActorCritic,
        100_000,
        5_000,
        FIVE,
        10,
        9_500,
        "mean return of 5 seeds at 100,000 steps",
        judged_by_mean=True,
        together=False,
        config={"architecture": "residual", "precision": "bfloat16"},
    ),
    "pendulum_mpo": Case(
        "Pendulum-v1",
        MPO,
        20_000,
        2_000,
        FIVE,
        50,
        -200,
        "return of the worst of 5 seeds at 20,000 steps",
        config=SMALL,
    ),
    "cartpole_mpo": Case(
        "CartPole-v1",
        MPO,
        50_000,
        5_000,
        FIVE,
        100,
        475,
        "return of the worst of 5 seeds at 50,000 steps",
        config={**SMALL, "target_average": 0.02},
    ),
    "half_cheetah_mpo": Case(
        "HalfCheetah-v5",
        MPO,
        100_000,
        10_000,
        (0, 1, 2),
        10,
        -math.inf,
        "beside half_cheetah_sac",
        judged_by_mean=True,
        # The draws of the E-step are most of the work, and bfloat16 products do it three times as fast.
        config={"learning_starts": 5_000, "learning_rate": 1e-3, "precision": "bfloat16"},
    ),
}
# The same in other ways, beside them.
CASES["pendulum_batch_norm"] = replace(
    CASES["pendulum_sac"],
    config={**SMALL_BATCH_NORM, "learning_starts": 500},
)
CASES["half_cheetah_batch_norm_one_update"] = _crossq(
    "HalfCheetah-v5", 7_168, "CrossQ's less a standard deviation", updates_per_step=1
)
CASES["half_cheetah_batch_norm_wide"] = _crossq(
    "HalfCheetah-v5",
    7_168,
    "CrossQ's less a standard deviation",
    updates_per_step=1,
    critic_hidden_sizes=(512, 512),
)
CASES["lunar_lander_continuous_batch_norm"] = Case(
    partial(gymnasium.make, "LunarLander-v3", continuous=True),
    SoftActorCritic,
    60_000,
    10_000,
    (0, 1, 2),
    20,
    200,
    "return of the worst of 3 seeds at 60,000 steps",
    config=SMALL_BATCH_NORM,
)
# Where the policy learns in every third update alone, landers with discrete actions hover, or stay below 200.
CASES["lunar_lander_batch_norm"] = replace(
    CASES["lunar_lander_continuous_batch_norm"],
    env_id="LunarLander-v3",
    config={**SMALL_BATCH_NORM, "target_entropy": 0.4, "actor_every": 1},
)
CASES["half_cheetah_sac_bfloat16"] = replace(
    CASES["half_cheetah_sac"],
    seeds=(0, 1, 2),
    wanted="mean return of 3 seeds at 100,000 steps, as half_cheetah_sac",
    config={"precision": "bfloat16"},
)
LONG = tuple(name for name, case in CASES.items() if case.steps >= 100_000)


def final_returns(name: str) -> list[float]:
    """Returns the last mean return of every seed whose curve is complete in the repository."""
    finals = []
    for path in sorted(CURVES.glob(f"{name}_seed*.csv")):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        if rows and int(rows[-1]["step"]) >= CASES[name].steps:
            finals.append(float(rows[-1]["mean_return"]))
    return finals


def seconds_to(wanted: float, path: Path) -> list[tuple[float, bool]]:
    """Returns for each seed of a file the seconds of learning until it first earns what is wanted, and whether it did.

    Between evaluations a curve is straight; one that stays below took all its seconds and more.
    """
    with path.open() as file:
        rows = list(csv.DictReader(file))
    found = []
    for seed in dict.fromkeys(row.get("seed") for row in rows):
        curve = [(float(row["seconds"]), float(row["mean_return"])) for row in rows if row.get("seed") == seed]
        above = next((index for index, (_, earned) in enumerate(curve) if earned >= wanted), None)
        if above is None or above == 0:
            found.append((curve[-1 if above is None else 0][0], above == 0))
            continue
        (start, low), (end, high) = curve[above - 1 : above + 1]
        found.append((start + (wanted - low) / (high - low) * (end - start), True))
    return found


def run(name: str, seeds: Sequence[int] | None = None, keep: Path | None = None, steps: int | None = None) -> None:
    """Learns a case and writes its curves: all its seeds in one batched update, or those named one by one.

    Where there is a folder to ``keep`` agents in, a run that was stopped goes on from its last evaluation. With
    ``steps`` it ends after so many, before the case does.
    """
    case = CASES[name]
    if steps is not None:
        case = replace(case, steps=min(steps, case.steps))
    if seeds is None and case.together:
        _learn(name, case, list(case.seeds), seed=0, together=True, keep=keep)
        return
    for seed in seeds or case.seeds:
        _learn(name, case, [seed], seed=seed, together=False, keep=keep)


def _learn(name: str, case: Case, labels: list[int], *, seed: int, together: bool, keep: Path | None) -> None:
    agent = case.agent(case.env_id, seed=seed, seeds=len(labels) if together else None, compile=True, **case.config)
    curves: dict[int, list[dict[str, float]]] = {label: [] for label in labels}
    seconds = 0.0
    path = None if keep is None else keep / f"{name}_seed{seed}"
    if path is not None and path.exists():
        notes = agent.restore(path)
        seconds, curves = notes["seconds"], {int(label): rows for label, rows in notes["curves"].items()}
    while agent.num_steps < case.steps:
        started = time.perf_counter()
        agent.learn(case.every, progress=False)
        seconds += time.perf_counter() - started
        returns = agent.evaluate(case.episodes, seed=10_000 + seed).returns.reshape(len(labels), -1)
        for index, label in enumerate(labels):
            row = {
                "step": agent.num_steps,
                "mean_return": round(float(returns[index].mean()), 3),
                "least_return": round(float(returns[index].min()), 3),
                "temperature": round(agent.temperatures[index], 6),
                "entropy": round(agent.recent[index].get("entropy", float("nan")), 4),
                "seconds": round(seconds, 2),
            }
            curves[label].append(row)
            print(name, "seed", label, row, flush=True)
            write(name, label, curves[label])
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            agent.save(path, seconds=seconds, curves={str(label): rows for label, rows in curves.items()})


def write(name: str, seed: int, rows: list[dict[str, float]]) -> None:
    """Writes a curve."""
    CURVES.mkdir(parents=True, exist_ok=True)
    with (CURVES / f"{name}_seed{seed}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: list[str] | None = None) -> None:
    """Learns cases from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; by default all but {' and '.join(LONG)}")
    parser.add_argument("--seeds", type=int, nargs="+", help="these seeds, one by one")
    parser.add_argument("--keep", type=Path, help="folder to keep agents in, from which a stopped run goes on")
    parser.add_argument("--steps", type=int, help="end after so many, before the case does")
    given = parser.parse_args(arguments)
    for name in given.cases:
        if name not in CASES:
            parser.error(f"there is no case {name!r}; choose from {', '.join(CASES)}")
    for name in given.cases or [name for name in CASES if name not in LONG]:
        run(name, given.seeds, given.keep, given.steps)


if __name__ == "__main__":
    main()
