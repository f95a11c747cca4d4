"""What an algorithm is told of the problem that it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import torch
from torch import Tensor

from rl_as_inference.agents.entropy import TargetEntropy
from rl_as_inference.agents.frames import FrameStack
from rl_as_inference.agents.options import ActionPrior
from rl_as_inference.agents.windows import Window
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.spaces import uniform_log_density

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """Spaces, action prior, worth and end of a problem, in the agent's units; and where and how precisely to learn it.

    Attributes:
        name: what messages call it.
        horizon: the number of steps where that is part of the model, and reaching it an ending: policies and critics
            are then asked with the time. None where there is no end but terminal states, as in an environment whose
            time limit only cuts episodes off.
        prior_of: the process whose action prior is the model's; None for the uniform prior.
        temperature: α, in reward units per nat, at the start.
        learns_temperature: whether it is tuned.
        target_entropy: what to tune it to; None if not to an entropy.
        window: how observations are put together to states; None where each is a state.
    """

    name: str
    state_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    horizon: int | None
    discount: float
    prior_of: MarkovDecisionProcess | None
    action_prior: ActionPrior
    temperature: float
    learns_temperature: bool
    target_entropy: TargetEntropy | None
    n_step: int
    device: torch.device
    dtype: torch.dtype
    window: Window | FrameStack | None = None

    @property
    def is_discrete(self) -> bool:
        """Whether actions are."""
        return isinstance(self.action_space, gymnasium.spaces.Discrete)

    @property
    def num_actions(self) -> int:
        """``A``, of discrete actions."""
        assert isinstance(self.action_space, gymnasium.spaces.Discrete)
        return int(self.action_space.n)

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Of one action: ``(d,)``, or ``()`` of a discrete one."""
        return tuple(self.action_space.shape or ())

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of one state."""
        return tuple(self.state_space.shape or ())

    @property
    def state_dtype(self) -> torch.dtype:
        """Of states: integers, or the learner's own."""
        return torch.int64 if isinstance(self.state_space, gymnasium.spaces.Discrete) else self.dtype

    def batch_shape(self, state: Tensor) -> torch.Size:
        """Returns the shape of a batch of states without that of a state."""
        return state.shape[: state.dim() - len(self.state_shape)]

    def times(self, t: Tensor) -> Tensor | int:
        """Returns the times to ask policies and critics with: these, or 0 where time is not looked at."""
        return 0 if self.horizon is None else t

    def latest(self, state: Tensor) -> Tensor:
        """Returns the last observation of states, which are that themselves where there is no window."""
        return state if self.window is None else self.window.latest(state)

    def prior(self, state: Tensor) -> Any:
        """Returns the action prior of the process that has one of its own, in states that count from 0."""
        assert self.prior_of is not None
        return self.prior_of.prior_at(self.latest(state))

    def log_prior(self, state: Tensor, action: Tensor | None = None) -> Tensor:
        """Returns ``log p(a|s)`` in nats, of an action, or of all discrete ones; it may broadcast."""
        if self.prior_of is not None and self.action_prior == "uniform":
            prior = self.prior(state)
            if self.is_discrete:
                return self.taken(prior.logits.log_softmax(-1).to(self.dtype), action)
            return prior.log_prob(action).to(self.dtype)
        constant = uniform_log_density(self.action_space) if self.action_prior == "uniform" else 0.0
        return torch.full((), constant, dtype=self.dtype, device=self.device)

    def taken(self, values: Tensor, action: Tensor | None) -> Tensor:
        """Returns the values ``(*lead, *batch)`` of discrete actions ``(*batch,)``, of those of all ``(..., A)``."""
        if action is None:
            return values
        return values.gather(-1, action.expand(values.shape[:-1])[..., None]).squeeze(-1)

    def beside(self, state: Tensor, count: int) -> Tensor:
        """Returns each state ``count`` times, ``(*batch, count, *state)``."""
        batch = self.batch_shape(state)
        return state.reshape(*batch, 1, *self.state_shape).expand(*batch, count, *self.state_shape)

    def times_beside(self, t: Tensor | int) -> Tensor | int:
        """Returns the times of what :meth:`beside` returns; they broadcast."""
        return t[..., None] if isinstance(t, Tensor) else t
