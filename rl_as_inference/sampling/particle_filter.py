"""Beliefs by particles: what is known of the hidden state of a process or a program, moved on one step at a time."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_as_inference.checks import check_at_least
from rl_as_inference.nouns import Program
from rl_as_inference.processes.mdp import unvalidated
from rl_as_inference.processes.partially_observed import PartiallyObservedMDP
from rl_as_inference.processes.programs import ProgramProcess
from rl_as_inference.program.recording import log_prob_of, record
from rl_as_inference.program.sites import is_action, is_observation, step_of
from rl_as_inference.sampling.importance import resample

__all__ = ["ParticleBelief", "ParticleFilter", "ProgramBelief", "ProgramFilter"]


class ParticleBelief(NamedTuple):
    """Weighted states that stand for ``p(s_t | h_t)``, of ``N`` trajectories."""

    states: Tensor
    """``(N, K, *state)``."""
    log_weight: Tensor
    """``(N, K)`` in nats, whose exponentials sum to one over particles."""
    log_evidence: Tensor
    """The estimate of ``log p(y_0 … y_t | a_0 … a_{t-1})``, ``(N,)`` in nats, going on included."""

    @property
    def mean(self) -> Tensor:
        """``E[s_t | h_t]``, ``(N, *state)``."""
        return self._average(self.states.to(self.log_weight))

    @property
    def variance(self) -> Tensor:
        """``Var[s_t | h_t]`` of each number, ``(N, *state)``."""
        return self._average((self.states.to(self.log_weight) - self.mean[:, None]).square())

    def probabilities(self, num_states: int) -> Tensor:
        """Returns the belief over discrete states, ``(N, num_states)``."""
        found = self.log_weight.new_zeros(len(self.states), num_states)
        return found.scatter_add(1, self.states.long(), self.log_weight.exp())

    def _average(self, values: Tensor) -> Tensor:
        weight = self.log_weight.exp()
        return (weight.reshape(weight.shape + (1,) * (values.dim() - 2)) * values).sum(1)


class ParticleFilter:
    """The filter of a partially observed process: particles moved by its dynamics, weighed by what is seen.

    Sequential importance resampling (Gordon, Salmond & Smith 1993, IEE Proceedings F 140), systematic, where the
    effective sample size falls below a fraction. That the episode goes on is seen: particles that have ended weigh
    nothing.

    Args:
        process: whose state is hidden.
        num_particles: ``K``.
        threshold: resample where the effective sample size is below this fraction of ``K``.
        keep_lost: where no particle could have seen what was seen, go on with those that there are, and an evidence of
            zero, in place of an error.

    Raises:
        ValueError: if the process sees its state, or numbers are out of range.

    Example:
        >>> from rl_as_inference.processes import TabularPOMDP
        >>> stay = torch.eye(2)[:, None].expand(2, 1, 2)
        >>> pomdp = TabularPOMDP(stay, torch.zeros(2, 1), torch.tensor([0.5, 0.5]),
        ...                      torch.tensor([[0.8, 0.2], [0.2, 0.8]]), horizon=1)
        >>> particles = ParticleFilter(pomdp, 2000)
        >>> _ = torch.manual_seed(0)
        >>> belief = particles.move(particles.start(torch.tensor([0])), torch.tensor([0]), torch.tensor([0]))
        >>> bool((belief.probabilities(2) - torch.tensor([0.941, 0.059])).abs().max() < 0.03)
        True
    """

    def __init__(
        self,
        process: PartiallyObservedMDP,
        num_particles: int = 1000,
        *,
        threshold: float = 0.5,
        keep_lost: bool = False,
    ) -> None:
        if not isinstance(process, PartiallyObservedMDP):
            raise ValueError(
                f"process must be a PartiallyObservedMDP, got {type(process).__name__}; a program with observe() sites "
                f"has a ProgramFilter"
            )
        check_at_least("num_particles", num_particles, least=2)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        self.process, self.num_particles, self.threshold = process, num_particles, threshold
        self.keep_lost = keep_lost

    @torch.no_grad()
    def start(self, observation: Tensor | None, num_trajectories: int | None = None) -> ParticleBelief:
        """Returns the belief after what is seen before the first action.

        Args:
            observation: ``(N, *observation)``; None for nothing.
            num_trajectories: ``N``; by default as many as observations, or 1.
        """
        self._check("observation", observation, self.process.observation_space)
        count = num_trajectories or (1 if observation is None else len(observation))
        with unvalidated():
            flat = self.process.begin(count * self.num_particles)
            states = flat.unflatten(0, (count, self.num_particles))
            weight = torch.zeros(states.shape[:2], dtype=_floating(flat), device=flat.device)
            belief = ParticleBelief(states, weight - math.log(self.num_particles), weight.new_zeros(count))
            return self._seen(belief, None, observation, 0)

    @torch.no_grad()
    def move(self, belief: ParticleBelief, action: Tensor, observation: Tensor | None) -> ParticleBelief:
        """Returns the belief one step on.

        Args:
            belief: before.
            action: ``(N, *action)``, which counts from 0.
            observation: what was seen after it, ``(N, *observation)``; None for nothing.

        Raises:
            ValueError: if no particle could have seen that.
        """
        self._check("action", action, self.process.action_space)
        self._check("observation", observation, self.process.observation_space)
        count, process = len(belief.states), self.process
        if len(action) != count and count == 1:  # begun before there was anything to count
            belief = ParticleBelief(*(x.expand(len(action), *x.shape[1:]) for x in belief))
            count = len(action)
        with unvalidated():
            belief = self._resampled(belief)
            taken = process._own_action(action).repeat_interleave(self.num_particles, 0)
            after = process.next_state(process._own_state(belief.states.flatten(0, 1)), taken)
            states = process._counted(after).unflatten(0, (count, self.num_particles))
            return self._seen(belief._replace(states=states), taken, observation, None)

    def _seen(
        self, belief: ParticleBelief, action: Tensor | None, observation: Tensor | None, step: int | None
    ) -> ParticleBelief:
        flat, log_weight = belief.states.flatten(0, 1), belief.log_weight
        if observation is not None:
            seeing = self.process._seeing(self.process._own_state(flat), action)
            if seeing is None:
                raise ValueError("observation: nothing is seen before the first action; pass None")
            value = observation.repeat_interleave(self.num_particles, 0)
            log_weight = log_weight + log_prob_of(seeing, value).view_as(log_weight)
        ended = self.process.has_ended(flat)
        if ended is not None:
            log_weight = torch.where(ended.view_as(log_weight), -torch.inf, log_weight)
        total = torch.logsumexp(log_weight, 1)
        if bool((lost := ~total.isfinite()).any()) and self.keep_lost:
            log_weight = torch.where(lost[:, None], belief.log_weight, log_weight - total[:, None])
            return ParticleBelief(belief.states, log_weight, torch.where(lost, -torch.inf, belief.log_evidence + total))
        if bool(lost.any()):
            row = int(lost.nonzero()[0])
            seen = "nothing" if observation is None else observation[row].tolist()
            raise ValueError(
                f"observation {seen} of trajectory {row} has probability 0 under all {self.num_particles} particles of "
                f"the belief{'' if step is None else f' at step {step}'}; use more, or check what was seen"
            )
        return ParticleBelief(belief.states, log_weight - total[:, None], belief.log_evidence + total)

    def _check(self, name: str, value: Tensor | None, space: Any) -> None:
        shape = tuple(space.shape or ())
        if value is not None and (not isinstance(value, Tensor) or tuple(value.shape[1:]) != shape or value.dim() == 0):
            raise ValueError(
                f"{name} must be a tensor (N, …) of one for each trajectory, of shape (N, *{shape}), got "
                f"{tuple(getattr(value, 'shape', ()))}"
            )

    def _resampled(self, belief: ParticleBelief) -> ParticleBelief:
        size = 1 / (2 * belief.log_weight).exp().sum(1)
        poor = size < self.threshold * self.num_particles
        if not bool(poor.any()):
            return belief
        index = resample(belief.log_weight[poor], self.num_particles)
        states, log_weight = belief.states.clone(), belief.log_weight.clone()
        rows = torch.arange(len(index), device=index.device)[:, None]
        states[poor] = belief.states[poor][rows, index]
        log_weight[poor] = -math.log(self.num_particles)
        return ParticleBelief(states, log_weight, belief.log_evidence)


class ProgramBelief(NamedTuple):
    """Weighted runs of a program up to the present, one trajectory's."""

    values: dict[str, Tensor]
    """What each particle has drawn, by site, ``(K, …)``."""
    log_weight: Tensor
    """``(K,)`` in nats, whose exponentials sum to one."""
    log_evidence: float
    """The estimate of the log probability of what was seen, in nats."""
    num_actions: int


class ProgramFilter:
    """The filter of a Pyro program with :func:`rl_as_inference.observe` sites, of one trajectory.

    A program cannot go on from its middle, so that every step runs it anew with what its particles have drawn. It must
    run in a plate.

    Args:
        program: takes no arguments.
        num_particles: ``K``.
        threshold: as of a :class:`ParticleFilter`.

    Raises:
        ValueError: if the program has no observations, or does not run in a plate.
    """

    def __init__(self, program: Program, num_particles: int = 1000, *, threshold: float = 0.5) -> None:
        check_at_least("num_particles", num_particles, least=2)
        self.process = ProgramProcess(program, vectorized=True)
        self.num_particles, self.threshold = num_particles, threshold
        run = record(self.process.in_plate(1), None)
        self.actions = [msg["name"] for msg in run if is_action(msg)]
        self.observations = [msg["name"] for msg in run if is_observation(msg)]
        if not self.observations:
            raise ValueError("program has no observations: draw them by observe(name, distribution)")
        self._shapes = {msg["name"]: tuple(msg["fn"].event_shape) for msg in run if is_observation(msg)}
        first = next(i for i, msg in enumerate(run) if is_action(msg) or is_observation(msg))
        self.observed_first = is_observation(run[first])

    @torch.no_grad()
    def start(self, observation: Tensor | None) -> ProgramBelief:
        """Returns the belief after what is seen before the first action, ``(*observation)``; None for nothing."""
        weight = torch.full((self.num_particles,), -math.log(self.num_particles))
        values = {} if observation is None else {self.observations[0]: self._of_shape(observation, 0)}
        return self._run(ProgramBelief({}, weight, 0.0, 0), values)

    @torch.no_grad()
    def move(self, belief: ProgramBelief, action: Tensor, observation: Tensor | None) -> ProgramBelief:
        """Returns the belief after an action and what was seen after it, both of one trajectory.

        Raises:
            ValueError: after the last step, or if no particle could have seen that.
        """
        t = belief.num_actions
        if t >= len(self.actions):
            raise ValueError(f"action: the program has {len(self.actions)} actions, and all were taken")
        values = {self.actions[t]: action}
        index = t + self.observed_first
        if observation is not None and index >= len(self.observations):
            raise ValueError(f"observation: the program shows nothing after its action {self.actions[t]!r}; pass None")
        if observation is not None:
            values[self.observations[index]] = self._of_shape(observation, index)
        return self._run(belief._replace(num_actions=t + 1), values)

    def _of_shape(self, observation: Any, index: int) -> Tensor:
        seen, shape = torch.as_tensor(observation), self._shapes[self.observations[index]]
        if tuple(seen.shape) != shape:
            raise ValueError(
                f"observation must be of one trajectory, of shape {shape} as at site {self.observations[index]!r}, got "
                f"{tuple(seen.shape)}"
            )
        return seen

    def _run(self, belief: ProgramBelief, given: dict[str, Any]) -> ProgramBelief:
        count, nesting = self.num_particles, self.process._nesting
        log_weight, known = belief.log_weight, dict(belief.values)
        if known and float(1 / (2 * log_weight).exp().sum()) < self.threshold * count:
            index = resample(log_weight, count)
            known = {name: value[index] for name, value in known.items()}
            log_weight = torch.full_like(log_weight, -math.log(count))
        given = {name: torch.as_tensor(value) for name, value in given.items()}
        given = {name: value.expand(count, *(1,) * nesting, *value.shape) for name, value in given.items()}
        new = set(given) & set(self.observations)
        run = record(self.process.in_plate(count), None, values={**known, **given}, num_actions=belief.num_actions)
        for msg in run:
            if msg["name"] in new:
                seen, alive = log_prob_of(msg["fn"], msg["value"]), step_of(msg)["alive"]
                if alive is not None:  # going on is seen, so that what has ended could not have shown this
                    seen = torch.where(alive, seen, -torch.inf)
                log_weight = log_weight + seen.reshape(count, -1).sum(1)
                new.remove(msg["name"])
        if new:
            raise ValueError(f"the program did not reach its observation {min(new)!r}; check the order of its sites")
        total = torch.logsumexp(log_weight, 0)
        if not bool(total.isfinite()):
            raise ValueError(
                f"what was seen after {belief.num_actions} actions has probability 0 under all {count} particles of "
                f"the belief; use more, or check what was seen"
            )
        values = {
            m["name"]: m["value"] for m in run if m["type"] == "sample" and not m["is_observed"] and _has_rows(m, count)
        }
        return ProgramBelief(values, log_weight - total, belief.log_evidence + float(total), belief.num_actions)


def _has_rows(msg: Any, count: int) -> bool:
    value = msg["value"]
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count


def _floating(like: Tensor) -> torch.dtype:
    return like.dtype if like.is_floating_point() else torch.get_default_dtype()
