"""The ELBO by rollouts."""

import torch

from rl_as_inference.arguments import checked
from rl_as_inference.estimate import Estimate
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import Policy, Problem
from rl_as_inference.processes.gymnasium_process import own_episodes
from rl_as_inference.processes.programs import as_process
from rl_as_inference.sharing import sharing

__all__ = ["Estimate", "estimate_elbo"]


@checked
@in_turn
@torch.no_grad()
def estimate_elbo(
    process: Problem,
    policy: Policy | None,
    num_trajectories: int = 4096,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    distributed: bool = False,
) -> Estimate:
    """Returns the ELBO of ``policy`` by rollouts, in nats.

    Args:
        process: a process or a Pyro program.
        policy: a callable ``(state, t) -> Distribution``; None for the action prior.
        num_trajectories: how many independent rollouts, ≥ 2 for a standard error.
        seed: of what is drawn; None follows PyTorch's generator, from where it is.
        generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.
        distributed: the rollouts are shared out among the ranks of a ``torchrun`` job, and the estimate is that of all.

    Raises:
        ValueError: if there are fewer rollouts than ranks, or ranks with another process or policy.
        RankError: if another rank has ended.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> _ = torch.manual_seed(0)
        >>> print(estimate_elbo(mdp, None, 1000))
        2.015 ± 0.031
    """
    process = as_process(process)
    with sharing(distributed, process, policy, num_trajectories=num_trajectories) as ranks:
        with ranks.own_stream(), own_episodes(process, ranks):
            weights = process.rollout(policy, ranks.share(num_trajectories)).log_weight()
        return Estimate.of(weights, ranks)
