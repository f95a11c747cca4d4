"""What stands in given spaces: a name, batches of states, and integers that may start elsewhere than at 0."""

from typing import Any

import gymnasium
import torch
from torch import Tensor

from rl_as_inference.spaces import first_of, is_unit_box, uniform_log_density
from rl_as_inference.trajectories import Trajectories

__all__ = ["InSpaces"]


class InSpaces:
    """What a process knows from its spaces alone."""

    state_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]

    @property
    def name(self) -> str:
        """What tables and pictures call the process: its class's name, unless set."""
        return getattr(self, "_name", type(self).__name__)

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    def _counted(self, state: Tensor) -> Tensor:
        """Returns states of the process's own space as policies see them: integers count from 0."""
        return state - first if (first := self._first("state_space")) else state

    def _own_state(self, state: Tensor) -> Tensor:
        return state + first if (first := self._first("state_space")) else state

    def _own_action(self, action: Tensor) -> Tensor:
        """Returns actions that count from 0 as values of the action space."""
        return action + first if (first := self._first("action_space")) else action

    def _first(self, name: str) -> int:
        """Returns what a space starts with."""
        space = getattr(self, name, None)
        if space is None:
            raise ValueError(f"{name} of {type(self).__name__} is not set; give it a gymnasium.spaces space")
        return first_of(space)

    def batch_shape(self, state: Tensor) -> torch.Size:
        """Returns ``state``'s shape without that of a single state."""
        self._first("state_space")
        self._first("action_space")
        event = len(self.state_space.shape or ())
        return state.shape[: state.dim() - event]

    @property
    def uniform_log_density(self) -> float | None:
        """The uniform action prior's log density in nats; None for unbounded actions."""
        bounded = not isinstance(self.action_space, gymnasium.spaces.Box) or is_unit_box(self.action_space)
        return uniform_log_density(self.action_space) if bounded else None

    # What a walk may carry beside its state, and a program draw before it begins: nothing, but of unknown dynamics.

    def as_seen(self, state: Tensor) -> Tensor:
        """Returns states ``(*batch, *state)`` of a walk as members of the state space, which critics are asked with.

        That is what they are, but where a walk carries what was drawn once for it.
        """
        return state

    def told(self, draws: Trajectories) -> Trajectories:
        """Returns the trajectories of a walk as members of the state space, with what it carried among the latents."""
        return draws

    def with_unknowns_drawn(self) -> Any:
        """Returns the process that a run of the program is of; one of unknown dynamics draws them here, in sites."""
        return self
