"""Exact smoothing on finite processes: where trajectories are, and what they do and earn, given optimality.

Given optimality a process is a chain of its own, whose start, actions and outcomes are softmaxes of the messages. Each
row of it sums to one whatever the size of the messages; their differences are what counts, so that they are taken in
double precision.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.exact.backups import Dynamics, check_dynamics, outcomes
from rl_as_inference.exact.precision import in_double
from rl_as_inference.exact.tabular import Plan, occupancy, plan
from rl_as_inference.host import in_turn
from rl_as_inference.processes.log_sums import log_or_minus_inf
from rl_as_inference.processes.tabular import TabularMDP
from rl_as_inference.processes.tabular_pomdp import TabularPOMDP

__all__ = ["Step", "given_optimality", "posterior_occupancy", "posterior_return"]


class Step(NamedTuple):
    """A step given optimality.

    Attributes:
        flow: ``p(s_t = s, a_t = a, acting | O)``, ``(S, A)``: no action is taken in a terminal state.
        log_policy: ``log p(a|s, O)``, ``(S, A)``.
        chances: of what may come of it given optimality, ``(S, A, M)``: of the kernel's successors to go on from, then,
            where the discount may end the trajectory, of the same to stop at.
        log_nominal: their logarithms in the process as it is.
        alive, ended: who goes on after it and who did not survive, by state, ``(S,)``.
    """

    flow: Tensor
    log_policy: Tensor
    chances: Tensor
    log_nominal: Tensor
    alive: Tensor
    ended: Tensor


def given_optimality(mdp: TabularMDP) -> tuple[Tensor, Iterator[Step]]:
    """Returns ``p(s_0 | O)``, ``(S,)``, and the steps given optimality of a process with a horizon.

    Give the process in float64: of messages of 10⁵ nats single precision leaves no digits.
    """
    messages = plan(mdp, "posterior")
    values = messages.soft_v / mdp.temperature
    start = torch.softmax(log_or_minus_inf(mdp.initial_probabilities) + values[0], 0)
    return start, _forward(mdp, messages, values, start)


@checked
@in_turn
def posterior_occupancy(mdp: TabularMDP | TabularPOMDP, dynamics: Dynamics = "posterior") -> Tensor:
    """Returns the distribution of the state at each time given optimality, ``(T+1, S)``; rows sum to one.

    For ``"posterior"`` the smoothed marginals ``p(s_t | O)``, luck included; a trajectory that does
    not survive its discount stays where it was. For ``"causal"`` the occupancy of the causal plan.

    Raises:
        ValueError: with no horizon, for unknown dynamics, or if the process is not finite.
    """
    check_dynamics(dynamics)
    if isinstance(mdp, TabularPOMDP) and dynamics == "posterior":  # where it goes given O is not the policy's to know
        mdp = mdp.fully_observed
    if not isinstance(mdp, TabularMDP):
        raise ValueError(
            f"posterior_occupancy needs a TabularMDP, got {type(mdp).__name__}; where the state is "
            f"hidden exact.evaluate(pomdp, plan).occupancy is that of a plan"
        )
    mdp.finite_horizon("posterior_occupancy")
    if dynamics == "causal":
        return occupancy(mdp, plan(mdp, dynamics))
    start, steps = given_optimality(in_double(mdp).to(torch.float64))
    states = torch.stack([start, *(step.alive + step.ended for step in steps)])
    return states.to(mdp.initial_probabilities.dtype)


def posterior_return(mdp: TabularMDP) -> Tensor:
    """Returns ``E[Σ_t r_t | O]`` of a process with a horizon, 0-dimensional, in reward units."""
    wide = in_double(mdp).to(torch.float64)
    start, steps = given_optimality(wide)
    earned = start.new_zeros(())
    for step in steps:
        reward = wide.reward_table
        if reward.dim() == 3:  # one a successor; who stops there is paid too
            outcomes_a_successor = step.chances.shape[-1] // reward.shape[-1]
            reward = (step.chances * reward.repeat(1, 1, outcomes_a_successor)).sum(-1)
        earned = earned + (step.flow * reward).sum()
    return earned.to(mdp.initial_probabilities.dtype)


def _forward(mdp: TabularMDP, messages: Plan, values: Tensor, alive: Tensor) -> Iterator[Step]:
    indices, probabilities = mdp.kernel.rows()
    log_probabilities = log_or_minus_inf(probabilities)
    log_weights = log_probabilities
    if mdp.reward_table.dim() == 3:  # a reward that every successor has does not choose between them
        log_weights = log_weights + mdp.reward_table / mdp.temperature
        if mdp.has_terminal:  # there the kernel stays put and nothing is earned
            log_weights = torch.where(mdp.terminal[:, None, None], log_probabilities, log_weights)
    ended, nothing = torch.zeros_like(alive), torch.zeros_like(alive)
    nominal = {last: outcomes(mdp, indices, log_probabilities, nothing, last)[1] for last in (False, True)}
    policy = messages.policy
    for t, log_policy in enumerate(messages.log_policy):
        last = t == len(policy) - 1
        after, logits = outcomes(mdp, indices, log_weights, values[t + 1], last)
        chances = torch.softmax(logits, -1)
        flow = alive[:, None] * policy[t]
        moved = flow[..., None] * chances
        arrived = flow.new_zeros(2 * mdp.num_states).index_add(0, after.flatten(), moved.flatten())
        acting = torch.where(mdp.terminal[:, None], 0.0, flow) if mdp.has_terminal else flow
        alive, stopped = arrived.view(2, -1)
        ended = ended + stopped
        yield Step(acting, log_policy, chances, nominal[last], alive, ended)
