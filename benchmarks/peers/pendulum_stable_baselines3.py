"""Stable-Baselines3's soft actor-critic in the setting of ``benchmarks.pendulum_seeds``, as CSV on standard output.

    make .peers/stable_baselines3/.installed
    PYTHONPATH=. .peers/stable_baselines3/bin/python benchmarks/peers/pendulum_stable_baselines3.py 900 901 902

Learning rate 1e-3, 1,000 random steps first, everything else at its default. Each row is the mean return of the
deterministic policy over twenty episodes (the same for all), and how many of them end below -500.
"""

import sys

from benchmarks.peers.curve_stable_baselines3 import learner, returns


def main(seeds: list[str]) -> None:
    print("seed,step,mean_return,never_at_rest")
    for seed in map(int, seeds):
        model = learner("Pendulum-v1", seed)
        for steps in (4000, 500, 500):
            model.learn(steps, log_interval=None, reset_num_timesteps=False)
            found = returns(model, "Pendulum-v1", episodes=20)
            late = sum(value < -500 for value in found)
            print(f"{seed},{model.num_timesteps},{sum(found) / len(found):.1f},{late}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
