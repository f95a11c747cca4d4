"""A learner's settings as plain data, and learners made again from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rl_as_inference.agents.checkpoint import OBJECTS
from rl_as_inference.agents.learner import Learner
from rl_as_inference.agents.model_based import ModelBasedAgent
from rl_as_inference.agents.mpo import MPO
from rl_as_inference.agents.options import (
    LearnerOptions,
    ModelBasedOptions,
    MPOOptions,
    SoftActorCriticOptions,
    SoftQLearningOptions,
)
from rl_as_inference.agents.reading_options import as_held, from_held, options_of
from rl_as_inference.agents.soft_actor_critic import SoftActorCritic
from rl_as_inference.agents.soft_q_learning import SoftQLearning
from rl_as_inference.nouns import EnvironmentLike
from rl_as_inference.records import RunRecord

__all__ = ["ALGORITHMS", "KnownLearner", "make_agent", "settings_of"]


class KnownLearner(NamedTuple):
    """A learner, and where its options are declared."""

    learner: type[Learner]
    options: type[LearnerOptions]

    def make(self, env: EnvironmentLike, **options: Any) -> Learner:
        """Returns a learner in ``env``."""
        learner: Any = self.learner  # whose signature is made from its options
        made: Learner = learner(env, **options)
        return made


ALGORITHMS = {
    "sac": KnownLearner(SoftActorCritic, SoftActorCriticOptions),
    "sql": KnownLearner(SoftQLearning, SoftQLearningOptions),
    "mpo": KnownLearner(MPO, MPOOptions),
    "model-based": KnownLearner(ModelBasedAgent, ModelBasedOptions),
}
"""As the command line calls them."""

_APART = ("seed", "env_kwargs", "distributed")
"""Options that a record holds as its own fields, and with whom it was learned, which may change."""


def settings_of(agent: Learner) -> dict[str, Any]:
    """Returns the algorithm and all options of an agent, as JSON holds them: what :func:`make_agent` takes.

    A policy of the user's own cannot be held; its class's name stands for it.
    """
    name = next(name for name, algorithm in ALGORITHMS.items() if isinstance(agent, algorithm.learner))
    given = {option: value for option, value in agent.options.items() if option not in _APART}
    # Settled by now: what was compiled, and where.
    given |= {"compile": agent.compile, "device": str(agent.device)}
    return {"algorithm": name, **as_held(given)}


def make_agent(
    record: RunRecord,
    env: EnvironmentLike,
    env_kwargs: Mapping[str, Any],
    *,
    argument: str = "RUN",
    **instead: Any,
) -> Learner:
    """Returns the agent of a run as it began.

    Args:
        record: of a run of ``train``. An option that it does not know yet has its default.
        env: what it learned in.
        env_kwargs: for ``gymnasium.make``, with an id.
        argument: what an error begins with.
        **instead: options that are to be others; None leaves one as it was.

    Raises:
        ValueError: if the agent cannot be made, or the record is not one of such a run.
    """
    name = record.setting("algorithm", argument)
    if name not in ALGORITHMS:
        raise ValueError(f"{argument}: run.json is not as rlai train writes it: its algorithm is {name!r}")
    for own in OBJECTS:
        if record.settings.get(own) is not None:
            raise ValueError(
                f"{argument}: the run has a {own.replace('_', ' ')} of its own ({record.settings[own]}), which a file "
                f"cannot hold; make the agent in Python, with that, and agent.restore(checkpoint)"
            )
    algorithm = ALGORITHMS[name]
    known = [option.name for option in options_of(algorithm.options) if option.name in record.settings]
    config = from_held({name: record.settings[name] for name in known})
    # As the first runs said that there is one seed, and that compiling is not settled.
    for option, said, meant in (("seeds", 1, None), ("compile", None, "auto")):
        if option in config and config[option] == said:
            config[option] = meant
    config |= {key: value for key, value in instead.items() if value is not None}
    return algorithm.make(env, **{**config, "seed": record.seed, "env_kwargs": dict(env_kwargs)})
