"""Exact divergences between what a policy does and what optimality asks for."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rl_as_inference.exact import linear_gaussian, tabular
from rl_as_inference.exact.linear_gaussian import LinearGaussianPlan
from rl_as_inference.exact.slopes import slope_in_inverse_temperature
from rl_as_inference.exact.smoothing import posterior_flow
from rl_as_inference.exact.tabular import Dynamics
from rl_as_inference.processes import LinearGaussianMDP, TabularMDP

__all__ = ["Direction", "check_direction", "trajectory_kl"]

Direction = Literal["reverse", "forward"]


def trajectory_kl(mdp: Any, policy: Any, direction: Direction = "reverse", dynamics: Dynamics = "posterior") -> Tensor:
    """Returns the KL divergence between the policy's trajectories and the target's, 0-dimensional, nats.

    The policy's trajectories have ``π(τ) = p(s_0) Π_t π(a_t|s_t) p(s_{t+1}|s_t,a_t)``, the target for
    ``dynamics="posterior"`` the exponentiated return, ``p*(τ) = p(τ) e^{R(τ)/α} / p(O)`` (lecture notes
    *Stochastic Actors and Maximum Entropy RL*, equations 29-34). Dynamics cancel in the ratio, and with
    ``w(τ) = p(τ, O) / π(τ)``

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
    if dynamics not in get_args(Dynamics):
        raise ValueError(f"dynamics must be 'causal' or 'posterior', got {dynamics!r}")
    if isinstance(mdp, TabularMDP):
        return _reverse(tabular, mdp, policy, dynamics) if direction == "reverse" else _forward(mdp, policy, dynamics)
    if not isinstance(mdp, LinearGaussianMDP):
        raise ValueError(
            f"no exact divergence for {type(mdp).__name__}: give a TabularMDP or a LinearGaussianMDP, or estimate it "
            f"by rl_as_inference.trajectory_kl(..., method='sample')"
        )
    if direction == "reverse":
        return _reverse(linear_gaussian, mdp, policy, dynamics)
    return _forward_linear_gaussian(mdp, policy, dynamics)


def check_direction(direction: str) -> None:
    """Raises ValueError unless the direction is one of the two."""
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be 'reverse', KL(π || p*), or 'forward', KL(p* || π); got {direction!r}")


def _reverse(room: Any, mdp: Any, policy: Any, dynamics: Dynamics) -> Tensor:
    return room.plan(mdp, dynamics).objective - room.evaluate(mdp, policy).objective


def _forward(mdp: TabularMDP, policy: Any, dynamics: Dynamics) -> Tensor:
    if dynamics == "posterior" and mdp.horizon is None:
        raise ValueError(
            "horizon is None, and the exact forward divergence from the posterior needs one; give the process a "
            "horizon, or take dynamics='causal'"
        )
    log_policy = tabular.log_policy_table(mdp, policy)
    target = tabular.plan(mdp, dynamics)
    if dynamics == "posterior":
        flow, log_reference = posterior_flow(mdp), mdp.log_action_prior
        rest = _mean_factor(tabular, mdp) - target.objective
    else:
        visits = tabular.discounted_visits(mdp, target)
        flow, log_reference = visits[..., None] * target.policy, target.log_policy
        rest = visits.new_zeros(())
    # 0 log 0 = 0: what the target never does may be impossible.
    taken = flow > 0
    ratio = torch.where(taken, log_reference, 0.0) - torch.where(taken, log_policy, 0.0)
    return (torch.where(taken, flow, 0.0) * ratio).sum() + rest


def _forward_linear_gaussian(mdp: LinearGaussianMDP, policy: Any, dynamics: Dynamics) -> Tensor:
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
    return _mean_factor(linear_gaussian, mdp) + log_density(prior) - log_density(own) - target.objective


def _mean_factor(room: Any, mdp: Any) -> Tensor:
    """Returns ``E_{p*}[R/α]`` in nats: the log evidence's slope in ``1/α``, over α."""
    return (
        slope_in_inverse_temperature(mdp, lambda process: room.plan(process, "posterior").objective) / mdp.temperature
    )
