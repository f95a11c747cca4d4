"""Amortized policies over discrete actions: a network of state and time, and a table."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_count, check_horizon, holds
from rl_as_inference.state_time_network import Activation, Architecture, StateTimeNetwork

__all__ = ["CategoricalPolicy", "TabularPolicy"]


class CategoricalPolicy(nn.Module):
    """A network from state and time to the logits of discrete actions.

    ``π(a|s, t) ∝ p(a|s) exp(f(s, t)_a)``: it starts at the action prior and never leaves its support.

    Args:
        state_space: ``Discrete`` or ``Box``.
        num_actions: ``A``.
        horizon: the number of steps; None for a stationary policy.
        hidden_sizes: widths of the hidden layers.
        prior: the action prior, ``state -> Categorical``; uniform by default.
        activation: of the hidden layers, ``"tanh"`` or ``"relu"``.
        architecture: how layers are put together, ``"plain"``, ``"batch_norm"`` or ``"residual"``.

    Example:
        >>> policy = CategoricalPolicy(gymnasium.spaces.Discrete(5), 2, horizon=10)
        >>> policy(torch.tensor([0, 4]), 3).probs
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], grad_fn=<SoftmaxBackward0>)
    """

    batch_steps = True

    @checked
    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        num_actions: int,
        *,
        horizon: int | None = None,
        hidden_sizes: Sequence[int] = (64, 64),
        prior: Callable[[Tensor], Any] | None = None,
        activation: Activation = "tanh",
        architecture: Architecture = "plain",
    ) -> None:
        super().__init__()
        check_count("num_actions", num_actions)
        if prior is not None and not callable(prior):
            raise ValueError(f"prior must be a callable state -> Categorical, or None; got {prior!r}")
        self.network = StateTimeNetwork(
            state_space,
            num_actions,
            horizon=horizon,
            hidden_sizes=hidden_sizes,
            activation=activation,
            architecture=architecture,
        )
        self.prior = prior
        self.row_by_row = horizon is not None and architecture != "batch_norm"

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        logits = self.network(state, t)
        return dist.Categorical(logits=logits if self.prior is None else logits + self.prior(state).logits)


class TabularPolicy(nn.Module):
    """A table of logits: every policy of a finite process.

    Args:
        num_states: ``S``.
        num_actions: ``A``.
        horizon: ``T`` for a table per step, None for a stationary policy.

    Example:
        >>> TabularPolicy(3, 2, horizon=4).logits.shape
        torch.Size([4, 3, 2])
    """

    batch_steps = True

    @checked
    def __init__(self, num_states: int, num_actions: int, *, horizon: int | None = None) -> None:
        super().__init__()
        check_count("num_states", num_states)
        check_count("num_actions", num_actions)
        horizon = check_horizon(horizon)
        shape = (num_states, num_actions) if horizon is None else (horizon, num_states, num_actions)
        self.logits = nn.Parameter(torch.zeros(shape))

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        if self.logits.dim() == 2:
            return dist.Categorical(logits=self._rows(state))
        if not holds(torch.as_tensor(t) < len(self.logits)):
            raise ValueError(
                f"policy: the table has {len(self.logits)} steps, and step {int(torch.as_tensor(t).max())} was asked"
            )
        return dist.Categorical(logits=self._rows(t, state))

    def _rows(self, *index: int | Tensor) -> Tensor:
        """Returns rows of the table, ``(*batch, A)``; the state, which comes last, may be none of its own."""
        try:
            return self.logits[index]
        except IndexError as error:  # looking first would make a GPU wait at every step
            state = index[-1]
            if not isinstance(state, Tensor):  # a history, say, of which the process tells
                raise
            if state.is_floating_point():
                told = f"a table has a row for each integer state, got {state.dtype}; use amortized_policy(process)"
            else:
                told = f"the table has {self.logits.shape[-2]} states, and state {int(state.max())} was asked"
            raise ValueError(f"policy: {told}") from error
