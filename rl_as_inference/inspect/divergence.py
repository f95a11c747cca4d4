"""How far a policy's trajectories are from those of success, by exact messages or by draws."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.estimate import Estimate
from rl_as_inference.inspect.evidence import estimate_log_evidence
from rl_as_inference.objectives import estimate_elbo
from rl_as_inference.processes.programs import as_process
from rl_as_inference.program.readings import Policy
from rl_as_inference.sampling import surviving_rollout
from rl_as_inference.trajectories import Trajectories

__all__ = ["DivergenceMethod", "trajectory_kl"]

DivergenceMethod = Literal["exact", "sample"]


@torch.no_grad()
def trajectory_kl(
    process: Any,
    policy: Policy | None,
    direction: exact.Direction = "reverse",
    *,
    method: DivergenceMethod | None = None,
    num_trajectories: int = 10_000,
) -> Estimate:
    """Returns the KL divergence between a policy's trajectories and those of success, in nats, with its error.

    ``"reverse"`` is ``KL(π(τ) ‖ p(τ|O))``, the maximum-entropy objective with its sign changed;
    ``"forward"`` is ``KL(p(τ|O) ‖ π(τ))``, the loss of imitating success
    (:func:`rl_as_inference.exact.trajectory_kl`; docs/distribution-matching.md).

    - ``"exact"``: by messages, for finite and linear-Gaussian processes; the standard error is 0.
    - ``"sample"``: the reverse one from ``num_trajectories`` rollouts of the policy, and for the forward one draws
      of the exact posterior where the process has them, else the policy's own draws weighted by
      ``p(τ,O)/π(τ)``. That is sure only while many of them carry weight: the standard error is then small, and
      where one carries all, the answer is near ``log num_trajectories`` at most. The log evidence is that of
      :func:`estimate_log_evidence`, and its error is counted.

    Args:
        process: a process or a Pyro program.
        policy: a callable ``(state, t) -> Distribution``; None for the action prior.
        direction: see above.
        method: see above; by default the first that the process allows.
        num_trajectories: draws, ≥ 2.

    Raises:
        ValueError: for an unknown direction or method, or a process that the method cannot treat.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> _ = torch.manual_seed(0)
        >>> print(trajectory_kl(mdp, None), "|", trajectory_kl(mdp, None, method="sample"))
        0.4805 ± 0 | 0.487 ± 0.01
    """
    if direction not in get_args(exact.Direction):
        raise ValueError(f"direction must be 'reverse' or 'forward', got {direction!r}")
    if method is not None and method not in get_args(DivergenceMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(DivergenceMethod))}, or None; got {method!r}")
    if num_trajectories < 2:
        raise ValueError(f"num_trajectories must be >= 2, got {num_trajectories}")
    process = as_process(process)
    if method is None:
        method = "exact" if exact.is_available(process) else "sample"
    if method == "exact":
        return Estimate(float(exact.trajectory_kl(process, policy, direction)), 0.0)
    if direction == "forward" and not exact.is_available(process):
        return _by_weights(surviving_rollout(process, policy, num_trajectories).log_weight())
    evidence = estimate_log_evidence(process)
    if direction == "reverse":
        elbo = estimate_elbo(process, policy, num_trajectories)
        return Estimate(evidence.mean - elbo.mean, math.hypot(evidence.standard_error, elbo.standard_error))
    draws = exact.sample_posterior(process, num_trajectories)
    ratio = Estimate.of(_log_ratio(draws, policy))
    return Estimate(ratio.mean - evidence.mean, math.hypot(evidence.standard_error, ratio.standard_error))


def _log_ratio(draws: Trajectories, policy: Policy | None) -> Tensor:
    """Returns ``log p(τ, O) - log π(τ)`` of trajectories that something else drew, ``(N,)`` in nats."""
    log_policy = draws.log_prior
    if policy is not None:
        asked = [policy(draws.states[t], t).log_prob(draws.actions[t]) for t in range(draws.horizon)]
        log_policy = torch.where(draws.mask, torch.stack(asked), 0.0)
    return (draws.log_factors + draws.log_prior - log_policy).sum(0)


def _by_weights(log_weight: Tensor) -> Estimate:
    """Returns ``E_{p*}[log w] - log E_π[w]`` from draws of π with ``w = p(τ,O)/π(τ)``, error by the delta method."""
    log_weight = log_weight.double()
    weight = (log_weight - torch.logsumexp(log_weight, 0) + math.log(len(log_weight))).exp()  # of mean 1
    shifted = log_weight - (torch.logsumexp(log_weight, 0) - math.log(len(log_weight)))
    terms = torch.where(weight > 0, weight * torch.where(weight > 0, shifted, 0.0), 0.0)
    mean = terms.mean()
    influence = terms - mean - (mean + 1) * (weight - 1)
    return Estimate(float(mean), float(influence.std()) / len(log_weight) ** 0.5)
