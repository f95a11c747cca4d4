"""Exact answers for linear-Gaussian processes whose state is hidden: the Kalman filter and certainty equivalence.

What is believed of the state is normal, with a covariance ``Σ_t`` that no action changes (Kalman 1960, Journal of
Basic Engineering 82). So the process of its mean ``m_t`` is linear-Gaussian itself, with the innovations as its noise,
and the soft messages are those of the seen state with ``tr(Q Σ_t)/2α`` less at every step (Åström 1970, Introduction
to Stochastic Control Theory, chapter 8).
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_as_inference.exact.linear_gaussian import (
    LinearGaussianPlan,
    Quadratic,
    Rule,
    as_plan,
    backed_up,
    best_rule,
    rules_of,
    symmetric,
)
from rl_as_inference.histories import History
from rl_as_inference.nouns import ExactPolicy, keeps_beliefs, what_is_seen
from rl_as_inference.processes.linear_gaussian_pomdp import LinearGaussianPOMDP

__all__ = ["GaussianBelief", "KalmanFilter", "KalmanPlan", "belief", "evaluate", "mean_marginals", "plan"]


class Gains(NamedTuple):
    """The filter's gains, which do not depend on what is seen; one of each for every time."""

    gain: Tensor
    """``L_t``, ``(T+1, ds, do)``: the mean moves by it times the innovation."""
    covariance: Tensor
    """``Σ_t`` after ``y_t``, ``(T+1, ds, ds)``."""
    spread: Tensor
    """A factor of how far the mean moves, ``(T+1, ds, do)``: ``L_t S_t L_t' = F F'``."""


class GaussianBelief(NamedTuple):
    """Beliefs ``N(mean, covariance)``."""

    mean: Tensor
    """``(T+1, ds)``, or ``(T+1, N, ds)``."""
    covariance: Tensor
    """``(T+1, ds, ds)``, the same whatever was seen."""


def filter_gains(pomdp: LinearGaussianPOMDP) -> Gains:
    mdp, C = pomdp.fully_observed, pomdp.observation_matrix
    before = symmetric(mdp.initial_cov)
    rows = []
    for _ in range(pomdp.finite_horizon("the Kalman filter") + 1):
        factor = torch.linalg.cholesky(symmetric(C @ before @ C.mT + pomdp.observation_cov))
        gain = torch.cholesky_solve(C @ before, factor).mT
        # Joseph's form: a sum of squares, which rounding cannot make indefinite.
        left = torch.eye(len(before), dtype=before.dtype, device=before.device) - gain @ C
        after = symmetric(left @ before @ left.mT + gain @ pomdp.observation_cov @ gain.mT)
        rows.append((gain, after, gain @ factor))
        before = symmetric(mdp.A @ after @ mdp.A.mT + mdp.noise_cov)
    return Gains(*(torch.stack(column) for column in zip(*rows, strict=True)))


def belief(pomdp: LinearGaussianPOMDP, observations: Tensor, actions: Tensor) -> GaussianBelief:
    """Returns ``p(s_t | h_t)`` of every time with an observation.

    Args:
        pomdp: the process.
        observations: ``(n, do)`` or ``(n, N, do)``, from ``y_0`` on, at most ``T + 1``.
        actions: ``(n - 1, da)`` at least, or with ``N``.

    Raises:
        ValueError: if the shapes do not fit.
    """
    options: dict[str, Any] = {"dtype": pomdp.observation_matrix.dtype, "device": pomdp.observation_matrix.device}
    seen, taken = (torch.as_tensor(x, **options) for x in (observations, actions))
    fits = seen.dim() in (2, 3) and seen.shape[-1] == pomdp.observation_size and taken.shape[1:-1] == seen.shape[1:-1]
    if not fits or taken.shape[-1:] != (pomdp.action_size,) or not 1 <= len(seen) <= len(taken) + 1:
        raise ValueError(
            f"observations must have shape (n, {pomdp.observation_size}) or (n, N, {pomdp.observation_size}) with at "
            f"least n - 1 actions of size {pomdp.action_size}, got {tuple(seen.shape)} and {tuple(taken.shape)}"
        )
    if len(seen) > pomdp.finite_horizon("the Kalman filter") + 1:
        raise ValueError(f"observations must be at most {pomdp.horizon + 1 if pomdp.horizon else 0}, got {len(seen)}")
    gains = filter_gains(pomdp)
    history = History(seen, taken[: len(seen) - 1])
    track = KalmanFilter(pomdp, gains)
    means = [track.mean_of(one) for one in history.prefixes()]
    return GaussianBelief(torch.stack(means), gains.covariance[: len(seen)])


class KalmanFilter:
    """The mean of the belief, moved on one step at a time, as :meth:`rl_as_inference.History.recall` asks for.

    A memory is the mean ``(*batch, ds)`` and the number of its step.
    """

    def __init__(self, pomdp: LinearGaussianPOMDP, gains: Gains | None = None) -> None:
        self.pomdp = pomdp
        self.gains = filter_gains(pomdp) if gains is None else gains

    def start(self, observation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the memory after the first observation, ``(*batch, do)``."""
        if observation is None:
            raise ValueError("history has no observation before its first action, and this process shows one")
        step = torch.zeros(observation.shape[:-1], dtype=torch.long, device=observation.device)
        mean = self.pomdp.fully_observed.initial_mean
        return self._updated(mean.expand(*observation.shape[:-1], -1), observation, step), step

    def move(self, memory: tuple[Tensor, Tensor], action: Tensor, observation: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the memory one step on."""
        mean, step = memory
        mean = self.pomdp.fully_observed.next_mean(mean, action)
        return (mean if observation is None else self._updated(mean, observation, step + 1)), step + 1

    def features(self, memory: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the mean of a memory."""
        return memory[0]

    def mean_of(self, history: History) -> Tensor:
        """Returns the mean after a history, ``(*batch, ds)``."""
        return self.features(history.recall((self, torch.is_grad_enabled()), self.start, self.move))

    def _updated(self, mean: Tensor, observation: Tensor, step: Tensor) -> Tensor:
        if observation.shape[-1:] != (self.pomdp.observation_size,):
            raise ValueError(
                f"observation must have shape (…, {self.pomdp.observation_size}), got {tuple(observation.shape)}"
            )
        # One step for the whole batch, unless histories of several were put together.
        same = step.numel() > 0 and bool((step == step.flatten()[0]).all())
        gain = self.gains.gain[step.flatten()[0] if same else step]
        return mean + torch.einsum("...ij,...j->...i", gain, observation - mean @ self.pomdp.observation_matrix.mT)


@dataclass(frozen=True, eq=False)
class KalmanPlan:
    """A policy on the belief's mean, ``π_t(a|h) = N(K_t m_t + k_t, Σ_t)``, with its soft values.

    It can be called as a policy ``(seen, t) -> MultivariateNormal`` with a :class:`rl_as_inference.History`, as
    rollouts do, or with means ``(*batch, ds)``.

    Attributes:
        rule: the same as a plan of the process of the mean: gains, offsets and values, see
            :class:`rl_as_inference.exact.LinearGaussianPlan`.
        covariances: of the beliefs, ``(T+1, ds, ds)``.
    """

    rule: LinearGaussianPlan
    covariances: Tensor
    _track: KalmanFilter = field(repr=False)
    dynamics = "causal"
    sees = "belief"
    exact = True

    @property
    def process(self) -> LinearGaussianPOMDP:
        """The process that it is the plan of."""
        return self._track.pomdp

    @property
    def objective(self) -> Tensor:
        """The ELBO, 0-dimensional, in nats."""
        return self.rule.objective

    @property
    def policy(self) -> "KalmanPlan":
        """The plan as a policy on the mean of the belief."""
        return self

    def __call__(self, seen: Any, t: int | Tensor) -> Any:
        """Returns the distribution over actions, of the batch shape of the history or of the means."""
        mean = self._track.mean_of(seen) if isinstance(seen, History) else seen
        if not isinstance(mean, Tensor) or mean.shape[-1:] != self.rule.gain.shape[-1:]:
            raise ValueError(
                f"belief must be its mean, of shape (…, {self.rule.gain.shape[-1]}), got "
                f"{tuple(getattr(mean, 'shape', ()))}"
            )
        return self.rule(mean, t)


def plan(pomdp: LinearGaussianPOMDP) -> KalmanPlan:
    """Returns the plan of the largest ELBO that a policy of the history reaches; differentiable in the tensors."""
    return _planned(pomdp, None)


def evaluate(pomdp: LinearGaussianPOMDP, policy: ExactPolicy) -> KalmanPlan:
    """Returns a policy on the belief's mean with its own soft values; the objective is its ELBO in nats.

    Args:
        pomdp: the process.
        policy: a :class:`KalmanPlan`; a callable ``(mean, t) -> Distribution`` whose answer is normal with a mean
            linear in its first argument; None for the action prior.

    Raises:
        ValueError: if the policy is not of that kind.
    """
    if what_is_seen(policy) == "belief" and not keeps_beliefs(policy, pomdp):
        raise ValueError(
            "policy keeps the beliefs of another process, so that it has no exact answers here; estimate_elbo takes it"
        )
    own = policy.rule if isinstance(policy, KalmanPlan) else policy
    return _planned(pomdp, rules_of(pomdp.fully_observed, own))


def _planned(pomdp: LinearGaussianPOMDP, rules: list[Rule] | None) -> KalmanPlan:
    mdp, gains = pomdp.fully_observed, filter_gains(pomdp)
    horizon = pomdp.finite_horizon("plan")
    value = Quadratic.zero(mdp)
    values, used = [value], []
    for t in reversed(range(horizon)):
        # Nothing is earned after the last step, whatever is seen then.
        arrived = value.after_noise(gains.spread[t + 1])
        rule = best_rule(mdp, arrived) if rules is None else rules[t]
        value = backed_up(mdp, arrived, rule)
        unseen = (symmetric(mdp.state_cost) * gains.covariance[t]).sum() / (2 * mdp.temperature)
        value = value._replace(c=value.c - unseen)
        used.append(rule)
        values.append(value)
    objective = value.mean(mdp.initial_mean, gains.spread[0])
    found = as_plan(mdp, used[::-1], values[::-1], objective, "causal")
    return KalmanPlan(found, gains.covariance, KalmanFilter(pomdp, gains))


def mean_marginals(pomdp: LinearGaussianPOMDP, policy: ExactPolicy) -> tuple[Tensor, Tensor]:
    """Returns how the belief's mean is distributed under a policy: means ``(T+1, ds)``, covariances ``(T+1, ds, ds)``.

    Args:
        policy: as for :func:`evaluate`.
    """
    mdp, gains = pomdp.fully_observed, filter_gains(pomdp)
    rules = rules_of(mdp, policy.rule if isinstance(policy, KalmanPlan) else policy)
    mean, cov = mdp.initial_mean, gains.spread[0] @ gains.spread[0].mT
    means, covs = [mean], [cov]
    for t, (K, k, L) in enumerate(rules):
        closed, BL, F = mdp.A + mdp.B @ K, mdp.B @ L, gains.spread[t + 1]
        mean = closed @ mean + mdp.B @ k + mdp.drift
        cov = symmetric(closed @ cov @ closed.mT + BL @ BL.mT + F @ F.mT)
        means.append(mean)
        covs.append(cov)
    return torch.stack(means), torch.stack(covs)
