"""Soft value functions: learned ones, and tables. Values are in reward units."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from rl_as_inference.critics.ensembles import QEnsemble
from rl_as_inference.state_time_network import StateTimeNetwork

__all__ = ["LearnedTable", "QEnsemble", "SoftQ", "SoftV", "TableCritic"]


class SoftV(nn.Module):
    """A learned soft state value; ``forward(state, t)`` is ``(*batch,)`` in reward units.

    Args:
        state_space: ``Discrete`` or ``Box``.
        horizon: the number of steps; None for a stationary value.
        hidden_sizes: widths of the hidden layers.
        scale: the size of a typical value, in reward units: the network learns ``V / scale``.
    """

    batch_steps = True

    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        *,
        horizon: int | None = None,
        hidden_sizes: Sequence[int] = (64, 64),
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = StateTimeNetwork(state_space, 1, horizon=horizon, hidden_sizes=hidden_sizes)
        self.scale = scale

    def forward(self, state: Tensor, t: int | Tensor) -> Tensor:
        value: Tensor = self.scale * self.network(state, t).squeeze(-1)
        return value


class SoftQ(nn.Module):
    """A learned soft action value of discrete actions; ``forward(state, t)`` is ``(*batch, A)``, reward units.

    Its arguments are those of :class:`SoftV`, with the number of actions after the state space.
    """

    batch_steps = True

    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        num_actions: int,
        *,
        horizon: int | None = None,
        hidden_sizes: Sequence[int] = (64, 64),
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = StateTimeNetwork(state_space, num_actions, horizon=horizon, hidden_sizes=hidden_sizes)
        self.scale = scale

    def forward(self, state: Tensor, t: int | Tensor) -> Tensor:
        value: Tensor = self.scale * self.network(state, t)
        return value


class TableCritic(nn.Module):
    """A table of soft values as a critic: ``soft_v`` or ``soft_q`` of an exact plan.

    Args:
        table: ``(T or T+1, S)`` or ``(S,)`` for state values, ``(T, S, A)`` or ``(S, A)`` for action
            values, in reward units.
        stationary: whether the table has no time axis.

    Example:
        >>> import torch
        >>> critic = TableCritic(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> critic(torch.tensor([0, 1]), 1)
        tensor([3., 4.])
    """

    batch_steps = True
    table: Tensor

    def __init__(self, table: Tensor, *, stationary: bool = False) -> None:
        super().__init__()
        self.register_buffer("table", table.detach())
        self.stationary = stationary

    def forward(self, state: Tensor, t: int | Tensor) -> Tensor:
        return self.table[state] if self.stationary else self.table[t, state]


class LearnedTable(nn.Module):
    """A table of soft state values that is learned: every soft V of a finite process.

    Args:
        num_states: ``S``.
        horizon: ``T`` for a table per step, None for stationary values.
        scale: the size of a typical value, in reward units: the table holds ``V / scale``.

    Example:
        >>> LearnedTable(3, horizon=4)(torch.tensor([0, 2]), 1)
        tensor([0., 0.], grad_fn=<MulBackward0>)
    """

    batch_steps = True

    def __init__(self, num_states: int, *, horizon: int | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_states if horizon is None else (horizon, num_states)))
        self.scale = scale

    def forward(self, state: Tensor, t: int | Tensor) -> Tensor:
        return self.scale * (self.table[state] if self.table.dim() == 1 else self.table[t, state])
