"""A policy's returns in environments that are not quite the one it learned in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from rl_as_inference.agents.evaluation import play
from rl_as_inference.agents.learner import Learner
from rl_as_inference.checks import check_count
from rl_as_inference.data_frames import Frame, frame
from rl_as_inference.nouns import Policy
from rl_as_inference.processes import MarkovDecisionProcess, TabularMDP, to_gymnasium
from rl_as_inference.processes.action_masks import MASK, flat_mask
from rl_as_inference.progress import ProgressBar, progress_bar
from rl_as_inference.randomness import RandomStream
from rl_as_inference.spaces import factor_sizes, uniform_log_density
from rl_as_inference.state_layout import LaidOut

__all__ = ["PerturbedReturns", "has_charge", "perturb", "physics_of"]

_NOISE = ("observation", "action", "reward")
_MUJOCO = {"body_mass": "body_mass", "friction": "geom_friction", "damping": "dof_damping", "gravity": "opt.gravity"}
"""Names of physics of MuJoCo environments, and where in the model they are; with :NAME, one body's mass."""
_KNOWN = ("m", "l", "g", "masspole", "length", "force_mag", "gravity")
"""Attributes of Gymnasium's classic control that a default grid perturbs."""


class PerturbedReturns(NamedTuple):
    """What a policy returned under one kind of perturbation.

    Attributes:
        name: what was perturbed.
        sizes: how much, ascending, ``(K,)``.
        returns: of each episode, in reward units, ``(K, num_seeds, num_episodes)``. The same seed's episodes begin
            alike at each size.
    """

    name: str
    sizes: tuple[float, ...]
    returns: Tensor

    def to_frame(self) -> Frame:
        """Returns a row for each episode: ``size``, ``seed``, ``episode``, ``return`` (see ``data_frames``)."""
        sizes, seeds, episodes = self.returns.shape
        columns = {
            "size": torch.tensor(self.sizes, dtype=torch.float64).repeat_interleave(seeds * episodes),
            "seed": torch.arange(seeds).repeat_interleave(episodes).repeat(sizes),
            "episode": torch.arange(episodes).repeat(sizes * seeds),
            "return": self.returns.flatten(),
        }
        return frame(columns)


class _Perturbed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment with noise on what goes in and comes out."""

    def __init__(self, env: Any, name: str, size: float, spread: Any, seed: int) -> None:
        super().__init__(env)
        self.name, self.size, self.spread = name, size, spread
        self.rng = np.random.default_rng([seed, 1])
        self.charge = 0.0
        self.mask: Any = None  # of the state that is acted in, where the environment gives one
        self.seen: list[Any] = []

    def _observed(self, observation: Any) -> Any:
        if self.name != "observation":
            return observation
        if self.size == 0:
            self.seen.append(np.asarray(observation, dtype=float))
            return observation
        noisy = observation + self.size * self.spread * self.rng.standard_normal(np.shape(observation))
        if np.issubdtype(observation.dtype, np.integer):  # pixels
            limits = np.iinfo(observation.dtype)
            noisy = np.rint(noisy).clip(limits.min, limits.max)
        return noisy.astype(observation.dtype)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:  # the noise of an episode is its own, whichever perturbation comes with it
            self.rng = np.random.default_rng([seed, 1])
        observation, info = self.env.reset(seed=seed, options=options)
        self.mask = _mask_of(observation, info)
        return self._observed(observation), info

    def step(self, action: Any) -> Any:
        space: Any = self.env.action_space
        if self.name == "action" and self.size > 0:
            if isinstance(space, gymnasium.spaces.Box):
                half = (space.high - space.low) / 2
                noise = self.size * half * self.rng.standard_normal(space.shape)
                action = np.clip(action + noise, space.low, space.high).astype(space.dtype)
            elif self.rng.random() < self.size:
                action = _random_action(space, action, self.mask, self.rng)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.mask = _mask_of(observation, info)
        return self._observed(observation), float(reward) - self.size * self.charge, terminated, truncated, info


def _mask_of(observation: Any, info: Any) -> Any:
    """Returns the mask of actions that an environment gives, or None."""
    given = info.get(MASK)
    return observation.get(MASK) if given is None and isinstance(observation, dict) else given


def _random_action(space: Any, action: Any, mask: Any, rng: np.random.Generator) -> Any:
    """Returns a discrete action, or several at once, drawn evenly from what is allowed."""
    sizes = factor_sizes(space)
    if sizes is None:
        allowed = np.arange(space.n) if mask is None else np.flatnonzero(flat_mask(mask, space))
        return type(action)(space.start + allowed[rng.integers(len(allowed))])
    row = np.ones(sum(sizes)) if mask is None else flat_mask(mask, space)
    if len(row) == sum(sizes):
        parts = np.split(row, np.cumsum(sizes)[:-1])
        counted = np.array([rng.choice(np.flatnonzero(part)) for part in parts])
    else:  # of joint actions
        counted = np.array(np.unravel_index(rng.choice(np.flatnonzero(row)), sizes))
    return (counted.reshape(space.shape) + getattr(space, "start", 0)).astype(space.dtype)


def perturb(
    agent: Learner,
    name: str,
    sizes: Sequence[float],
    *,
    num_episodes: int = 20,
    seed: int = 10_000,
    deterministic: bool = True,
    progress: bool | ProgressBar | None = None,
) -> PerturbedReturns:
    """Returns undiscounted returns of whole episodes under perturbations of growing size.

    Args:
        agent: a learner made with an environment's id, a factory, or a process.
        name: ``"observation"`` adds Gaussian noise, of ``size`` times each entry's standard deviation over the
            unperturbed episodes. ``"action"`` adds Gaussian noise of ``size`` half-widths of the action space, and
            clips; a discrete action is replaced by a random one with probability ``size``. ``"reward"`` pays the
            worst reward of Eysenbach & Levine (2021), ``r - size α (log π(a|s) - log p(a|s))`` with the
            agent's α, and actions are drawn. Any other name is physics, and ``size`` a factor: for MuJoCo
            ``body_mass``, ``body_mass:NAME``, ``friction``, ``damping`` or ``gravity``; elsewhere a numeric attribute
            of the environment, such as ``l`` of Pendulum or ``masspole`` of CartPole.
        sizes: ≥ 0; for physics > 0, where 1 is the environment as it is; for random discrete actions ≤ 1.
        num_episodes: for each size and seed, ≥ 1.
        seed: of the environments, of the noise, and of the policy's draws.
        deterministic: the policy's mode, else draws.
        progress: show a bar; None shows it on a terminal. Or a running bar to move on, by one for each size.

    Raises:
        ValueError: if there is no such physics, or a size is out of range.
    """
    check_count("num_episodes", num_episodes)
    make = _factory(agent)
    noise = name in _NOISE
    levels = sorted({float(size) for size in sizes if _check_size(name, size, noise)})
    if not levels:
        raise ValueError(f"{name}: give one size or more, such as {'0,0.1' if noise else '0.5,1,2'}")
    if name == "action" and agent.is_discrete and levels[-1] > 1:
        raise ValueError(f"action: the size is the probability of a random action, at most 1; got {levels[-1]:g}")
    if name == "reward" and not has_charge(agent):
        raise ValueError(
            f"reward: {agent.envs.name} has an action prior of its own, against which the worst reward cannot be told "
            f"here; perturb observations, actions or physics"
        )
    seen_space = agent.arena.observation_space
    if name == "observation" and (not isinstance(seen_space, gymnasium.spaces.Box) or isinstance(seen_space, LaidOut)):
        what = seen_space if isinstance(seen_space, LaidOut) else "integers"
        raise ValueError(f"observation: noise can be added to arrays only, and {agent.envs.name} observes {what}")
    spread: Any = 0.0
    returns = []
    run = partial(_returns, agent, make, name, num_episodes=num_episodes, seed=seed, deterministic=deterministic)
    if name == "observation":
        seen: list[Any] = []
        nominal = run(0.0, spread, seen)
        spread = np.std(np.stack(seen), 0)
    with progress_bar(f"{name} of {agent.envs.name}", len(levels), show=progress) as bar:
        for size in levels:
            bar.say(f"{name} {size:g}")
            returns.append(nominal if name == "observation" and size == 0 else run(size, spread, []))
            bar.advance(f"{name} {size:g}")
    return PerturbedReturns(name, tuple(levels), torch.stack(returns))


def _returns(
    agent: Learner,
    make: Callable[[], Any],
    name: str,
    size: float,
    spread: Any,
    seen: list[Any],
    *,
    num_episodes: int,
    seed: int,
    deterministic: bool,
) -> Tensor:
    def perturbed() -> Any:
        env = make()
        if name not in _NOISE:
            _scale_physics(env, name, size)
        made.append(_Perturbed(env, name, size if name in _NOISE else 0.0, spread, seed))
        return made[-1]

    rows = []
    for index, policy in enumerate(agent.policies):
        made: list[_Perturbed] = []
        envs = agent.arena.made_from(perturbed, num_envs=min(num_episodes, 10), seed=seed)
        agent.arena.carry_statistics(envs, index)
        try:
            with RandomStream(seed, agent.device), agent.threads():
                choose = agent.chooser(policy, deterministic=deterministic)
                if name == "reward":
                    choose = partial(_charged, agent, policy, made)
                rows.append(play(envs, choose, num_episodes).returns)
        finally:
            envs.close()
        for env in made:
            seen += env.seen
    return torch.stack(rows)


@torch.no_grad()
def _charged(agent: Learner, policy: Policy, envs: list[_Perturbed], state: Any, time: Any) -> Any:
    """Returns drawn actions, and charges each environment what the worst reward takes off for it."""
    states = torch.as_tensor(state, device=agent.device)
    times = agent.task.times(torch.as_tensor(time, device=agent.device))
    distribution = policy(states.to(agent.task.state_dtype), times)
    action = distribution.sample()
    log_prior: Any = uniform_log_density(agent.action_space)
    if agent.task.masks is not None:
        log_prior = agent.task.log_prior(states.to(agent.task.state_dtype), action)
    if isinstance(agent.process, TabularMDP):
        log_prior = agent.process.log_action_prior[agent.task.latest(states), action].to(agent.device)
    charges = agent.temperature * (distribution.log_prob(action) - log_prior)
    for env, charge in zip(envs, charges.tolist(), strict=True):
        env.charge = charge
    return action.cpu().numpy()


def _check_size(name: str, size: Any, noise: bool) -> bool:
    good = isinstance(size, Real) and not isinstance(size, bool) and math.isfinite(size)
    if not good or not (size >= 0 if noise else size > 0):
        what = ">= 0" if noise else "> 0, a factor on what the environment has"
        raise ValueError(f"{name}: sizes must be finite numbers {what}; got {size!r}")
    return True


def _factory(agent: Learner) -> Callable[[], Any]:
    source: Any = agent.arena.source
    if isinstance(source, str | EnvSpec):
        return lambda: gymnasium.make(source, disable_env_checker=True, **agent.arena.env_kwargs)
    if isinstance(source, MarkovDecisionProcess) and not hasattr(source, "environments"):
        return lambda: to_gymnasium(source)
    if callable(source) and not isinstance(source, gymnasium.Env | gymnasium.vector.VectorEnv | MarkovDecisionProcess):
        return source
    raise ValueError(
        f"agent: perturbations need environments of their own, and {agent.envs.name} was given as "
        f"{type(source).__name__}; make the agent with an id, a factory or a process"
    )


def has_charge(agent: Learner) -> bool:
    """Returns whether the worst reward can be told: the action prior is uniform, or a table."""
    process = agent.process
    return process is None or process.has_uniform_prior or isinstance(process, TabularMDP)


def physics_of(agent: Learner) -> list[str]:
    """Returns the names of physics of the agent's environment that it is usual to perturb; maybe none."""
    env = _factory(agent)()
    try:
        plain = env.unwrapped
        if hasattr(plain, "model") and hasattr(plain.model, "body_mass"):
            return ["body_mass", "friction"]
        return [name for name in _KNOWN if _is_number(getattr(plain, name, None))]
    finally:
        env.close()


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def _scale_physics(env: Any, name: str, factor: float) -> None:
    """Multiplies a quantity of the environment's physics.

    Raises:
        ValueError: if it has no such quantity; what it has is named.
    """
    plain = env.unwrapped
    if hasattr(plain, "model") and hasattr(plain.model, "body_mass"):
        _scale_mujoco(plain.model, name, factor)
        return
    if not _is_number(getattr(plain, name, None)):
        names = [key for key, value in vars(plain).items() if _is_number(value) and not key.startswith("_")]
        raise ValueError(
            f"{name}: {type(plain).__name__} has no number of that name to perturb; it has "
            f"{', '.join(sorted(names)) or 'none'}, and observation, action and reward can be perturbed everywhere"
        )
    setattr(plain, name, factor * getattr(plain, name))
    if hasattr(plain, "polemass_length"):  # what CartPole derives once, when it is made
        plain.total_mass = plain.masspole + plain.masscart
        plain.polemass_length = plain.masspole * plain.length


def _scale_mujoco(model: Any, name: str, factor: float) -> None:
    kind, _, part = name.partition(":")
    bodies = [model.body(index).name for index in range(model.nbody)]
    if kind not in _MUJOCO or (part and (kind != "body_mass" or part not in bodies)):
        raise ValueError(
            f"{name}: the physics of a MuJoCo environment are {', '.join(_MUJOCO)}, and body_mass:NAME with a body's "
            f"name: {', '.join(bodies)}"
        )
    if kind == "gravity":
        model.opt.gravity[:] *= factor
    elif kind == "friction":
        model.geom_friction[:, 0] *= factor  # sliding; rolling and torsion stay
    elif kind == "damping":
        model.dof_damping[:] *= factor
    else:
        chosen = slice(None) if not part else bodies.index(part)
        model.body_mass[chosen] *= factor
        model.body_inertia[chosen] *= factor  # the same shape, denser
