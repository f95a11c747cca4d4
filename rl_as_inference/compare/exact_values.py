"""The exact rows of a comparison: objectives by messages; entropy, return and prior cost by where the policy goes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.exact.kalman import mean_marginals
from rl_as_inference.exact.linear_gaussian import marginals
from rl_as_inference.exact.tabular import discounted_visits, log_policy_table
from rl_as_inference.nouns import Policy, Process, asked_in_rollouts
from rl_as_inference.processes import LinearGaussianMDP, LinearGaussianPOMDP, TabularMDP, TabularPOMDP

__all__ = ["Parts", "exact_parts", "support_note"]


class Parts(NamedTuple):
    """What an ELBO is made of, each ``E_π Σ_t γ^t`` of it."""

    expected_return: float
    """Of ``r_t``, reward units."""
    entropy: float
    """Of ``-log π``, nats."""
    prior_cost: float
    """Of ``-log p``, nats."""


@torch.no_grad()
def exact_parts(process: Process, policy: Policy | None) -> Parts:
    """Returns return, entropy and prior cost of ``policy`` by its occupancy, without the messages of ``exact.elbo``.

    All are sums over where the policy goes; a linear-Gaussian return is the slope of the ELBO in ``1/α``.

    Raises:
        ValueError: if the process has no exact answers, or the policy no exact form.
    """
    if isinstance(process, TabularMDP):
        return _of_table(process, policy)
    if isinstance(process, TabularPOMDP):
        found = exact.evaluate(process, policy, asked_in_rollouts(policy))
        earned = float(process.temperature) * float(found.expected_return)
        return Parts(earned, float(found.entropy), float(found.prior_cost))
    if isinstance(process, LinearGaussianPOMDP):
        plan = exact.evaluate(process, policy, asked_in_rollouts(policy))
        parts = _of_rule(process.fully_observed, plan.rule, *mean_marginals(process, plan))
        return Parts(float(exact.expected_return(process, plan)), *parts)
    if not isinstance(process, LinearGaussianMDP):
        raise ValueError(f"no exact parts for {type(process).__name__}: give a TabularMDP or a LinearGaussianMDP")
    rule = exact.evaluate(process, policy)
    return Parts(float(exact.expected_return(process, policy)), *_of_rule(process, rule, *marginals(process, rule)))


def _of_table(mdp: TabularMDP, policy: Policy | None) -> Parts:
    table = log_policy_table(mdp, policy)
    weights = discounted_visits(mdp, policy)[..., None] * table.exp()
    entropy, prior_cost = (
        float(-torch.where(weights > 0, weights * logs, 0.0).sum()) for logs in (table, mdp.log_action_prior)
    )
    return Parts(float(exact.expected_return(mdp, policy)), entropy, prior_cost)


def _of_rule(mdp: LinearGaussianMDP, plan: exact.LinearGaussianPlan, mean: Tensor, cov: Tensor) -> tuple[float, float]:
    """Returns entropy and prior cost of a rule on what has these means and covariances."""
    action = (plan.gain @ mean[:-1, :, None]).squeeze(-1) + plan.offset
    second = plan.gain @ cov[:-1] @ plan.gain.mT + plan.covariance + action[:, :, None] * action[:, None, :]
    size = math.log(2 * math.pi) * mdp.action_size * len(action)

    def log_volume(factor: Tensor) -> Tensor:
        return factor.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)

    prior = mdp.action_prior_scale_tril
    whitened = torch.cholesky_solve(second, prior.expand_as(second)).diagonal(dim1=-2, dim2=-1).sum()
    entropy = (size + mdp.action_size * len(action)) / 2 + float(log_volume(plan.scale_tril).sum())
    return entropy, size / 2 + len(action) * float(log_volume(prior)) + float(whitened) / 2


@torch.no_grad()
def support_note(mdp: Process, policy: Policy | None) -> str | None:
    """Returns where the policy's support is not that of the action prior, in a sentence; None where it is."""
    if not isinstance(mdp, TabularMDP):
        return None
    table = log_policy_table(mdp, policy)
    allowed, taken = mdp.log_action_prior > -torch.inf, table > -torch.inf
    living = ~mdp.terminal[:, None]
    for where, words in (
        (taken & ~allowed & living, "takes {}, which the action prior forbids, so its ELBO may be -inf"),
        (
            allowed & ~taken & living,
            "never takes {}, which the action prior allows: trajectories are missing from its rollouts, so weights "
            "from them cannot give log p(O)",
        ),
    ):
        if bool(where.any()):
            index = [int(i) for i in where.nonzero()[0]]
            step = f" at step {index[0]}" if len(index) == 3 else ""
            return f"the policy {words.format(f'action {index[-1]} in state {index[-2]}{step}')}"
    return None
