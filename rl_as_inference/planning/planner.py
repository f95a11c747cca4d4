"""What planners share: what they plan in, how far they look, and what follows after that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rl_as_inference.checks import check_at_least, holds, unvalidated
from rl_as_inference.nouns import LearnedSoftValue, Policy, Problem, SoftV
from rl_as_inference.processes import GymnasiumProcess, MarkovDecisionProcess, PartiallyObservedMDP
from rl_as_inference.processes.kernels import drawn
from rl_as_inference.processes.membership import check_states
from rl_as_inference.spaces import is_unit_box

__all__ = ["Answer", "Planner", "nothing_has_weight", "repeated"]

Answer: TypeAlias = tuple[Callable[..., Any], tuple[Tensor, ...]]
"""A distribution, and the tensors that it is made of, each of which begins with the dimension of states."""


class Planner(ABC):
    """A policy that plans anew whenever it is asked.

    It answers by drawing, so that two answers to one question differ: what a rollout tells of it is of all of them,
    and what an exact answer tells is of those that it happened to give.

    Args:
        process: in parts, as it can be begun anywhere.
        look_ahead: how many steps a plan has; what goes beyond the horizon is left out.
        critic: the soft value of what follows, ``(state, t) -> V`` in reward units; None for nothing.
        proposal: from where actions are drawn; None for the action prior.

    Raises:
        ValueError: if the process cannot be set to a state, hides it, or numbers are out of range.
    """

    answers_by_drawing = True

    def __init__(
        self, process: Problem, *, look_ahead: int, critic: SoftV | None = None, proposal: Policy | None = None
    ) -> None:
        check_at_least("look_ahead", look_ahead)
        for name, value in (("critic", critic), ("proposal", proposal)):
            if value is not None and not callable(value):
                raise ValueError(f"{name} must be a callable (state, t), got {type(value).__name__}")
        self.process, self.look_ahead = _plannable(process), look_ahead
        space = self.process.action_space
        self.is_discrete = isinstance(space, gymnasium.spaces.Discrete)
        if not self.is_discrete:
            box = space if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 else None
            if box is None or not (is_unit_box(box) or not (box.bounded_below | box.bounded_above).any()):
                raise ValueError(
                    f"process has action_space {space}, and planners need Discrete(n), Box(-1, 1, (d,)) or "
                    f"Box(-inf, inf, (d,)); rescale inside transition()"
                )
        _check_critic(critic, self.process)
        self.critic, self.proposal = critic, proposal
        self._dtype: torch.dtype | None = None
        self._like: Tensor | None = None

    @torch.no_grad()
    def __call__(self, state: Any, t: int | Tensor) -> Any:
        """Returns the plan's distribution over the first action, of the batch shape of ``state``.

        Args:
            state: ``(*batch, *state)``, a tensor; or an array, as environments give it, or nested lists.
            t: the step, one for all.

        Raises:
            ValueError: if ``state`` holds no numbers, or a state that there is none of; no plan from a state has any
                weight; or the critic's answer has another shape or is NaN.
        """
        step, state = _one_step(t), state if isinstance(state, Tensor) else self._as_state(state)
        if isinstance(space := self.process.state_space, gymnasium.spaces.Discrete):  # policies count from 0
            check_states(state, gymnasium.spaces.Discrete(int(space.n)), f"what {type(self).__name__} is asked about")
        batch = self.process.batch_shape(state)
        states = state.reshape(-1, *state.shape[len(batch) :])
        with unvalidated():
            steps = self.num_steps(step)
            if steps == 0:
                return self.process.prior_at(state)
            make, tensors = self.plan(states, step, steps)
            return make(*(tensor.reshape(*batch, *tensor.shape[1:]) for tensor in tensors))

    def _as_state(self, state: Any) -> Tensor:
        """Returns numbers as a tensor of the type and on the device of the states that the process begins in."""
        try:
            given = torch.as_tensor(np.asarray(state))
        except (TypeError, ValueError) as error:
            raise ValueError(f"state must be a tensor or an array of numbers, got {state!r:.80}") from error
        if self._like is None:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # what is drawn here moves nothing
                self._like = self.process.begin(1)
        if given.is_floating_point() and not self._like.is_floating_point():
            raise ValueError(f"state must hold integers, as the process's states are, got {given.dtype}")
        own = tuple(self._like.shape[1:])
        if tuple(given.shape[max(given.dim() - len(own), 0) :]) != own:
            raise ValueError(
                f"state must have shape (*batch, *state) with states of shape {own}, got {(*given.shape,)}"
            )
        return given.to(self._like)

    def num_steps(self, t: int) -> int:
        """Returns how many steps a plan made at step ``t`` has."""
        left = self.look_ahead if self.process.horizon is None else self.process.horizon - t
        return max(0, min(self.look_ahead, left))

    @abstractmethod
    def plan(self, states: Tensor, t: int, steps: int) -> Answer:
        """Returns the first action's distribution in each state, ``(B, *state)``, as what makes it of tensors."""

    def dtype(self, states: Tensor) -> torch.dtype:
        """Returns the floating-point type of log probabilities: that of states, or of the prior over discrete ones."""
        if states.is_floating_point():
            return states.dtype
        if self._dtype is None:
            prior = self.process.prior_at(states.reshape(-1, *(self.process.state_space.shape or ()))[:1])
            self._dtype = prior.log_prob(drawn(prior)).dtype
        return self._dtype

    def value_ahead(self, states: Tensor, t: int, ended: Tensor | None) -> Tensor:
        """Returns what follows from step ``t`` on, in nats, of the batch shape of ``states``; 0 where it is over."""
        batch = self.process.batch_shape(states)
        over = self.process.horizon is not None and t >= self.process.horizon
        if self.critic is None or over:
            return torch.zeros(batch, dtype=self.dtype(states), device=states.device)
        value = self.critic(self.process.as_seen(states), t)
        if value.shape != batch:
            raise ValueError(
                f"critic must give one soft value a state, of shape {tuple(batch)}, got {tuple(value.shape)} at step "
                f"{t}; of a soft Q, give (state, t) -> α log Σ_a p(a|s) exp(Q/α)"
            )
        value = value.to(self.dtype(states)) / self.process.temperature
        value = value if ended is None else torch.where(ended, 0.0, value)
        if not holds(~(value.isnan() | value.isposinf())):
            raise ValueError(f"critic is NaN or +inf at step {t}; it must be a number below infinity")
        return value


def repeated(states: Tensor, count: int) -> Tensor:
    """Returns every state ``count`` times, ``(B, *state)`` to ``(B · count, *state)``."""
    return states.repeat_interleave(count, 0)


def nothing_has_weight(states: Tensor, worthless: Tensor, t: int) -> ValueError:
    """Returns the error for states from which every plan has weight zero."""
    state = states[int(worthless.nonzero()[0])].tolist()
    return ValueError(
        f"every plan from state {state} at step {t} has weight zero, or one an infinite weight: rewards or values "
        f"ahead are infinite; make what is impossible so in the action prior, use more particles, or another proposal"
    )


def _plannable(process: Problem) -> MarkovDecisionProcess:
    if isinstance(process, GymnasiumProcess):
        raise ValueError(
            "process is a simulator, which cannot be set to a state to plan from; write its dynamics as a "
            "MarkovDecisionProcess, as models.pendulum does for Pendulum-v1, or read a table with "
            "TabularMDP.from_gymnasium"
        )
    if isinstance(process, PartiallyObservedMDP):
        raise ValueError(
            "process hides its state, and a planner plans from a state; plan in process.fully_observed where it has "
            "that, or use exact.plan, which plans in beliefs"
        )
    if not isinstance(process, MarkovDecisionProcess):
        raise ValueError(
            f"process must be a MarkovDecisionProcess, got {type(process).__name__}; a program is planned in by "
            f"conditioning it on what happened so far (docs/planning.md)"
        )
    return process


def _check_critic(critic: SoftV | None, process: MarkovDecisionProcess) -> None:
    """Raises ValueError for a learned critic of something else; its temperature need not be the process's."""
    if not isinstance(critic, LearnedSoftValue):
        return
    if critic.objective != "maxent":
        raise ValueError(f"critic holds values of objective {critic.objective!r}, and a plan needs soft values")
    if abs(critic.discount - float(process.discount)) > 1e-9:
        raise ValueError(
            f"critic was learned with discount {critic.discount}, and the process has {float(process.discount)}; plan "
            f"in a process of that discount"
        )


def _one_step(t: int | Tensor) -> int:
    steps = torch.as_tensor(t)
    if steps.is_floating_point() or bool((steps < 0).any()):
        raise ValueError(f"t must be a step that counts from 0, got {t}")
    if steps.numel() == 0 or bool((steps != steps.flatten()[0]).any()):
        raise ValueError("t must be one step for all states: a planner is asked step by step")
    return int(steps.flatten()[0])
