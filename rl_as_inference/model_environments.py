"""What Gymnasium calls to make the environments of :mod:`rl_as_inference.environments`.

``NAME`` here makes an environment of the model of that name, ``NAME_vector`` a vector of them. Their options are the
model's own.

Example:
    >>> from rl_as_inference import model_environments
    >>> model_environments.tiger(horizon=3).process.horizon
    3
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rl_as_inference import models
from rl_as_inference.environments import MODELS
from rl_as_inference.processes import to_gymnasium, to_gymnasium_vector

__all__: list[str] = []


def __getattr__(name: str) -> Callable[..., Any]:
    model = name.removesuffix("_vector")
    if model not in MODELS.values():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    factory = getattr(models, model)

    @functools.wraps(factory)  # for the sake of its signature, which says what options there are
    def make(**options: Any) -> Any:
        return to_gymnasium(factory(**options))

    @functools.wraps(factory)
    def make_vector(*, num_envs: int = 1, max_episode_steps: int | None = None, **options: Any) -> Any:
        if max_episode_steps is not None:
            raise ValueError(
                f"max_episode_steps: environments in one batch end at their model's horizon; give "
                f"horizon={max_episode_steps} in its place, or vectorization_mode='sync'"
            )
        return to_gymnasium_vector(factory(**options), num_envs)

    return make if name == model else make_vector
