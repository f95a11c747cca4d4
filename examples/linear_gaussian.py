"""Does a policy trained by gradients reach the optimum where the optimum is known?

Linear dynamics, Gaussian noise and quadratic rewards have exact answers: the Riccati recursion with entropy
gives the largest ELBO, and Gaussian algebra the log evidence. Here a time-varying linear-Gaussian policy,
whose family holds the optimum, is trained on the double integrator by gradients through actions and
dynamics, and compared with the exact plan.
"""

import sys

import rl_as_inference as rlai
from rl_as_inference.guides import LinearGaussianPolicy
from rl_as_inference.models import double_integrator


def main(quick: bool = False) -> None:
    cart = double_integrator(horizon=10)
    best = rlai.exact.plan(cart)
    policy = LinearGaussianPolicy(state_size=2, action_size=1, horizon=10)
    print(f"before training   ELBO {rlai.exact.elbo(cart, policy):8.3f} nats")

    steps, rate = (100, 0.06) if quick else (600, 0.03)
    fitted = rlai.fit(cart, policy, steps=steps, estimator="pathwise", learning_rate=rate, seed=0)
    elbo = rlai.exact.elbo(cart, policy)
    print(f"after training    ELBO {elbo:8.3f} nats, {len(fitted.elbo)} pathwise gradients")
    print(f"the optimum       ELBO {best.objective:8.3f} nats, so that the policy gap is {best.objective - elbo:.4f}")
    print(f"log evidence           {rlai.exact.log_evidence(cart):8.3f} nats, with helpful gusts")
    print()
    print("the force along the way: mean ± standard deviation")
    way = cart.rollout(best, 4000).states.mean(1)
    for t in (0, 3, 6, 9):
        position, velocity = way[t].tolist()
        learned, exact = policy(way[t], t), best(way[t], t)
        print(
            f"  t = {t}   position {position:5.2f}, velocity {velocity:5.2f}:"
            f"   learned {learned.mean.item():5.2f} ± {learned.stddev.item():.2f}"
            f"   exact {exact.mean.item():5.2f} ± {exact.stddev.item():.2f}"
        )


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
