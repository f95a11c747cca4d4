"""Model-based agents: collect, fit, plan, act; and a policy that learns from what the model imagines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
import torch
from torch import nn

from rl_as_inference.agents.acting import checked_states
from rl_as_inference.agents.algorithm import Algorithm
from rl_as_inference.agents.arena import Arena
from rl_as_inference.agents.companion import Companion
from rl_as_inference.agents.evaluation import mode_of
from rl_as_inference.agents.learner import Learner
from rl_as_inference.agents.model_planning import PlanningPolicy
from rl_as_inference.agents.options import ModelBasedOptions, Planner, SoftActorCriticOptions
from rl_as_inference.agents.reading_options import filled, takes_options
from rl_as_inference.agents.soft_actor_critic import ActorCritic
from rl_as_inference.agents.task import Task
from rl_as_inference.agents.world_model import WorldModel
from rl_as_inference.learned import LearnedDynamics
from rl_as_inference.nouns import EnvironmentLike, Policy
from rl_as_inference.processes.mdp import unvalidated
from rl_as_inference.state_layout import layout_of

__all__ = ["ActorCriticInModel", "ModelBasedAgent"]


class ActorCriticInModel(ActorCritic):
    """Soft actor-critic whose transitions are imagined in a model of the world, as an algorithm.

    Args:
        task: the problem.
        options: of :class:`ModelBasedAgent`.
    """

    def __init__(self, task: Task, options: ModelBasedOptions) -> None:
        common = SoftActorCriticOptions.__annotations__.keys() & options.keys()
        own: Any = {name: value for name, value in options.items() if name in common}
        super().__init__(task, filled(SoftActorCriticOptions, own))
        self.model_options = options
        self.planner = _chosen_planner(task, options["planner"])
        self.model: WorldModel | None = None

    def companion(self, modules: list[dict[str, nn.Module]], num_envs: int) -> Companion:
        self.model = WorldModel(self.task, self.model_options, self.planner, modules, num_envs)
        return self.model

    def policy_of(self, modules: dict[str, nn.Module]) -> Policy:
        model = self.model
        assert model is not None
        return model.policy(next(seed for seed, each in enumerate(model.modules) if each is modules))

    def identity(self) -> dict[str, Any]:
        options = self.model_options
        names = ("ensemble", "imagined_steps", "imagined_transitions", "real_share", "look_ahead")
        sizes = list(options["model_hidden_sizes"])
        return {"planner": self.planner, "model": sizes, **{name: options[name] for name in names}}  # type: ignore[literal-required]


def _chosen_planner(task: Task, planner: Planner | None) -> Planner:
    if planner == "mppi" and task.is_discrete:
        raise ValueError(f"planner='mppi' needs continuous actions, and those of {task.name} are discrete; use 'smc'")
    if planner is None:
        return "smc" if task.is_discrete else "mppi"
    return planner


@takes_options(ModelBasedOptions)
class ModelBasedAgent(Learner):
    """A model-based agent: it collects, fits a model of the world, plans in it, and acts.

    After ``learning_starts`` steps by the action prior, and then every ``model_every``, it fits
    :class:`~rl_as_inference.LearnedDynamics` to all that it has lived, and imagines short walks there from states that
    it has been in. Policy and critics learn from these by the update of soft actor-critic, with
    ``real_share`` of what was lived among them. What acts is

    - ``planner="mppi"``: a Gaussian over the next ``look_ahead`` actions, fitted by importance steps (Williams et al.
      2017), where each sequence is weighed by its mean over the members: ignorance is averaged over before it is
      exponentiated, as luck is;
    - ``planner="smc"``: sequential Monte Carlo in every member by itself, and the mixture of what they say
      (:class:`~rl_as_inference.agents.model_planning.MemberPlanner`);
    - ``planner="policy"``: the policy that learned in the model, which is MBPO (Janner et al. 2019, arXiv:1906.08253).

    Planning with an ensemble is PETS (Chua et al. 2018, arXiv:1805.12114); with ``guided`` a plan begins from the
    policy and ends in its soft value (as in Piché et al. 2019). Rewards and endings are learned, unless
    ``reward_function`` says the former. The discount, temperature and action prior are those of the policy's program; a
    plan is inference in the same program with the members in the dynamics' place. With ``optimistic`` each sequence has
    one member, drawn, so that what some member hopes for is tried.

    Args:
        env: as for :class:`SoftActorCritic`; its states are vectors.
        OPTIONS

    Attributes:
        planner: what acts.

    Raises:
        TypeError: for an option that there is not.
        ValueError: if an argument is out of range, spaces are not supported (images, integers that are observed),
            learning starts before there are transitions enough to fit, or options do not go together.

    Example:
        >>> agent = ModelBasedAgent(
        ...     "Pendulum-v1", hidden_sizes=(16,), model_hidden_sizes=(16,), batch_size=8, learning_starts=40,
        ...     look_ahead=3, num_samples=8, model_updates=10, imagined_transitions=50,
        ... )
        >>> agent.learn(45)
        >>> agent.dynamics.num_transitions, agent.act([1.0, 0.0, 0.0]).shape
        (40, (1,))
    """

    def __init__(self, env: EnvironmentLike, **config: Unpack[ModelBasedOptions]) -> None:
        options: ModelBasedOptions = filled(ModelBasedOptions, config, by="ModelBasedAgent")
        _check_options(options)
        arena = Arena(env, options)
        if arena.task.factors is not None:
            raise ValueError(
                f"action_space of {arena.task.name} is {arena.envs.own_action_space}, and a model of the world takes "
                f"Box and Discrete actions; use SoftActorCritic"
            )
        if arena.task.masks is not None:
            raise ValueError(
                f"env {arena.task.name} gives action masks, of which a model of the world knows nothing; use "
                f"SoftActorCritic, or say action_masks=False"
            )
        layout = layout_of(arena.task.state_space)
        if layout is not None and any(part.kind != "box" for part in layout.parts):
            raise ValueError(
                f"env {arena.task.name} observes {layout}, and a model of the world foretells numbers alone; use "
                f"SoftActorCritic, or gymnasium.wrappers.FilterObservation for the numbers among these"
            )
        if arena.task.prior_of is not None:
            raise ValueError(
                f"env {arena.task.name} has an action prior of its own, and a model of the world has the uniform one; "
                f"leave prior() out, or use SoftActorCritic"
            )
        super().__init__(arena, ActorCriticInModel(arena.task, options), options)
        needed = max(20, 2 * (self._model.dynamics[0].networks.num_inputs))
        if self.learning_starts < needed:
            raise ValueError(
                f"learning_starts is {self.learning_starts}, and {needed} transitions are needed to fit a model of "
                f"{self.envs.name}; say {needed} or more"
            )
        self.planner, self.num_critics = self._in_model.planner, options["num_critics"]

    @property
    def _in_model(self) -> ActorCriticInModel:
        algorithm: Algorithm = self.algorithm
        assert isinstance(algorithm, ActorCriticInModel)
        return algorithm

    @property
    def _model(self) -> WorldModel:
        model = self._in_model.model
        assert model is not None
        return model

    @property
    def dynamics(self) -> LearnedDynamics:
        """The model of the world, a process. The first seed's, of several."""
        return self._model.dynamics[0]

    @property
    def models(self) -> list[LearnedDynamics]:
        """The model of every seed."""
        return self._model.dynamics

    @property
    def imagined(self) -> Any:
        """What policy and critics learn from: transitions imagined in the model, a :class:`Replay`."""
        return self._model.replay

    def mean_metrics(self, num_updates: int) -> dict[str, float]:
        found, told = super().mean_metrics(num_updates), self._model.log_likelihood
        return found if told is None else {**found, "model_log_likelihood": told}

    def chooser(self, policy: Policy, *, deterministic: bool) -> Callable[[Any, Any], Any]:
        if not isinstance(policy, PlanningPolicy):
            return super().chooser(policy, deterministic=deterministic)

        def planned(states: Any, times: Any) -> Any:
            """Asks with the times that there are: a plan goes on from that of the step before."""
            array = checked_states(states, self.task.state_space)
            state = torch.as_tensor(array, device=self.device).to(self.task.state_dtype)
            batch = self.task.batch_shape(state)
            time = torch.as_tensor(np.asarray(times), device=self.device).expand(batch)
            with torch.no_grad(), unvalidated():
                chosen = policy(state.reshape(-1, *self.task.state_shape), time.reshape(-1))
                action = mode_of(chosen) if deterministic else chosen.sample()
            return action.reshape(*batch, *self.task.action_shape).cpu().numpy()

        return planned

    def begin_episode(self, which: Any = None) -> None:
        """Has the next observation that :meth:`act` is given begin an episode: no plan goes on."""
        super().begin_episode(which)
        for policy in self._model.others:
            if policy is not None:
                policy.forget()


def _check_options(options: ModelBasedOptions) -> None:
    for name, plain in (("n_step", 1), ("history", 1), ("frame_stack", 1), ("memory", None), ("target_return", None)):
        if options[name] != plain:  # type: ignore[literal-required]
            raise ValueError(f"{name}={options[name]!r} does not go with a model of the world; leave it out")  # type: ignore[literal-required]
