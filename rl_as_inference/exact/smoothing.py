"""Exact smoothing on finite processes: where trajectories are, and what they do, given optimality."""

from collections.abc import Iterator

import torch
from torch import Tensor

from rl_as_inference.exact.backups import Dynamics, survival_weights
from rl_as_inference.exact.tabular import Plan, occupancy, plan
from rl_as_inference.processes.tabular import TabularMDP

__all__ = ["posterior_flow", "posterior_occupancy"]


def posterior_occupancy(mdp: TabularMDP, dynamics: Dynamics = "posterior") -> Tensor:
    """Returns the distribution of the state at each time given optimality, ``(T+1, S)``.

    For ``"posterior"`` the smoothed marginals ``p(s_t | O)``, luck included; a trajectory that does
    not survive its discount stays where it was. For ``"causal"`` the occupancy of the causal plan.

    Raises:
        ValueError: with no horizon.
    """
    mdp.finite_horizon("posterior_occupancy")
    messages = plan(mdp, dynamics)
    if dynamics == "causal":
        return occupancy(mdp, messages)
    return torch.stack([alive + ended for alive, ended in _forward(mdp, messages)])


def posterior_flow(mdp: TabularMDP) -> Tensor:
    """Returns ``p(s_t = s, a_t = a, still alive at t | O)``, ``(T, S, A)``.

    The action given the state is ``plan(mdp, "posterior").policy``; a trajectory in a terminal state,
    or that did not survive its discount, takes no action and is left out.

    Raises:
        ValueError: with no horizon.
    """
    horizon = mdp.finite_horizon("posterior_flow")
    messages = plan(mdp, "posterior")
    alive = torch.stack([alive for alive, _ in _forward(mdp, messages)])[:horizon]
    return torch.where(mdp.terminal, 0.0, alive)[..., None] * messages.policy


def _forward(mdp: TabularMDP, messages: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields who is alive and who did not survive, by state, at ``t = 0 … T``, given optimality."""
    horizon = mdp.finite_horizon("smoothing")
    values = messages.soft_v / mdp.temperature
    reward = mdp.reward_table / mdp.temperature
    everywhere = torch.arange(mdp.num_states, device=values.device)
    states, actions = everywhere[:, None], torch.arange(mdp.num_actions, device=values.device)
    indices, probabilities = mdp.kernel.successors(*torch.broadcast_tensors(states, actions))
    factor = reward[..., None] if reward.dim() == 2 else reward
    logs = torch.where(probabilities > 0, torch.where(probabilities > 0, probabilities, 1.0).log(), -torch.inf)
    alive = mdp.initial_probabilities * (values[0] - messages.objective).exp()
    ended = torch.zeros_like(alive)
    yield alive, ended
    for t in range(horizon):
        going, stopping = survival_weights(mdp, values[t + 1], last=t == horizon - 1)
        flow = alive[:, None] * messages.policy[t]
        tilt = logs + factor - (messages.soft_q[t] / mdp.temperature)[..., None]
        if mdp.has_terminal:  # there the kernel stays put and nothing is earned
            tilt = torch.where(mdp.terminal[:, None, None], logs, tilt)
        alive, stopped = (_arrivals(flow, tilt, indices, weights, mdp.num_states) for weights in (going, stopping))
        ended = ended + stopped
        yield alive, ended


def _arrivals(flow: Tensor, tilt: Tensor, indices: Tensor, weights: Tensor | None, num_states: int) -> Tensor:
    arrived = flow.new_zeros(num_states)
    if weights is None:
        return arrived
    moved = flow[..., None] * (tilt + weights[indices]).exp()
    return arrived.index_add(0, indices.flatten(), moved.flatten())
