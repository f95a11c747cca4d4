"""Finite partially observable Markov decision processes given by tables."""

import copy
from typing import Any, Self

import gymnasium
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.checks import check_temperature
from rl_as_inference.processes.inversion import invert
from rl_as_inference.processes.log_sums import log_or_minus_inf
from rl_as_inference.processes.partially_observed import PartiallyObservedMDP
from rl_as_inference.processes.successor_tables import as_floating, checked_rows
from rl_as_inference.processes.tabular import TabularMDP

__all__ = ["TabularPOMDP"]


class TabularPOMDP(PartiallyObservedMDP):
    """A process with ``S`` hidden states, ``A`` actions and ``O`` observations, given by its tables.

    Every reading of it is differentiable in the tensors given here. That an episode has ended is seen.

    Args:
        transition, reward, initial: as of a :class:`TabularMDP`, of the hidden states.
        observation: ``p(y|s)``, ``(S, O)``, seen at the start and after every step; or ``p(y|a,s')``, ``(A, S, O)``,
            seen after every step alone. Rows sum to one.
        horizon: number of steps, or None for no horizon.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        action_prior: ``p(a)``, ``(A,)``; uniform by default. It does not depend on the state, which would give it away.
        terminal: which states are terminal, ``(S,)`` bool.

    Raises:
        ValueError: naming the argument, where it is wrong, and how to mend it.

    Example:
        >>> stay = torch.eye(2)[:, None].expand(2, 2, 2)
        >>> pomdp = TabularPOMDP(stay, torch.eye(2), torch.tensor([0.5, 0.5]),
        ...                      torch.tensor([[0.8, 0.2], [0.2, 0.8]]), horizon=3)
        >>> pomdp.num_states, pomdp.num_actions, pomdp.num_observations
        (2, 2, 2)
    """

    absorbing = has_exact_answers = True

    def __init__(
        self,
        transition: Any,
        reward: Any,
        initial: Any,
        observation: Any,
        *,
        horizon: int | None = None,
        discount: float | Tensor = 1.0,
        temperature: float | Tensor = 1.0,
        action_prior: Any = None,
        terminal: Any = None,
    ) -> None:
        if action_prior is not None and as_floating(action_prior, "action_prior").dim() != 1:
            shape = tuple(as_floating(action_prior, "action_prior").shape)
            raise ValueError(
                f"action_prior must have shape (A,), got {shape}: one that depends on the hidden state gives it away"
            )
        self.fully_observed = TabularMDP(
            transition,
            reward,
            initial,
            horizon=horizon,
            discount=discount,
            temperature=temperature,
            action_prior=action_prior,
            terminal=terminal,
        )
        """The same problem with the state seen."""
        mdp = self.fully_observed
        super().__init__(horizon=horizon, discount=discount, temperature=temperature)
        table = as_floating(observation, "observation").to(mdp.initial_probabilities)
        shapes = [(mdp.num_states,), (mdp.num_actions, mdp.num_states)]
        if tuple(table.shape[:-1]) not in shapes or 0 in table.shape:
            raise ValueError(
                f"observation must have shape ({mdp.num_states}, O) or ({mdp.num_actions}, {mdp.num_states}, O), got "
                f"{tuple(table.shape)}"
            )
        self.observation_table = checked_rows("observation", table)
        """``(S, O)`` or ``(A, S, O)``, as it was given."""
        self.num_states, self.num_actions, self.num_observations = mdp.num_states, mdp.num_actions, table.shape[-1]
        self.state_space, self.action_space = mdp.state_space, mdp.action_space
        self.observation_space = gymnasium.spaces.Discrete(self.num_observations)
        self.has_uniform_prior = mdp.has_uniform_prior
        self.name = "tabular, partially observed"

    @property
    def sees_first(self) -> bool:
        """Whether something is seen before the first action."""
        return self.observation_table.dim() == 2

    @property
    def observation_by_action(self) -> Tensor:
        """``p(y|a,s')``, ``(A, S, O)``, whichever form was given."""
        return self.observation_table.expand(self.num_actions, -1, -1)

    @property
    def log_action_prior(self) -> Tensor:
        """``log p(a)``, ``(A,)``; -inf where the action is forbidden."""
        return self.fully_observed.log_action_prior[0]

    def believes_as(self, other: Any) -> bool:
        """Returns whether the same is believed of the same histories in another process."""
        if not isinstance(other, TabularPOMDP):
            return False
        pairs = [
            (one.fully_observed.kernel.dense(), one.fully_observed.initial_probabilities, one.observation_table)
            for one in (self, other)
        ]
        ends = torch.equal(self.fully_observed.terminal, other.fully_observed.terminal)
        return ends and all(torch.equal(mine, theirs) for mine, theirs in zip(*pairs, strict=True))

    def initial(self) -> Any:
        return self.fully_observed.initial()

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return self.fully_observed.transition(state, action)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return self.fully_observed.reward(state, action, next_state)

    def terminated(self, state: Tensor) -> Tensor | None:
        return self.fully_observed.terminated(state)

    def observation(self, state: Tensor, action: Tensor | None) -> Any:
        if self.sees_first:
            rows = self.observation_table[state]
        elif action is None:
            return None
        else:
            rows = self.observation_table[action, state]
        # Not probs=...: Categorical clamps them, and what is impossible would become possible.
        return dist.Categorical(logits=log_or_minus_inf(rows))

    def prior(self, seen: Any) -> Any:
        return dist.Categorical(logits=self.log_action_prior.expand(*self.batch_shape(seen), -1))

    def next_state(self, state: Tensor, action: Tensor, *, pathwise: bool = False) -> Tensor:
        return self.fully_observed.next_state(state, action, pathwise=pathwise)

    def draw_observation(self, state: Tensor, action: Tensor | None, *, pathwise: bool = False) -> Tensor | None:
        if action is None and not self.sees_first:
            return None
        if pathwise:  # to be told why not
            return super().draw_observation(state, action, pathwise=True)
        table = self.observation_by_action if action is not None else self.observation_table
        cumulative = table.detach().cumsum(-1)
        cumulative = cumulative / cumulative[..., -1:]
        rows = cumulative[state] if action is None else cumulative[action, state]
        return invert(rows, torch.rand((*state.shape, 1), dtype=rows.dtype, device=rows.device))

    def at_temperature(self, temperature: float | Tensor) -> Self:
        """Returns a copy of the process with another temperature."""
        check_temperature(temperature)
        other = copy.copy(self)
        other.temperature, other.fully_observed = temperature, self.fully_observed.at_temperature(temperature)
        return other

    def learns_dynamics(self) -> bool:
        seen = torch.is_grad_enabled() and self.observation_table.requires_grad
        return seen or self.fully_observed.learns_dynamics()
