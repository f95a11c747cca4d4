"""Where a learner learns and is tried: its environments, what they are made from, and the task that they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import gymnasium
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from rl_as_inference.agents.actor_options import check_actors
from rl_as_inference.agents.entropy import check_target_entropy
from rl_as_inference.agents.episodes import Origin
from rl_as_inference.agents.frames import FrameStack
from rl_as_inference.agents.options import ACTION_SCALES, LearnerOptions
from rl_as_inference.agents.shared_learning import agree_on_environments, device_of, ranks_of
from rl_as_inference.agents.task import Task
from rl_as_inference.agents.windows import Window, WindowedEnvironments
from rl_as_inference.factored import Factors
from rl_as_inference.nouns import EnvironmentLike
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.processes.asynchronous import in_processes
from rl_as_inference.processes.environments import Environments
from rl_as_inference.processes.normalization import Normalization
from rl_as_inference.randomness import seeded
from rl_as_inference.spaces import factor_sizes, is_unit_box
from rl_as_inference.state_layout import layout_of

__all__ = ["Arena", "chosen_device"]


class Arena:
    """The environments of a learner.

    Args:
        source: what the learner was given.
        options: its options, with their defaults.

    Attributes:
        process: the source, if it is a process in parts.
        observation_space: of what the environments give, in the agent's units.
        window: how that is put together to states; None where it is a state.
        normalization: of what the environments give, by wrappers around each; None where there is none.
        envs: the environments, of all seeds.
        num_envs: of each seed.
        ranks: that learn together.
        task: what an algorithm is told.

    Raises:
        ValueError: if there is no such environment, or it and the options do not go together.
    """

    def __init__(self, source: EnvironmentLike, options: LearnerOptions) -> None:
        self.source = source
        self.env_kwargs: Mapping[str, Any] = dict(options["env_kwargs"] or {})
        self.process = source if isinstance(source, MarkovDecisionProcess) else None
        seeds = options["seeds"] or 1
        check_actors(source, options)
        self.ranks = ranks_of(options)
        device = chosen_device(device_of(self.ranks, options["device"]))
        self.ranks.check_devices(device)
        given = isinstance(source, VectorEnv) and options["num_envs"] == 1  # a vector has its own number
        count = 1 if given else seeds * options["num_envs"]
        # Evaluations are in processes where learning is; but none is forked from one that has joined a cluster.
        self.asynchronous = options["asynchronous"] or (options["num_actors"] is not None and options["ray"] is None)
        self._is_made = not options["asynchronous"]
        self.normalization = _normalization(options)
        self._masks: Literal["look"] | int | None = "look" if options["action_masks"] and self.process is None else None
        envs = self._made(source, num_envs=count, seed=self.seed(options["seed"]), **self.env_kwargs)
        agree_on_environments(self.ranks, source, envs)
        self._is_made = True
        self._masks = envs.mask_size
        self.observation_space = envs.state_space
        self.window = _window(envs, options)
        self.envs = self.windowed(envs)
        if self.envs.num_envs % seeds:
            raise ValueError(
                f"env has {self.envs.num_envs} environments, which do not share out to {options['seeds']} seeds"
            )
        self.num_envs = options["num_actors"] or self.envs.num_envs // seeds
        if options["num_actors"] is not None and (names := sorted(self.envs.statistics())):
            raise ValueError(
                f"num_actors: {names[0].partition('/')[2].partition('.')[0]} holds running statistics in each actor, "
                f"where nothing can read them; leave num_actors out, or normalise outside"
            )
        needs_rows = options["n_step"] > 1 or seeds > 1 or options["memory"] is not None
        if self.envs.num_envs > 1 and needs_rows and self.envs.skips_steps:
            raise ValueError(
                "env is a vector environment that resets in a step of its own, which leaves rows out of replay, and "
                "n_step > 1, seeds > 1 or memory needs a row of every environment at every step; pass the "
                "environment's id, or make the vector with autoreset_mode=AutoresetMode.SAME_STEP"
            )
        self.task = self._task(options, device)

    def seed(self, seed: int) -> int:
        """Returns the seed of this rank's environments."""
        return self.ranks.seed(seed) % 2**31 if self.ranks.rank else seed

    def _task(self, options: LearnerOptions, device: torch.device) -> Task:
        process, action_space = self.process, self.envs.action_space
        prior_of = None if process is None or process.has_uniform_prior else process
        discrete, sizes = not isinstance(action_space, gymnasium.spaces.Box), factor_sizes(action_space)
        if prior_of is not None and not discrete and not is_unit_box(prior_of.action_space):
            raise ValueError(
                f"action_space of {self.envs.name} is {prior_of.action_space}, and a process with an action prior of "
                f"its own must have Box(-1, 1, (d,)); rescale inside transition()"
            )
        temperature, discount = _temperature(options, process), options["discount"]
        if discount is None:
            discount = 0.99 if process is None else float(process.discount)
        masks = prior_of if discrete else None
        learned = temperature is None
        scale = _action_scale(options, learned=learned, discrete=discrete)
        target_entropy = check_target_entropy(options["target_entropy"], action_space, masks, action_scale=scale)
        if scale is not None and not learned:
            raise ValueError(
                f"action_scale tunes the temperature, which is fixed at {temperature:.4g} reward units per nat; say "
                f"temperature='auto', or leave action_scale out"
            )
        return Task(
            name=self.envs.name,
            state_space=self.envs.state_space,
            action_space=action_space,
            horizon=None if process is None else process.horizon,
            discount=float(discount),
            prior_of=prior_of,
            action_prior=options["action_prior"],
            temperature=options["initial_temperature"] if temperature is None else temperature,
            learns_temperature=learned,
            target_entropy=target_entropy if learned and options["target_return"] is None else None,
            n_step=options["n_step"],
            device=device,
            dtype=options["dtype"],
            window=self.window,
            masks=self.envs.masks if options["action_masks"] else None,
            normalized=self.normalization is not None,
            factors=None if sizes is None else Factors(sizes).to(device),
        )

    def identity(self) -> dict[str, Any]:
        """Returns what an agent's states and rewards are of what the environment gives, where they are not the same."""
        made: dict[str, Any] = {} if self.window is None else {self.window.option: self.window.length}
        if (norm := self.normalization) is not None:
            scaled = {"normalize_observations": norm.observations, "normalize_rewards": norm.rewards}
            made |= {name: True for name, given in scaled.items() if given}
        return made

    def origin(self) -> Origin:
        """Returns what the environment calls the actions in replay."""
        spec = None
        if isinstance(self.source, str | EnvSpec):
            spec = copy.deepcopy(gymnasium.spec(self.source) if isinstance(self.source, str) else self.source)
            spec.kwargs.update(self.env_kwargs)
        return Origin(self.envs.own_action_space, self.envs.environment_action, spec)

    def windowed(self, envs: Environments) -> Environments | WindowedEnvironments:
        """Returns environments with states as the policy knows them."""
        return envs if self.window is None else WindowedEnvironments(envs, self.window)

    def made_from(
        self, source: EnvironmentLike, *, num_envs: int = 1, seed: int
    ) -> Environments | WindowedEnvironments:
        """Returns environments made from something else than the source, with states as the policy knows them."""
        return self.windowed(self._made(source, num_envs=num_envs, seed=seed))

    def _made(self, source: EnvironmentLike, *, num_envs: int, seed: int, **make_kwargs: Any) -> Environments:
        if self.asynchronous and (num_envs > 1 or not self._is_made):
            if self.normalization is not None:
                raise ValueError(
                    "asynchronous=True does not go with normalize_observations or normalize_rewards, whose statistics "
                    "would be in each environment's process; leave one of them out"
                )
            masks = self._masks is not None
            return Environments.make(in_processes(source, num_envs, make_kwargs, masks=masks), seed=seed)
        return Environments.make(
            source, num_envs=num_envs, seed=seed, normalization=self.normalization, masks=self._masks, **make_kwargs
        )

    def another(self, num_envs: int, *, seed: int, **make_kwargs: Any) -> Environments | WindowedEnvironments:
        """Returns environments beside those that are being learned in.

        Raises:
            ValueError: if the source is an environment itself, of which there is but one.
        """
        if isinstance(self.source, gymnasium.Env | VectorEnv):
            raise ValueError(
                "evaluate needs an environment of its own, and env is one that is being learned in; make the agent "
                "with the environment's id or a factory, lambda: make_my_environment()"
            )
        options = {**self.env_kwargs, **make_kwargs}
        return self.windowed(self._made(self.source, num_envs=num_envs, seed=seed, **options))

    def carry_statistics(self, envs: Environments | WindowedEnvironments, seed_index: int = 0) -> None:
        """Gives other environments the running statistics that a seed's policy learned under, to keep as they are."""
        own = range(seed_index * self.num_envs, (seed_index + 1) * self.num_envs)
        envs.load_statistics(self.envs.statistics(), frozen=True, sources=own)

    def check_ends(self, what: str) -> None:
        """Raises ValueError if the episodes never end."""
        if self.process is None or self.process.horizon is not None:
            return
        with seeded(0):
            endless = self.process.has_ended(self.process.begin(1)) is None
        if endless:
            raise ValueError(
                f"{what}, and those of {self.envs.name} never end: it has neither a horizon nor terminal states; give "
                f"it a horizon"
            )


def _normalization(options: LearnerOptions) -> Normalization | None:
    observations, rewards = options["normalize_observations"], options["normalize_rewards"]
    discount = 0.99 if options["discount"] is None else float(options["discount"])
    return Normalization(observations, rewards, discount) if observations or rewards else None


def _window(envs: Environments, options: LearnerOptions) -> Window | FrameStack | None:
    """Returns how observations are put together to states, or None where each is one.

    Raises:
        ValueError: for options that do not go with each other, or with what is observed.
    """
    wanted: dict[str, Any] = {"history": options["history"] > 1, "memory": options["memory"] is not None}
    if options["frame_stack"] > 1:
        for name, given in wanted.items():
            if given:
                raise ValueError(f"frame_stack={options['frame_stack']} does not go with {name}; leave one of them out")
        return FrameStack(envs.state_space, options["frame_stack"])
    layout = layout_of(envs.state_space)
    if layout is not None and layout.images and any(wanted.values()):
        name = next(name for name, given in wanted.items() if given)
        raise ValueError(f"{name} does not go with images ({envs.name} observes {layout}); use frame_stack=k")
    length = options["burn_in"] + options["sequence_length"] if wanted["memory"] else options["history"]
    return None if length == 1 else Window(envs.state_space, envs.action_space, length)


def _temperature(options: LearnerOptions, process: MarkovDecisionProcess | None) -> float | None:
    """Returns α, or None where it is tuned."""
    temperature, target_return = options["temperature"], options["target_return"]
    if target_return is not None:
        for name in ("target_entropy", "action_scale"):
            if options[name] is not None:
                raise ValueError(f"target_return and {name} both tune the temperature; give one of them")
        if temperature not in (None, "auto"):
            raise ValueError(
                f"target_return tunes the temperature, and temperature={temperature!r} fixes it; leave one out "
                f"(initial_temperature is where a tuned one starts)"
            )
        return None
    if temperature is None:
        return None if process is None else float(process.temperature)
    return None if temperature == "auto" else float(temperature)


def _action_scale(options: LearnerOptions, *, learned: bool, discrete: bool) -> float | None:
    """Returns the standard deviation that a target entropy is said by: as given, or the architecture's own, or None."""
    every: dict[str, Any] = {**options}  # with those of one algorithm alone
    said = [name for name in ("action_scale", "target_entropy", "target_return") if every[name] is not None]
    if said or discrete or not learned:
        return options["action_scale"]
    return ACTION_SCALES.get(every.get("architecture", "plain"))


def chosen_device(device: torch.device | str | None) -> torch.device:
    """Returns the device, by default a GPU if there is one."""
    try:
        if device is None or device == "":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}") from error
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device is {device!r}, which this machine does not have; leave it out, or say 'cpu'")
    return chosen
