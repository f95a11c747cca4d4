"""From what a learner is given to learn in, to environments that can be stepped."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from rl_as_inference.nouns import EnvironmentLike
from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.processes.to_gymnasium import to_gymnasium_vector

__all__ = ["made_of"]


def made_of(
    env: EnvironmentLike, num_envs: int, make_kwargs: dict[str, Any]
) -> list[gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any]:
    """Returns ``num_envs`` environments, or a vector environment; see :meth:`Environments.make`.

    Raises:
        ValueError: if they cannot be made of that.
    """
    if isinstance(env, str | EnvSpec):
        return [_make(env, make_kwargs) for _ in range(num_envs)]
    if make_kwargs:
        raise ValueError(
            f"{', '.join(make_kwargs)}: options of gymnasium.make() go with an environment's id, and env is "
            f"{type(env).__name__}; give them where it is made"
        )
    if isinstance(env, MarkovDecisionProcess):
        return to_gymnasium_vector(env, num_envs)
    if isinstance(env, VectorEnv):
        if num_envs not in (1, env.num_envs):
            raise ValueError(f"num_envs is {num_envs}, but env is a vector of {env.num_envs}; leave num_envs out")
        return env
    if isinstance(env, gymnasium.Env):
        if num_envs != 1:
            raise ValueError(
                f"num_envs is {num_envs}, but env is one environment; pass its id, or a factory such as "
                f"lambda: make_my_environment()"
            )
        return [env]
    if not callable(env):
        raise ValueError(
            f"env must be a Gymnasium id, an environment, a factory of environments, a vector environment or a "
            f"process in parts, got {type(env).__name__}"
        )
    made_here = [env() for _ in range(num_envs)]
    for each in made_here:
        if not isinstance(each, gymnasium.Env):
            raise ValueError(
                f"env is a factory that returns {type(each).__name__}; it must return one gymnasium.Env (a vector "
                f"environment is passed itself, and a Pyro program must be given in parts to be stepped)"
            )
    if len({id(each) for each in made_here}) < num_envs:
        raise ValueError("env is a factory that returns the same environment twice; it must make a new one")
    return made_here


def _make(env: Any, make_kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    try:
        return gymnasium.make(env, disable_env_checker=True, **make_kwargs)
    except Exception as error:  # Gymnasium raises its own errors, and the environment's constructor any
        raise ValueError(f"env: gymnasium.make({env!r}) failed: {type(error).__name__}: {error}") from error
