"""Answers by writing out every trajectory: slow, independent of the library's recursions."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Path(NamedTuple):
    """One whole trajectory with its survival: ``length`` steps count, then the episode is over."""

    states: tuple[int, ...]
    actions: tuple[int, ...]
    length: int
    dynamics: float
    prior: float
    return_: float


def paths(mdp) -> Iterator[Path]:
    """Every trajectory of a small TabularMDP, with every fall of the survival coin.

    After a death by coin the episode is over: no action, no reward, the state stays.
    """
    transition = mdp.kernel.probabilities.tolist()
    reward = mdp.reward_table.tolist()
    by_successor = mdp.reward_table.dim() == 3
    gamma = float(mdp.discount)

    def extend(states, actions, weight, prior, total, t):
        state = states[-1]
        if mdp.terminal[state] or t == mdp.horizon:
            yield Path(tuple(states), tuple(actions), t, weight, prior, total)
            return
        for a in range(mdp.num_actions):
            p_a = float(mdp.action_prior[state, a])
            for s2 in range(mdp.num_states):
                p = transition[state][a][s2]
                if p == 0 or p_a == 0:
                    continue
                r = reward[state][a][s2] if by_successor else reward[state][a]
                last = t == mdp.horizon - 1
                if not last and gamma < 1:
                    dead = weight * p * (1 - gamma)
                    yield Path((*states, s2), (*actions, a), t + 1, dead, prior * p_a, total + r)
                alive = weight * p * (1.0 if last else gamma)
                if alive > 0:
                    yield from extend([*states, s2], [*actions, a], alive, prior * p_a, total + r, t + 1)

    for s, p in enumerate(mdp.initial_probabilities.tolist()):
        if p > 0:
            yield from extend([s], [], p, 1.0, 0.0, 0)


def log_evidence(mdp) -> float:
    alpha = float(mdp.temperature)
    return math.log(sum(path.dynamics * path.prior * math.exp(path.return_ / alpha) for path in paths(mdp)))


def elbo(mdp, policy: Tensor) -> float:
    """ELBO of a table ``(T, S, A)``, discount as survival."""
    alpha, total = float(mdp.temperature), 0.0
    for path in paths(mdp):
        q = path.dynamics
        log_ratio = 0.0
        for t, (s, a) in enumerate(zip(path.states, path.actions, strict=False)):
            pi = float(policy[t, s, a])
            q *= pi
            log_ratio += math.log(float(mdp.action_prior[s, a])) - (math.log(pi) if pi > 0 else 0.0)
        if q > 0:
            total += q * (path.return_ / alpha + log_ratio)
    return total


def best_elbo(mdp) -> tuple[float, Tensor]:
    """The largest ELBO by a maximum over policies, one state and step at a time, in plain Python."""
    alpha, gamma = float(mdp.temperature), float(mdp.discount)
    transition, reward = mdp.kernel.probabilities, mdp.reward_table
    policy = torch.zeros(mdp.horizon, mdp.num_states, mdp.num_actions, dtype=torch.float64)
    value = [0.0] * mdp.num_states
    for t in reversed(range(mdp.horizon)):
        after, value = value, [0.0] * mdp.num_states
        for s in range(mdp.num_states):
            weights = []
            for a in range(mdp.num_actions):
                q = 0.0
                for s2 in range(mdp.num_states):
                    r = float(reward[s, a, s2] if reward.dim() == 3 else reward[s, a])
                    q += float(transition[s, a, s2]) * (r / alpha + gamma * after[s2])
                weights.append(float(mdp.action_prior[s, a]) * math.exp(q))
            if not mdp.terminal[s]:
                value[s] = math.log(sum(weights))
                policy[t, s] = torch.tensor(weights, dtype=torch.float64) / sum(weights)
            else:
                policy[t, s] = mdp.action_prior[s]
    return sum(float(p) * v for p, v in zip(mdp.initial_probabilities, value, strict=True)), policy


def posterior_marginals(mdp) -> Tensor:
    """Marginals ``p(s_t | O)``, an ended trajectory staying in its last state, ``(T+1, S)``."""
    alpha = float(mdp.temperature)
    out = torch.zeros(mdp.horizon + 1, mdp.num_states, dtype=torch.float64)
    for path in paths(mdp):
        weight = path.dynamics * path.prior * math.exp(path.return_ / alpha)
        states = path.states + (path.states[-1],) * (mdp.horizon + 1 - len(path.states))
        for t, s in enumerate(states):
            out[t, s] += weight
    return out / out[0].sum()
