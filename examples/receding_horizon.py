"""How does an agent plan in a Pyro program while the world goes its own way?

It conditions the program on what happened so far, asks the posterior for the next action, acts, and looks again: model
predictive control as inference, in a loop of ten lines. The program is any that Pyro runs. Here a house is to be kept
at 20 degrees; its windows are opened at noon, which the program does not know, and the agent heats against it.

Conditioning on success tilts luck too. Where that matters, give the problem in parts and use ``SMCPlanner``, which
leaves dynamics alone (docs/planning.md).
"""

import sys
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import rl_as_inference as rlai


def warmer(warmth: Tensor, heat: Tensor, cold: float = 10.0) -> dist.Normal:
    """Returns how warm it is an hour later."""
    return dist.Normal(warmth - 0.1 * (warmth - cold) + 1.5 * heat, 0.3)


def house(hours: int) -> None:
    warmth = pyro.sample("warmth_0", dist.Normal(15.0, 0.5))
    for t in rlai.steps(hours):
        heat = rlai.act(f"heat_{t}", warmth, dist.Categorical(torch.ones(3)))
        warmth = pyro.sample(f"warmth_{t + 1}", warmer(warmth, heat))
        rlai.reward(f"comfort_{t}", -(warmth - 20).square() / 10 - 0.1 * heat, temperature=0.1)


def main(quick: bool = False) -> None:
    pyro.set_rng_seed(0)
    hours, ahead, draws = 10, 3, 1000 if quick else 10_000
    so_far = {"warmth_0": torch.tensor(15.0)}
    print("hour   warmth   heat   what the posterior says of heat 0, 1, 2")
    for t in range(hours):
        program = pyro.condition(partial(house, t + ahead), data=so_far)
        found = rlai.posterior(program, method="importance", num_draws=draws)
        chances = torch.bincount(torch.as_tensor(found.posterior["action"].values[0, :, t]).long(), minlength=3) / draws
        heat = chances.argmax()
        cold = 10.0 if t < hours // 2 else 3.0  # the windows, of which the program knows nothing
        warmth = so_far[f"warmth_{t}"]
        so_far[f"heat_{t}"], so_far[f"warmth_{t + 1}"] = heat, warmer(warmth, heat, cold).sample()
        print(f"{t:>4} {float(warmth):8.1f} {int(heat):>6}   {', '.join(f'{float(p):.2f}' for p in chances)}")
    felt = torch.stack([so_far[f"warmth_{t}"] for t in range(3, hours + 1)])
    worst = float((felt - 20).abs().max())
    print(f"from hour 3 on: {float(felt.mean()):.1f} degrees on average, at most {worst:.1f} from 20")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
