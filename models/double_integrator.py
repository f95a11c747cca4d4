"""A cart on a frictionless track, pushed back to the origin: the double integrator."""

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.processes.linear_gaussian import LinearGaussianMDP

__all__ = ["double_integrator"]


@checked
def double_integrator(
    horizon: int = 20,
    temperature: float | Tensor = 1.0,
    *,
    dt: float = 0.25,
    noise: float = 0.1,
    start: float = 2.0,
    position_cost: float = 1.0,
    velocity_cost: float = 0.1,
    force_cost: float = 0.1,
    prior_scale: float = 1.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> LinearGaussianMDP:
    """Returns the process of a unit mass that a force should bring to rest at the origin.

                      force a, plus gusts
                          ───▶
                        ┌──────┐  ─▶ velocity v
        ────────┼───────┤ 1 kg ├─────────────────
                0       └o────o┘
                            position x

    The state is ``s = (x, v)`` and the force is held during each step of length ``dt``:

        x' = x + dt v + dt²/2 a + w_x
        v' =         v + dt   a + w_v      w ~ N(0, noise² [[dt³/3, dt²/2], [dt²/2, dt]])
        r  = -(position_cost x² + velocity_cost v² + force_cost a²) / 2

    where ``w`` is white noise on the acceleration, integrated over the step. The cart starts near
    rest, at ``x ~ N(start, 0.1²)``, ``v ~ N(0, 0.1²)``; the action prior is ``a ~ N(0, prior_scale²)``.
    Everything about it is known exactly (:func:`rl_as_inference.exact.plan`), and the gusts make the two
    posteriors differ: given success, ``dynamics="posterior"`` believes in helpful gusts.

    Source: Rao, "Naive control of the double integrator", IEEE Control Systems Magazine 21(5), 2001,
    for the plant; Bar-Shalom, Li & Kirubarajan, "Estimation with Applications to Tracking and
    Navigation", 2001, section 6.2, for the noise.

    Args:
        horizon: the number of steps.
        temperature: α, in reward units per nat.
        dt: the length of a step.
        noise: the strength of the gusts, > 0.
        start: the mean initial position.
        position_cost, velocity_cost, force_cost: ≥ 0, in reward units.
        prior_scale: the standard deviation of the force under the action prior.
        dtype, device: of the tensors.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> double_integrator(horizon=5).rollout(None, 3).states.shape
        torch.Size([6, 3, 2])
    """
    for name, value in {"dt": dt, "noise": noise, "prior_scale": prior_scale}.items():
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")

    def tensor(values: list[float] | list[list[float]]) -> Tensor:
        return torch.tensor(values, dtype=dtype or torch.get_default_dtype(), device=device)

    mdp = LinearGaussianMDP(
        A=tensor([[1.0, dt], [0.0, 1.0]]),
        B=tensor([[dt**2 / 2], [dt]]),
        noise_cov=noise**2 * tensor([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]]),
        state_cost=tensor([[position_cost, 0.0], [0.0, velocity_cost]]),
        action_cost=tensor([[force_cost]]),
        initial_mean=tensor([start, 0.0]),
        initial_cov=tensor([[0.1**2, 0.0], [0.0, 0.1**2]]),
        action_prior_cov=tensor([[prior_scale**2]]),
        horizon=horizon,
        temperature=temperature,
    )
    mdp.name = "double_integrator"
    return mdp
