"""Where trajectories of a finite process are given optimality: forward messages that meet the backward ones."""

import torch
from torch import Tensor

from rl_as_inference.exact.backups import Dynamics, survival_weights
from rl_as_inference.exact.tabular import Plan, log_policy_table, occupancy, plan
from rl_as_inference.processes.tabular import TabularMDP

__all__ = ["posterior_action_cost", "posterior_occupancy"]


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
    alive, ended = _smoothed(mdp, messages)
    return alive + ended


def posterior_action_cost(mdp: TabularMDP, policy: object) -> Tensor:
    """Returns ``E[Σ_t log p(a_t|s_t) - log π(a_t|s_t) | O]`` of ``policy``, 0-dimensional, in nats.

    Actions count while a trajectory is alive, so that with γ < 1 survival is counted. It is infinite where the
    policy never takes an action that success may have needed.

    Raises:
        ValueError: with no horizon.
    """
    mdp.finite_horizon("an expectation over the exact posterior")
    messages = plan(mdp, "posterior")
    taken = messages.policy
    log_ratio = mdp.log_action_prior - log_policy_table(mdp, policy)
    cost = torch.where(taken > 0, taken * torch.where(taken > 0, log_ratio, 0.0), 0.0).sum(-1)
    acting = _smoothed(mdp, messages)[0][:-1]
    if mdp.has_terminal:
        acting = torch.where(mdp.terminal, 0.0, acting)
    return torch.where(acting > 0, acting * torch.where(acting > 0, cost, 0.0), 0.0).sum()


def _smoothed(mdp: TabularMDP, messages: Plan) -> tuple[Tensor, Tensor]:
    """Returns ``p(s_t, alive | O)`` and ``p(s_t, ended | O)`` by survival's coin, ``(T+1, S)`` each."""
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
    rows = [(alive, ended)]
    for t in range(horizon):
        going, stopping = survival_weights(mdp, values[t + 1], last=t == horizon - 1)
        flow = alive[:, None] * messages.policy[t]
        tilt = logs + factor - (messages.soft_q[t] / mdp.temperature)[..., None]
        if mdp.has_terminal:  # there the kernel stays put and nothing is earned
            tilt = torch.where(mdp.terminal[:, None, None], logs, tilt)
        alive, stopped = (_arrivals(flow, tilt, indices, weights, mdp.num_states) for weights in (going, stopping))
        ended = ended + stopped
        rows.append((alive, ended))
    living, over = zip(*rows, strict=True)
    return torch.stack(living), torch.stack(over)


def _arrivals(flow: Tensor, tilt: Tensor, indices: Tensor, weights: Tensor | None, num_states: int) -> Tensor:
    arrived = flow.new_zeros(num_states)
    if weights is None:
        return arrived
    moved = flow[..., None] * (tilt + weights[indices]).exp()
    return arrived.index_add(0, indices.flatten(), moved.flatten())
