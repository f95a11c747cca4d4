"""Observations and rewards on a common scale, by Gymnasium's wrappers and their running statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, TransformObservation

from rl_as_inference.processes.units import agent_states, name_of
from rl_as_inference.state_layout import LaidOut, is_image

__all__ = ["Normalization", "NormalizedObservation", "NormalizedReward", "OwnReward", "as_normalized", "own_rewards"]

Array = np.ndarray[Any, Any]
Layer = TypeVar("Layer")


@dataclass(frozen=True)
class Normalization:
    """What of environments is normalised: each by running statistics of its own, as Gymnasium's wrappers keep them.

    Args:
        observations: to mean 0 and variance 1, as :class:`gymnasium.wrappers.NormalizeObservation`; of observations in
            parts the numbers (``Box``, but no images), and nothing else.
        rewards: divided by the standard deviation of a running discounted return, as
            :class:`gymnasium.wrappers.NormalizeReward`.
        discount: γ of that return.
    """

    observations: bool = False
    rewards: bool = False
    discount: float = 0.99

    def around(
        self, envs: Sequence[gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any]
    ) -> list[gymnasium.Env[Any, Any]]:
        """Returns the environments in their wrappers.

        Raises:
            ValueError: for a vector environment, of which there are no statistics of each; or for observations in which
                there are no numbers to normalise.
        """
        if isinstance(envs, VectorEnv):
            raise ValueError(
                f"{self._named} needs the environments one by one, and {name_of(envs)} is a vector of them (a process "
                f"in parts is one too); pass an id or a factory, lambda: to_gymnasium(process) say, with num_envs"
            )
        return [self._wrapped(env) for env in envs]

    def _wrapped(self, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        if self.observations:
            space, _ = agent_states(env.observation_space, name_of(env))
            if isinstance(space, LaidOut) and any(part.kind == "box" for part in space.layout.parts):
                env = NormalizedObservation(TransformObservation(env, space.layout.flatten, space))
            elif isinstance(space, Box) and not isinstance(space, LaidOut) and not is_image(space):
                env = NormalizedObservation(env)
            else:
                raise ValueError(
                    f"normalize_observations: {name_of(env)} observes {env.observation_space}, in which no numbers are "
                    f"to be normalised (images are scaled, and integers one-hot, in the networks); leave it out"
                )
        return NormalizedReward(OwnReward(env), gamma=self.discount) if self.rewards else env

    @property
    def _named(self) -> str:
        return "normalize_observations" if self.observations else "normalize_rewards"


class NormalizedObservation(NormalizeObservation[Any, Any, Any]):
    """``NormalizeObservation`` that learns nothing from what is not finite, which is passed on as it is to be refused.

    Of rows in parts it leaves integers, images and masks as they are: ``numbers`` says which columns it normalises.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        self.layout = space.layout if isinstance(space, LaidOut) else None
        self.numbers = np.ones(space.shape or (), bool)
        if self.layout is not None:
            for part in self.layout.parts:
                self.numbers[part.columns] = part.kind == "box"
            self.observation_space = LaidOut(self.layout.unbounded())

    def observation(self, observation: Any) -> Array:
        given = np.asarray(observation)
        if given.shape[given.ndim - self.numbers.ndim :] != self.numbers.shape or not np.isfinite(given).all():
            return given
        scaled: Array = np.where(self.numbers, super().observation(given), given)
        return scaled


class NormalizedReward(NormalizeReward[Any, Any]):
    """``NormalizeReward`` that learns nothing from a reward that is not finite."""

    def step(self, action: Any) -> Any:
        held, running = self.return_rms, self.discounted_reward
        before = held.mean, held.var, held.count
        answer = super().step(action)
        if not math.isfinite(float(answer[1])):
            (held.mean, held.var, held.count), self.discounted_reward = before, running
        return answer


class OwnReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Remembers the reward that the environment gave last."""

    own_reward = 0.0

    def step(self, action: Any) -> Any:
        answer = super().step(action)
        self.own_reward = answer[1]  # type: ignore[assignment]
        return answer


def own_rewards(envs: Sequence[gymnasium.Env[Any, Any]]) -> list[Any]:
    """Returns what remembers each environment's own last reward, ``own_reward``; empty where nothing does."""
    return [layer for env in envs if (layer := _layer(env, OwnReward)) is not None]


def as_normalized(env: gymnasium.Env[Any, Any], observation: Any) -> Array | None:
    """Returns an observation, or a batch, as ``normalize_observations`` makes it in an environment at present.

    Nothing is added to the statistics. None where the environment normalises nothing of the kind.
    """
    layer = _layer(env, NormalizedObservation)
    if layer is None:
        return None
    given = np.asarray(observation) if layer.layout is None else layer.layout.flatten(observation)
    updates, layer.update_running_mean = layer.update_running_mean, False
    try:
        return layer.observation(given)
    finally:
        layer.update_running_mean = updates


def _layer(env: Any, kind: type[Layer]) -> Layer | None:
    while not isinstance(env, kind):
        if not isinstance(env, gymnasium.Wrapper):
            return None
        env = env.env
    return env
