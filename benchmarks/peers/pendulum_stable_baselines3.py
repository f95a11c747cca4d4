"""Stable-Baselines3's soft actor-critic in the setting of ``benchmarks.pendulum_seeds``, as CSV on standard output.

    make .peers/stable_baselines3/.installed
    .peers/stable_baselines3/bin/python benchmarks/peers/pendulum_stable_baselines3.py 900 901 902

Learning rate 1e-3, 1,000 random steps first, everything else at its default. Each row is the mean return of the
deterministic policy over twenty episodes (the same for all), and how many of them end below -500.
"""

import sys

import gymnasium
import torch
from stable_baselines3 import SAC


def returns(model: SAC, episodes: int = 20) -> list[float]:
    environment, found = gymnasium.make("Pendulum-v1"), []
    for episode in range(episodes):
        observation, _ = environment.reset(seed=10_000 + episode)
        total, over = 0.0, False
        while not over:
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = environment.step(action)
            total, over = total + float(reward), terminated or truncated
        found.append(total)
    return found


def main(seeds: list[str]) -> None:
    torch.set_num_threads(1)
    print("seed,step,mean_return,never_at_rest")
    for seed in map(int, seeds):
        model = SAC("MlpPolicy", "Pendulum-v1", seed=seed, learning_rate=1e-3, learning_starts=1000, device="cpu")
        for steps in (4000, 500, 500):
            model.learn(steps, log_interval=None, reset_num_timesteps=False)
            found = returns(model)
            late = sum(value < -500 for value in found)
            print(f"{seed},{model.num_timesteps},{sum(found) / len(found):.1f},{late}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
