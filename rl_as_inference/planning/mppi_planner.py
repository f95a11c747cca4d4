"""Planning with one Gaussian over action sequences: model predictive path integral control, and cross-entropy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_at_least, check_positive
from rl_as_inference.guides.modes import mode_of
from rl_as_inference.nouns import Policy, Problem, SoftV
from rl_as_inference.planning.answers import gaussian_answer, squashed, unsquashed
from rl_as_inference.planning.planner import Answer, Planner, nothing_has_weight, repeated
from rl_as_inference.spaces import is_unit_box, log_tanh_slope

__all__ = ["MPPIPlanner"]

_MILDER = 0.75
"""The power that weights are taken to, again and again, until enough draws have a say."""

_FARTHEST = 3.0
"""How far from 0 a proposal's action may stand before squashing: ``tanh(3) = 0.995``."""


class MPPIPlanner(Planner):
    """A policy that fits one Gaussian to the next actions, by importance steps, and takes the first.

    Model predictive path integral control (Williams et al. 2017, *Information theoretic MPC*, equations 23 to 28) as
    inference: the guide is a Gaussian over action sequences, squashed where actions live in the unit box. It is drawn
    from, the draws weigh ``exp(Σ r/α + V/α) p(a)/q(a)``, and its mean and spread become theirs. The next call starts
    from the last plan, moved on by a step. Sequences do not look at what happens on the way: where dynamics are
    random, the mean return of ``num_futures`` walks stands in the exponent.

    Weights that leave too few draws their say are taken to a power that leaves ``num_kept`` of them in effective
    size, which is a higher temperature. With ``elites`` the best draws count alike and others not at all: the
    cross-entropy method (Rubinstein 1999).

    Args:
        process: in parts, of continuous actions.
        look_ahead: how many steps; what goes beyond the horizon is left out.
        num_samples: action sequences of one importance step, for each state that is planned from.
        critic: the soft value of what follows the plan, ``(state, t) -> V`` in reward units; None for nothing.
        proposal: a policy, around whose likeliest actions half of the draws of a call are made; the other half are
            around the last plan. None draws around that alone.
        iterations: importance steps of a call.
        scale: the standard deviation that a call begins with, before squashing.
        num_kept: the least effective size of the weights; by default a 16th of the draws.
        elites: how many of the best draws make the next Gaussian, in place of weights.
        num_futures: walks of each sequence; more than one where dynamics are random.
        warm_start: begin with the last plan, if that was of the step before and of as many states; two walks in turns
            need a planner each.

    Raises:
        ValueError: if the process cannot be set to a state, hides it, has discrete actions, or numbers are out of
            range.

    Example:
        >>> from rl_as_inference import models
        >>> planner, _ = MPPIPlanner(models.double_integrator(), look_ahead=5, num_samples=64), torch.manual_seed(0)
        >>> planner(torch.tensor([[2.0, 0.0]]), 0).mean.shape
        torch.Size([1, 1])
    """

    @checked
    def __init__(
        self,
        process: Problem,
        *,
        look_ahead: int,
        num_samples: int,
        critic: SoftV | None = None,
        proposal: Policy | None = None,
        iterations: int = 1,
        scale: float = 1.0,
        num_kept: int | None = None,
        elites: int | None = None,
        num_futures: int = 1,
        warm_start: bool = True,
    ) -> None:
        super().__init__(process, look_ahead=look_ahead, critic=critic, proposal=proposal)
        if self.is_discrete:
            raise ValueError(
                f"process has action_space {self.process.action_space}; use SMCPlanner for discrete actions"
            )
        check_at_least("num_samples", num_samples, least=2)
        for name, value in (("iterations", iterations), ("num_futures", num_futures)):
            check_at_least(name, value)
        check_positive("scale", scale)
        for name, few in (("num_kept", num_kept), ("elites", elites)):
            if few is not None:
                check_at_least(name, few, least=2)
                if few > num_samples:
                    raise ValueError(f"{name} must be <= num_samples = {num_samples}, got {few}")
        self.num_samples, self.iterations, self.scale = num_samples, iterations, scale
        self.num_kept = max(2, num_samples // 16) if num_kept is None else num_kept
        self.elites, self.num_futures, self.warm_start = elites, num_futures, warm_start
        self._last: tuple[int, Tensor] | None = None

    def forget(self) -> None:
        """Begins anew at the next call, without the last plan."""
        self._last = None

    def plan(self, states: Tensor, t: int, steps: int) -> Answer:
        mean = self._beginning(states, t, steps)
        centres = mean[None] if self.proposal is None else torch.stack([mean, self._proposed(states, t, steps)])
        scale = torch.full_like(mean, self.scale)
        for _ in range(self.iterations):
            mean, scale = self._improved(states, t, centres, scale)
            centres = mean[None]
        self._last = t, mean
        return gaussian_answer(mean[0], scale[0], self.process.action_space)

    def _beginning(self, states: Tensor, t: int, steps: int) -> Tensor:
        """Returns the mean to begin with, before squashing, ``(steps, B, d)``."""
        shape = (steps, len(states), *(self.process.action_space.shape or ()))
        mean = torch.zeros(shape, dtype=self.dtype(states), device=states.device)
        if not self.warm_start or self._last is None:
            return mean
        before, last = self._last
        if before != t - 1 or last.shape[1:] != mean.shape[1:]:
            return mean
        kept = last[1 : 1 + steps]
        mean[: len(kept)] = kept
        return mean

    def _proposed(self, states: Tensor, t: int, steps: int) -> Tensor:
        """Returns the proposal's likeliest actions on a walk from each state, before squashing, ``(steps, B, d)``."""
        process, found, alive = self.process, [], None
        for j in range(t, t + steps):
            action = mode_of(process.choose(self.proposal, states, j)[0])
            step = process.advance(states, action, j, alive)
            states, alive = step.next_state, step.alive
            found.append(unsquashed(action, process.action_space).clamp(-_FARTHEST, _FARTHEST))
        return torch.stack(found)

    def _improved(self, states: Tensor, t: int, centres: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation after an importance step, both ``(steps, B, d)``."""
        number, steps, count, size = len(centres), *centres.shape[1:3], self.num_samples
        noise = torch.randn(steps, count, size, *scale.shape[2:], dtype=scale.dtype, device=scale.device)
        if size >= 8 * number:
            noise[:, :, :number] = 0.0  # what is held for best by now takes part
        shifts = ((centres - centres[0]) / scale)[:, :, :, None]
        if number > 1:  # draws take turns
            noise += shifts[torch.arange(size, device=scale.device) % number, :, :, 0].movedim(0, 2)
        log_weight = self._log_weight(states, t, centres[0], scale, noise, shifts)
        lost = ~torch.logsumexp(log_weight, 1).isfinite()
        if bool(lost.any()):
            raise nothing_has_weight(states, lost, t)
        weight = self._weights(log_weight)
        mean = torch.einsum("sbkd,bk->sbd", noise, weight)
        variance = torch.einsum("sbkd,bk->sbd", noise.square_(), weight) - mean.square()
        return centres[0] + scale * mean, scale * variance.clamp(min=1e-6).sqrt()

    def _weights(self, log_weight: Tensor) -> Tensor:
        """Returns normalised weights, ``(B, K)``."""
        if self.elites is not None:
            best = log_weight.topk(self.elites, 1)
            weight = torch.zeros_like(log_weight).scatter(1, best.indices, best.values.isfinite().to(log_weight))
            return weight / weight.sum(1, keepdim=True)
        log_weight = log_weight - log_weight.amax(1, keepdim=True)
        weight = log_weight.exp()
        # What has no weight gets none.
        kept = (0.9 * (log_weight > -math.inf).sum(1, keepdim=True)).clamp(max=self.num_kept)
        while True:
            small = weight.sum(1, keepdim=True).square() / weight.square().sum(1, keepdim=True) < kept
            if not bool(small.any()):
                return weight / weight.sum(1, keepdim=True)
            log_weight = torch.where(small, _MILDER * log_weight, log_weight)
            weight = log_weight.exp()

    def _log_weight(
        self, states: Tensor, t: int, centre: Tensor, scale: Tensor, noise: Tensor, shifts: Tensor
    ) -> Tensor:
        """Returns the log weights of action sequences, ``(B, K)`` in nats; of elites what they earn.

        Args:
            states: ``(B, *state)``.
            t: of them.
            centre, scale: ``(steps, B, d)``; a sequence is ``centre + scale · noise`` before squashing.
            noise: ``(steps, B, K, d)``.
            shifts: the centres that they were drawn around, in the units of noise, ``(C, steps, B, 1, d)``.
        """
        process, shape, futures = self.process, noise.shape[1:3], self.num_futures
        gamma, weight, box = float(process.discount), 1.0, is_unit_box(process.action_space)
        prior = process.uniform_log_density if process.has_uniform_prior else None
        constant = (scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1, keepdim=True) + (prior or 0.0)
        state = repeated(states, shape[1] * futures)
        alive: Tensor | None = None
        earned, log_ratio = noise.new_zeros(len(state)), noise.new_zeros(len(shifts), len(state))
        # Step by step, so that what is worked on stays small.
        for j, offset in enumerate(noise):
            before = torch.addcmul(centre[j, :, None], scale[j, :, None], offset)
            apart = offset[None] if len(shifts) == 1 else offset - shifts[:, j]
            ratio = torch.add(constant[j], _summed(apart.square()), alpha=0.5)
            if box:
                ratio += _summed(log_tanh_slope(before))
            action, ratio = squashed(before, process.action_space).flatten(0, 1), ratio.flatten(1)
            if futures > 1:
                action, ratio = repeated(action, futures), ratio.repeat_interleave(futures, 1)
            if prior is None:
                ratio = ratio + process.prior_at(state).log_prob(action)
            step = process.advance(state, action, t + j, alive)
            earned.add_(step.reward, alpha=weight)
            log_ratio.add_(ratio if step.alive is None else torch.where(step.alive, ratio, 0.0), alpha=weight)
            state, alive, weight = step.next_state, step.alive, weight * gamma
        ended = process.has_ended(state)
        if alive is not None:
            ended = ~alive if ended is None else ended | ~alive
        total = earned / process.temperature + weight * self.value_ahead(state, t + len(noise), ended)
        if self.elites is None:  # the best are those that earn most, however likely it was to draw them
            total = total - torch.logsumexp(-log_ratio, 0) + math.log(len(shifts))
        return total.view(*shape, futures).mean(-1)


def _summed(values: Tensor) -> Tensor:
    """Returns the sum over the last dimension, which of one number is that number."""
    return values[..., 0] if values.shape[-1] == 1 else values.sum(-1)
