"""What a family returns, read as a process and how its agent acts in it."""

from typing import Any

from rl_as_inference import exact
from rl_as_inference.exact import BeliefPlan, Dynamics
from rl_as_inference.processes import MarkovDecisionProcess, TabularPOMDP
from rl_as_inference.processes.partially_observed import PartiallyObservedMDP
from rl_as_inference.reasoning.demonstrations import Acting

__all__ = ["agent_of"]


def agent_of(returned: Any, dynamics: Dynamics) -> tuple[MarkovDecisionProcess, Acting]:
    """Returns the process and the policy that a family's return value stands for.

    A TabularPOMDP in the policy's place is the model that the agent plans in, on its beliefs.
    """
    pair = isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], MarkovDecisionProcess)
    process, policy = returned if pair else (returned, None)
    hidden = isinstance(process, PartiallyObservedMDP)
    if hidden and dynamics == "posterior":
        raise ValueError(
            "dynamics='posterior' is a policy of the state, which is hidden from the family's agent; use 'causal'"
        )
    if isinstance(process, TabularPOMDP):
        model = policy.process if isinstance(policy, BeliefPlan) else policy if pair else process
        if isinstance(model, TabularPOMDP):
            _check_of_one_kind(process, model)
        return process, model
    if pair and not isinstance(policy, TabularPOMDP | BeliefPlan):
        return process, policy
    if not pair and exact.is_available(process):
        return process, exact.plan(process, dynamics)
    raise ValueError(
        f"family must return a TabularMDP, a LinearGaussianMDP or, where its agent does not see the state, a "
        f"TabularPOMDP or a LinearGaussianPOMDP, whose agent plans exactly; or a pair (process, policy) where it plans "
        f"otherwise, and (TabularPOMDP, TabularPOMDP) where it plans exactly in a model of its own; it returned "
        f"{f'a pair of {type(process).__name__} and {type(policy).__name__}' if pair else type(returned).__name__}"
    )


def _check_of_one_kind(world: TabularPOMDP, model: TabularPOMDP) -> None:
    kinds = [(one.num_actions, one.num_observations, one.sees_first, one.horizon) for one in (world, model)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"family: the agent's own model must have the world's actions, observations and horizon; (actions, "
            f"observations, sees first, horizon) are {kinds[1]} in the model and {kinds[0]} in the world"
        )
