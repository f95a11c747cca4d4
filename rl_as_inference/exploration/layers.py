"""Backward messages of many finite processes at once, which share their states and differ in their numbers.

``B`` runs of an agent believe different things of the same states. Their messages are those of
:func:`rl_as_inference.exact.plan`, with the run as a batch dimension; where time is part of the state, as in DeepSea,
each step looks only at the states that can be reached by then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Layers", "TablePolicy", "greedy", "soft"]

Improve = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From ``Q``, ``(B, n, A)``, and log priors ``(n, A)`` to ``V``, ``(B, n)``, and log probabilities, ``(B, n, A)``."""


class Layers:
    """The states that can be reached by each step, and where they can lead.

    Args:
        indices: successors, ``(S, A, K)``.
        possible: which of them have a probability, bool ``(S, A, K)``.
        initial: ``p(s_0)``, ``(S,)``.
        terminal: bool ``(S,)``.
        horizon: the number of steps.
        discount: γ in [0, 1].
        log_prior: of actions, ``(S, A)``; -inf where one is forbidden.

    Attributes:
        states: for each of ``T + 1`` times the states that can be reached, ``(n_t,)``.
        position: for each of them where a state is in that list, ``(S,)``; -1 for one that is not.
        successors: for each of ``T`` steps the places of the successors in the next list, ``(n_t, A, K)``.
    """

    def __init__(
        self,
        indices: Tensor,
        possible: Tensor,
        initial: Tensor,
        terminal: Tensor,
        horizon: int,
        discount: float | Tensor,
        log_prior: Tensor,
    ) -> None:
        self.initial, self.terminal, self.horizon, self.discount = initial, terminal, horizon, discount
        self.log_prior = log_prior
        reached = before = initial > 0
        self.states: list[Tensor] = []
        self.position: list[Tensor] = []
        self.successors: list[Tensor] = []
        self._everywhere: list[bool] = []
        for t in range(horizon + 1):
            if self.states and torch.equal(reached, before):
                states, position = self.states[-1], self.position[-1]
            else:
                states = reached.nonzero().squeeze(-1)
                position = torch.full_like(terminal, -1, dtype=torch.long)
                position[states] = torch.arange(len(states), device=states.device)
            self.states.append(states)
            self.position.append(position)
            before = reached
            if t < horizon:
                live = states[~terminal[states]]
                after = torch.zeros_like(reached)
                after[indices[live][possible[live]]] = True
                reached = after | (reached & terminal)
        for t in range(horizon):
            if t and self.states[t] is self.states[t - 1] and self.states[t + 1] is self.states[t]:
                self.successors.append(self.successors[-1])
                self._everywhere.append(self._everywhere[-1])
                continue
            places = self.position[t + 1][indices[self.states[t]]].clamp(min=0)
            self.successors.append(places)
            whole = torch.arange(len(self.states[t + 1]), device=places.device)
            self._everywhere.append(places.shape[-1] == len(whole) and bool((places == whole).all()))

    @cached_property
    def start(self) -> Tensor:
        """``p(s_0)`` of the states of the first layer, ``(n_0,)``."""
        return self.initial[self.states[0]]

    def onward(self, value: Tensor, t: int) -> Tensor:
        """Returns ``V(s')`` of every successor, ``(B, n_t, A, K)``, from ``(B, n_{t+1})``."""
        if self._everywhere[t]:
            return value[:, None, None, :].expand(-1, *self.successors[t].shape)
        return value[:, self.successors[t]]

    def expect(self, value: Tensor, transition: Tensor, t: int) -> Tensor:
        """Returns ``Σ_{s'} p(s'|s,a) V(s')``, ``(B, n_t, A)``, from ``p``, ``(B, n_t, A, K)``."""
        if self._everywhere[t]:
            return (transition.flatten(1, 2) @ value[..., None]).reshape(len(value), *transition.shape[1:3])
        return (transition * value[:, self.successors[t]]).sum(-1)

    def at(self, table: Tensor, t: int) -> Tensor:
        """Returns a table's rows for the states of step ``t``, ``(B, n_t, …)``, from ``(B, S, …)``."""
        states = self.states[t]
        return table if len(states) == table.shape[1] else table.index_select(1, states)

    def backward(
        self,
        backup: Callable[[Tensor, int], Tensor],
        improve: Improve,
        num_runs: int,
    ) -> tuple[Tensor, TablePolicy]:
        """Returns ``V_0``, ``(B, n_0)``, and the policy of a recursion backwards in time.

        Args:
            backup: from ``(V_{t+1}, t)`` to ``Q_t``, ``(B, n_t, A)``; discounts V itself.
            improve: from ``Q_t`` to ``V_t`` and the policy.
            num_runs: ``B``.
        """
        value = self.initial.new_zeros(num_runs, len(self.states[-1]))
        tables = []
        for t in reversed(range(self.horizon)):
            value, logs = improve(backup(value, t), self.log_prior[self.states[t]])
            ended = self.terminal[self.states[t]]
            if bool(ended.any()):
                value = value.masked_fill(ended, 0.0)
            tables.append(logs)
        return value, TablePolicy(self, tables[::-1])

    def evaluate(self, policy: TablePolicy, transition: Tensor, reward: Tensor) -> Tensor:
        """Returns what each run's policy earns on average, ``(B,)``, in reward units.

        Args:
            policy: it may be one for other layers.
            transition: ``p(s'|s,a)``, ``(B, S, A, K)``, or one for all runs.
            reward: ``r(s,a)``, ``(B, S, A)``, likewise.
        """
        batch = len(policy.tables[0])
        value = self.initial.new_zeros(batch, len(self.states[-1]))
        for t in reversed(range(self.horizon)):
            q = self.at(reward, t) + self.expect(self.discount * value, self.at(transition, t), t)
            where = policy.layers.position[t][self.states[t]]
            value = (policy.tables[t][:, where].exp() * q).sum(-1)
            value = value.masked_fill(self.terminal[self.states[t]], 0.0)
        return value @ self.start


class TablePolicy:
    """A policy that each of ``B`` runs has to itself: trajectory ``b`` is asked of table ``b``.

    Attributes:
        layers: whose states it is given for.
        tables: for each step the log probabilities, ``(B, n_t, A)``.
    """

    def __init__(self, layers: Layers, tables: list[Tensor]) -> None:
        self.layers, self.tables = layers, tables

    def __call__(self, state: Tensor, t: int) -> dist.Categorical:
        """Returns each run's distribution over actions, from states ``(B,)``.

        Raises:
            ValueError: for a state that the agent holds impossible at that step.
        """
        where = self.layers.position[t][state]
        if bool((where < 0).any()):
            raise ValueError(
                f"truth: state {int(state[where < 0][0])} was reached at step {t}, which the family holds impossible; "
                f"give every successor that may be a prior probability"
            )
        table = self.tables[t]
        return dist.Categorical(logits=table[torch.arange(len(state), device=state.device), where])


def greedy(q: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``max_a Q`` over the actions that are allowed, and the policy that takes it."""
    value, action = q.masked_fill(log_prior == -torch.inf, -torch.inf).max(-1)
    return value, torch.full_like(q, -torch.inf).scatter_(-1, action[..., None], 0.0)


def soft(temperature: Tensor, *, counting: bool = False) -> Improve:
    """Returns the soft maximum, ``V = τ log Σ_a p(a) e^{Q(a)/τ}``, and its Boltzmann policy.

    Args:
        temperature: τ of each run, ``(B,)`` in reward units per nat.
        counting: whether ``p`` is 1 for every action that is allowed, as in K-learning, and not the action prior.
    """

    def improve(q: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
        if counting:
            log_prior = torch.where(log_prior == -torch.inf, log_prior, 0.0)
        logits = q / temperature[:, None, None] + log_prior
        total = torch.logsumexp(logits, -1)
        return temperature[:, None] * total, logits - total[..., None]

    return improve
