"""How do I write a problem of my own, and train a policy on it?

Write the problem once, as a Pyro program: draw states as Pyro draws anything, actions by ``rlai.act``,
rewards by ``rlai.reward``, and let ``rlai.steps`` count the time. ``rlai.follow`` turns the program
and a policy into a guide, and Pyro's SVI trains it on the trajectory ELBO.

The problem here is a corridor of five cells with a prize in the last one and a slippery floor. It is small
enough to be written down as tables, too, which tells how good the trained policy is.
"""

import sys

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI

import rl_as_inference as rlai
from rl_as_inference.guides import TabularPolicy

CELLS, HORIZON, DISCOUNT, TEMPERATURE, SLIP = 5, 8, 0.95, 0.5, 0.1

start = torch.zeros(CELLS)
start[0] = 1.0
payoff = torch.zeros(CELLS, 2)
payoff[-1] = 1.0
move = torch.zeros(CELLS, 2, CELLS)
for cell in range(CELLS):
    left, right = max(cell - 1, 0), min(cell + 1, CELLS - 1)
    move[cell, 0, left] += 1 - SLIP
    move[cell, 0, right] += SLIP
    move[cell, 1, right] += 1 - SLIP
    move[cell, 1, left] += SLIP


def corridor() -> None:
    """The problem: one walk along the corridor."""
    state = pyro.sample("state_0", dist.Categorical(start))
    for t in rlai.steps(HORIZON, discount=DISCOUNT):
        action = rlai.act(f"action_{t}", state, prior=dist.Categorical(logits=torch.zeros(2)))
        rlai.reward(f"reward_{t}", payoff[state, action], temperature=TEMPERATURE)
        state = pyro.sample(f"state_{t + 1}", dist.Categorical(move[state, action]))


def walks() -> None:
    """The same for 256 walks at once."""
    with pyro.plate("walks", 256):
        corridor()


def main(quick: bool = False) -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    num_steps = 100 if quick else 600

    policy = TabularPolicy(CELLS, 2, horizon=HORIZON)
    optimizer = pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.05 ** (1 / num_steps)}
    )
    svi = SVI(walks, rlai.follow(walks, policy), optimizer, loss=rlai.TrajectoryELBO())
    for step in range(num_steps):
        loss = svi.step() / 256
        optimizer.step()
        if step % (num_steps // 5) == 0:
            print(f"step {step:4d}   ELBO {-loss:6.3f} nats")

    tables = rlai.TabularMDP(move, payoff, start, horizon=HORIZON, discount=DISCOUNT, temperature=TEMPERATURE)
    elbo, best = rlai.exact.elbo(tables, policy), rlai.exact.optimal_elbo(tables)
    print()
    print(f"ELBO of the policy, by rollouts  {rlai.estimate_elbo(corridor, policy)} nats")
    print(f"ELBO of the policy, exact        {elbo:.3f} nats")
    print(f"largest ELBO of any policy       {best:.3f} nats, so training left {best - elbo:.3f}")
    print(f"log evidence log p(O)            {rlai.exact.log_evidence(tables):.3f} nats, with luck on one's side")
    print()
    right = policy(torch.arange(CELLS), 4).probs[:, 1].tolist()
    print("probability of stepping right at t = 4, cell by cell: " + "  ".join(f"{p:.2f}" for p in right))


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
