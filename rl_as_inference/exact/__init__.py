"""Exact answers, for the processes that have them: finite ones and linear-Gaussian ones.

Every function takes either kind. Objectives are in nats, soft values in reward units, and all of
them are differentiable in the process's tensors.
"""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.exact import belief_tree, hidden, linear_gaussian, smoothing, tabular
from rl_as_inference.exact.belief_grid import StationaryBeliefPlan
from rl_as_inference.exact.belief_tree import BeliefEvaluation, BeliefPlan
from rl_as_inference.exact.divergence import Direction, trajectory_kl
from rl_as_inference.exact.enumeration import Enumeration, enumerate_trajectories
from rl_as_inference.exact.hidden import belief
from rl_as_inference.exact.information import PriorPlan, optimal_prior
from rl_as_inference.exact.kalman import GaussianBelief, KalmanPlan
from rl_as_inference.exact.linear_gaussian import LinearGaussianPlan
from rl_as_inference.exact.slopes import slope_in_inverse_temperature
from rl_as_inference.exact.smoothing import posterior_occupancy
from rl_as_inference.exact.solvable import Solvable, is_available
from rl_as_inference.exact.tabular import Dynamics, Plan, backward_step
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import ExactPolicy, Process
from rl_as_inference.processes import LinearGaussianMDP, LinearGaussianPOMDP, TabularMDP, TabularPOMDP
from rl_as_inference.trajectories import Trajectories

__all__ = [
    "BeliefEvaluation",
    "BeliefPlan",
    "Direction",
    "Dynamics",
    "Enumeration",
    "GaussianBelief",
    "KalmanPlan",
    "LinearGaussianPlan",
    "Plan",
    "PriorPlan",
    "Solvable",
    "StationaryBeliefPlan",
    "backward_step",
    "belief",
    "elbo",
    "enumerate_trajectories",
    "evaluate",
    "expected_return",
    "is_available",
    "log_evidence",
    "occupancy",
    "optimal_elbo",
    "optimal_prior",
    "plan",
    "posterior_occupancy",
    "posterior_return",
    "sample_posterior",
    "trajectory_kl",
]


Sees = Literal["belief", "history"]


@overload
def plan(mdp: TabularMDP, dynamics: Dynamics = ...) -> Plan: ...
@overload
def plan(mdp: LinearGaussianMDP, dynamics: Dynamics = ...) -> LinearGaussianPlan: ...
@overload
def plan(mdp: TabularPOMDP, dynamics: Dynamics = ...) -> BeliefPlan | StationaryBeliefPlan: ...
@overload
def plan(mdp: LinearGaussianPOMDP, dynamics: Dynamics = ...) -> KalmanPlan: ...
@overload
def plan(mdp: Process, dynamics: Dynamics = ...) -> Any: ...
@checked
@in_turn
def plan(mdp: Process, dynamics: Dynamics = "causal") -> Any:
    """Returns the soft-optimal plan: values, policy and objective.

    See :func:`rl_as_inference.exact.tabular.plan` for finite and
    :func:`rl_as_inference.exact.linear_gaussian.plan` for linear-Gaussian processes. Where the state is hidden it
    is the best policy of the history, a :class:`BeliefPlan` or a :class:`KalmanPlan`.

    Args:
        mdp: a finite or linear-Gaussian process, seen or partially observed.
        dynamics: ``"causal"`` (maximum-entropy control; the objective is the largest ELBO) or
            ``"posterior"`` (conditioning on optimality, luck included; the log evidence).

    Raises:
        ValueError: if the process has no exact answers, or there is no fixed point.

    Example:
        >>> import torch
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=1)
        >>> plan(mdp).policy
        tensor([[[0.2689, 0.7311]]])
    """
    return _room(mdp).plan(mdp, dynamics)


@overload
def evaluate(mdp: TabularMDP, policy: ExactPolicy) -> Plan: ...
@overload
def evaluate(mdp: LinearGaussianMDP, policy: ExactPolicy) -> LinearGaussianPlan: ...
@overload
def evaluate(mdp: TabularPOMDP, policy: ExactPolicy, sees: Sees | None = ...) -> BeliefEvaluation: ...
@overload
def evaluate(mdp: LinearGaussianPOMDP, policy: ExactPolicy, sees: Sees | None = ...) -> KalmanPlan: ...
@overload
def evaluate(mdp: Process, policy: ExactPolicy, sees: Sees | None = ...) -> Any: ...
@checked
@in_turn
def evaluate(mdp: Process, policy: ExactPolicy, sees: Sees | None = None) -> Any:
    """Returns the soft values of ``policy``; the plan's objective is its ELBO in nats.

    Args:
        mdp: a process with exact answers.
        policy: a plan, a callable ``(state, t) -> Distribution``, a table of probabilities, or None.
        sees: where the state is hidden, what the policy is asked with: a ``"belief"`` ``(n, S)`` (its mean, of a
            linear-Gaussian process) or a ``"history"``. None asks what the policy says of itself, or gives beliefs.
    """
    if isinstance(mdp, TabularPOMDP | LinearGaussianPOMDP):
        return hidden.evaluate(mdp, policy, sees)
    return _room(mdp).evaluate(mdp, policy)


@checked
@in_turn
def elbo(mdp: Process, policy: ExactPolicy, sees: Sees | None = None) -> Tensor:
    """Returns the trajectory ELBO of ``policy``, 0-dimensional, in nats.

    ``E_π Σ_t γ^t (r_t/α + log p(a_t|s_t) - log π(a_t|s_t))``. Arguments as of :func:`evaluate`.

    Example:
        >>> import torch
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=1)
        >>> elbo(mdp, torch.tensor([[0.5, 0.5]]))
        tensor(0.5000)
    """
    objective: Tensor = evaluate(mdp, policy, sees).objective
    return objective


@checked
@in_turn
def optimal_elbo(mdp: Process) -> Tensor:
    """Returns the largest ELBO any policy reaches, 0-dimensional, in nats."""
    objective: Tensor = plan(mdp, "causal").objective
    return objective


@checked
@in_turn
def log_evidence(mdp: Process) -> Tensor:
    """Returns ``log p(O) = log E_prior[exp(Σ_t r_t/α)]``, 0-dimensional, in nats.

    With γ < 1 the sum stops at a survival coin; see docs/mathematics.md, discount is survival.

    Example:
        >>> import torch
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=1)
        >>> log_evidence(mdp)  # log((1 + e) / 2)
        tensor(0.6201)
    """
    if isinstance(mdp, TabularPOMDP | LinearGaussianPOMDP):
        return hidden.log_evidence(mdp)
    return tabular.log_evidence(mdp) if isinstance(mdp, TabularMDP) else plan(mdp, "posterior").objective


@checked
@in_turn
def expected_return(mdp: Process, policy: ExactPolicy, sees: Sees | None = None) -> Tensor:
    """Returns ``E_π Σ_t γ^t r_t`` of ``policy`` in the process as it is, 0-dimensional, in reward units.

    The ELBO is linear in ``1/α`` with this as its slope.
    """
    if isinstance(mdp, TabularMDP):
        return tabular.expected_return(mdp, policy)
    if isinstance(mdp, TabularPOMDP):
        return mdp.temperature * belief_tree.evaluate(mdp, policy, sees=sees).expected_return
    return slope_in_inverse_temperature(_solvable(mdp), lambda process: elbo(process, policy))


@checked
@in_turn
def posterior_return(mdp: Process) -> Tensor:
    """Returns ``E[Σ_t r_t | O]``, what exact conditioning on optimality expects to earn, in reward units.

    It is the slope of the log evidence in ``1/α`` (the mean energy of statistical physics), and counts
    the luck that the posterior bends towards; no policy need reach it.
    """
    if isinstance(mdp, TabularPOMDP | LinearGaussianPOMDP):
        mdp = mdp.fully_observed
    if not isinstance(mdp, TabularMDP):
        return slope_in_inverse_temperature(_solvable(mdp), log_evidence)
    if mdp.horizon is not None:
        return smoothing.posterior_return(mdp)
    wide = mdp.to(torch.float64)  # a slope of messages that may be large
    return slope_in_inverse_temperature(wide, log_evidence).to(mdp.initial_probabilities.dtype)


@checked
@in_turn
def occupancy(mdp: TabularMDP, policy: ExactPolicy) -> Tensor:
    """Returns the distribution of the state over time under ``policy``, ``(T+1, S)``.

    See :func:`rl_as_inference.exact.tabular.occupancy`.

    Raises:
        ValueError: if the process is not finite.
    """
    if not isinstance(mdp, TabularMDP):
        raise ValueError(f"occupancy needs a TabularMDP, got {type(mdp).__name__}")
    return tabular.occupancy(mdp, policy)


@checked
@in_turn
def sample_posterior(
    mdp: Process,
    num_draws: int,
    dynamics: Dynamics = "posterior",
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Trajectories:
    """Returns exact independent draws of trajectories given optimality.

    Args:
        mdp: a finite process or a linear-Gaussian one.
        num_draws: how many.
        dynamics: whether luck is bent too (``"posterior"``), or actions alone (``"causal"``).
        seed: of what is drawn; None follows PyTorch's generator, from where it is.
        generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.
    """
    return _room(mdp).sample_posterior(mdp, num_draws, dynamics)


def _room(mdp: Process) -> Any:
    if isinstance(_solvable(mdp), TabularMDP):
        return tabular
    return linear_gaussian if isinstance(mdp, LinearGaussianMDP) else hidden


def _solvable(mdp: Process) -> Solvable:
    if isinstance(mdp, Solvable):
        return mdp
    raise ValueError(
        f"no exact answers for {type(mdp).__name__}: give a TabularMDP or a LinearGaussianMDP, or estimate by "
        f"estimate_elbo and posterior(..., method='importance')"
    )
