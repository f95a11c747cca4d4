"""Linear dynamics and Gaussian noise, seen through linear Gaussian observations."""

import copy
from typing import Any, Self

import gymnasium
import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.checks import check_temperature, is_deferred
from rl_as_inference.processes.linear_gaussian import (
    LinearGaussianMDP,
    as_tensors,
    check_finite,
    check_positive_definite,
)
from rl_as_inference.processes.partially_observed import PartiallyObservedMDP

__all__ = ["LinearGaussianPOMDP"]


class LinearGaussianPOMDP(PartiallyObservedMDP):
    """A :class:`LinearGaussianMDP` whose state ``s`` is hidden: before each action ``y_t = C s_t + v_t`` is seen.

        y_t = observation_matrix s_t + v_t,   v_t ~ N(0, observation_cov)

    Beliefs are normal (the Kalman filter), and the best policy acts on their means as it would on the state
    (certainty equivalence). ``y_T`` is drawn too, after the last action.

    Args:
        A, B, noise_cov, state_cost, action_cost, initial_mean, initial_cov: as of a :class:`LinearGaussianMDP`.
        action_prior_cov, horizon, temperature, drift: likewise.
        observation_matrix: ``C``, ``(do, ds)``.
        observation_cov: ``(do, do)``, symmetric positive definite.

    Raises:
        ValueError: naming the argument, what is wrong, and how to mend it.

    Example:
        >>> one = torch.ones(1, 1)
        >>> pomdp = LinearGaussianPOMDP(one, one, one, one, one, torch.zeros(1), one, one, one, one, horizon=3)
        >>> pomdp.rollout(None, 5).observations.shape
        torch.Size([4, 5, 1])
    """

    has_exact_answers = True
    has_uniform_prior = False

    def __init__(
        self,
        A: Any,
        B: Any,
        noise_cov: Any,
        state_cost: Any,
        action_cost: Any,
        initial_mean: Any,
        initial_cov: Any,
        action_prior_cov: Any,
        observation_matrix: Any,
        observation_cov: Any,
        *,
        horizon: int,
        temperature: float | Tensor = 1.0,
        drift: Any = None,
    ) -> None:
        self.fully_observed = LinearGaussianMDP(
            A,
            B,
            noise_cov,
            state_cost,
            action_cost,
            initial_mean,
            initial_cov,
            action_prior_cov,
            horizon=horizon,
            temperature=temperature,
            drift=drift,
        )
        """The same problem with the state seen."""
        mdp = self.fully_observed
        super().__init__(horizon=horizon, temperature=temperature)
        tensors = as_tensors({"observation_matrix": observation_matrix, "observation_cov": observation_cov}, mdp.A)
        C, R = tensors["observation_matrix"], tensors["observation_cov"]
        if C.dim() != 2 or C.shape[1] != mdp.state_size or 0 in C.shape:
            raise ValueError(
                f"observation_matrix must have shape (do, {mdp.state_size}), since A is {tuple(mdp.A.shape)}, got "
                f"{tuple(C.shape)}"
            )
        if R.shape != (len(C), len(C)):
            raise ValueError(f"observation_cov must have shape {(len(C), len(C))}, got {tuple(R.shape)}")
        for name, tensor in tensors.items():
            check_finite(name, tensor)
        self._factor = check_positive_definite("observation_cov", R)
        self.observation_matrix, self.observation_cov = C, R
        self.state_size, self.action_size, self.observation_size = mdp.state_size, mdp.action_size, len(C)
        self.state_space, self.action_space = mdp.state_space, mdp.action_space
        kind: Any = np.float64 if C.dtype == torch.float64 else np.float32
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (len(C),), dtype=kind)
        self.name = "linear-gaussian, partially observed"

    @property
    def observation_scale_tril(self) -> Tensor:
        """The lower Cholesky factor of ``observation_cov``, ``(do, do)``."""
        learned = self.observation_cov.requires_grad or is_deferred()
        factor: Tensor = torch.linalg.cholesky(self.observation_cov) if learned else self._factor
        return factor

    def believes_as(self, other: Any) -> bool:
        """Returns whether the same is believed of the same histories in another process."""
        if not isinstance(other, LinearGaussianPOMDP) or other.horizon != self.horizon:
            return False
        names = ("A", "B", "noise_cov", "initial_mean", "initial_cov", "drift")
        pairs = [(getattr(self.fully_observed, name), getattr(other.fully_observed, name)) for name in names]
        pairs += [(self.observation_matrix, other.observation_matrix), (self.observation_cov, other.observation_cov)]
        return all(torch.equal(mine, theirs) for mine, theirs in pairs)

    def initial(self) -> Any:
        return self.fully_observed.initial()

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return self.fully_observed.transition(state, action)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor | None = None) -> Tensor:
        return self.fully_observed.reward(state, action, next_state)

    def observation(self, state: Tensor, action: Tensor | None) -> Any:
        return dist.MultivariateNormal(state @ self.observation_matrix.mT, scale_tril=self.observation_scale_tril)

    def prior(self, seen: Any) -> Any:
        zero = self.fully_observed.B.new_zeros(self.action_size).expand(*self.batch_shape(seen), self.action_size)
        return dist.MultivariateNormal(zero, scale_tril=self.fully_observed.action_prior_scale_tril)

    def next_state(self, state: Tensor, action: Tensor, *, pathwise: bool = False) -> Tensor:
        return self.fully_observed.next_state(state, action, pathwise=pathwise)

    def at_temperature(self, temperature: float | Tensor) -> Self:
        """Returns a copy of the process with another temperature."""
        check_temperature(temperature)
        other = copy.copy(self)
        other.temperature, other.fully_observed = temperature, self.fully_observed.at_temperature(temperature)
        return other
