"""Normalizing flows: policies of any shape that are drawn from and have their density exactly, by zuko."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, constraints
from torch.func import functional_call

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_count
from rl_as_inference.spaces import log_tanh_slope
from rl_as_inference.state_time_network import Activation, StateTimeNetwork

__all__ = ["FlowPolicy", "TanhFlow"]

_CANDIDATES = 32
"""Points of the base, beside its own mode, whose images may be the deterministic action."""


class TanhFlow(TorchDistribution):
    """A normalizing flow under ``tanh``, on the box ``(-1, 1)^d``: what :class:`FlowPolicy` answers with.

    Args:
        flow: ``(context, value, drawing)``: of base points the images before squashing (``drawing``) and their log
            density in nats; of images these and the same.
        context: what the flow is conditioned on, ``(*batch, c)``.
        candidates: base points ``(K, d)``, of which the one whose image has the largest density before squashing
            gives :attr:`deterministic`.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.independent(constraints.interval(-1.0, 1.0), 1)
    has_rsample = True

    def __init__(self, flow: Any, context: Tensor, candidates: Tensor, validate_args: bool | None = None) -> None:
        self.flow, self.context, self.candidates = flow, context, candidates
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        super().__init__(context.shape[:-1], candidates.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "TanhFlow":
        context = self.context.expand(*torch.Size(batch_shape), -1)
        return TanhFlow(self.flow, context, self.candidates, False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        noise = torch.randn(shape, dtype=self.context.dtype, device=self.context.device)
        before, log_density = self.flow(self.context, noise, True)
        limit = 1 - torch.finfo(before.dtype).eps
        value: Tensor = before.tanh().clamp(-limit, limit)
        # The inverse of a draw costs passes through the networks, and near ±1 it cannot be had: so both are remembered.
        self._last = (value, before, log_density - log_tanh_slope(before).sum(-1))
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if self._last is not None and self._last[0] is value:
            _, before, log_density = self._last
            # What was drawn without gradients has a density without them: good only where nobody asks for any.
            if value.requires_grad or not torch.is_grad_enabled():
                return log_density
        else:
            limit = 1 - torch.finfo(value.dtype).eps
            before = value.clamp(-limit, limit).atanh()
        log_density = self.flow(self.context, before, False)[1]
        return log_density - log_tanh_slope(before).sum(-1)

    @property
    def deterministic(self) -> Tensor:
        """The likeliest before squashing of some fixed images: those of the base's mode and of points around it.

        One flow may have several modes, and the image of the base's mode may lie between them, where hardly anything
        is drawn. The points are always the same, so that the same state gives the same action.
        """
        points = self.candidates.reshape(len(self.candidates), *(1 for _ in self.batch_shape), -1)
        images, log_density = self.flow(self.context, points.expand(-1, *self.batch_shape, -1), True)
        best = log_density.argmax(0)[None, ..., None].expand(1, *images.shape[1:])
        return images.gather(0, best).squeeze(0).tanh()

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError("the mean of a flow has no closed form; see deterministic")


class _Flow(nn.Module):
    """Zuko's flow, asked for images or for densities: :class:`TanhFlow`'s ``flow``."""

    def __init__(self, action_size: int, context_size: int, transforms: int, bins: int, width: int) -> None:
        super().__init__()
        flows = _zuko().flows
        spline = flows.NSF(
            action_size, context_size, transforms=transforms, bins=bins, passes=2, hidden_features=[width]
        )
        affine = flows.ElementWiseTransform(action_size, context_size, hidden_features=())
        layers = [*spline.transform.transforms, affine]
        for layer in layers:  # the identity in every state, so that the policy starts as a standard tanh-Gaussian
            nn.init.zeros_(layer.hyper[-1].weight)
            nn.init.zeros_(layer.hyper[-1].bias)
        # In the direction of draws one pass of each network gives the image and the density, as in an inverse
        # autoregressive flow (Kingma et al. 2016, arXiv:1606.04934); foreign values cost two passes.
        self.flow = flows.Flow([layer.inv for layer in reversed(layers)], spline.base)

    def forward(self, context: Tensor, value: Tensor, drawing: bool) -> tuple[Tensor, Tensor]:
        flow = self.flow(context)
        if not drawing:
            return value, flow.log_prob(value)
        image, log_slope = flow.transform.inv.call_and_ladj(value)
        return image, flow.base.log_prob(value) - log_slope


class FlowPolicy(nn.Module):
    """A network from state and time to a neural spline flow on the unit box ``[-1, 1]^d``.

    Monotonic rational-quadratic splines (Durkan et al. 2019, arXiv:1906.04032) in coupling layers, then a shift and a
    scale, then ``tanh``; all conditioned on features of state and time. It can keep several ways alive in one state, as
    a mixture can, and bend them, and unlike a mixture's its draws are reparameterized: pathwise gradients pass through
    them. Draws and densities are exact and zuko's own. It starts as a standard normal before squashing, in every state.

    Its ``deterministic`` action, which evaluation and ``act(..., deterministic=True)`` take, is the likeliest before
    squashing of 33 fixed points of the base, its mode among them: a flow has no closed form of its mode.

    Args:
        state_space: ``Discrete`` or ``Box``.
        action_size: ``d``.
        horizon: the number of steps; None for a stationary policy.
        hidden_sizes: widths of the hidden layers of the features.
        activation: of these layers, ``"tanh"`` or ``"relu"``.
        context_size: how many features of state and time the flow sees.
        transforms: spline layers, in turn from the first action to the last and back.
        bins: of each spline, which spans ``[-5, 5]`` before shift, scale and squashing.
        width: of the hidden layer of each spline's network.

    Raises:
        ImportError: without zuko, which ``pip install 'rl-as-inference[flows]'`` brings.
        ValueError: for another kind of space, or a number < 1.

    Example:
        >>> policy = FlowPolicy(gymnasium.spaces.Box(-1, 1, (3,)), 2)
        >>> q = policy(torch.zeros(5, 3), 0)
        >>> action = q.rsample()
        >>> action.shape, q.log_prob(action).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    batch_steps = True
    candidates: Tensor

    @checked
    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        action_size: int,
        *,
        horizon: int | None = None,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        context_size: int = 32,
        transforms: int = 2,
        bins: int = 8,
        width: int = 64,
    ) -> None:
        super().__init__()
        sizes = {"action_size": action_size, "context_size": context_size, "transforms": transforms, "width": width}
        for name, size in sizes.items():
            check_count(name, size)
        check_count("bins", bins, least=2)
        self.network = StateTimeNetwork(
            state_space, context_size, horizon=horizon, hidden_sizes=hidden_sizes, activation=activation
        )
        # The flow begins as the identity; features that also began at zero would wait for each other.
        last = self.network.layers[-1] if hidden_sizes else self.network.state_layer
        last.reset_parameters()  # type: ignore[operator]
        self.flow = _Flow(action_size, context_size, transforms, bins, width)
        self.register_buffer("candidates", _candidates(action_size))

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        # The flow asks its networks when it is drawn from, which may be after this call: with the parameters of now,
        # which are others than the module's own where it is called by torch.func.functional_call.
        parameters: Mapping[str, Tensor] = dict(self.flow.named_parameters())
        return TanhFlow(partial(_asked, self.flow, parameters), self.network(state, t), self.candidates)


def _asked(flow: nn.Module, parameters: Mapping[str, Tensor], *args: Any) -> Any:
    return functional_call(flow, dict(parameters), args)


def _candidates(size: int) -> Tensor:
    """Returns the base's mode and points spread as it is, ``(1 + K, d)``, always the same."""
    sobol = torch.quasirandom.SobolEngine(size, scramble=True, seed=0).draw(_CANDIDATES)
    around = Normal(0.0, 1.0).icdf(sobol.clamp(1e-6, 1 - 1e-6))
    return torch.cat([torch.zeros(1, size), around])


def _zuko() -> Any:
    """Returns the library; it switches the checks of all distributions off when it is loaded, which is undone here."""
    checks = Distribution._validate_args
    try:
        import zuko
    except ImportError as error:
        raise ImportError(
            "guides.FlowPolicy needs zuko, which is not installed: pip install 'rl-as-inference[flows]'"
        ) from error
    Distribution.set_default_validate_args(checks)
    return zuko
