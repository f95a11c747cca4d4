"""What has the ELBO to do with the objective of soft actor-critic?

They are the same objective in other units: ``J_SAC = α ELBO - α E Σ γ^t log p(a|s)``, and the last term is a
constant for a uniform action prior. ``rlai.compare`` measures both for a trained policy, beside what is
exact: the largest ELBO and the log evidence, and the two gaps between them.
"""

import math
import sys

import torch

import rl_as_inference as rlai
from rl_as_inference.guides import amortized_policy
from rl_as_inference.models import gridworld


def main(quick: bool = False) -> None:
    torch.manual_seed(0)
    grid = gridworld(4, 4, horizon=12, walls=[(1, 1), (1, 2)])
    policy = amortized_policy(grid)
    rlai.fit(grid, policy, steps=50 if quick else 400, seed=0)
    comparison = rlai.compare(grid, policy, num_trajectories=2000 if quick else 20000)
    print(comparison.table())
    difference = comparison.sac_objective - comparison.temperature * comparison.elbo
    constant = comparison.temperature * 12 * math.log(4)
    print(f"J_SAC - α ELBO = {difference:.4f},  α T log |A| = {constant:.4f} reward units")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
