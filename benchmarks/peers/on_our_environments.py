"""Other people's agents on this project's environments, by their ids, held to the exact answers.

``make environment-peers`` installs Stable-Baselines3 beside this project and runs
``python -m benchmarks.peers.on_our_environments`` there. Stable-Baselines3 is given an id and nothing else, as its
users would; a DQN on one page, in the style of CleanRL (whose own package is for older versions of Python), is given
the batched environments. What is learned is asked for its greedy action in every state, and that policy's return is
exact, as is the best return of any policy: no episode is drawn to judge. Soft actor-critic's environment is continuous
and has no exact answer; it is held to a policy that runs straight to the nearest goal.

The run ends in PASS, or in FAIL if a learner stays below its share of the way from the action prior to the best.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch

import rl_as_inference as rlai
from benchmarks.peers.one_page_dqn import learn
from rl_as_inference.tables import render

__all__ = ["Row", "main"]

_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "environments.json"
_SHARE = 0.9
"""Of the way from the action prior's return to the best, that each must go."""

Greedy = Callable[[Any], Any]
"""Observations ``(N, ...)`` to actions ``(N, ...)``."""


@dataclass(frozen=True)
class Row:
    """What a learner came to; returns in reward units, undiscounted."""

    env_id: str
    learner: str
    steps: int
    reached: float
    best: float
    prior: float
    seconds: float

    @property
    def share(self) -> float:
        """Of the way from the action prior's return to the best."""
        return (self.reached - self.prior) / (self.best - self.prior)


def finite(env_id: str, learner: str, steps: int, train: Callable[[], Greedy], **options: Any) -> Row:
    """Returns how a learner did on a finite process, exactly."""
    process = gymnasium.make(env_id, **options).unwrapped.process  # type: ignore[attr-defined]
    started = time.perf_counter()
    greedy = train()
    seconds = time.perf_counter() - started
    actions = torch.as_tensor(greedy(np.arange(process.num_states))).long()
    table = torch.nn.functional.one_hot(actions, process.num_actions).to(process.reward_table)
    if process.horizon is not None:
        table = table.expand(process.horizon, *table.shape)
    best = rlai.rationality_curve(process, [1.0]).best_return
    assert best is not None
    reached = float(rlai.exact.expected_return(process, table))
    return Row(env_id, learner, steps, reached, best, float(rlai.exact.expected_return(process, None)), seconds)


def many_goals(learner: str, steps: int, train: Callable[[], Greedy], episodes: int) -> Row:
    """Returns how a learner did between the goals, by episodes that begin alike for all."""
    env_id = "rlai/MultiGoal-v0"
    started = time.perf_counter()
    greedy = train()
    seconds = time.perf_counter() - started
    envs = gymnasium.make_vec(env_id, episodes)
    goals = envs.process.goals.numpy()  # type: ignore[attr-defined]

    def straight(seen: Any) -> Any:
        nearest = goals[((seen[:, None] - goals) ** 2).sum(-1).argmin(1)]
        return np.clip((nearest - seen) / envs.process.speed, -1, 1).astype(np.float32)  # type: ignore[attr-defined]

    def earned(choose: Greedy) -> float:
        seen, _ = envs.reset(seed=0)
        total = np.zeros(episodes)
        for _ in range(envs.process.horizon):  # type: ignore[attr-defined]
            seen, rewards, *_ = envs.step(choose(seen))
            total += rewards
        return float(total.mean())

    envs.action_space.seed(0)
    prior = earned(lambda seen: envs.action_space.sample())
    return Row(env_id, learner, steps, earned(greedy), earned(straight), prior, seconds)


def of_baselines(kind: str, env_id: str, steps: int, options: dict[str, Any], **settings: Any) -> Callable[[], Greedy]:
    """Returns what trains an agent of Stable-Baselines3 on an id."""

    def train() -> Greedy:
        env = gymnasium.make(env_id, **options)
        model = getattr(stable_baselines3, kind)("MlpPolicy", env, seed=0, device="cpu", **settings)
        model.learn(steps, log_interval=None)
        return lambda seen: model.predict(seen, deterministic=True)[0]

    return train


def main(arguments: list[str] | None = None) -> int:
    """Trains them all, prints the table and writes it; returns 1 if one stays below its share."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.on_our_environments", description=__doc__)
    parser.add_argument("--out", type=Path, default=_RESULTS, help="file for the results (default: %(default)s)")
    out = parser.parse_args(arguments).out
    torch.set_num_threads(1)
    lake, grid = {"map_name": "4x4"}, {"horizon": 30}
    dqn = {
        "learning_rate": 1e-3,
        "exploration_fraction": 0.5,
        "target_update_interval": 500,
        "learning_starts": 1000,
        "batch_size": 128,
    }
    net = {"policy_kwargs": {"net_arch": [64]}}
    rows = [
        finite(
            "rlai/FrozenLake-v0",
            "Stable-Baselines3 DQN",
            120_000,
            of_baselines("DQN", "rlai/FrozenLake-v0", 120_000, lake, **dqn, **net),
            **lake,
        ),
        finite(
            "rlai/Gridworld-v0",
            "Stable-Baselines3 PPO",
            40_000,
            of_baselines("PPO", "rlai/Gridworld-v0", 40_000, grid, learning_rate=1e-3, n_steps=512, **net),
            **grid,
        ),
        finite(
            "rlai/FrozenLake-v0",
            "one-page DQN",
            400_000,
            lambda: learn("rlai/FrozenLake-v0", 400_000, num_envs=16, seed=0, **lake),
            **lake,
        ),
        many_goals(
            "Stable-Baselines3 SAC",
            8000,
            of_baselines("SAC", "rlai/MultiGoal-v0", 8000, {}, learning_rate=1e-3, learning_starts=500, **net),
            episodes=2000,
        ),
    ]
    cells = [
        (
            row.env_id,
            row.learner,
            f"{row.steps:,}",
            f"{row.prior:.4f}",
            f"{row.reached:.4f}",
            f"{row.best:.4f}",
            f"{row.share:.1%}",
            f"{row.seconds:.0f}",
        )
        for row in rows
    ]
    header = ("environment", "learner", "steps", "prior (reward)", "reached (reward)", "best (reward)", "share", "s")
    print(render("Other people's agents on these environments", header, cells, right=range(2, 8)))
    kept = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("stable-baselines3", "gymnasium", "torch")},
        "units": {"reached": "reward", "best": "reward", "prior": "reward", "seconds": "s", "steps": "steps"},
        "rows": [{**asdict(row), "share": row.share} for row in rows],
    }
    out.write_text(json.dumps(kept, indent=2) + "\n")
    short = [row for row in rows if row.share < _SHARE]
    print("PASS" if not short else f"FAIL: {', '.join(row.learner for row in short)} below {_SHARE:.0%}")
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
