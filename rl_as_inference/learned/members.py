"""One draw of what is not known: the process of one member of an ensemble."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.checks import check_count
from rl_as_inference.processes import MarkovDecisionProcess

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
        self.dynamics, self.index = dynamics, torch.as_tensor(index, device=dynamics.like.device)
        self.name = dynamics.name if isinstance(index, Tensor) else f"{dynamics.name}, member {index}"
        self.state_space, self.action_space = dynamics.state_space, dynamics.action_space
        self._latest: tuple[Tensor, int, Tensor] | None = None

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
        if (kept := self._latest) is not None and kept[0] is state and kept[1] == state._version:
            return kept[2]
        member = self.index.to(state).expand(state.shape[:-1])
        carried = torch.cat([state, member[..., None]], -1)
        self._latest = (state, state._version, carried)
        return carried
