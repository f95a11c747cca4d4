"""What should an agent do that knows the shape of its world, and not where anything is?

It dives into DeepSea: one treasure in the far corner, and every step towards it costs a little. Strategies that tell
ignorance from luck find it in a number of dives that grows like a power of the size; soft Q-learning, to which what it
does not know is as dull as what it knows to be worth nothing, needs as many as a diver who tosses coins. Then a
machine with two arms, which is small enough to be explored as well as can be.
"""

import sys
from statistics import median

import torch

import rl_as_inference as rlai
from rl_as_inference import exact, models
from rl_as_inference.models import families

STRATEGIES = ("posterior_sampling", "k_learning", "soft_q")


def main(quick: bool = False) -> None:
    sizes, seeds = ((4, 7), 5) if quick else ((4, 6, 8, 10), 10)
    print("dives until DeepSea is solved, medians")
    for size in sizes:
        row = []
        for strategy in STRATEGIES:
            found = rlai.explore(
                families.deep_sea(size),
                models.deep_sea(size, mapping_seed=0),
                strategy=strategy,
                num_episodes=4000,
                num_seeds=seeds,
                stop_when_solved=True,
            )
            row.append(median(after if after is not None else 4000 for after in found.solved_after))
        print(f"  size {size:>2}  " + "  ".join(f"{s} {n:.0f}" for s, n in zip(STRATEGIES, row, strict=True)))

    family, machine, pulls = (
        families.bandit(2, dtype=torch.float64),
        models.bandit((0.45, 0.7), dtype=torch.float64),
        10,
    )
    life = rlai.bayes_adaptive(family, num_episodes=pulls)
    worth = float(exact.plan(life.process.at_temperature(1e-9)).objective) * 1e-9
    print(f"ten pulls of a machine that nobody knows are worth {worth:.4f} to whoever explores it exactly")
    print(f"regret over them, if its arms pay {0.45} and {0.7}")
    for strategy in ("exact", *STRATEGIES):
        found = rlai.explore(family, machine, strategy=strategy, num_episodes=pulls, num_seeds=100 if quick else 1000)
        print(f"  {strategy:<20} {float(found.regret.sum(1).mean()):.3f}")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
