"""What makes a learner's numbers mean what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_as_inference.agents.learner import Learner

__all__ = ["identity_of"]


def identity_of(agent: Learner) -> dict[str, Any]:
    """Returns what a checkpoint is held to, so that only a learner made in the same way goes on from it."""
    task = agent.task
    return {
        "agent": type(agent).__name__,
        "seed": agent.seed,
        "environment": agent.envs.name,
        "horizon": task.horizon,
        "network layout": [[module, name, list(shape)] for module, name, _, shape in agent._update.layout.places],
        "discount": agent.discount,
        "temperature": "auto" if agent.learns_temperature else task.temperature,
        "target_return": None if agent.constraint is None else agent.constraint.target,
        "action_prior": agent.action_prior,
        "n_step": agent.n_step,
        "dtype": str(agent.dtype),
        "number of seeds": agent.num_seeds,
        "number of environments": agent.num_seeds * agent.num_envs,
        **({} if agent.options["num_actors"] is None else {"number of actors": agent.options["num_actors"]}),
        **agent.arena.identity(),
        **({} if agent.replay.priorities is None else {"priority_exponent": agent.replay.priorities.exponent}),
        **agent.algorithm.identity(),
    }
