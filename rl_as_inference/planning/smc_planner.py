"""Planning by sequential Monte Carlo: particles of the next steps, and what they say of the first."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import gymnasium
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.arguments import checked_but
from rl_as_inference.checks import check_at_least
from rl_as_inference.nouns import Policy, Problem, SoftV
from rl_as_inference.planning.answers import Defended, kernel_answer
from rl_as_inference.planning.messages import (
    Points,
    backward_step,
    log_densities,
    masses_of_draws,
    masses_of_states,
)
from rl_as_inference.planning.planner import Answer, Planner, nothing_has_weight, repeated
from rl_as_inference.processes.inversion import cumulated, invert
from rl_as_inference.processes.kernels import drawn
from rl_as_inference.processes.point_masses import is_point
from rl_as_inference.sampling.importance import resample
from rl_as_inference.trajectories import Decision, Transition

__all__ = ["SMCPlanner"]

Dynamics = Literal["causal", "posterior"]

_AT_ONCE = 2**24
"""Pairs of points and successors that are held at once; roots beyond that wait for their turn."""

_HALVINGS = 12
"""Of the weights that place the next points, until half of the particles keep their say."""

_OF_PRIOR = 0.25
"""Share of the particles whose actions are the prior's, where there is a proposal: it may be wrong."""


class SMCPlanner(Planner):
    """A policy that plans by sequential Monte Carlo from wherever it stands, and takes the first action.

    At ``(s, t)`` particles walk the next ``look_ahead`` steps, weighed by optimality ``exp(r/α) p(a|s)/q(a|s)`` and
    resampled, systematically, where their effective size falls below a half; ``critic`` says what follows after.

    ``dynamics="causal"`` averages over luck before it exponentiates, as maximum-entropy control does: messages pass
    back through the layers of states that the particles reached, and at every point the mean over successors stands
    in the exponent (:mod:`rl_as_inference.planning.messages`). It converges to the causal posterior's action rule. What
    no particle reached is left out, but where there are no more discrete states than particles: then every layer is
    all of them, and the messages are exact.
    ``dynamics="posterior"`` puts luck into the weights, as the planners of the literature do (Piché et al. 2019,
    *Probabilistic planning with sequential Monte Carlo methods*), and so reckons on it; what that costs,
    ``compare`` says. Where dynamics are certain and states continuous each first action is worth what the particles
    that took it weigh, and the two are one but for γ < 1: then steps count γ^t times in the causal exponent, as in the
    ELBO, which is exact where the proposal is the best policy, and survival is the posterior's luck.

    The answer is a categorical distribution over discrete actions, and a kernel estimate over continuous ones.

    Args:
        process: in parts.
        look_ahead: how many steps; what goes beyond the horizon is left out.
        num_particles: ``K``, ≥ 2, for each state that is planned from.
        critic: the soft value of what follows the plan, ``(state, t) -> V`` in reward units; None for nothing.
        proposal: a policy to draw actions from, a trained guide say; None for the action prior. A quarter of the
            particles draw from the prior all the same.
        dynamics: ``"causal"`` or ``"posterior"``.
        num_actions: how many continuous actions are tried at each point of a plan.

    Raises:
        ValueError: if the process cannot be set to a state, hides it, or numbers are out of range.

    Example:
        >>> from rl_as_inference import exact, models
        >>> mdp, _ = models.random_mdp(6, 2, horizon=4), torch.manual_seed(0)
        >>> planner = SMCPlanner(mdp, look_ahead=4, num_particles=200)
        >>> bool(exact.optimal_elbo(mdp) - exact.elbo(mdp, planner) < 1e-3)
        True
    """

    @checked_but("dynamics")
    def __init__(
        self,
        process: Problem,
        *,
        look_ahead: int,
        num_particles: int,
        critic: SoftV | None = None,
        proposal: Policy | None = None,
        dynamics: Dynamics = "causal",
        num_actions: int = 16,
    ) -> None:
        super().__init__(process, look_ahead=look_ahead, critic=critic, proposal=proposal)
        check_at_least("num_particles", num_particles, least=2)
        check_at_least("num_actions", num_actions, least=2)
        if dynamics not in get_args(Dynamics):
            raise ValueError(f"dynamics must be 'causal' or 'posterior', got {dynamics!r}")
        self.num_particles, self.dynamics, self.num_actions = num_particles, dynamics, num_actions
        space = self.process.state_space
        number = int(space.n) if isinstance(space, gymnasium.spaces.Discrete) else math.inf
        # With no more states than particles all of them are points of every layer.
        self.every_state = torch.arange(int(number)) if number <= num_particles else None

    def plan(self, states: Tensor, t: int, steps: int) -> Answer:
        back: Tensor | slice = slice(None)
        if isinstance(self.process.state_space, gymnasium.spaces.Discrete):  # the same question has one answer
            states, back = torch.unique(states, return_inverse=True)
        has_density = self._has_density(states)
        width = self.num_particles
        if self.every_state is not None:
            self.every_state = self.every_state.to(states.device)
            width = len(self.every_state) * self._num_tried
        elif has_density:
            width = self._num_tried * self.num_particles**2
        parts = states.split(max(1, _AT_ONCE // width))
        answer = self._by_messages if has_density else self._by_weights
        actions, log_weights = zip(*(answer(part, t, steps) for part in parts), strict=True)
        log_weight = torch.cat(log_weights)
        if bool((worthless := ~torch.logsumexp(log_weight, 1).isfinite()).any()):
            ended = self.process.has_ended(states)
            lost = worthless if ended is None else worthless & ~ended
            if bool(lost.any()):
                raise nothing_has_weight(states, lost, t)
            prior = self.process.prior_at(states).logits if self.is_discrete else torch.zeros_like(log_weight)
            log_weight = torch.where(worthless[:, None], prior.to(log_weight), log_weight)
        if self.is_discrete:
            return _categorical, (log_weight.log_softmax(-1)[back],)
        return kernel_answer(torch.cat(actions)[back], log_weight[back], self.process.action_space)

    def proposed(self, state: Tensor, t: int) -> Any:
        """Returns the distribution that particles draw their actions from."""
        prior = self.process.prior_at(state)
        if self.proposal is None:
            return prior
        mixed = Defended(self.process.choose(self.proposal, state, t)[0], prior, _OF_PRIOR)
        if not self.is_discrete:
            return mixed
        return dist.Categorical(logits=mixed.log_prob(_all_actions(prior, len(prior.batch_shape))).movedim(0, -1))

    def any_action(self, state: Tensor, t: int) -> Any:
        """Returns the uniform distribution over the discrete actions that the prior allows."""
        logits = self.process.prior_at(state).logits
        return dist.Categorical(logits=torch.where(logits > -math.inf, 0.0, -math.inf).to(logits))

    @property
    def _num_tried(self) -> int:
        space = self.process.action_space
        return int(space.n) if isinstance(space, gymnasium.spaces.Discrete) else self.num_actions

    def _has_density(self, states: Tensor) -> bool:
        """Returns whether successors have probabilities or densities that tell which others they could have been."""
        if isinstance(self.process.state_space, gymnasium.spaces.Discrete):
            return True
        action = drawn(self.process.prior_at(states))
        certain = is_point(self.process.transition(self.process._own_state(states), self.process._own_action(action)))
        if isinstance(certain, Tensor) and self.dynamics == "causal" and not bool(certain.all()):
            raise ValueError(
                "process has a transition that is certain in some states and drawn in others, where a causal plan "
                "cannot tell luck from choice; give it some spread everywhere, or plan with dynamics='posterior'"
            )
        return certain is False

    # With densities: layers of points forwards, messages backwards.

    def _by_messages(self, roots: Tensor, t: int, steps: int) -> tuple[Tensor, Tensor]:
        """Returns first actions ``(B, m, d)`` and their log weights ``(B, m)``; of discrete ones those of all ``A``."""
        process, every, count = self.process, self.every_state, len(roots)
        first = Points(roots[:, None], torch.zeros(count, 1, dtype=self.dtype(roots), device=roots.device))
        if every is None:
            layers = [first, *self._reached(roots, t, steps)]
        else:
            layers = [first, *[Points(every[None], first.log_mass.new_zeros(1, len(every)))] * steps]
        value = self._values(layers[-1], t + steps)
        table: tuple[Tensor, Tensor] | None = None
        for j in reversed(range(steps)):
            here, after = layers[j], layers[j + 1]
            actions, log_ratio = self._tried(here.states, t + j, root=j == 0)
            if table is None or j == 0 or every is None or not self.is_discrete:
                density, rewards = log_densities(process, here.states, actions, after.states, t + j)
                table = density.to(value), rewards.to(value) / process.temperature
            last = process.horizon is not None and t + j == process.horizon - 1
            gamma = None if last else float(process.discount)
            q, known = backward_step(*table, after, value, gamma, bends_luck=self.dynamics == "posterior")
            log_weight = log_ratio.to(value) + q
            if j:
                value, known = torch.logsumexp(log_weight, -1), known.any(-1)
                ended = process.has_ended(here.states.flatten(0, 1))
                if ended is not None:
                    ended = ended.view(here.states.shape[:2])
                    value, known = torch.where(ended, 0.0, value), known | ended
                # A point from which nobody went on says nothing, which is not that nothing comes of it.
                layers[j] = Points(here.states, torch.where(known, here.log_mass, -math.inf))
        return actions[:, 0], log_weight[:, 0]

    def _reached(self, roots: Tensor, t: int, steps: int) -> list[Points]:
        """Returns the layers of states that particles reached."""
        walk, layers = _Walk(self, roots, t), []
        for _ in range(steps):
            after = walk.step().next_state.unflatten(0, (walk.count, walk.size))
            if isinstance(self.process.state_space, gymnasium.spaces.Discrete):
                mass = masses_of_states(after, walk.took)
            else:
                mass = masses_of_draws(self._of_draws(walk, after, t), walk.took)
            layers.append(Points(after, mass.to(walk.log_weight)))
            walk.resample(tempered=True)
        return layers

    def _values(self, points: Points, t: int) -> Tensor:
        """Returns the soft V of the last layer in nats, ``(b, n)``."""
        flat = points.states.flatten(0, 1)
        return self.value_ahead(flat, t, self.process.has_ended(flat)).view(points.states.shape[:2])

    def _tried(self, states: Tensor, t: int, *, root: bool) -> tuple[Tensor, Tensor]:
        """Returns the actions that are tried at points ``(b, n)``, with ``log p - log (m q)``, ``(b, n, m)`` in nats.

        The sum over them of ``exp(log p - log (m q) + Q)`` is the soft value's exponential; of discrete actions
        that are all there are ``m q`` is 1.
        """
        flat, shape = states.flatten(0, 1), states.shape[:2]
        if self.is_discrete:
            prior = self.process.prior_at(flat)
            every = _all_actions(prior, 1)
            log_prior = prior.log_prob(every).movedim(0, -1)
            return every[:, 0].expand(*shape, -1), log_prior.unflatten(0, shape)
        number = self.num_particles if root else self.num_actions
        decision = self.process.decide(self.proposed, repeated(flat, number), t)
        action = decision.action.unflatten(0, (*shape, number))
        return action, (decision.log_prior - decision.log_policy).unflatten(0, (*shape, number)) - math.log(number)

    def _of_draws(self, walk: _Walk, after: Tensor, t: int) -> Tensor:
        """Returns the log density of each draw under each transition that was taken, ``(K, B, K)``."""
        shape = after.shape[:2]
        states, actions = walk.before.unflatten(0, shape), walk.action.unflatten(0, shape)
        return log_densities(self.process, states, actions[:, :, None], after, t)[0][..., 0]

    # Without: what each first action is worth is what the particles that took it weigh.

    def _by_weights(self, roots: Tensor, t: int, steps: int) -> tuple[Tensor, Tensor]:
        """Returns first actions ``(B, m, d)`` and their log weights ``(B, m)``; of discrete ones those of all ``A``."""
        count, size = len(roots), self.num_particles
        walk = _Walk(self, roots, t)
        first: Tensor | None = None
        for j in range(steps):
            walk.step()
            first = walk.action.unflatten(0, (count, size)) if first is None else first
            if j < steps - 1:
                walk.resample(tempered=False)
        assert first is not None
        first = first.gather(1, walk.ancestor.reshape(count, size, *(1,) * (first.dim() - 2)).expand_as(first))
        log_weight = walk.log_weight
        if not self.is_discrete:
            return first, log_weight
        of_action = first[..., None] == torch.arange(self._num_tried, device=first.device)
        return first, torch.logsumexp(torch.where(of_action, log_weight[..., None], -math.inf), 1)


class _Walk:
    """Particles on their way from ``B`` roots, ``K`` from each."""

    def __init__(self, planner: SMCPlanner, roots: Tensor, t: int) -> None:
        self.planner, self.t, self.start = planner, t, t
        self.count, self.size = len(roots), planner.num_particles
        self.state = repeated(roots, self.size)
        self.alive: Tensor | None = None
        dtype = planner.dtype(roots)
        self.log_weight = torch.zeros(self.count, self.size, dtype=dtype, device=roots.device)
        self.ancestor = torch.arange(self.size, device=roots.device).expand(self.count, -1)
        self.expected: Tensor | float = 0.0
        self.before, self.action = self.state, self.state
        self.took = torch.ones(self.count, self.size, dtype=torch.bool, device=roots.device)

    def step(self) -> Transition:
        """Moves all particles one step on, weighs them, and returns what the step gave."""
        planner, process = self.planner, self.planner.process
        self.action, log_prior, log_policy = self._decided()
        step = process.advance(self.state, self.action, self.t, self.alive)
        alive = step.alive
        self.took = torch.ones_like(self.took) if alive is None else alive.view(self.took.shape)
        gain = step.reward / process.temperature + log_prior - log_policy
        gamma, last = float(process.discount), self.t + 1 == process.horizon
        scale, self.t = gamma ** (self.t - self.start), self.t + 1
        if planner.dynamics == "posterior" and gamma < 1:  # to survive is luck
            scale = 1.0
            if not last:
                coins = torch.rand(len(self.state), device=self.state.device) < gamma
                alive = coins if alive is None else alive & coins
        over = process.has_ended(step.next_state)
        if alive is not None:
            over = ~alive if over is None else over | ~alive
        expected = planner.value_ahead(step.next_state, self.t, over).view(self.took.shape)
        expected = expected if scale == 1 and planner.dynamics == "posterior" else scale * gamma * expected
        increment = torch.where(self.took, scale * gain.view(self.took.shape), 0.0) + expected - self.expected
        if isinstance(self.expected, Tensor):  # what was given up stays so: -inf less -inf would be no number
            increment = torch.where(self.expected.isneginf(), -math.inf, increment)
        self.log_weight = self.log_weight + increment.to(self.log_weight)
        self.before, self.state, self.alive, self.expected = self.state, step.next_state, alive, expected
        self.goes_on = torch.ones_like(self.took) if over is None else ~over.view(self.took.shape)
        return step

    def _decided(self) -> Decision:
        """Returns the particles' actions, spread evenly over all discrete ones in the first step: each is asked for."""
        planner, process, t = self.planner, self.planner.process, self.t
        policy = None if planner.proposal is None else planner.proposed
        if not planner.is_discrete:
            return process.decide(policy, self.state, t)
        if t == self.start:
            policy = planner.any_action
        like = self.log_weight
        uniform = torch.rand(len(self.state), 1, dtype=like.dtype, device=like.device)
        if t == self.start:
            offset = torch.arange(self.size, device=like.device) + uniform.view(self.took.shape)[:, :1]
            uniform = (offset / self.size).flatten()[:, None]
        return process.decide(policy, self.state, t, draw=lambda chosen: invert(cumulated(chosen.logits), uniform))

    def resample(self, *, tempered: bool) -> None:
        """Resamples where the effective size is below half of the particles.

        Args:
            tempered: only to place the next layer of points: over those that go on, with weights to a power that keeps
                half of them, since others than the best must be covered too. Else as a filter does.
        """
        log_weight = self.log_weight
        if tempered:
            log_weight = torch.where(self.goes_on, log_weight, -math.inf)
            log_weight = torch.where(log_weight.amax(1, keepdim=True).isneginf(), 0.0, log_weight)
            weight = (log_weight - log_weight.amax(1, keepdim=True)).exp()
            living = (weight > 0).sum(1)
            poor = living < self.size
            for _ in range(_HALVINGS):
                small = _effective_size(weight) < 0.5 * living
                if not bool(small.any()):
                    break
                poor |= small
                weight = torch.where(small[:, None], weight.sqrt(), weight)
        else:
            weight = log_weight.softmax(1)
            poor = _effective_size(weight) < 0.5 * self.size  # nor are they where all weights are zero
        if not bool(poor.any()):
            return
        index = resample(torch.where(poor[:, None], weight, 1.0).log(), self.size)
        index = torch.where(poor[:, None], index, torch.arange(self.size, device=index.device))
        level = torch.logsumexp(self.log_weight, 1, keepdim=True) - math.log(self.size)
        kept = self.log_weight.gather(1, index)
        self.log_weight = torch.where(poor[:, None], 0.0 if tempered else level, kept)
        self.ancestor = self.ancestor.gather(1, index)
        flat = (index + self.size * torch.arange(self.count, device=index.device)[:, None]).flatten()
        self.state = self.state[flat]
        self.alive = None if self.alive is None else self.alive[flat]
        if isinstance(self.expected, Tensor):
            self.expected = self.expected.gather(1, index)


def _categorical(logits: Tensor) -> Any:
    return dist.Categorical(logits=logits)


def _all_actions(prior: Any, batch: int) -> Tensor:
    """Returns every discrete action, counted from 0, ``(A, *1)``."""
    number = prior.logits.shape[-1]
    return torch.arange(number, device=prior.logits.device).reshape(number, *(1,) * batch)


def _effective_size(weight: Tensor) -> Tensor:
    return weight.sum(1).square() / weight.square().sum(1)
