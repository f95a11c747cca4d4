"""One draw of what is not known: the process of one member of an ensemble."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.checks import check_count
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.trajectories import Transition

if TYPE_CHECKING:
    from rl_as_inference.learned.dynamics import LearnedDynamics

__all__ = ["MemberDynamics"]


class MemberDynamics(MarkovDecisionProcess):
    """The process of one member of an ensemble, or of one for each trajectory; see :meth:`LearnedDynamics.member`."""

    def __init__(self, dynamics: LearnedDynamics, index: int | Tensor) -> None:
        super().__init__(horizon=dynamics.horizon, discount=dynamics.discount, temperature=dynamics.temperature)
        if not isinstance(index, Tensor):
            check_count("index", index, least=0)
            if index >= dynamics.ensemble:
                raise ValueError(f"index must be below {dynamics.ensemble}, the number of members, got {index}")
        elif bool(((index < 0) | (index >= dynamics.ensemble)).any()):
            raise ValueError(f"index must hold members from 0 to {dynamics.ensemble - 1}, got {index.tolist()}")
        self.dynamics, self.index = dynamics, torch.as_tensor(index, device=dynamics.like.device)
        self.name = dynamics.name if isinstance(index, Tensor) else f"{dynamics.name}, member {index}"
        self.state_space, self.action_space = dynamics.state_space, dynamics.action_space
        self._latest: tuple[Tensor, tuple[bool, int], Tensor] | None = None

    def initial(self) -> Any:
        return self.dynamics.initial()

    def transition(self, state: Tensor, action: Tensor) -> Any:
        self.dynamics._check_fitted("a transition")
        mean, scale = self.dynamics._outputs(self._carried(state), action)
        size = self.dynamics.size
        if not self.dynamics.noisy:
            return dist.Delta(mean[..., :size], event_dim=1)
        return dist.Normal(mean[..., :size], scale[..., :size]).to_event(1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return self.dynamics.reward(self._carried(state), action, next_state)

    def terminated(self, state: Tensor) -> Tensor | None:
        return self.dynamics.terminated(self._carried(state))

    def _carried(self, state: Tensor) -> Tensor:
        """Returns states with their member; of one state the same tensor, so that the networks are asked once."""
        member = self.index.to(state).expand(state.shape[:-1])[..., None]
        if state.is_inference():  # such tensors do not tell whether they were changed
            return torch.cat([state, member], -1)
        now = torch.is_grad_enabled() and state.requires_grad, state._version
        if (kept := self._latest) is not None and kept[0] is state and kept[1] == now:
            return kept[2]
        carried = torch.cat([state, member], -1)
        self._latest = (state, now, carried)
        return carried

    def advance(
        self, state: Tensor, action: Tensor, t: int, alive: Tensor | None = None, *, pathwise: bool = False
    ) -> Transition:
        with self.dynamics.one_step():
            return super().advance(state, action, t, alive, pathwise=pathwise)
