"""Mixtures of squashed Gaussians: the policy of soft actor-critic's first version."""

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_at_least, check_count
from rl_as_inference.randomness import drawn_from_logits
from rl_as_inference.spaces import log_tanh_slope
from rl_as_inference.state_time_network import Activation, Architecture, StateTimeNetwork, check_log_scale_bounds

__all__ = ["TanhGaussianMixturePolicy", "TanhNormalMixture"]


class TanhNormalMixture(TorchDistribution):
    """A mixture of diagonal Gaussians under ``tanh``, on the box ``(-1, 1)^d``.

    Args:
        component_logits: of the components, ``(*batch, K)``.
        loc: ``(*batch, K, d)``, before squashing.
        scale: likewise.

    Example:
        >>> q = TanhNormalMixture(torch.zeros(2), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
        >>> q.event_shape, q.rsample_components().shape
        (torch.Size([1]), torch.Size([2, 1]))
    """

    arg_constraints = {  # noqa: RUF012
        "component_logits": constraints.real_vector,
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    support = constraints.independent(constraints.interval(-1.0, 1.0), 1)
    has_rsample = False

    def __init__(self, component_logits: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.component_logits, self.loc, self.scale = component_logits, loc, scale
        self.log_weights = component_logits.log_softmax(-1)
        super().__init__(component_logits.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "TanhNormalMixture":
        shape = torch.Size(batch_shape)
        return TanhNormalMixture(
            self.log_weights.expand(*shape, -1),
            self.loc.expand(*shape, -1, -1),
            self.scale.expand(*shape, -1, -1),
            False,
        )

    def rsample_components(self) -> Tensor:
        """Returns one reparameterized draw of each component, ``(*batch, K, d)``."""
        return self._squash(self.loc + self.scale * torch.randn_like(self.loc))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape)
            logits = self.log_weights.expand(*shape, *self.log_weights.shape)
            chosen = drawn_from_logits(logits)[..., None, None]
            index = chosen.expand(*chosen.shape[:-1], self.loc.shape[-1])
            loc = self.loc.expand(*shape, *self.loc.shape).gather(-2, index).squeeze(-2)
            scale = self.scale.expand(*shape, *self.scale.shape).gather(-2, index).squeeze(-2)
            return self._squash(loc + scale * torch.randn_like(loc))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        limit = 1 - torch.finfo(value.dtype).eps
        before = value.clamp(-limit, limit).atanh()
        error = (before[..., None, :] - self.loc) / self.scale
        normal = (-0.5 * error.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
        return (self.log_weights + normal).logsumexp(-1) - log_tanh_slope(before).sum(-1)

    @property
    def deterministic(self) -> Tensor:
        """The image of the heaviest component's mean: the deterministic action."""
        index = self.log_weights.argmax(-1)[..., None, None]
        index = index.expand(*index.shape[:-1], self.loc.shape[-1])
        return self.loc.gather(-2, index).squeeze(-2).tanh()

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError("the mean of a squashed mixture has no closed form; see deterministic")

    @staticmethod
    def _squash(before: Tensor) -> Tensor:
        limit = 1 - torch.finfo(before.dtype).eps
        return before.tanh().clamp(-limit, limit)


class TanhGaussianMixturePolicy(nn.Module):
    """A network from state and time to a mixture of squashed Gaussians on the unit box.

    The policy of soft actor-critic's first version (Haarnoja et al. 2018, arXiv:1801.01290v1, section
    5.2): it can keep several ways alive in one state, where a single Gaussian must choose.

    Args:
        state_space: ``Discrete`` or ``Box``.
        action_size: ``d``.
        num_components: ``K``.
        horizon: the number of steps; None for a stationary policy.
        hidden_sizes: widths of the hidden layers.
        activation: of the hidden layers, ``"tanh"`` or ``"relu"``.
        architecture: how layers are put together, ``"plain"``, ``"batch_norm"`` or ``"residual"``.
        log_scale_bounds: the least and the largest log standard deviation before squashing.

    Example:
        >>> policy = TanhGaussianMixturePolicy(gymnasium.spaces.Box(-1, 1, (3,)), 2, num_components=4)
        >>> policy(torch.zeros(5, 3), 0).sample().shape
        torch.Size([5, 2])
    """

    batch_steps = True

    @checked
    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        action_size: int,
        *,
        num_components: int = 4,
        horizon: int | None = None,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        architecture: Architecture = "plain",
        log_scale_bounds: tuple[float, float] = (-20.0, 2.0),
    ) -> None:
        super().__init__()
        check_at_least("num_components", num_components)
        check_count("action_size", action_size)
        check_log_scale_bounds(log_scale_bounds)
        self.num_components, self.action_size = num_components, action_size
        self.log_scale_bounds = log_scale_bounds
        outputs = num_components * (1 + 2 * action_size)
        self.network = StateTimeNetwork(
            state_space,
            outputs,
            horizon=horizon,
            hidden_sizes=hidden_sizes,
            activation=activation,
            architecture=architecture,
        )
        # Components that start alike would stay alike: each begins around a centre of its own.
        self.centres = nn.Parameter(torch.randn(num_components, action_size))

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        count, size = self.num_components, self.action_size
        logits, loc, log_scale = self.network(state, t).split([count, count * size, count * size], -1)
        loc = loc.unflatten(-1, (count, size)) + self.centres
        scale = log_scale.unflatten(-1, (count, size)).clamp(*self.log_scale_bounds).exp()
        return TanhNormalMixture(logits, loc, scale)
