"""Amortized policies on what is believed of a hidden state."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_at_least
from rl_as_inference.exact.beliefs import BeliefFilter
from rl_as_inference.exact.kalman import KalmanFilter
from rl_as_inference.guides.heads import policy_for
from rl_as_inference.guides.linear_gaussian import LinearGaussianPolicy
from rl_as_inference.histories import Histories, History
from rl_as_inference.nouns import takes_all_steps
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

    sees = "belief"

    @checked
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
        if num_particles is not None:
            check_at_least("num_particles", num_particles, least=2)
        self.process = process
        self.exact = num_particles is None and isinstance(process, TabularPOMDP | LinearGaussianPOMDP)
        self._num_particles = num_particles or 100
        self._made: tuple[Any, BeliefFilter | KalmanFilter | _Particles] | None = None
        self.head = _default(process, self.exact, hidden_sizes) if head is None else head
        self.batch_steps = takes_all_steps(self.head)

    def _tracker(self) -> "BeliefFilter | KalmanFilter | _Particles":
        """Returns what moves beliefs on, by the process's tensors as they are now."""
        tensors = _tensors_of(self.process) if self.exact else []
        state = [(id(tensor), tensor._version) for tensor in tensors]
        learned = any(tensor.requires_grad for tensor in tensors)  # whose graph is gone after a step
        if self._made is None or self._made[0] != state or learned:
            made: BeliefFilter | KalmanFilter | _Particles = _Particles(self.process, self._num_particles)
            if self.exact and isinstance(self.process, TabularPOMDP):
                made = BeliefFilter(self.process)
            elif self.exact and isinstance(self.process, LinearGaussianPOMDP):
                made = KalmanFilter(self.process)
            self._made = state, made
        return self._made[1]

    def belief(self, history: History) -> Tensor:
        """Returns what the network sees of a history's belief, ``(*batch, size)``.

        Of a linear-Gaussian process it is differentiable in observations and actions; others' beliefs are numbers.
        """
        tracker = self._tracker()
        if isinstance(tracker, KalmanFilter):
            return tracker.mean_of(history)
        with torch.no_grad():
            return tracker.features(history.recall(tracker, tracker.start, tracker.move))

    def forward(self, state: Any, t: int | Tensor) -> Any:
        if isinstance(state, History):
            state = self.belief(state)
        elif isinstance(state, Histories):
            rows = [self.belief(one) for one in state]
            state = torch.stack(torch.broadcast_tensors(*rows))
        elif not isinstance(state, Tensor):
            raise ValueError(f"BeliefPolicy needs a History or a belief, got {type(state).__name__}")
        like = next(self.head.parameters(), None) if isinstance(self.head, nn.Module) else None
        return self.head(state if like is None else state.to(like), t)


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


def _tensors_of(process: PartiallyObservedMDP) -> list[Tensor]:
    """Returns what exact beliefs depend on."""
    if isinstance(process, TabularPOMDP):
        mdp = process.fully_observed
        return [mdp._given[1], mdp.initial_probabilities, process.observation_table]
    assert isinstance(process, LinearGaussianPOMDP)
    seen = process.fully_observed
    own = [seen.A, seen.B, seen.noise_cov, seen.initial_mean, seen.initial_cov, seen.drift]
    return [*own, process.observation_matrix, process.observation_cov]


class _ConstantPrior:
    """The action prior of a finite process, whatever is believed."""

    def __init__(self, process: TabularPOMDP) -> None:
        self.process = process

    def __call__(self, belief: Tensor) -> Any:
        return dist.Categorical(logits=self.process.log_action_prior.expand(*belief.shape[:-1], -1))


class _Particles:
    """Beliefs of any process."""

    def __init__(self, process: PartiallyObservedMDP, num_particles: int) -> None:
        # One history that no particle explains does not end the others.
        self.filter, self.space = ParticleFilter(process, num_particles, keep_lost=True), process.state_space

    def start(self, observation: Tensor | None) -> ParticleBelief:
        return self.filter.start(observation)

    def move(self, belief: ParticleBelief, action: Tensor, observation: Tensor | None) -> ParticleBelief:
        return self.filter.move(belief, action, observation)

    def features(self, belief: ParticleBelief) -> Tensor:
        if isinstance(self.space, gymnasium.spaces.Discrete):
            return belief.probabilities(int(self.space.n))
        return torch.cat([x.reshape(len(x), -1) for x in (belief.mean, belief.variance.sqrt())], -1)
