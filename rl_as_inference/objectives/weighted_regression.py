"""Expectation maximization on the steps of rollouts: from what the E-step's weights come, and the M-step's surrogate.

Each function returns a surrogate whose gradient, that of ``(η/α) Σ_t γ^t Σ_a q* log π`` in nats, is the M-step's; its
value means nothing. So scaled, the larger η the nearer it is to the gradient of the ELBO.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.checks import check_positive
from rl_as_inference.critics import QEnsemble
from rl_as_inference.distributed import ALONE, Ranks
from rl_as_inference.nouns import Policy
from rl_as_inference.objectives.action_steps import ActionSteps
from rl_as_inference.objectives.projection import improved_policy, projection_loss, soft_advantage, temperature_dual
from rl_as_inference.processes.kernels import unclamped

__all__ = ["Projection"]


@dataclass(frozen=True)
class Projection:
    """How far an E-step goes, and what is regressed on.

    Attributes:
        eta: η, in reward units per nat; None for the process's α, soft policy iteration.
        epsilon: the trust region ``KL(q* || π) ≤ ε`` in nats, whose dual gives η ≥ α; None for none.
        teacher: a policy whose answers take the place of ``q*``.
        num_draws: continuous actions drawn at each state.

    Raises:
        ValueError: for numbers that are not positive, both of η and ε, or one of them beside a teacher.
    """

    eta: float | None = None
    epsilon: float | None = None
    teacher: Policy | None = None
    num_draws: int = 16

    def __post_init__(self) -> None:
        given = {name: value for name in ("eta", "epsilon") if (value := getattr(self, name)) is not None}
        for name, value in given.items():
            check_positive(name, value)
        if len(given) == 2:
            raise ValueError("eta and epsilon: ε determines η; give one of them")
        if given and self.teacher is not None:
            raise ValueError(f"{next(iter(given))}: a teacher's answers are taken as they are; leave it out")
        if self.teacher is not None and not callable(self.teacher):
            raise ValueError(f"teacher must be a policy (state, t) -> Distribution, got {type(self.teacher).__name__}")

    def temperature(
        self, advantage_a: Tensor, log_policy_a: Tensor, weights: Tensor, alpha: Any, ranks: Ranks = ALONE
    ) -> Any:
        """Returns η of an E-step, in reward units per nat; arguments as of :func:`temperature_dual`.

        The trust region is that of the states of all ranks.
        """
        if self.epsilon is not None:
            advantage, log_policy = (ranks.whole(each.detach().flatten(0, -2)) for each in (advantage_a, log_policy_a))
            return temperature_dual(advantage, log_policy, self.epsilon, ranks.whole(weights.flatten()), alpha)
        return alpha if self.eta is None else self.eta

    def on_tables(
        self, log_policy: Tensor, q: Tensor, log_prior: Tensor, weights: Tensor, alpha: Any, ranks: Ranks = ALONE
    ) -> Tensor:
        """Returns the surrogate of all actions at once.

        Args:
            log_policy: ``(*batch, A)`` nats, differentiable.
            q: soft values in reward units, ``(*batch, A)``.
            log_prior: nats, of a shape that broadcasts to them.
            weights: of states, ``(*batch,)``.
            alpha: α.
            ranks: whose states make up the batch.
        """
        fixed = log_policy.detach()
        advantage = soft_advantage(q.detach(), fixed, log_prior.detach(), alpha)
        eta = self.temperature(advantage, fixed, weights, alpha, ranks)
        return -eta / alpha * projection_loss(log_policy, improved_policy(advantage, fixed, eta), weights)

    def on_draws(self, steps: ActionSteps, critic: QEnsemble, alpha: Any, ranks: Ranks = ALONE) -> Tensor:
        """Returns the surrogate of continuous actions: draws of the policy, with self-normalised weights."""
        rows = []
        for t, state, (policy, prior) in zip(steps.times, steps.states, steps.answers(), strict=True):
            action = policy.sample((self.num_draws,))
            log_policy = policy.log_prob(action)
            with torch.no_grad():
                q = critic(state.expand(self.num_draws, *state.shape), action, t).mean(0)
                advantage = soft_advantage(q.mT, log_policy.mT, prior.log_prob(action).mT, alpha)
            rows.append((advantage, log_policy.mT))
        advantage, log_policy = (torch.stack(row) for row in zip(*rows, strict=True))
        base, weights = torch.zeros_like(advantage), steps.weights()
        eta = self.temperature(advantage, base, weights, alpha, ranks)
        # Less the draws' mean, whose gradient is 0 on average: what is left varies less.
        share = improved_policy(advantage, base, eta).exp() - 1 / self.num_draws
        return eta / alpha * (weights * (share * log_policy).sum(-1)).sum()

    def on_advantages(self, steps: ActionSteps, advantage: Tensor, alpha: Any, ranks: Ranks = ALONE) -> Tensor:
        """Returns the surrogate of the actions taken, weighted by their advantages, ``(T, N)`` in nats."""
        weights = steps.weights()
        base, worth = weights.log().flatten(), (alpha * advantage).flatten()
        share = self._excess(worth, base, alpha, ranks).reshape(weights.shape) * ranks.sum(weights.sum())
        return (share * torch.where(weights > 0, steps.log_policy, 0.0)).sum()

    def on_trajectories(self, steps: ActionSteps, alpha: Any, ranks: Ranks = ALONE) -> Tensor:
        """Returns the surrogate of whole trajectories, weighted as they explain success.

        At η = α the weights are importance weights: the target is the posterior of trajectories given optimality, luck
        included.
        """
        worth = alpha * steps.terms.sum(0)
        count = ranks.sum(torch.tensor(worth.numel(), device=worth.device))
        share = self._excess(worth.flatten(), torch.zeros_like(worth).flatten(), alpha, ranks) * count
        return (share.reshape(worth.shape) * steps.weights() * steps.log_policy).sum()

    def _excess(self, worth: Tensor, base: Tensor, alpha: Any, ranks: Ranks) -> Tensor:
        """Returns ``η/α`` times how much the weights of a batch differ from what they were, whose sum is 0.

        The batch is that of all ranks, of which each has the weights of its own.
        """
        own = worth
        worth, base = ranks.whole(worth), ranks.whole(base)
        if len(worth) == 1 and torch.is_grad_enabled():
            raise ValueError(
                "estimator='em' weighs trajectories against each other, and there is one; run several in a plate, or "
                "pass a soft Q as critic"
            )
        eta = self.temperature(worth[None], base[None], torch.ones_like(worth[:1]), alpha)
        return ranks.own(eta / alpha * (improved_policy(worth, base, eta).exp() - base.softmax(0)), own)

    def on_teacher(self, steps: ActionSteps) -> Tensor:
        """Returns the surrogate of a teacher's answers at the states that the policy visits.

        Categorical answers by cross-entropy, others by the log likelihood of draws.
        """
        assert self.teacher is not None
        total, weights = torch.zeros(()), steps.weights()
        for t, view, weight, (policy, _) in zip(steps.times, steps.views, weights, steps.answers(), strict=True):
            with torch.no_grad():
                answer = _asked(self.teacher, view, t)
            logits = getattr(policy, "logits", None)
            if isinstance(answer, Tensor) and logits is not None and logits.shape == answer.shape:
                total = total - projection_loss(logits, answer, weight)
                continue
            if isinstance(answer, Tensor):
                raise ValueError(
                    f"teacher: its answer at step {t} is over {answer.shape[-1]} actions, and the policy's a "
                    f"{type(policy).__name__} over others; give a teacher of the same process"
                )
            draws = answer.sample((self.num_draws,))
            total = total + (weight * policy.log_prob(draws).mean(0)).sum()
        return total


def _asked(teacher: Policy, view: Any, t: int) -> Any:
    """Returns a teacher's log probabilities, ``(N, A)``, or its distribution where it is not categorical.

    Where many trajectories stand in one state, it is asked once: a planner takes its time.
    """
    where = None
    if isinstance(view, Tensor) and view.dim() == 1 and not view.is_floating_point():
        view, where = view.unique(return_inverse=True)
    answer = teacher(view, t)
    if not isinstance(answer, torch.distributions.Distribution):
        raise ValueError(f"teacher must return a distribution; at step {t} it returned {type(answer).__name__}")
    answer = unclamped(answer)
    if isinstance(answer, torch.distributions.Categorical):
        return answer.logits if where is None else answer.logits.expand(len(view), -1)[where]
    if where is None:
        return answer
    return teacher(view[where], t)
