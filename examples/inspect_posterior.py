"""Which trajectories explain success, and how do I look at them?

``rlai.posterior`` draws from the posterior over trajectories as ArviZ data, which ArviZ and xarray can
summarise and plot. A point may go to any of four goals here; a tanh-Gaussian policy is trained and
used twice: as the answer itself (``method="guide"``) and as the proposal for importance sampling, whose
Pareto k̂ tells whether the weights can be trusted (below 0.7).
"""

import sys
from typing import Any

import numpy as np
import torch

import rl_as_inference as rlai
from rl_as_inference.guides import amortized_policy
from rl_as_inference.inspect import Method
from rl_as_inference.models import point_mass


def main(quick: bool = False) -> None:
    torch.manual_seed(0)
    process = point_mass()
    policy = amortized_policy(process, hidden_sizes=(32, 32))
    rlai.fit(process, policy, steps=60 if quick else 400, learning_rate=0.03, seed=0)

    goals = process.goals.numpy()
    print("share of trajectories that end nearest to each goal, and the mean return in reward units")
    print("                           east  north   west  south    return")
    readings: tuple[tuple[str, Any, Method], ...] = (
        ("action prior", None, "guide"),
        ("trained guide", policy, "guide"),
        ("importance sampling", policy, "importance"),
    )
    for title, proposal, method in readings:
        data = rlai.posterior(process, proposal, method=method, num_draws=500 if quick else 4000)
        last = data.posterior["final_state"].values[0]
        nearest = np.linalg.norm(last[:, None] - goals, axis=-1).argmin(-1)
        shares = np.bincount(nearest, minlength=4) / len(nearest)
        earned = float(data.sample_stats["return"].mean())
        print(f"{title:<24}" + "".join(f"{share:7.2f}" for share in shares) + f"{earned:10.2f}")
    notes = data.posterior.attrs
    print()
    print(f"Pareto k̂ {notes['pareto_k']:.2f}, log evidence {notes['log_evidence']:.2f} nats")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
