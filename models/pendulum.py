"""The pendulum that is to be swung up, with a motor too weak to lift it at once.

○  upright: θ = 0, nothing is lost
│
┼──▷ torque u = 2 a, a in [-1, 1]
│
○  hanging: θ = ±π
"""

import math
from typing import Any

import gymnasium
import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer
from rl_as_inference.processes import MarkovDecisionProcess

__all__ = ["Pendulum", "pendulum"]

_FASTEST, _TORQUE, _STEP, _GRAVITY = 8.0, 2.0, 0.05, 10.0


class _Start(TorchDistribution):
    """``(cos θ, sin θ, ω)`` with θ uniform on the circle and ω uniform on [-1, 1]; its density is that of (θ, ω)."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 1)
    has_rsample = True

    def __init__(self, like: Tensor, batch_shape: Any = ()) -> None:
        self.like = like
        super().__init__(torch.Size(batch_shape), torch.Size([3]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Start":
        return _Start(self.like, batch_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = (*sample_shape, *self.batch_shape, 2)
        angle, speed = (2 * torch.rand(shape, dtype=self.like.dtype, device=self.like.device) - 1).unbind(-1)
        return torch.stack([(math.pi * angle).cos(), (math.pi * angle).sin(), speed], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        inside = value[..., 2].abs() <= 1
        return torch.where(inside, -math.log(4 * math.pi), -math.inf).to(value.dtype)


def _columns(state: Tensor) -> Tensor:
    """Returns ``cos θ``, ``sin θ`` and ω, each in one piece, as transitions lay them: that is several times faster."""
    return state.movedim(-1, 0).contiguous()


class Pendulum(MarkovDecisionProcess):
    """The process that :func:`pendulum` makes."""

    state_names, action_names = ("cos θ", "sin θ", "ω (rad/s)"), ("torque (share of its limit)",)

    def __init__(
        self,
        *,
        horizon: int,
        discount: float | Tensor = 1.0,
        temperature: float | Tensor = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(horizon=horizon, discount=discount, temperature=temperature)
        self.name = "pendulum"
        self._start = _Start(torch.zeros((), dtype=dtype or torch.get_default_dtype(), device=device))
        kind: Any = np.float64 if self._start.like.dtype == torch.float64 else np.float32
        high = np.array([1.0, 1.0, _FASTEST], dtype=kind)
        self.state_space = gymnasium.spaces.Box(-high, high, dtype=kind)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), dtype=kind)

    def initial(self) -> Any:
        return self._start

    def transition(self, state: Tensor, action: Tensor) -> Any:
        x, y, speed = _columns(state)
        speed = torch.add(speed, y, alpha=_STEP * 1.5 * _GRAVITY).add(action[..., 0], alpha=_STEP * 3 * _TORQUE)
        turned = _STEP * (speed := speed.clamp(-_FASTEST, _FASTEST))
        cos, sin = turned.cos(), turned.sin()
        columns = torch.stack([x * cos - y * sin, y * cos + x * sin, speed])
        return dist.Delta(columns.movedim(0, -1), event_dim=1)

    def reward(self, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        x, y, speed = _columns(state)
        cost = torch.atan2(y, x).square().add(speed.square(), alpha=0.1)
        return -cost.add(action[..., 0].square(), alpha=0.001 * _TORQUE**2)


@checked
def pendulum(
    horizon: int = 200,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 1.0,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Pendulum:
    """Returns Gymnasium's ``Pendulum-v1`` as a process in tensors, with dynamics that gradients go through.

        ω' = clip(ω + (15 sin θ + 3 u) / 20, ±8),    θ' = θ + ω' / 20,    u = 2 a
        r  = -(θ² + ω² / 10 + u² / 1000),            θ in [-π, π], 0 upright

    The state is what Gymnasium shows, ``(cos θ, sin θ, ω)``, so that agents and policies go from one to the other.
    It starts anywhere on the circle, turning with a speed in [-1, 1]. Nothing is left to chance after that.

    Source: Gymnasium's ``Pendulum-v1`` (Towers et al. 2024, arXiv:2407.17032).

    Args:
        horizon: the number of steps; Gymnasium's limit is 200.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        dtype, device: of the states and actions.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> process = pendulum(horizon=5)
        >>> upright, still = torch.tensor([1.0, 0.0, 0.0]), torch.zeros(1)
        >>> process.transition(upright, still).mean, process.reward(upright, still, upright)
        (tensor([1., 0., 0.]), tensor(-0.))
    """
    check_integer("horizon", horizon, 1)
    return Pendulum(horizon=horizon, discount=discount, temperature=temperature, dtype=dtype, device=device)
