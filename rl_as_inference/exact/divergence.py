"""Exact divergences between what a policy does and what optimality asks for."""

from typing import Literal, get_args

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.exact import hidden, linear_gaussian, tabular
from rl_as_inference.exact.backups import Dynamics, check_dynamics
from rl_as_inference.exact.linear_gaussian import LinearGaussianPlan
from rl_as_inference.exact.slopes import slope_in_inverse_temperature
from rl_as_inference.exact.smoothing import given_optimality
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import ExactPolicy, Process, asked_in_rollouts
from rl_as_inference.processes import LinearGaussianMDP, LinearGaussianPOMDP, TabularMDP, TabularPOMDP
from rl_as_inference.processes.log_sums import log_or_minus_inf

__all__ = ["Direction", "check_direction", "expected_ratio", "trajectory_kl"]

Direction = Literal["reverse", "forward"]


@checked
@in_turn
def trajectory_kl(
    mdp: Process, policy: ExactPolicy, direction: Direction = "reverse", dynamics: Dynamics = "posterior"
) -> Tensor:
    """Returns the KL divergence between the policy's trajectories and the target's, 0-dimensional, nats.

    The policy's trajectories have ``π(τ) = p(s_0) Π_t π(a_t|s_t) p(s_{t+1}|s_t,a_t)``, the target for
    ``dynamics="posterior"`` the exponentiated return, ``p*(τ) = p(τ) e^{R(τ)/α} / p(O)`` (Levine
    2018, arXiv:1805.00909, sections 2 and 3). Dynamics cancel in the ratio, and with ``w(τ) = p(τ, O) / π(τ)``

        reverse   KL(π || p*) = log p(O) - E_π[log w]   = log p(O) - ELBO(π)
        forward   KL(p* || π) = E_{p*}[log w] - log p(O)

    The first is by evaluation, the second by smoothing. The reverse one is least for the causal plan,
    where it is the dynamics gap; the forward one for ``plan(mdp, "posterior").policy``. For
    ``dynamics="causal"`` the target is what the causal plan does, the dynamics being left alone: then the
    reverse one is the policy gap, and both can be 0. With γ < 1 trajectories include their survival.

    It is infinite where the first distribution reaches what the second excludes: forward, if the policy
    never takes an action that the target takes; reverse, if it takes one that the prior forbids.

    Args:
        mdp: a finite or linear-Gaussian process.
        policy: as for :func:`rl_as_inference.exact.elbo`.
        direction: ``"reverse"`` (seeks a mode) or ``"forward"`` (covers them all).
        dynamics: which target, see above.

    Raises:
        ValueError: for an unknown direction or dynamics, if the process has no exact answers, or for the
            forward divergence from the posterior with no horizon.

    Example:
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=1)
        >>> uniform = torch.tensor([[0.5, 0.5]])
        >>> trajectory_kl(mdp, uniform), trajectory_kl(mdp, uniform, "forward")
        (tensor(0.1201), tensor(0.1109))
        >>> trajectory_kl(mdp, torch.tensor([[0.0, 1.0]]), "forward")
        tensor(inf)
    """
    check_direction(direction)
    check_dynamics(dynamics)
    if isinstance(mdp, TabularMDP):
        # A small difference of large numbers, if they are large: in double precision, with rows that sum to one in it.
        wide = mdp.to(torch.float64)
        log_policy = torch.log_softmax(tabular.log_policy_table(wide, policy), -1)
        exactly = _reverse if direction == "reverse" else _forward
        return exactly(wide, log_policy, dynamics).to(mdp.initial_probabilities.dtype)
    if isinstance(mdp, TabularPOMDP | LinearGaussianPOMDP) and direction == "reverse":
        target = hidden.plan(mdp).objective if dynamics == "causal" else hidden.log_evidence(mdp)
        return target - hidden.evaluate(mdp, policy, asked_in_rollouts(policy)).objective
    if not isinstance(mdp, LinearGaussianMDP):
        raise ValueError(
            f"no exact divergence for {type(mdp).__name__}: give a TabularMDP or a LinearGaussianMDP, or estimate it "
            f"by rl_as_inference.trajectory_kl(..., method='sample')"
        )
    if direction == "reverse":
        return linear_gaussian.plan(mdp, dynamics).objective - linear_gaussian.evaluate(mdp, policy).objective
    return _forward_linear_gaussian(mdp, policy, dynamics)


def check_direction(direction: str) -> None:
    """Raises ValueError unless the direction is one of the two."""
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be 'reverse', KL(π || p*), or 'forward', KL(p* || π); got {direction!r}")


def expected_ratio(weights: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Returns ``weights · (log p - log q)``, 0 where the weight is: what never happens may be impossible.

    Example:
        >>> half_or_never = torch.tensor([0.5, 0.0])
        >>> expected_ratio(half_or_never, half_or_never.log(), half_or_never.log() - 1)
        tensor([0.5000, 0.0000])
    """
    happens = weights > 0
    ratio = torch.where(happens, log_p, 0.0) - torch.where(happens, log_q, 0.0)
    return torch.where(happens, weights, 0.0) * ratio


def _reverse(mdp: TabularMDP, log_policy: Tensor, dynamics: Dynamics) -> Tensor:
    # What a policy lacks of the largest ELBO is its divergence from the causal plan in the states it visits: no small
    # difference of large numbers.
    best, policy = tabular.plan(mdp), log_policy.exp()
    flow = tabular.discounted_visits(mdp, policy)[..., None] * policy
    short = expected_ratio(flow, log_policy, best.log_policy).sum()
    return short if dynamics == "causal" else short + tabular.plan(mdp, dynamics).objective - best.objective


def _leaves_out(mdp: TabularMDP, log_policy: Tensor) -> bool:
    """Returns whether the policy never takes an action that the target takes, however seldom.

    Rewards are finite, so that the target does all that the process can do under its action prior; a probability of
    e^-1000 is none in double precision, and so is asked of what is possible.
    """
    left_out = ((log_policy == -torch.inf) & (mdp.action_prior > 0)).any(-1) & ~mdp.terminal
    if not bool(left_out.any()):
        return False
    if float(mdp.discount) == 0:  # all that is done is done at the start
        return bool(((mdp.initial_probabilities > 0) & (left_out if left_out.dim() == 1 else left_out[0])).any())
    if mdp.horizon is None:
        return bool((tabular.reachable(mdp) & left_out).any())
    allowed = (mdp.action_prior > 0).to(mdp.initial_probabilities.dtype)
    here = mdp.initial_probabilities > 0
    for missed in left_out.expand(mdp.horizon, -1):
        if bool((here & missed).any()):
            return True
        here = mdp.kernel.push(here[:, None] * allowed) > 0
    return False


def _forward(mdp: TabularMDP, log_policy: Tensor, dynamics: Dynamics) -> Tensor:
    if _leaves_out(mdp, log_policy.detach()):
        return log_policy.new_full((), torch.inf)
    if dynamics == "causal":
        target = tabular.plan(mdp, dynamics)
        flow = tabular.discounted_visits(mdp, target)[..., None] * target.policy
        return expected_ratio(flow, target.log_policy, log_policy).sum()
    if mdp.horizon is None:
        raise ValueError(
            "horizon is None, and the exact forward divergence from the posterior needs one; give the process a "
            "horizon, or take dynamics='causal'"
        )
    # By the chain rule it is that of the start, of the actions and of what comes of them, none of them below 0.
    start, steps = given_optimality(mdp)
    total = expected_ratio(start, log_or_minus_inf(start), log_or_minus_inf(mdp.initial_probabilities)).sum()
    for step, log_pi in zip(steps, log_policy.expand(mdp.horizon, -1, -1), strict=True):
        bent = expected_ratio(step.chances, log_or_minus_inf(step.chances), step.log_nominal).sum(-1)
        total = total + (expected_ratio(step.flow, step.log_policy, log_pi) + step.flow * bent).sum()
    return total


def _forward_linear_gaussian(mdp: LinearGaussianMDP, policy: ExactPolicy, dynamics: Dynamics) -> Tensor:
    target, own = linear_gaussian.plan(mdp, dynamics), linear_gaussian.evaluate(mdp, policy)
    means, covariances = linear_gaussian.posterior_marginals(mdp, dynamics)

    def log_density(rule: LinearGaussianPlan) -> Tensor:
        """Returns ``E[Σ_t log N(a_t; K s_t + k, Σ)]`` for states and actions of the target."""
        gain = target.gain - rule.gain
        off = (gain @ means[:-1, :, None])[..., 0] + target.offset - rule.offset
        spread = gain @ covariances[:-1] @ gain.mT + target.covariance + off[..., :, None] * off[..., None, :]
        distance = torch.cholesky_solve(spread, rule.scale_tril).diagonal(dim1=-2, dim2=-1).sum()
        return -distance / 2 - rule.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum()  # and a constant

    if dynamics == "causal":
        return log_density(target) - log_density(own)
    prior = linear_gaussian.evaluate(mdp, None)
    # Returns are known by the slope of the log evidence in 1/α.
    earned = slope_in_inverse_temperature(mdp, lambda process: linear_gaussian.plan(process, "posterior").objective)
    return earned / mdp.temperature + log_density(prior) - log_density(own) - target.objective
