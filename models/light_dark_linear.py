"""The plane of the light-dark problem in twilight: equally blurred everywhere, and so solved exactly.

y
2 ┤          ● start
  │
0 ┤   ★ home              what the robot sees of its place is as blurred here as there
  └───┬──────┬────────▶ x
      0      2
"""

import math

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.processes import LinearGaussianPOMDP

__all__ = ["light_dark_linear"]


@checked
def light_dark_linear(
    horizon: int = 12,
    temperature: float | Tensor = 5.0,
    *,
    start_scale: float = math.sqrt(5.0),
    blur: float = 4.5,
    noise: float = 0.05,
    action_cost: float = 1.0,
    prior_scale: float = 2.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LinearGaussianPOMDP:
    """Returns the linear-Gaussian variant of :func:`light_dark`, whose observations have the same noise everywhere.

        s_0 ~ N((2, 2), start_scale² I)
        s'  ~ N(s + a, noise² I),        a ~ N(0, prior_scale² I) under the action prior
        y   ~ N(s, blur I)
        r   = -(|s|² + action_cost |a|²)/2

    There is nowhere to go for a sharper look, so that the best policy walks straight home from where it believes to be:
    Kalman's filter and certainty equivalence, exactly.

    Source: after Platt, Tedrake, Kaelbling & Lozano-Pérez, "Belief space planning assuming maximum likelihood
    observations", Robotics: Science and Systems 2010; Åström, "Introduction to Stochastic Control Theory", 1970,
    chapter 8, for its solution.

    Args:
        horizon: the number of steps.
        temperature: α > 0, in reward units per nat.
        start_scale: the standard deviation of the start, > 0.
        blur: the variance of what is seen, > 0; 4.5 is that of the light-dark problem at the start.
        noise: the standard deviation of each step, > 0.
        action_cost: ≥ 0, in reward units.
        prior_scale: the standard deviation of the action prior, > 0.
        dtype, device: of the tensors.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from rl_as_inference import exact
        >>> plan = exact.plan(light_dark_linear(dtype=torch.float64))
        >>> [round(x, 3) for x in plan.covariances[[0, 11], 0, 0].tolist()]  # what is believed sharpens with time
        [2.368, 0.358]
    """
    scales = {"start_scale": start_scale, "blur": blur, "noise": noise, "prior_scale": prior_scale}
    for name, value in scales.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number > 0, got {value}")
    one = torch.eye(2, dtype=dtype or torch.get_default_dtype(), device=device)
    pomdp = LinearGaussianPOMDP(
        A=one,
        B=one,
        noise_cov=noise**2 * one,
        state_cost=one,
        action_cost=action_cost * one,
        initial_mean=torch.full_like(one[0], 2.0),
        initial_cov=start_scale**2 * one,
        action_prior_cov=prior_scale**2 * one,
        observation_matrix=one,
        observation_cov=blur * one,
        horizon=horizon,
        temperature=temperature,
    )
    pomdp.name = "light_dark_linear"
    return pomdp
