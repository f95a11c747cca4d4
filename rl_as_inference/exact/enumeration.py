"""Small finite processes, every trajectory written out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.exact.tabular import log_policy_table
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import ExactPolicy, Process
from rl_as_inference.processes.tabular import TabularMDP

__all__ = ["Enumeration", "count_trajectories", "enumerate_trajectories"]

LIMIT = 1_000_000
"""Trajectories that are written out unless more are asked for."""


@dataclass(frozen=True)
class Enumeration:
    """Every trajectory of a finite process, and how likely it is.

    A trajectory that ends, in a terminal state or because it did not survive its discount, stays where
    it is and its later actions are -1.

    Attributes:
        states: ``(T+1, N)``.
        actions: ``(T, N)``.
        returns: ``Σ_t r_t``, ``(N,)``, reward units.
        log_prior: log probability under dynamics and action prior, ``(N,)``, nats; sums to one.
        log_guide: log probability under dynamics and policy, ``(N,)``, nats; sums to one.
        log_target: log probability under the exponentiated-return distribution, ``(N,)``, nats; sums to one.
        log_evidence: its normaliser, ``log Σ p(τ) e^{R(τ)/α}``, 0-dimensional, nats.
    """

    states: Tensor
    actions: Tensor
    returns: Tensor
    log_prior: Tensor
    log_guide: Tensor
    log_target: Tensor
    log_evidence: Tensor


def count_trajectories(mdp: TabularMDP) -> int:
    """Returns how many trajectories are possible, survival coins included.

    Raises:
        ValueError: with no horizon.
    """
    horizon = mdp.finite_horizon("enumerate_trajectories")
    onward = (mdp.kernel.dense() > 0).cpu().sum(1).double()  # (S, S): by how many actions one state leads to another
    count, gamma = torch.ones(mdp.num_states, dtype=torch.float64), float(mdp.discount)
    for t in reversed(range(horizon)):
        # After every step but the last a coin falls, and who does not survive is one trajectory more.
        coin = 0.0 if t == horizon - 1 or gamma == 1 else 1.0
        after = torch.ones_like(count) if coin and gamma == 0 else count + coin
        count = torch.where(mdp.terminal.cpu(), 1.0, onward @ after)
    return int(count[mdp.initial_probabilities.cpu() > 0].sum())


@checked
@in_turn
def enumerate_trajectories(mdp: Process, policy: ExactPolicy = None, *, limit: int = LIMIT) -> Enumeration:
    """Returns every trajectory with its probability under the prior, the policy and the target.

    The target is the exponentiated-return distribution ``p*(τ) = p(τ) e^{R(τ)/α} / Z``, dynamics and
    action prior included (Levine 2018, arXiv:1805.00909, section 2, where the prior is uniform). With γ < 1
    the survival coins are part of a trajectory.

    Args:
        mdp: a finite process with a horizon.
        policy: a plan, a table ``(S, A)`` or ``(T, S, A)``, a callable, or None for the action prior.
        limit: the most trajectories to write out.

    Raises:
        ValueError: with no horizon, or if there are more than ``limit`` trajectories.

    Example:
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=2)
        >>> found = enumerate_trajectories(mdp)
        >>> found.actions.T.tolist(), found.returns.tolist()
        ([[0, 0], [0, 1], [1, 0], [1, 1]], [0.0, 1.0, 1.0, 2.0])
        >>> found.log_target.exp()
        tensor([0.0723, 0.1966, 0.1966, 0.5344])
    """
    if not isinstance(mdp, TabularMDP):
        raise ValueError(
            f"only finite processes can be enumerated, and this is a {type(mdp).__name__}; use method='exact' for a "
            f"LinearGaussianMDP, method='sample' for others"
        )
    horizon = mdp.finite_horizon("enumerate_trajectories")
    if (total := count_trajectories(mdp)) > limit:
        raise ValueError(
            f"the process has {total:.3g} trajectories, more than limit={limit:,}; use method='exact', which passes "
            f"messages, or method='sample', or raise the limit"
        )
    log_policy = log_policy_table(mdp, policy)
    log_policy = log_policy.expand(horizon, *log_policy.shape[-2:])
    states = (mdp.initial_probabilities > 0).nonzero()[:, 0][None]
    log_dynamics = mdp.initial_probabilities[states[0]].log()
    actions = states.new_empty(0, states.shape[1])
    log_p, log_q = torch.zeros_like(log_dynamics), torch.zeros_like(log_dynamics)
    returns = torch.zeros_like(log_dynamics)
    alive = ~mdp.terminal[states[0]]
    possible, gamma = mdp.kernel.dense() > 0, log_p.new_tensor(float(mdp.discount))
    for t in range(horizon):
        state = states[-1]
        # A trajectory that has ended goes on in one way: where it is, with action -1.
        onward = possible[state] & alive[:, None, None]
        origin, action, successor = onward.nonzero().T
        ended = (~alive).nonzero()[:, 0]
        before = state[origin]
        indices, probabilities = mdp.kernel.successors(before, action)
        chance = torch.where(indices == successor[:, None], probabilities, 0.0).sum(-1)
        order = torch.cat([origin, ended])
        none = torch.zeros_like(log_p[ended])
        moved = torch.cat([successor, state[ended]])
        returns = returns[order] + torch.cat([mdp.reward(before, action, successor), none])
        log_dynamics = log_dynamics[order] + torch.cat([chance.log(), none])
        log_p = log_p[order] + torch.cat([mdp.log_action_prior[before, action], none])
        log_q = log_q[order] + torch.cat([log_policy[t, before, action], none])
        states = torch.cat([states[:, order], moved[None]])
        actions = torch.cat([actions[:, order], torch.cat([action, torch.full_like(ended, -1)])[None]])
        acted = torch.cat([torch.ones_like(origin, dtype=torch.bool), torch.zeros_like(ended, dtype=torch.bool)])
        if t < horizon - 1 and float(gamma) < 1:
            # The coin: who acted goes on with probability γ, and is over with 1-γ.
            on, over = acted.nonzero()[:, 0], (~acted).nonzero()[:, 0]
            survivors = on if float(gamma) > 0 else on[:0]
            order = torch.cat([survivors, on, over])
            coins = [
                torch.log(gamma).expand(len(survivors)),
                torch.log1p(-gamma).expand(len(on)),
                torch.zeros_like(log_p[over]),
            ]
            states, actions, returns = states[:, order], actions[:, order], returns[order]
            log_dynamics, log_p, log_q = log_dynamics[order] + torch.cat(coins), log_p[order], log_q[order]
            acted = torch.arange(len(order), device=order.device) < len(survivors)
        alive = acted & ~mdp.terminal[states[-1]]
    log_prior = log_dynamics + log_p
    joint = log_prior + returns / mdp.temperature
    evidence = torch.logsumexp(joint, 0)
    return Enumeration(states, actions, returns, log_prior, log_dynamics + log_q, joint - evidence, evidence)
