"""What goes with actors, and what does not."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from rl_as_inference.agents.options import LearnerOptions
from rl_as_inference.nouns import EnvironmentLike
from rl_as_inference.processes import MarkovDecisionProcess

__all__ = ["USUAL", "check_actors"]

USUAL: dict[str, Any] = {"actor_steps": 8, "parameters_every": 100, "ray": None}
"""Options of actors, as they are where nothing is said."""


def check_actors(source: EnvironmentLike, options: LearnerOptions) -> None:
    """Raises ValueError if options of actors do not go with what is learned in, or with other options."""
    if options["num_actors"] is None:
        for name, usual in USUAL.items():
            if options[name] != usual:  # type: ignore[literal-required]
                raise ValueError(f"{name} is of actors, and there are none; say num_actors too, or leave it out")
        return
    if isinstance(source, MarkovDecisionProcess):
        raise ValueError(
            "num_actors makes each environment in a process of its own, and env is a process in parts, which steps all "
            "its environments in one call already; say num_envs instead"
        )
    if isinstance(source, VectorEnv | gymnasium.Env) or not (isinstance(source, str | EnvSpec) or callable(source)):
        raise ValueError(
            f"num_actors makes the environment again in other processes, and env is {type(source).__name__}, one that "
            f"is made already; pass its id, or a factory such as lambda: make_my_environment()"
        )
    others = {
        "distributed": (options["distributed"], "each rank has environments of its own already"),
        "num_envs": (options["num_envs"] > 1, "each actor has one environment; say num_actors instead"),
        "asynchronous": (options["asynchronous"], "actors are in processes of their own already"),
        "seeds": ((options["seeds"] or 1) > 1, "actors feed one learner; train seeds in runs of their own"),
    }
    for name in ("normalize_observations", "normalize_rewards"):
        others[name] = (options[name], "its statistics would be in each actor")  # type: ignore[literal-required]
    for name, (given, why) in others.items():
        if given:
            raise ValueError(f"{name} does not go with num_actors: {why}; leave one of them out")
