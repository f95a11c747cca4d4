"""Exact answers where the state is hidden: finite processes by their beliefs, linear-Gaussian ones by Kalman's."""

from typing import Any, Literal

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.exact import belief_grid, belief_tree, beliefs, kalman, linear_gaussian, tabular
from rl_as_inference.exact.backups import Dynamics, check_dynamics
from rl_as_inference.exact.belief_grid import StationaryBeliefPlan
from rl_as_inference.exact.belief_tree import BeliefEvaluation, BeliefPlan
from rl_as_inference.exact.kalman import GaussianBelief, KalmanPlan
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import ExactPolicy
from rl_as_inference.processes import LinearGaussianPOMDP, TabularPOMDP
from rl_as_inference.trajectories import Trajectories

__all__ = ["Hidden", "belief", "evaluate", "log_evidence", "plan", "sample_posterior"]

Hidden = TabularPOMDP | LinearGaussianPOMDP
"""Processes of a hidden state that have exact answers."""


def plan(pomdp: Hidden, dynamics: Dynamics = "causal") -> BeliefPlan | StationaryBeliefPlan | KalmanPlan:
    """Returns the plan of the largest ELBO that a policy of the history reaches.

    Raises:
        ValueError: for ``dynamics="posterior"``, which no policy of the history stands for, or for too many beliefs.
    """
    check_dynamics(dynamics)
    if dynamics == "posterior":
        raise ValueError(
            "dynamics='posterior' is a policy of the state, which is hidden: exact.plan(pomdp.fully_observed, "
            "'posterior') is the plan, and exact.log_evidence(pomdp) its objective"
        )
    if not isinstance(pomdp, TabularPOMDP):
        return kalman.plan(pomdp)
    return belief_grid.plan(pomdp) if pomdp.horizon is None else belief_tree.plan(pomdp)


def evaluate(
    pomdp: Hidden, policy: ExactPolicy, sees: Literal["belief", "history"] | None = None
) -> BeliefEvaluation | KalmanPlan:
    """Returns what a policy of the history does; its objective is the ELBO in nats.

    Raises:
        ValueError: for policies that have no exact answers; see the modules of the two kinds.
    """
    if isinstance(pomdp, TabularPOMDP):
        return belief_tree.evaluate(pomdp, policy, sees=sees)
    if sees == "history" and not isinstance(policy, KalmanPlan) and policy is not None:
        raise ValueError(
            "policy: a linear-Gaussian process has exact answers for policies on the mean of the belief alone; "
            "estimate_elbo takes any policy"
        )
    return kalman.evaluate(pomdp, policy)


def log_evidence(pomdp: Hidden) -> Tensor:
    """Returns ``log p(O)`` in nats: that of the seen state, since the action prior does not look at either."""
    if isinstance(pomdp, TabularPOMDP):
        return tabular.log_evidence(pomdp.fully_observed)
    return linear_gaussian.plan(pomdp.fully_observed, "posterior").objective


@checked
@in_turn
def belief(pomdp: Hidden, observations: Tensor, actions: Tensor) -> Tensor | GaussianBelief:
    """Returns what is believed of the state at every time, given what was seen and done."""
    if isinstance(pomdp, TabularPOMDP):
        return beliefs.belief(pomdp, observations, actions)
    if isinstance(pomdp, LinearGaussianPOMDP):
        return kalman.belief(pomdp, observations, actions)
    raise ValueError(f"belief needs a TabularPOMDP or a LinearGaussianPOMDP, got {type(pomdp).__name__}")


@torch.no_grad()
def sample_posterior(pomdp: Hidden, num_draws: int, dynamics: Dynamics = "posterior") -> Trajectories:
    """Returns exact draws of trajectories given optimality, with what was seen on the way.

    Given states and actions, optimality says nothing more of observations.

    Raises:
        ValueError: if ``num_draws`` < 1, or for unknown ``dynamics``.
    """
    check_dynamics(dynamics)
    if dynamics == "causal":
        return pomdp.rollout(plan(pomdp), num_draws)
    mdp = pomdp.fully_observed
    room: Any = tabular if isinstance(pomdp, TabularPOMDP) else linear_gaussian
    return pomdp.with_observations(room.sample_posterior(mdp, num_draws, dynamics))
