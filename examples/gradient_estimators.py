"""Which gradient estimator should I use?

The gradient of the ELBO can be estimated in several ways that agree on average and differ in noise. On a
random process the exact gradient is known, so that bias and variance of each estimator can be measured.
Critics are the exact soft values of the policy here; a learned critic lies between these rows and the
rows without one.

The variance is the total over all parameters, for a gradient from one trajectory, in nats². The bias is
that of the mean, in its own standard errors: beyond 3 it would be real.
"""

import sys
import time
from typing import Any

import torch

import rl_as_inference as rlai
from rl_as_inference.critics import TableCritic
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.models import random_mdp


def main(quick: bool = False) -> None:
    torch.manual_seed(0)
    num_gradients, batch = (60, 64) if quick else (600, 64)
    mdp = random_mdp(num_states=8, num_actions=3, horizon=10)
    policy = TabularPolicy(8, 3, horizon=10)
    (exact,) = torch.autograd.grad(rlai.exact.elbo(mdp, policy), policy.logits)

    values: Any = rlai.exact.evaluate(mdp, policy)
    soft_v, soft_q = TableCritic(values.soft_v), TableCritic(values.soft_q)
    rows: dict[str, rlai.TrajectoryELBO] = {
        "score, full return": rlai.TrajectoryELBO("full_return"),
        "score, return-to-go": rlai.TrajectoryELBO("score"),
        "  less a soft value baseline": rlai.TrajectoryELBO("baseline", soft_v),
        "soft advantage, λ = 0.5": rlai.TrajectoryELBO("advantage", soft_v, lambda_=0.5),
        "soft advantage, λ = 0": rlai.TrajectoryELBO("advantage", soft_v, lambda_=0.0),
        "exact sum over actions, soft Q": rlai.TrajectoryELBO("exact_sum", soft_q),
    }
    guide = rlai.follow(mdp, policy)
    print(f"{'estimator':<32} {'variance':>9} {'bias / s.e.':>12} {'ms a gradient':>14}")
    for name, objective in rows.items():
        gradients = []
        started = time.perf_counter()
        for _ in range(num_gradients):
            loss = objective.differentiable_loss(mdp, guide, batch) / batch
            (gradient,) = torch.autograd.grad(-loss, policy.logits)
            gradients.append(gradient)
        milliseconds = 1000 * (time.perf_counter() - started) / num_gradients
        stacked = torch.stack(gradients)
        variance = batch * stacked.var(0).sum()
        # The estimate's error along the exact gradient, the direction that matters.
        along = ((stacked - exact) * exact).sum((1, 2, 3))
        bias = along.mean() / (along.std() / num_gradients**0.5)
        print(f"{name:<32} {variance:9.2f} {bias:12.2f} {milliseconds:14.2f}")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv[1:])
