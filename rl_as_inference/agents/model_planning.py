"""Plans in learned dynamics, as policies: every particle has a draw of what is not known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rl_as_inference.learned import LearnedDynamics
from rl_as_inference.planning import MPPIPlanner, SMCPlanner
from rl_as_inference.planning.answers import kernel_answer
from rl_as_inference.planning.planner import Answer

__all__ = ["MemberPlanner", "PlanningPolicy"]


class MemberPlanner(SMCPlanner):
    """Sequential Monte Carlo in every member of learned dynamics by itself, and the mixture of what they say to do.

    A member's particles are resampled among themselves alone, so that none of them is chosen for its hopes. Luck is
    left out: each member does what it expects. Continuous actions are drawn from the mixture of the members' plans;
    of discrete ones the soft values are averaged over members before they are exponentiated.

    Args:
        dynamics: learned.
        **options: of :class:`~rl_as_inference.planning.SMCPlanner`; the number of particles is each member's.
    """

    def __init__(self, dynamics: LearnedDynamics, **options: Any) -> None:
        super().__init__(dynamics.certain(), **options)
        self.model = dynamics

    def plan(self, states: Tensor, t: int, steps: int) -> Answer:
        number = self.model.ensemble
        member = torch.arange(number, device=states.device).to(states).repeat(len(states))
        roots = torch.cat([states.repeat_interleave(number, 0), member[:, None]], -1)
        actions, log_weight = self._by_weights(roots, t, steps)
        if self.is_discrete:
            logits = log_weight.view(len(states), number, -1).mean(1).log_softmax(-1)
            return _categorical, (logits,)
        each = log_weight.log_softmax(-1).view(len(states), -1)
        return kernel_answer(actions.reshape(len(states), -1, actions.shape[-1]), each, self.process.action_space)


class PlanningPolicy:
    """A policy that plans in learned dynamics: what a model-based agent acts by.

    Args:
        planner: of the dynamics.

    Asked with one time for all states it begins with the last plan, if that was of the step before; with several it
    begins anew.
    """

    answers_by_drawing = True

    def __init__(self, planner: MPPIPlanner | MemberPlanner) -> None:
        self.planner = planner

    def __call__(self, state: Tensor, t: int | Tensor) -> Any:
        """Returns the plan's distribution over the first action, of the batch shape of ``state``."""
        times = torch.as_tensor(t)
        if bool((times == times.flatten()[0]).all()):
            return self.planner(state, int(times.flatten()[0]))
        self.forget()
        batch = self.planner.process.batch_shape(state)
        if self.planner.process.horizon is None:
            return self.planner(state, 0)
        # A horizon is nearer to some than to others.
        found = [self.planner(state[index], int(time)) for index, time in enumerate(times.expand(batch))]
        return _Rows(found)

    def forget(self) -> None:
        """Begins anew at the next call."""
        if isinstance(self.planner, MPPIPlanner):
            self.planner.forget()


class _Rows:
    """Distributions of single states, as one batch."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def sample(self) -> Tensor:
        return torch.stack([row.sample() for row in self.rows])

    @property
    def mean(self) -> Tensor:
        return torch.stack([row.mean for row in self.rows])


def _categorical(logits: Tensor) -> Any:
    return torch.distributions.Categorical(logits=logits)
