"""Deep Q-learning on one page, in the style of CleanRL: nothing but PyTorch, Gymnasium and an id.

Mnih et al. 2015, "Human-level control through deep reinforcement learning", with a batch of environments in place of
one. Source of the style, not of the code: vwxyzjn/cleanrl, ``dqn.py``.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn

__all__ = ["learn"]


def learn(
    env_id: str,
    num_steps: int,
    *,
    num_envs: int,
    seed: int,
    learning_rate: float = 1e-3,
    discount: float = 0.99,
    batch_size: int = 128,
    updates_every: int = 1,
    target_every: int = 200,
    **options: Any,
) -> Callable[[Any], Any]:
    """Returns the greedy policy, observations ``(N,)`` to actions ``(N,)``, after so many steps in all.

    Args:
        env_id: of an environment whose observations and actions are Discrete.
        num_steps: of all environments together.
        num_envs: in a batch, which steps in one call.
        seed: of everything random.
        learning_rate: Adam's at the start; it falls to zero, as the values of the best actions lie close together.
        discount: γ.
        batch_size: of an update.
        updates_every: steps of the batch between updates.
        target_every: updates between copies to the target network.
        **options: of the environment.
    """
    envs = gymnasium.make_vec(env_id, num_envs, **options)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    states, actions = envs.single_observation_space.n, envs.single_action_space.n  # type: ignore[attr-defined]

    def network() -> nn.Module:
        return nn.Sequential(nn.Embedding(states, 64), nn.ReLU(), nn.Linear(64, actions))

    q, target = network(), network()
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=learning_rate)
    length = num_steps // num_envs
    seen = np.zeros((length, num_envs), np.int64)
    after, done, ended = seen.copy(), seen.copy(), np.zeros((length, num_envs), np.float32)
    earned = ended.copy()

    observation, _ = envs.reset(seed=seed)
    updates = 0
    for step in range(length):
        explore = max(1 - 2 * step / length, 0.05)  # falls over the first half
        with torch.no_grad():
            greedy = q(torch.as_tensor(observation)).argmax(-1).numpy()
        random = rng.integers(actions, size=num_envs)
        action = np.where(rng.random(num_envs) < explore, random, greedy)
        following, reward, terminated, _, info = envs.step(action)
        # An episode that ended has been followed by a new one; its own last observation is kept apart. A truncated one
        # goes on past its horizon as far as the target is concerned.
        last = info.get("final_obs", following)
        seen[step], done[step], earned[step], after[step], ended[step] = observation, action, reward, last, terminated
        observation = following
        if step < 50 or step % updates_every:
            continue
        index = rng.integers(step + 1, size=batch_size), rng.integers(num_envs, size=batch_size)
        s, a, r, n, e = (torch.as_tensor(each[index]) for each in (seen, done, earned, after, ended))
        with torch.no_grad():
            y = r + discount * (1 - e) * target(n).max(-1).values
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / length)
        loss = nn.functional.mse_loss(q(s).gather(-1, a[:, None])[:, 0], y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        updates += 1
        if updates % target_every == 0:
            target.load_state_dict(q.state_dict())

    def choose(observations: Any) -> Any:
        with torch.no_grad():
            return q(torch.as_tensor(observations)).argmax(-1).numpy()

    return choose
