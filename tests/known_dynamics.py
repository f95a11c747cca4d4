"""An environment whose next state is a known function of state and action, so that a wrong transition shows."""

import time
from typing import Any

import gymnasium
import numpy as np
import torch

LIMIT = 23
"""Steps after which an episode is cut off."""


class Known(gymnasium.Env):
    """A point that is pulled about, with a clock; a third of its episodes end by themselves.

    What is observed: two places, the time, and a number that is drawn anew for each episode.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,))
    action_space = gymnasium.spaces.Box(-2, 2, (1,))

    def __init__(self, pauses: Any = ()) -> None:
        self.pauses, self.count = list(pauses), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.state = np.float32([*self.np_random.normal(size=2), 0.0, self.np_random.uniform()])
        return self.state, {}

    def step(self, action: Any) -> Any:
        if self.pauses:
            time.sleep(self.pauses[self.count % len(self.pauses)])
            self.count += 1
        self.state, reward, terminated, truncated = (
            each.numpy()[0] for each in after(torch.tensor(self.state)[None], torch.tensor(action)[None])
        )
        return self.state, float(reward), bool(terminated), bool(truncated), {}


def after(state: Any, action: Any) -> tuple[Any, Any, Any, Any]:
    """Successors, rewards, and whether episodes end or are cut off."""
    place, speed, clock, name = state.unbind(-1)
    moved = torch.stack([place + 0.1 * speed, 0.9 * speed + 0.3 * action[:, 0] + 0.1 * name, clock + 1, name], -1)
    reward = -moved[:, 0].abs() + 0.01 * action[:, 0]
    terminated = (name < 1 / 3) & (moved[:, 2] >= 7)
    return moved, reward, terminated, ~terminated & (moved[:, 2] >= LIMIT)


def faults(replay: Any, *, cut: int = 0) -> list[str]:
    """What is wrong with the transitions in a replay, of which at most ``cut`` may be truncated early."""
    state, reward, terminated, truncated = after(replay.state, 2 * replay.action)
    found = []
    if not torch.allclose(state, replay.next_state, atol=1e-5):
        found.append("successors are wrong")
    if not torch.allclose(reward, replay.reward, atol=1e-5):
        found.append("rewards are wrong")
    if not torch.equal(terminated, replay.terminated):
        found.append("endings are wrong")
    early = replay.truncated & ~truncated
    if (truncated & ~replay.truncated).any() or int(early.sum()) > cut:
        found.append(f"{int(early.sum())} are truncated early, and {int((truncated & ~replay.truncated).sum())} late")
    return found


def broken_chains(replay: Any) -> int:
    """How many rows go on with another state than the one they led to; rows of an environment are num_envs apart."""
    count = replay.num_envs
    goes_on = ~(replay.terminated | replay.truncated)[:-count]
    follows = (replay.next_state[:-count] == replay.state[count:]).all(-1)
    return int((goes_on & ~follows).sum())
