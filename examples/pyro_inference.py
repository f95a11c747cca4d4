"""Can I use Pyro's own inference on such a program?

Yes, unchanged: action sites are ordinary sample sites and rewards are ordinary factors. Four of Pyro's
tools on one corridor:

- ``TraceEnum_ELBO`` sums out every draw: the exact ELBO of a policy, and the exact log evidence;
- ``infer_discrete`` draws whole trajectories from the exact posterior given optimality;
- ``Importance`` estimates the log evidence from a policy's own trajectories;
- ``SVI`` with ``Trace_ELBO`` trains a policy.

``rlai.survival`` renders the discount as survival coins, as the evidence and the posterior need it.
"""

import sys
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Importance, Trace_ELBO, TraceEnum_ELBO, config_enumerate, infer_discrete
from pyro.poutine import condition, trace

import rl_as_inference as rlai
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.models import corridor

CELLS, HORIZON = 4, 6


def enumerated(program: Callable[[], Any], guide: Callable[[], Any] | None = None) -> float:
    """Returns the exact ELBO of a guide, or the log evidence without one, in nats."""
    guide = (lambda: None) if guide is None else config_enumerate(guide)
    return -TraceEnum_ELBO(max_plate_nesting=0).loss(config_enumerate(program), guide)


def main(quick: bool = False) -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    program = corridor(length=CELLS, horizon=HORIZON, temperature=1.0)
    survived = rlai.survival(program)

    print("TraceEnum_ELBO")
    evidence = enumerated(survived)
    print(f"  log evidence log p(O)         {evidence:.4f} nats")
    print(f"  ELBO of the action prior      {enumerated(program, rlai.simulate(program)):.4f} nats")

    print("infer_discrete")
    num_draws = 500 if quick else 5000

    def walks() -> None:
        with pyro.plate("walks", num_draws):
            survived()

    draw = infer_discrete(config_enumerate(walks), first_available_dim=-2)
    sites = trace(draw).get_trace().nodes
    share = float((sites["action_0"]["value"] == 1).float().mean())
    first_right = condition(survived, {"action_0": torch.tensor(1)})
    exact = torch.tensor(enumerated(first_right) - evidence).exp()
    print(f"  first step to the right       {share:.3f} of {num_draws} draws, {exact:.3f} exactly")
    for walk in range(3):
        path = [int(sites[f"state_{t}"]["value"][walk]) for t in range(HORIZON + 1)]
        print(f"  a walk that explains success  {' '.join(map(str, path))}")

    print("SVI with Trace_ELBO")
    policy = TabularPolicy(CELLS, 2, horizon=HORIZON)
    optimizer = pyro.optim.Adam({"lr": 0.1})
    elbo = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(program, rlai.follow(program, policy), optimizer, loss=elbo)
    for _ in range(40 if quick else 200):
        svi.step()
    print(f"  ELBO of the trained policy    {enumerated(program, rlai.follow(program, policy)):.4f} nats")

    print("Importance")
    guide = rlai.follow(survived, policy)
    with torch.no_grad():
        num_samples = 100 if quick else 500
        weights = Importance(survived, guide, num_samples=num_samples).run()
    error = (1 / weights.get_ESS() - 1 / num_samples).sqrt()
    print(f"  log evidence from the policy  {weights.get_log_normalizer():.4f} ± {error:.4f} nats, ", end="")
    print(f"effective sample size {weights.get_ESS():.0f} of {num_samples}")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
