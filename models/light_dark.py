"""A robot in a dark plane with a light on one side, which must find home without seeing where it is.

y                              │light
2 ┤          ● start           │░░▒▒▓
  │                            │░░▒▒▓      what it sees of its place is blurred by its
0 ┤   ★ home                   │░░▒▒▓      distance from the light, at x = 5
  └───┬──────┬─────────────────┼──────▶ x
      0      2                 5
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
from rl_as_inference.processes import PartiallyObservedMDP

__all__ = ["LightDark", "light_dark"]


class LightDark(PartiallyObservedMDP):
    """The process that :func:`light_dark` makes.

    Attributes:
        start: the mean of the first state, ``(2,)``.
    """

    has_uniform_prior = True

    def __init__(
        self,
        start: Tensor,
        *,
        start_scale: float,
        light: float,
        blur: float,
        stride: float,
        noise: float,
        width: float,
        action_cost: float,
        horizon: int,
        discount: float | Tensor = 1.0,
        temperature: float | Tensor = 1.0,
    ) -> None:
        super().__init__(horizon=horizon, discount=discount, temperature=temperature)
        kind: Any = np.float64 if start.dtype == torch.float64 else np.float32
        self.state_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), dtype=kind)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), dtype=kind)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), dtype=kind)
        self.name = "light_dark"
        self.start, self.start_scale = start, start_scale
        self.light, self.blur, self.stride, self.noise = light, blur, stride, noise
        self.width, self.action_cost = width, action_cost

    def initial(self) -> Any:
        return dist.Normal(self.start, self.start_scale).to_event(1)

    def transition(self, state: Tensor, action: Tensor) -> Any:
        return dist.Normal(state + self.stride * action, self.noise).to_event(1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        at_home = (-next_state.square().sum(-1) / (2 * self.width**2)).exp()
        return at_home - self.action_cost * action.square().sum(-1)

    def observation(self, state: Tensor, action: Tensor | None) -> Any:
        variance = self.blur + (state[..., :1] - self.light).square() / 2
        return dist.Normal(state, variance.sqrt()).to_event(1)


@checked
def light_dark(
    horizon: int = 12,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 0.5,
    *,
    start_scale: float = math.sqrt(5.0),
    light: float = 5.0,
    blur: float = 0.01,
    stride: float = 2.0,
    noise: float = 0.05,
    width: float = 0.3,
    action_cost: float = 0.05,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LightDark:
    """Returns the light-dark problem, whose state is hidden and whose observations are sharp near the light alone.

        s_0 ~ N((2, 2), start_scale² I)
        s'  ~ N(s + u, noise² I),        u = stride a, a in the box [-1, 1]²
        y   ~ N(s, w(s) I),              w(s) = blur + (light - s_x)²/2
        r   = exp(-|s'|²/(2 width²)) - action_cost |a|²

    Home is the origin, and pays for being there, not for being near. So the way to it leads away from it first: to the
    light, to learn where one is. A policy that trusts a filter's mean alone does not find that, since how sharp it is
    depends on the way; in :func:`light_dark_linear` the light is the same everywhere, and everything is exact.

    Source: Platt, Tedrake, Kaelbling & Lozano-Pérez, "Belief space planning assuming maximum likelihood observations",
    Robotics: Science and Systems 2010; the noise and the start are theirs, their cost (of the path, and of not knowing
    where one ends) is a reward here.

    Args:
        horizon: the number of steps.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        start_scale: the standard deviation of the start.
        light: its place on the x-axis.
        blur: the variance of what is seen at the light, > 0.
        stride: how far the action 1 moves the robot, > 0.
        noise: the standard deviation of each step, > 0.
        width: of home, > 0.
        action_cost: ≥ 0, in reward units.
        dtype, device: of the states and actions.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> plane = light_dark()
        >>> places = torch.tensor([[0.0, 0.0], [5.0, 0.0]])
        >>> [round(x, 2) for x in plane.observation(places, None).base_dist.scale[:, 0].tolist()]
        [3.54, 0.1]
    """
    check_integer("horizon", horizon, 1)
    for name, value in {
        "start_scale": start_scale,
        "blur": blur,
        "stride": stride,
        "noise": noise,
        "width": width,
    }.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {value}")
    if not 0 <= action_cost < math.inf:
        raise ValueError(f"action_cost must be a finite number >= 0, got {action_cost}")
    return LightDark(
        torch.full((2,), 2.0, dtype=dtype or torch.get_default_dtype(), device=device),
        start_scale=start_scale,
        light=light,
        blur=blur,
        stride=stride,
        noise=noise,
        width=width,
        action_cost=action_cost,
        horizon=horizon,
        discount=discount,
        temperature=temperature,
    )
