"""What a process gives on its first walk, held to what it says of itself; later walks pay nothing for it."""

from collections.abc import Callable
from typing import Any

import gymnasium
import torch
from torch import Tensor

from rl_as_inference.checks import is_deferred
from rl_as_inference.processes.in_spaces import InSpaces
from rl_as_inference.processes.membership import check_actions, check_states
from rl_as_inference.processes.silent_rewards import warn_of_silent_rewards
from rl_as_inference.randomness import seeded
from rl_as_inference.trajectories import Rows

__all__ = ["FirstLook"]


class FirstLook(InSpaces):
    """A process that is looked at on its first walk."""

    _asked_of_silence = _asked_of_prior = False
    _steps_asked = -1  # of whether their states are in the state space; -1 before the first state

    def _held(self, after: Tensor, t: int) -> Tensor:
        """Returns the states after a step (-1: the first), which on the first walk are held to the state space."""
        if t >= self._steps_asked and not is_deferred():
            self._first("state_space")  # which says so where there is none
            place = f"transition(state, action) of {self.name} at step {t}" if t >= 0 else f"initial() of {self.name}"
            check_states(after, self.state_space, place)
            self._steps_asked = t + 1
        return after

    def _ask_of_prior(self, prior: Any) -> Any:
        """Returns an action prior, the first of which is held to the action space."""
        if not self._asked_of_prior and isinstance(prior, torch.distributions.Distribution):
            check_actions(prior, self.action_space, self.name)
            self._asked_of_prior = True
        return prior

    def _ask_of_silence(self, rows: Rows, reward: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        """Asks, of the first trajectories of which some ended, whether the process rewards what is over."""
        if self._asked_of_silence or bool(rows.mask[-1].all()):
            return
        self._asked_of_silence = True
        if isinstance(self.state_space, gymnasium.spaces.Discrete):  # elsewhere every reward may be one of a kind
            own, ended = self._own_state(rows.states[-1]), ~rows.mask[-1]
            with torch.no_grad(), seeded(0):  # should it draw, later numbers are as they would have been
                value = torch.as_tensor(reward(own, self._own_action(rows.actions[-1]), own)).expand(own.shape)
            earned = torch.stack(rows.rewards)[torch.stack(rows.mask)]
            warn_of_silent_rewards(self.name, value[ended], earned.detach(), own[ended])
