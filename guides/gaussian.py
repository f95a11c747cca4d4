"""Amortized policies over continuous actions."""

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_count, check_positive
from rl_as_inference.spaces import log_tanh_slope
from rl_as_inference.state_time_network import Activation, Architecture, StateTimeNetwork, check_log_scale_bounds

__all__ = ["GaussianPolicy", "TanhGaussianPolicy", "TanhNormal"]


class TanhNormal(TorchDistribution):
    """The distribution of ``tanh(x)`` with ``x ~ Normal(loc, scale)``, on ``(-1, 1)``.

    The log density uses ``log(1 - tanh² x) = 2 (log 2 - x - softplus(-2x))``, which is exact where
    the textbook form loses all digits (Haarnoja et al. 2018, arXiv:1812.05905, appendix C).

    Example:
        >>> q = TanhNormal(torch.tensor(20.0), torch.tensor(1.0))
        >>> bool(q.log_prob(q.rsample()).isfinite())
        True
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.interval(-1.0, 1.0)
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(torch.as_tensor(loc), torch.as_tensor(scale))
        self._last: tuple[Tensor, Tensor] | None = None
        super().__init__(self.loc.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "TanhNormal":
        return TanhNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape), False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.at_noise(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def at_noise(self, noise: Tensor) -> Tensor:
        """Returns the draw that standard Gaussian noise makes, ``tanh(loc + scale · noise)``."""
        before = self.loc + self.scale * noise
        limit = 1 - torch.finfo(before.dtype).eps
        value = before.tanh().clamp(-limit, limit)
        # Near ±1 the inverse cannot be had from the value, so the draw is remembered.
        self._last = (value, before)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if self._last is not None and self._last[0] is value:
            before = self._last[1]
        else:
            limit = 1 - torch.finfo(value.dtype).eps
            before = value.clamp(-limit, limit).atanh()
        normal = -0.5 * ((before - self.loc) / self.scale) ** 2 - self.scale.log() - 0.5 * math.log(2 * math.pi)
        return normal - log_tanh_slope(before)

    @property
    def mean(self) -> Tensor:
        """The image of the mean, ``tanh(loc)``: the deterministic action, not the expectation."""
        return self.loc.tanh()


class GaussianPolicy(nn.Module):
    """A network from state and time to a diagonal Gaussian over unbounded actions.

    Args:
        state_space: ``Discrete`` or ``Box``.
        action_size: ``d``.
        horizon: the number of steps; None for a stationary policy.
        hidden_sizes: widths of the hidden layers.
        initial_scale: the standard deviation it starts with.
        activation: of the hidden layers, ``"tanh"`` or ``"relu"``.
        architecture: how layers are put together, ``"plain"``, ``"batch_norm"`` or ``"residual"``.
        log_scale_bounds: the least and the largest log standard deviation. By default wide enough for
            any problem in reasonable units, and never 0 or infinite.

    Example:
        >>> policy = GaussianPolicy(gymnasium.spaces.Box(-1, 1, (3,)), 2, initial_scale=0.5)
        >>> policy(torch.zeros(4, 3), 0).stddev[0]
        tensor([0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """

    batch_steps = True

    @checked
    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        action_size: int,
        *,
        horizon: int | None = None,
        hidden_sizes: Sequence[int] = (64, 64),
        initial_scale: float = 1.0,
        activation: Activation = "tanh",
        architecture: Architecture = "plain",
        log_scale_bounds: tuple[float, float] = (-20.0, 8.0),
    ) -> None:
        super().__init__()
        check_count("action_size", action_size)
        check_positive("initial_scale", initial_scale)
        check_log_scale_bounds(log_scale_bounds)
        self.network = StateTimeNetwork(
            state_space,
            2 * action_size,
            horizon=horizon,
            hidden_sizes=hidden_sizes,
            activation=activation,
            architecture=architecture,
        )
        self.initial_log_scale = math.log(initial_scale)
        self.log_scale_bounds = log_scale_bounds

    def location_and_scale(self, state: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """Returns the Gaussian's location and standard deviation, both ``(*batch, d)``."""
        loc, log_scale = self.network(state, t).chunk(2, -1)
        return loc, (self.initial_log_scale + log_scale).clamp(*self.log_scale_bounds).exp()

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        return dist.Normal(*self.location_and_scale(state, t)).to_event(1)


class TanhGaussianPolicy(GaussianPolicy):
    """A network from state and time to a squashed Gaussian on the unit box ``[-1, 1]^d``.

    The policy of soft actor-critic (Haarnoja et al. 2018, arXiv:1801.01290, appendix C).
    """

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        return TanhNormal(*self.location_and_scale(state, t)).to_event(1)
