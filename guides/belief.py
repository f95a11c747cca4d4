"""Amortized policies on what is believed of a hidden state."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from rl_as_inference.checks import check_at_least
from rl_as_inference.exact.beliefs import BeliefFilter
from rl_as_inference.exact.kalman import KalmanFilter
from rl_as_inference.guides.heads import policy_for
from rl_as_inference.guides.linear_gaussian import LinearGaussianPolicy
from rl_as_inference.histories import Histories, History
from rl_as_inference.processes import LinearGaussianPOMDP, PartiallyObservedMDP, TabularPOMDP
from rl_as_inference.sampling.particle_filter import ParticleBelief, ParticleFilter

__all__ = ["BeliefPolicy", "belief_space"]


class BeliefPolicy(nn.Module):
    """A policy on the belief: ``π(a|h_t) = f(b_t, t)``, with ``b_t`` by Bayes' rule and ``f`` a network.

    The belief is exact for a :class:`TabularPOMDP`, of which ``f`` sees the probabilities, and for a
    :class:`LinearGaussianPOMDP`, of which it sees the mean. Elsewhere, or with ``num_particles``, it is a
    :class:`rl_as_inference.sampling.ParticleFilter`'s: shares of discrete states, or means and standard deviations.
    It may be asked with a :class:`rl_as_inference.History`, as rollouts do, or with what ``f`` sees.

    Args:
        process: whose state is hidden.
        head: ``f``, a callable ``(belief, t) -> Distribution``; by default a network for the action space, and a
            linear rule of the mean for a linear-Gaussian process, among which the best policy is. (A critic as a
            head, :class:`rl_as_inference.critics.SoftV` say, makes a critic on the belief.)
        num_particles: of a particle filter; None where the belief is exact.
        hidden_sizes: widths of the network's hidden layers.

    Raises:
        ValueError: if the process sees its state, or there is no network for its actions.

    Example:
        >>> stay = torch.eye(2)[:, None].expand(2, 2, 2)
        >>> seen = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
        >>> pomdp = TabularPOMDP(stay, torch.eye(2), torch.tensor([0.5, 0.5]), seen, horizon=3)
        >>> policy = BeliefPolicy(pomdp)
        >>> policy.belief(History(torch.tensor([[0, 1]])))
        tensor([[0.8000, 0.2000],
                [0.2000, 0.8000]])
    """

    batch_steps = True
    sees = "belief"

    def __init__(
        self,
        process: PartiallyObservedMDP,
        head: Callable[[Tensor, Any], Any] | None = None,
        *,
        num_particles: int | None = None,
        hidden_sizes: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        if not isinstance(process, PartiallyObservedMDP):
            raise ValueError(
                f"process must be a PartiallyObservedMDP, got {type(process).__name__}; where the state is seen use "
                f"guides.amortized_policy(process)"
            )
        self.process = process
        self._tracker: BeliefFilter | KalmanFilter | _Particles
        if num_particles is not None:
            check_at_least("num_particles", num_particles, least=2)
            self._tracker = _Particles(process, num_particles)
        elif isinstance(process, TabularPOMDP):
            self._tracker = BeliefFilter(process)
        elif isinstance(process, LinearGaussianPOMDP):
            self._tracker = KalmanFilter(process)
        else:
            self._tracker = _Particles(process, 100)
        self.exact = not isinstance(self._tracker, _Particles)
        self.head = _default(process, self.exact, hidden_sizes) if head is None else head

    def belief(self, history: History) -> Tensor:
        """Returns what the network sees of a history's belief, ``(*batch, size)``."""
        with torch.no_grad():
            memory = history.recall(self._tracker, self._tracker.start, self._tracker.move)
            return self._tracker.features(memory)

    def forward(self, state: Any, t: int | Tensor) -> Any:
        if isinstance(state, History):
            state = self.belief(state)
        elif isinstance(state, Histories):
            rows = [self.belief(one) for one in state]
            state = torch.stack(torch.broadcast_tensors(*rows))
        elif not isinstance(state, Tensor):
            raise ValueError(f"BeliefPolicy needs a History or a belief, got {type(state).__name__}")
        return self.head(state, t)


def _default(process: PartiallyObservedMDP, exact: bool, hidden_sizes: Sequence[int]) -> nn.Module:
    actions = process.action_space
    if exact and isinstance(process, LinearGaussianPOMDP):
        spread = float(process.fully_observed.action_prior_cov.detach().diagonal().mean().sqrt())
        rule = LinearGaussianPolicy(
            process.state_size, process.action_size, horizon=process.horizon, initial_scale=spread
        )
        return rule.to(process.observation_matrix)
    seen, prior = belief_space(process), None
    if isinstance(process, TabularPOMDP) and not process.has_uniform_prior:
        prior = _ConstantPrior(process)
    head = policy_for(seen, actions, horizon=process.horizon, hidden_sizes=hidden_sizes, prior=prior)
    like = process.observation_table if isinstance(process, TabularPOMDP) else process.begin(1)
    return head.to(device=like.device, dtype=like.dtype) if like.is_floating_point() else head.to(like.device)


def belief_space(process: PartiallyObservedMDP) -> gymnasium.spaces.Box:
    """Returns the space of what stands for a belief: probabilities of states, or means and standard deviations."""
    states = process.state_space
    if isinstance(states, gymnasium.spaces.Discrete):
        return gymnasium.spaces.Box(0.0, 1.0, (int(states.n),), dtype=np.float32)
    return gymnasium.spaces.Box(-np.inf, np.inf, (2 * math.prod(states.shape or ()),), dtype=np.float32)


class _ConstantPrior:
    """The action prior of a finite process, whatever is believed."""

    def __init__(self, process: TabularPOMDP) -> None:
        self.process = process

    def __call__(self, belief: Tensor) -> Any:
        return dist.Categorical(logits=self.process.log_action_prior.expand(*belief.shape[:-1], -1))


class _Particles:
    """Beliefs of any process."""

    def __init__(self, process: PartiallyObservedMDP, num_particles: int) -> None:
        self.filter, self.space = ParticleFilter(process, num_particles), process.state_space

    def start(self, observation: Tensor | None) -> ParticleBelief:
        return self.filter.start(observation)

    def move(self, belief: ParticleBelief, action: Tensor, observation: Tensor | None) -> ParticleBelief:
        return self.filter.move(belief, action, observation)

    def features(self, belief: ParticleBelief) -> Tensor:
        if isinstance(self.space, gymnasium.spaces.Discrete):
            return belief.probabilities(int(self.space.n))
        return torch.cat([x.flatten(1) for x in (belief.mean, belief.variance.sqrt())], -1)
