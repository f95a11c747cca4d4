"""CartPole's two actions hidden among fifty, of which the others are forbidden in every state."""

from typing import Any

import gymnasium
import numpy as np

__all__ = ["HiddenAmong", "masked_cartpole"]


class HiddenAmong(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment of few actions among many more, which ``info["action_mask"]`` forbids.

    Args:
        env: of a Discrete action space.
        places: where its actions stand among all.
        num_actions: how many there are then.

    Raises:
        ValueError: in a step, for an action that is forbidden.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], places: tuple[int, ...], num_actions: int) -> None:
        super().__init__(env)
        self.places, self.action_space = places, gymnasium.spaces.Discrete(num_actions)
        self.mask = np.isin(np.arange(num_actions), places).astype(np.int8)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        return observation, {**info, "action_mask": self.mask}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not self.mask[action]:
            raise ValueError(f"action {action} is forbidden; the mask allows {self.places}")
        observation, reward, terminated, truncated, info = self.env.step(self.places.index(int(action)))
        return observation, reward, terminated, truncated, {**info, "action_mask": self.mask}


def masked_cartpole() -> gymnasium.Env[Any, Any]:
    """Returns CartPole with its actions at places 17 and 42 of 50."""
    return HiddenAmong(gymnasium.make("CartPole-v1"), (17, 42), 50)
