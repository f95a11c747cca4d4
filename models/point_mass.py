"""A point in the plane with four goals of equal worth, after the multi-goal problem of soft Q-learning.

        ★
        │
        │
★───────●───────★      ● start      ★ goals, at distance 1
        │
        │
        ★
"""

import math
from typing import Any

import gymnasium
import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer
from rl_as_inference.processes import MarkovDecisionProcess

__all__ = ["PointMass", "point_mass"]


class PointMass(MarkovDecisionProcess):
    """The process that :func:`point_mass` makes.

    Attributes:
        goals: ``(num_goals, 2)``.
    """

    def __init__(
        self,
        goals: Tensor,
        *,
        speed: float,
        noise: float,
        width: float,
        horizon: int,
        discount: float | Tensor = 1.0,
        temperature: float | Tensor = 1.0,
    ) -> None:
        super().__init__(horizon=horizon, discount=discount, temperature=temperature)
        kind: Any = np.float64 if goals.dtype == torch.float64 else np.float32
        self.state_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), dtype=kind)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), dtype=kind)
        self.name = "point_mass"
        self.goals = goals
        self.speed, self.noise, self.width = speed, noise, width

    def initial(self) -> Any:
        return dist.Normal(self.goals.new_zeros(2), self.noise).to_event(1)

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.Normal(state + self.speed * action, self.noise).to_event(1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        distances = (next_state[..., None, :] - self.goals).square().sum(-1)
        return (-distances / (2 * self.width**2)).exp().sum(-1)


@checked
def point_mass(
    num_goals: int = 4,
    horizon: int = 10,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 0.5,
    *,
    speed: float = 0.25,
    noise: float = 0.05,
    width: float = 0.3,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> PointMass:
    """Returns the process of a point that may go to any of several goals around it.

        s_0 ~ N(0, noise² I)
        s'  ~ N(s + speed a, noise² I),        a in the box [-1, 1]²
        r   = Σ_k exp(-|s' - g_k|² / (2 width²))

    The goals stand on the unit circle. All are worth the same, so that the posterior keeps them all
    alive, and every reading is differentiable through the dynamics. A policy that is unimodal in
    each state can still share itself out, by staying wide at the start and committing later. At the
    default temperature a trained one does, and visits every goal; at half of it, it settles for one.

    Source: Haarnoja, Tang, Abbeel & Levine, "Reinforcement learning with deep energy-based policies",
    ICML 2017, arXiv:1702.08165, the multi-goal environment.

    Args:
        num_goals: ≥ 1.
        horizon: the number of steps.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        speed: how far the action 1 moves the point in a step, > 0.
        noise: the standard deviation of the start and of each step, > 0.
        width: of the goals, > 0.
        dtype, device: of the states and actions.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> point_mass(horizon=5).rollout(None, 3).states.shape
        torch.Size([6, 3, 2])
    """
    check_integer("num_goals", num_goals, 1)
    check_integer("horizon", horizon, 1)
    for name, value in {"speed": speed, "noise": noise, "width": width}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {value}")
    angles = 2 * math.pi * torch.arange(num_goals, dtype=torch.float64) / num_goals
    goals = torch.stack([angles.cos(), angles.sin()], -1)
    return PointMass(
        goals.to(dtype=dtype or torch.get_default_dtype(), device=device),
        speed=speed,
        noise=noise,
        width=width,
        horizon=horizon,
        discount=discount,
        temperature=temperature,
    )
