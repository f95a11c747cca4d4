"""The best policy of a family: how much of a policy gap the family itself leaves."""

import copy
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.guides import LinearGaussianPolicy, TabularPolicy
from rl_as_inference.nouns import Policy, Process
from rl_as_inference.processes import TabularMDP

__all__ = ["best_of_family"]

_RANDOM_STARTS = 4
_ITERATIONS = 1000


def best_of_family(process: Process, policy: Policy | None) -> tuple[float | None, str]:
    """Returns the largest ELBO of the policy's family, nats, and how it was had; None with the reason why not.

    - A rule for each step (:class:`TabularPolicy` and :class:`LinearGaussianPolicy` with the process's horizon), or
      a stationary one where there is but one step or no horizon: the family reaches the optimum.
    - A stationary one over several steps: its best is a nonconvex problem with no known closed form. It is the *best
      found* by L-BFGS on the exact ELBO from several starts: the policy itself, the action prior, the optimum
      averaged over time, and random ones. The family's true best is at least this large.
    - Other families, such as networks: None.
    """
    if not isinstance(policy, TabularPolicy | LinearGaussianPolicy):
        return None, f"no best policy is known for the family of a {type(policy).__name__}"
    steps = len(policy.logits) if isinstance(policy, TabularPolicy) and policy.logits.dim() == 3 else 1
    stationary = policy.logits.dim() == 2 if isinstance(policy, TabularPolicy) else policy.horizon is None
    steps = len(policy.gain) if isinstance(policy, LinearGaussianPolicy) else steps
    best = float(exact.plan(process, "causal").objective)
    if (not stationary and steps == process.horizon) or (stationary and process.horizon in (None, 1)):
        return best, "the family reaches the optimum"
    if not stationary:
        return None, f"the policy has {steps} steps, the process {process.horizon}"
    return _best_found(process, policy), "best found by L-BFGS from several starts"


def _best_found(process: Process, policy: TabularPolicy | LinearGaussianPolicy) -> float:
    candidate = copy.deepcopy(policy)
    parameters: list[Tensor] = list(candidate.parameters())
    for p in parameters:
        p.requires_grad_(True)
    found = float(exact.elbo(process, policy).detach())

    def loss(vector: Any) -> tuple[float, Any]:
        _fill(parameters, vector)
        with torch.enable_grad():
            elbo = exact.elbo(process, candidate)
            slopes = torch.autograd.grad(elbo, parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(slopes, parameters, strict=True)]
        value, slope = float(elbo.detach()), _vector(parts)
        if not (np.isfinite(value) and np.isfinite(slope).all()):
            return 1e100, np.zeros_like(slope)
        return -value, -slope

    for start in _starts(process, parameters):
        answer = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
        found = max(found, -float(answer.fun))
    return found


def _starts(process: Process, parameters: list[Tensor]) -> list[Any]:
    own = _vector(parameters)
    starts = [own]
    plan: Any = exact.plan(process, "causal")
    if isinstance(process, TabularMDP):
        # A forbidden action has the logit of one that is never taken, since infinity cannot be searched from.
        starts.append(process.log_action_prior.clamp(min=-40).double().flatten().numpy(force=True))
        weights = exact.occupancy(process, plan)[:-1]
        share = weights / weights.sum(0).clamp(min=1e-300)
        mean = (share[..., None] * plan.policy).sum(0)
        starts.append(mean.clamp(min=1e-17).log().double().flatten().numpy(force=True))
    else:
        pieces = (plan.gain, plan.offset, plan.scale_tril.diagonal(dim1=-2, dim2=-1).log(), plan.scale_tril)
        starts.append(_vector([x.mean(0, keepdim=True) for x in pieces]))
    # The same starts at every call, and no draw taken from the caller's generator.
    random = np.random.default_rng(0)
    return starts + [starts[-1] + random.normal(size=own.shape) for _ in range(_RANDOM_STARTS)]


def _vector(parts: list[Tensor]) -> Any:
    return torch.cat([x.detach().reshape(-1).double() for x in parts]).numpy(force=True)


def _fill(parameters: list[Tensor], vector: Any) -> None:
    at = 0
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.as_tensor(vector[at : at + p.numel()]).view_as(p))
            at += p.numel()
