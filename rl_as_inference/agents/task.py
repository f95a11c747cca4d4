"""What an algorithm is told of the problem that it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import torch
from torch import Tensor

from rl_as_inference.agents.entropy import MASKED, TargetEntropy
from rl_as_inference.agents.frames import FrameStack
from rl_as_inference.agents.functional import log_probabilities
from rl_as_inference.agents.options import ActionPrior
from rl_as_inference.agents.windows import Window
from rl_as_inference.factored import JOINT_ACTIONS, Factors
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.processes.action_masks import ActionMasks
from rl_as_inference.processes.mdp import unvalidated
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
        factors: of actions that are several at once; None of others.
        masks: where states say which actions are allowed; None where they do not.
        normalized: whether observations or rewards are, by the options.
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
    factors: Factors | None = None
    masks: ActionMasks | None = None
    normalized: bool = False

    @property
    def is_discrete(self) -> bool:
        """Whether all actions can be summed over: discrete ones, and joint ones that are few."""
        if self.factors is not None:
            return self.factors.is_small
        return isinstance(self.action_space, gymnasium.spaces.Discrete)

    @property
    def num_actions(self) -> int:
        """``A``, of discrete actions; of joint ones their number."""
        if self.factors is not None:
            return self.factors.num_joint
        assert isinstance(self.action_space, gymnasium.spaces.Discrete)
        return int(self.action_space.n)

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Of one action: ``(d,)``, ``(F,)`` of ``F`` factors, or ``()`` of a discrete one."""
        return tuple(self.action_space.shape or ())

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of one state."""
        return tuple(self.state_space.shape or ())

    @property
    def state_dtype(self) -> torch.dtype:
        """Of states: integers, or the learner's own."""
        return torch.int64 if isinstance(self.state_space, gymnasium.spaces.Discrete) else self.dtype

    @property
    def critic_space(self) -> gymnasium.Space[Any]:
        """What critics are of: all actions at once, where they can be summed over; else one of the action space."""
        return gymnasium.spaces.Discrete(self.num_actions) if self.is_discrete else self.action_space

    def check_few_actions(self, by: str) -> None:
        """Raises ValueError if there are too many joint actions for what sums over all of them."""
        if self.factors is not None and not self.factors.is_small:
            raise ValueError(
                f"action_space of {self.name} has factors {self.factors.sizes}, {self.factors.num_joint} joint "
                f"actions, and {by} sums over all of them, at most {JOINT_ACTIONS}; use SoftActorCritic, which sums "
                f"factor by factor"
            )

    def batch_shape(self, state: Tensor) -> torch.Size:
        """Returns the shape of a batch of states without that of a state."""
        return state.shape[: state.dim() - len(self.state_shape)]

    def times(self, t: Tensor) -> Tensor | int:
        """Returns the times to ask policies and critics with: these, or 0 where time is not looked at."""
        return 0 if self.horizon is None else t

    def latest(self, state: Tensor) -> Tensor:
        """Returns the last observation of states, which are that themselves where there is no window."""
        return state if self.window is None else self.window.latest(state)

    @property
    def has_prior(self) -> bool:
        """Whether the action prior is another than the uniform one over the action space."""
        return self.prior_of is not None or self.masks is not None

    def prior(self, state: Tensor) -> Any:
        """Returns the action prior where it is not uniform: a process's own, or uniform over what a mask allows."""
        if self.prior_of is not None:
            return self.prior_of.prior_at(self.latest(state))
        assert self.masks is not None
        return self.masks.prior(self.latest(state), self.factors, self.dtype)

    def log_counts(self, states: Tensor) -> Tensor:
        """Returns the log of how many discrete actions are allowed in each state where any is taken, nats."""
        with unvalidated(), torch.no_grad():
            if self.factors is None or self.is_discrete:
                counts = (self.log_policies(self.prior(states)) > MASKED).sum(-1).double().log()
            else:
                counts = (self.prior(states).log_factors > MASKED).sum(-1).double().log().sum(-1)
            ended = None if self.prior_of is None else self.prior_of.has_ended(self.latest(states))
        return counts if ended is None else counts[~ended]

    def log_prior(self, state: Tensor, action: Tensor | None = None) -> Tensor:
        """Returns ``log p(a|s)`` in nats, of an action, or of all discrete ones; it may broadcast."""
        if self.has_prior:
            prior, flat = self.prior(state), self.action_prior == "flat"
            if self.is_discrete:
                log_prior = self.log_policies(prior).to(self.dtype)
                return self.taken(_flat(log_prior) if flat else log_prior, action)
            if not flat:
                return prior.log_prob(action).to(self.dtype)
        constant = uniform_log_density(self.action_space) if self.action_prior == "uniform" else 0.0
        return torch.full((), constant, dtype=self.dtype, device=self.device)

    def log_prior_factors(self, state: Tensor) -> Tensor:
        """Returns ``log p`` of each factor's values in nats, ``(*batch, F, max(sizes))``; it may broadcast."""
        assert self.factors is not None
        if self.has_prior:
            log_prior: Tensor = self.prior(state).log_factors.to(self.dtype)
            return log_prior if self.action_prior == "uniform" else _flat(log_prior)
        log_sizes = self.factors.limits.to(self.dtype).log()[:, None]
        return -log_sizes if self.action_prior == "uniform" else torch.zeros_like(log_sizes)

    def log_policies(self, chosen: Any) -> Tensor:
        """Returns the log probabilities of all discrete actions in a policy's distributions, ``(*batch, A)``."""
        every = None if self.factors is None else self.factors.actions
        actions = None if every is None else every.to(self.dtype)  # a Bernoulli takes no integers, and others either
        return log_probabilities(chosen, self.num_actions, self.device, actions)

    def action_at(self, index: Tensor) -> Tensor:
        """Returns discrete actions ``(*batch, *action)`` by their places among all, ``(*batch,)``."""
        return index if self.factors is None else self.factors.action(index)

    def taken(self, values: Tensor, action: Tensor | None) -> Tensor:
        """Returns the values ``(*lead, *batch)`` of discrete actions ``(*batch, *action)``, of all ``(..., A)``."""
        if action is None:
            return values
        action = action if self.factors is None else self.factors.index(action)
        return values.gather(-1, action.expand(values.shape[:-1])[..., None]).squeeze(-1)

    def beside(self, state: Tensor, count: int) -> Tensor:
        """Returns each state ``count`` times, ``(*batch, count, *state)``."""
        batch = self.batch_shape(state)
        return state.reshape(*batch, 1, *self.state_shape).expand(*batch, count, *self.state_shape)

    def times_beside(self, t: Tensor | int) -> Tensor | int:
        """Returns the times of what :meth:`beside` returns; they broadcast."""
        return t[..., None] if isinstance(t, Tensor) else t


def _flat(log_prior: Tensor) -> Tensor:
    """Returns 0 for the log probabilities of all that is allowed: forbidden actions stay so."""
    return torch.where(log_prior > -torch.inf, 0.0, log_prior)
