"""Learning curves of Stable-Baselines3's soft actor-critic, or SBX's CrossQ, seed by seed, as CSV on standard output.

    make .peers/stable_baselines3/.installed .peers/sbx/.installed
    PYTHONPATH=. .peers/stable_baselines3/bin/python benchmarks/peers/curve_stable_baselines3.py HalfCheetah-v5 0 1 2
    PYTHONPATH=. .peers/sbx/bin/python benchmarks/peers/curve_stable_baselines3.py HalfCheetah-v5 0 --crossq

Soft actor-critic has learning rate 1e-3 and 5,000 random steps first, as this project's defaults are, and everything
else at its own default, which is the same there: 256×256, batches of 256, one update a step, a tuned temperature.
CrossQ has every option at SBX's default (critics of 1024×1024). Both compute on one thread. Each row is the mean and
the least return of the deterministic policy, and the seconds of learning so far.
"""

import argparse
import os
import time
from typing import Any

import gymnasium
import torch
from stable_baselines3 import SAC

__all__ = ["crossq", "learner", "main", "returns"]


def learner(env_id: str, seed: int) -> SAC:
    """Returns a soft actor-critic in the setting that is compared."""
    torch.set_num_threads(1)
    return SAC("MlpPolicy", env_id, seed=seed, learning_rate=1e-3, learning_starts=5000, device="cpu")


def crossq(env_id: str, seed: int) -> Any:
    """Returns SBX's CrossQ as it comes."""
    # XLA reads the size of its thread pool from here, once, when JAX starts.
    os.environ.update(NPROC="1", JAX_PLATFORMS="cpu")
    from sbx import CrossQ

    torch.set_num_threads(1)
    return CrossQ("MlpPolicy", env_id, seed=seed)


def returns(model: Any, env_id: str, episodes: int) -> list[float]:
    """Returns the undiscounted returns of the deterministic policy, in episodes that are the same for all."""
    environment, found = gymnasium.make(env_id), []
    for episode in range(episodes):
        observation, _ = environment.reset(seed=10_000 + episode)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = environment.step(action)
            total, over = total + float(reward), terminated or truncated
        found.append(total)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment")
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--crossq", action="store_true", help="SBX's CrossQ instead")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=10_000)
    parser.add_argument("--episodes", type=int, default=10)
    given = parser.parse_args()
    print("seed,step,mean_return,least_return,seconds", flush=True)
    for seed in given.seeds:
        model, seconds = (crossq if given.crossq else learner)(given.environment, seed), 0.0
        while model.num_timesteps < given.steps:
            start = time.perf_counter()
            model.learn(given.every, log_interval=None, reset_num_timesteps=False)
            seconds += time.perf_counter() - start
            found = returns(model, given.environment, given.episodes)
            row = (model.num_timesteps, f"{sum(found) / len(found):.1f}", f"{min(found):.1f}", f"{seconds:.0f}")
            print(seed, *row, sep=",", flush=True)


if __name__ == "__main__":
    main()
