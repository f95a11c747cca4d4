"""A black-box simulator as a process: rollouts in Gymnasium environments."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, Self

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_at_least, check_temperature
from rl_as_inference.distributed import Ranks
from rl_as_inference.factored import Factors
from rl_as_inference.nouns import EnvironmentLike, LearnedSoftValue, Policy, SoftValue
from rl_as_inference.processes.action_masks import ActionMasks
from rl_as_inference.processes.environments import Environments
from rl_as_inference.processes.mdp import MarkovDecisionProcess, unvalidated
from rl_as_inference.progress import progress_bar
from rl_as_inference.spaces import factor_sizes
from rl_as_inference.threads import one_thread_if_small
from rl_as_inference.trajectories import Rows, Trajectories

__all__ = ["GymnasiumProcess", "own_episodes"]

_LONG = 50_000
"""Environment steps from which a rollout shows a bar."""


class GymnasiumProcess:
    """A simulator that can be run and nothing else, with a uniform action prior.

    It has rollouts, and thus ELBOs, comparisons and posteriors by weighing (``"guide"`` and
    ``"importance"``). Its densities are unknown, so that what needs them (exact messages, SMC, NUTS,
    Pyro's handlers) is refused. States are float32 (or integers from 0), actions in the unit box (or
    integers from 0), as in :class:`~rl_as_inference.processes.Environments`.

    Args:
        env_id: a Gymnasium id, an environment, or a factory of environments.
        num_envs: how many run side by side; the policy is asked once for all of them.
        horizon: where episodes are cut; None for the environment's own time limit.
        discount: γ in [0, 1]; None for 1, or that of a critic (see :meth:`adopt`).
        temperature: α > 0, in reward units per nat; None for 1, or that of a critic.
        statistics: running statistics of where the policy learned, ``agent.envs.statistics()``, which stay as they
            are here; needed where wrappers hold some (``NormalizeObservation``), see :meth:`rollout`.
        action_masks: keep to what the environment allows, as learners do: the mask, of ``info["action_mask"]`` or a
            part ``"action_mask"`` of observations, is a part of states, and the action prior uniform over it.
        seed: of the episodes, ≥ 0. Each rollout goes on to new ones; actions are drawn by torch's
            global generator.
        **make_kwargs: for :func:`gymnasium.make`, with an id; ``normalization``, ``agent.arena.normalization``, is the
            learner's own, which goes with its ``statistics``.

    Attributes:
        name: the environment's id or class.
        state_space: ``Box`` or ``Discrete`` from 0.
        action_space: ``Box(-1, 1, (d,))`` or ``Discrete`` from 0.
        state_names, action_names: what the environment's own attributes of these names call the entries; or None.
        layout: the letters of its grid, ``(rows, columns)``, where its states are cells; or None.

    Raises:
        ValueError: if there is no such environment, it has no time limit and ``horizon`` is None, its
            spaces are not supported, an argument is out of range, or ``statistics`` are not those of its wrappers.

    Example:
        >>> process = GymnasiumProcess("Pendulum-v1", num_envs=4)
        >>> process.horizon, process.action_space
        (200, Box(-1.0, 1.0, (1,), float32))
        >>> process.rollout(None, 8).states.shape
        torch.Size([201, 8, 3])
    """

    has_uniform_prior = True
    has_exact_answers = False

    @checked
    def __init__(
        self,
        env_id: EnvironmentLike,
        num_envs: int = 1,
        *,
        horizon: int | None = None,
        discount: float | None = None,
        temperature: float | None = None,
        statistics: Mapping[str, np.ndarray[Any, Any]] | None = None,
        action_masks: bool = False,
        seed: int = 0,
        **make_kwargs: Any,
    ) -> None:
        if isinstance(env_id, VectorEnv | MarkovDecisionProcess):
            raise ValueError(
                f"env_id must be a Gymnasium id, an environment or a factory of environments, got "
                f"{type(env_id).__name__}; a process in parts needs no wrapping, and num_envs makes a batch"
            )
        self._env, self._make_kwargs, self._statistics = env_id, make_kwargs, statistics
        self._given = {"discount": discount is not None, "temperature": temperature is not None}
        self.discount: float | Tensor = 1.0 if discount is None else discount
        self.temperature: float | Tensor = 1.0 if temperature is None else temperature
        self._parts = _Parts(horizon=horizon, discount=self.discount, temperature=self.temperature)
        self._limit = self._parts.horizon
        try:
            self._envs = self.environments(num_envs=num_envs, seed=seed, masks="look" if action_masks else None)
        except ValueError as error:
            if not str(error).startswith(("env:", "env must")):
                raise
            raise ValueError(f"env_id{str(error).removeprefix('env')}; check it, and its package") from error
        limit = self._envs.max_episode_steps if self._limit is None else self._limit
        if limit is None:
            raise ValueError(
                f"horizon is None, and {self._envs.name} has no time limit; set horizon to a number of steps"
            )
        self.horizon = limit
        self.name = self._envs.name
        self.state_space, self.action_space = self._envs.state_space, self._envs.action_space
        self.state_names, self.action_names = self._envs.state_names, self._envs.action_names
        self.layout = self._envs.layout
        self._parts.state_space, self._parts.action_space = self.state_space, self.action_space
        if action_masks and self._envs.masks is not None:
            sizes = factor_sizes(self.action_space)
            self._parts.masks, self._parts.factors = self._envs.masks, None if sizes is None else Factors(sizes)
            self.has_uniform_prior = self._parts.has_uniform_prior = False

    @property
    def has_statistics(self) -> bool:
        """Whether it was given the running statistics of where a policy learned."""
        return self._statistics is not None

    def environments(self, *, num_envs: int = 1, seed: int = 0, **make_kwargs: Any) -> Environments:
        """Returns new environments of this problem, cut at its horizon; see :meth:`Environments.make`."""
        source, limit = self._env, self._limit
        options = {**self._make_kwargs, **make_kwargs}
        if isinstance(source, str | EnvSpec):
            if limit is not None:
                options["max_episode_steps"] = limit
        elif isinstance(source, gymnasium.Env):
            source = _cut(source, limit)
        elif callable(source):
            factory = source
            source = lambda: _cut(factory(), limit)  # noqa: E731 - a factory around a factory
        made = Environments.make(source, num_envs=num_envs, seed=seed, **options)
        if self._statistics is not None:
            made.load_statistics(self._statistics, frozen=True)
        return made

    def prior(self, state: Tensor) -> Any:
        """Returns the action prior ``p(a|s)``, uniform over the action space, or over what a mask allows."""
        return self._parts.prior(state)

    def prior_at(self, state: Tensor) -> Any:
        """Returns the same: states of a simulator count from 0 already."""
        return self._parts.prior(state)

    def rollout(self, policy: Policy | None, num_trajectories: int) -> Trajectories:
        """Returns ``num_trajectories`` episodes of ``policy``; no gradient passes through them.

        Episodes that end before the horizon are masked out after it and stay in their last state.
        Tensors are of the policy's device and precision.

        Args:
            policy: a callable ``(state, t) -> Distribution`` on normalised actions; None for the action prior.
            num_trajectories: ``N``.

        Raises:
            NonFiniteError: if an observation or a reward is NaN or infinite.
            ValueError: if an argument is out of range, the policy gives NaN, or wrappers hold running statistics that
                started afresh here, so that a policy would see other observations than it learned on.
        """
        return self.rollout_with_ends(policy, num_trajectories)[0]

    def rollout_with_ends(self, policy: Policy | None, num_trajectories: int) -> tuple[Trajectories, Tensor]:
        """Returns what :meth:`rollout` does, and which episodes were cut off, ``(N,)`` bool.

        What was cut off would have gone on: a critic that knows no time limit has the value of its
        last state, ``states[-1]``, still to add.
        """
        check_at_least("num_trajectories", num_trajectories)
        if policy is not None and not callable(policy):
            raise ValueError(f"policy must be a callable (state, t) -> Distribution, or None; got {policy!r}")
        if policy is not None and self._statistics is None and (held := self._envs.statistics()):
            raise ValueError(
                f"{self.name} holds running statistics ({min(held).rpartition('.')[0]}) that started afresh, so policy "
                f"would see other numbers than it learned on; make the process with "
                f"statistics=agent.envs.statistics()"
            )
        together = self._envs.num_envs
        show = None if num_trajectories * self.horizon >= _LONG else False
        parts, ends = [], []
        rounds = range(0, num_trajectories, together)
        with (
            torch.no_grad(),
            unvalidated(),
            one_thread_if_small(_num_parameters(policy) * together),
            progress_bar(f"episodes of {self.name}", len(rounds), show=show) as bar,
        ):
            for start in rounds:
                part, truncated = self._round(policy)
                wanted = torch.arange(min(together, num_trajectories - start), device=truncated.device)
                parts.append(part.select(wanted))
                ends.append(truncated[wanted])
                bar.advance(f"return {float(part.returns().mean()):.4g}")
        return Trajectories.joined(parts), torch.cat(ends)

    @contextmanager
    def episodes_of(self, seed: int) -> Iterator[None]:
        """Within it rollouts are of other episodes, those of ``seed``; afterwards its own go on."""
        with self._envs.episodes_of(seed):
            yield

    def _round(self, policy: Policy | None) -> tuple[Trajectories, Tensor]:
        """Returns one episode of every environment, and which were cut off.

        Exactly one each: whoever takes the episodes that end first has too many short ones.
        """
        options = _options_of(policy)
        envs, shape = self._envs, (-1,) + (1,) * len(self.state_space.shape or ())

        def as_state(array: Any) -> Tensor:
            state = torch.as_tensor(array, device=options["device"])
            return state.to(options["dtype"]) if state.is_floating_point() else state

        current = envs.reset()
        rows = Rows()
        alive, truncated = np.ones(envs.num_envs, bool), np.zeros(envs.num_envs, bool)
        for t in range(self.horizon):
            state = asked = as_state(current)
            if self._parts.masks is not None:  # of episodes that follow on those that ended, actions are taken too
                asked = as_state(np.where(alive.reshape(shape), current, np.asarray(envs.state)))
            action, *logs = self._parts.decide(policy, asked, t, draw=lambda chosen: chosen.sample())
            step = envs.step(action.cpu().numpy())
            earned = torch.as_tensor(np.where(alive, step.reward, 0.0), **options)
            living = torch.as_tensor(alive, device=options["device"])
            rows.add(state, action, earned, living, *(log.to(options["dtype"]) for log in logs))
            current = np.where(alive.reshape(shape), step.next_state, current)
            truncated |= alive & step.truncated & ~step.terminated
            alive = alive & ~(step.terminated | step.truncated)
            if not alive.any():
                break
        drawn = rows.trajectories(as_state(current), self.temperature, self.discount)
        return drawn.padded(self.horizon), torch.as_tensor(truncated, device=options["device"])

    def at_temperature(self, temperature: float | Tensor) -> Self:
        """Returns a copy of the process with another temperature, on the same environments."""
        check_temperature(temperature)
        other = copy.copy(self)
        other.temperature, other._given = temperature, {**self._given, "temperature": True}
        return other

    def adopt(self, critic: LearnedSoftValue | SoftValue) -> Self:
        """Returns a copy with the critic's ``temperature`` and ``discount`` where none was given here.

        Raises:
            ValueError: if one was given that is not the critic's.
        """
        other = copy.copy(self)
        if not isinstance(critic, LearnedSoftValue):
            return other
        learned = {"discount": float(critic.discount), "temperature": float(critic.temperature)}
        for name, there in learned.items():
            given, here = self._given[name], float(getattr(self, name))
            if given and abs(here - there) > 1e-6 * abs(there):
                raise ValueError(
                    f"{name} of {self.name} was given as {here:.6g}, and the critic was learned with {there:.6g}; "
                    f"leave {name} out, or give the critic's"
                )
            if not given:
                setattr(other, name, there)
        return other

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises ValueError: there is no Pyro program of a black box."""
        self._refuse("run as a Pyro program")

    def initial(self) -> NoReturn:
        """Raises ValueError: the density is unknown."""
        self._refuse("asked for its initial distribution")

    def transition(self, state: Tensor, action: Tensor) -> NoReturn:
        """Raises ValueError: the density is unknown."""
        self._refuse("asked for its transition's density")

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"{self.name} is a black-box simulator and cannot be {what}; it has rollout(policy, num_trajectories), "
            f"SoftActorCritic and SoftQLearning train on it, and a problem with known dynamics is a "
            f"MarkovDecisionProcess (TabularMDP.from_gymnasium for toy text)"
        )


class _Parts(MarkovDecisionProcess):
    """What a black box has in common with a process in parts; under masks with the action prior that these leave."""

    has_uniform_prior = True
    masks: ActionMasks | None = None
    factors: Factors | None = None

    def prior(self, state: Tensor) -> Any:
        return super().prior(state) if self.masks is None else self.masks.prior(state, self.factors, state.dtype)


def _cut(env: Any, horizon: int | None) -> Any:
    """Returns an environment whose episodes are cut at the horizon."""
    if horizon is None or not isinstance(env, gymnasium.Env):  # what is not one, Environments tells
        return env
    limit = Environments([env]).max_episode_steps
    if limit is not None and limit < horizon:
        raise ValueError(
            f"horizon is {horizon}, but the environment is cut at {limit} steps; make it with a longer limit"
        )
    return env if limit == horizon else gymnasium.wrappers.TimeLimit(env, horizon)


def _num_parameters(policy: Policy | None) -> int:
    return sum(each.numel() for each in policy.parameters()) if isinstance(policy, nn.Module) else 0


def _options_of(policy: Policy | None) -> dict[str, Any]:
    """Returns the device and dtype of a policy's parameters."""
    for parameter in policy.parameters() if isinstance(policy, nn.Module) else ():
        if parameter.is_floating_point():
            return {"device": parameter.device, "dtype": parameter.dtype}
    return {"device": torch.device("cpu"), "dtype": torch.get_default_dtype()}


@contextmanager
def own_episodes(process: Any, ranks: Ranks) -> Iterator[None]:
    """Within it a simulator plays other episodes on each rank, on rank 0 those that it would play alone."""
    if isinstance(process, GymnasiumProcess) and ranks.rank:
        envs = process._envs
        with envs.episodes_of(ranks.seed(envs.seed) % 2**31, goes_on=True):
            yield
    else:
        yield
