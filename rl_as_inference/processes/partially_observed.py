"""Decision processes whose state is hidden, in parts: what the agent sees is drawn from it."""

from dataclasses import replace
from typing import Any

import gymnasium
import torch
from torch import Tensor

from rl_as_inference.checks import holds, is_deferred
from rl_as_inference.histories import Histories, History, history
from rl_as_inference.nouns import Policy
from rl_as_inference.processes.kernels import check_distribution, drawn
from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.processes.membership import check_observations
from rl_as_inference.processes.reparameterized import reparameterized
from rl_as_inference.program import observe, terminate
from rl_as_inference.randomness import seeded
from rl_as_inference.trajectories import Trajectories

__all__ = ["PartiallyObservedMDP"]


class PartiallyObservedMDP(MarkovDecisionProcess):
    """A process whose policy sees the history of observations and actions, and not the state.

    Override :meth:`observation` beside the parts of a :class:`MarkovDecisionProcess`, and set
    ``observation_space``. The program has sites ``observation_t`` too; policies, and :meth:`prior`, are asked with a
    :class:`rl_as_inference.History`. Whether an episode has ended is seen by the agent.

    A partially observable Markov decision process: Kaelbling, Littman & Cassandra 1998, Artificial Intelligence 101.

    Args:
        horizon, discount, temperature: as of a :class:`MarkovDecisionProcess`.

    Example:
        >>> import pyro.distributions as dist
        >>> class Coin(PartiallyObservedMDP):
        ...     state_space, action_space = gymnasium.spaces.Discrete(2), gymnasium.spaces.Discrete(2)
        ...     observation_space = gymnasium.spaces.Box(-10.0, 10.0, ())
        ...     def initial(self):
        ...         return dist.Categorical(torch.ones(2))
        ...     def transition(self, state, action):
        ...         return dist.Delta(state)
        ...     def reward(self, state, action, next_state):
        ...         return (action == state).float()
        ...     def observation(self, state, action):
        ...         return dist.Normal(state.float(), 1.0)
        >>> _ = torch.manual_seed(0)
        >>> Coin(horizon=3).rollout(None, 5).observations.shape
        torch.Size([4, 5])
    """

    has_uniform_prior = True
    observation_space: gymnasium.Space[Any]
    _steps_seen = -1  # whose observations were held to the observation space

    def observation(self, state: Tensor, action: Tensor | None) -> Any:
        """Returns the distribution of what is seen in ``state``, after ``action``, of the batch shape of ``state``.

        Args:
            state: ``(*batch, *state)``.
            action: what led to it, ``(*batch, *action)``; None before the first step, where None may be returned if
                nothing is seen then.
        """
        raise NotImplementedError(f"{type(self).__name__} must override observation(state, action) -> Distribution")

    def prior(self, seen: Any) -> Any:
        """Returns the action prior ``p(a|h)``: uniform over the action space unless overridden.

        Args:
            seen: a :class:`rl_as_inference.History`.
        """
        like = seen.latest if isinstance(seen, History) and seen.latest is not None else torch.empty(0)
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        stand_in = torch.zeros((*self.batch_shape(seen), *(self.state_space.shape or ())), dtype=dtype)
        return MarkovDecisionProcess.prior(self, stand_in.to(like.device))

    def batch_shape(self, state: Any) -> torch.Size:
        """Returns the shape of a batch of states, or of histories."""
        self._first("observation_space")
        if isinstance(state, Histories):
            return torch.Size([len(state), *self.batch_shape(state.history)])
        if not isinstance(state, History):
            return super().batch_shape(state)
        for latest, space in ((state.latest, self.observation_space), (state.action, self.action_space)):
            if latest is not None:
                return latest.shape[: latest.dim() - len(space.shape or ())]
        return state.batch_shape

    def has_ended(self, state: Any) -> Tensor | None:
        return None if isinstance(state, History | Histories) else super().has_ended(state)

    def _own_state(self, state: Any) -> Any:
        return state if isinstance(state, History | Histories) else super()._own_state(state)

    def view(
        self,
        state: Tensor,
        action: Tensor | None = None,
        before: Any = None,
        kept: tuple[Tensor, Tensor] | None = None,
        *,
        pathwise: bool = False,
    ) -> History:
        first = History(batch_shape=super().batch_shape(state)) if before is None else before
        taken = None if action is None else self._own_action(action)
        with torch.set_grad_enabled(torch.is_grad_enabled() and pathwise):
            value = self.draw_observation(self._own_state(state), taken, pathwise=pathwise)
            if value is None:
                return first
        step = 0 if action is None else len(first) + 1
        place = f"observation(state, action) of {self.name} at step {step}"
        if value.is_floating_point() and not holds(~value.detach().isnan()):
            raise ValueError(f"{place} is NaN")
        if step > self._steps_seen and not is_deferred():  # on the first walk
            check_observations(value, self.observation_space, super().batch_shape(state), place)
            self._steps_seen = step
        if kept is not None:
            keep = kept[0].reshape(kept[0].shape + (1,) * (value.dim() - kept[0].dim()))
            value = torch.where(keep, kept[1], value)
        return first.then(action, value)

    def draw_observation(self, state: Tensor, action: Tensor | None, *, pathwise: bool = False) -> Tensor | None:
        """Returns a draw of what is seen; a process with a faster way than its distribution has it here.

        Args:
            state, action: as of :meth:`observation`.
            pathwise: draw by ``rsample``.
        """
        seeing = self._seeing(state, action)
        if seeing is None:
            return None
        return reparameterized(seeing, "the observation") if pathwise else drawn(seeing)

    def sees_smoothly(self, state: Tensor, action: Tensor) -> bool:
        """Returns whether what is seen moves smoothly with state and action, ``(N, *state)`` and ``(N, *action)``."""
        taken = self._own_action(action)
        return all(one is None or one.has_rsample for one in (self._seeing(state, None), self._seeing(state, taken)))

    def _seeing(self, state: Tensor, action: Tensor | None) -> Any:
        seeing = self.observation(state, action)
        if seeing is None and action is None:
            return None
        return check_distribution(seeing, f"observation(state, action) of {self.name}")

    def _seen_by_program(self, state: Tensor, action: Tensor | None, t: int) -> tuple[Any, Any]:
        done = self.terminated(state) if t == self.horizon else None
        if done is not None:  # what has ended shows nothing, at the last step either
            terminate(torch.as_tensor(done, device=state.device), absorbing=self.absorbing)
        seeing = self._seeing(state, action)
        if seeing is not None:
            observe(f"observation_{t}", seeing)
        if t == self.horizon:
            return None, None
        seen = history()
        return seen, self.prior(seen)

    @torch.no_grad()
    def with_observations(self, draws: Trajectories) -> Trajectories:
        """Returns trajectories of the state with what was seen on the way, drawn."""
        seen = self.view(draws.states[0])
        for state, action in zip(draws.states[1:], draws.actions, strict=True):
            seen = self.view(state, action, seen)
        return replace(draws, observations=seen.observations, observed_first=seen.observed_first)

    def _ask(self, policy: Policy, state: Any, t: Any) -> Any:
        try:
            return policy(state, t)
        except (AttributeError, IndexError, TypeError) as error:
            raise ValueError(
                f"policy failed on a History, which is all that it may look at, since the state of {self.name} is "
                f"hidden: {error}; use guides.RecurrentPolicy or guides.BeliefPolicy, or a function of "
                f"history.observations and history.actions"
            ) from error

    def learns_dynamics(self) -> bool:
        if not torch.is_grad_enabled():
            return False
        with seeded(0):
            initial = self.initial().expand([1])
            state = self._counted(initial.sample())
            seen = self.view(state)
            action = self.prior_at(seen).sample()
            own, taken = self._own_state(state), self._own_action(action)
            transition = self.transition(own, taken)
            parts = [initial, transition, self._seeing(own, None), self._seeing(own, taken)]
            return any(part.log_prob(part.sample()).requires_grad for part in parts if part is not None)
