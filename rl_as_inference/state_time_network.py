"""Small networks that policies and critics share: features of state and time, then layers."""

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import Any, Literal, get_args

import gymnasium
import torch
from torch import Tensor, nn

from rl_as_inference.batch_norm import BatchRenorm
from rl_as_inference.checks import check_horizon
from rl_as_inference.residual_network import ResidualNetwork
from rl_as_inference.state_layout import layout_of

__all__ = [
    "NUM_TIME_FEATURES",
    "Activation",
    "Architecture",
    "StateTimeNetwork",
    "check_architecture",
    "check_hidden_sizes",
    "check_log_scale_bounds",
    "time_features",
]

Activation = Literal["tanh", "relu"]
Architecture = Literal["plain", "batch_norm", "residual"]
"""How layers are put together: as they are, with normalisation between them, or in residual blocks."""

_HARMONICS = 4
NUM_TIME_FEATURES = 1 + 2 * _HARMONICS
"""How many numbers :func:`time_features` gives."""


def check_hidden_sizes(hidden_sizes: Sequence[int], name: str = "hidden_sizes") -> None:
    """Raises ValueError unless all widths are integers of at least 1."""
    if not isinstance(hidden_sizes, Sequence) or any(
        isinstance(size, bool) or not isinstance(size, int) for size in hidden_sizes
    ):
        raise ValueError(f"{name} must be a sequence of integers such as (64, 64), got {hidden_sizes!r}")
    if any(size < 1 for size in hidden_sizes):
        raise ValueError(f"{name} must be >= 1, got {tuple(hidden_sizes)}")


def check_architecture(architecture: Architecture) -> None:
    """Raises ValueError unless it is one of those that there are."""
    if architecture not in get_args(Architecture):
        raise ValueError(f"architecture must be one of {', '.join(get_args(Architecture))}; got {architecture!r}")


def check_log_scale_bounds(bounds: tuple[float, float]) -> None:
    """Raises ValueError unless they are two numbers that rise."""
    two = isinstance(bounds, Sequence) and len(bounds) == 2 and all(isinstance(each, Real) for each in bounds)
    if not two or not bounds[0] < bounds[1]:
        raise ValueError(f"log_scale_bounds must be two numbers that rise, such as (-20.0, 2.0), got {bounds!r}")


def time_features(t: int | Tensor, horizon: int, like: Tensor) -> Tensor:
    """Returns what networks see of a time, ``(*t.shape, NUM_TIME_FEATURES)``, of the dtype and device of ``like``.

    ``t / horizon`` and a few harmonics of it. Every feature stays within [-1, 1]; the harmonics are of half periods,
    so that the first and the last step do not look alike.

    Example:
        >>> time_features(torch.tensor([0, 5]), 10, torch.zeros(())).shape
        torch.Size([2, 9])
    """
    phase = torch.as_tensor(t, device=like.device).to(like.dtype)[..., None] / max(horizon, 1)
    octaves = math.pi * 2.0 ** torch.arange(_HARMONICS, device=like.device, dtype=like.dtype)
    return torch.cat([2 * phase - 1, (octaves * phase).sin(), (octaves * phase).cos()], -1)


class StateTimeNetwork(nn.Module):
    """A multilayer perceptron of state and time; ``forward(state, t)`` is ``(*batch, num_outputs)``.

    Discrete states are embedded, boxes flattened; of rows in parts and of images it sees
    :meth:`StateLayout.inputs`. Time enters as ``t / horizon`` and a few
    harmonics of it, so that a rule may change near the end. The last layer starts at zero: what is
    built on it starts at its base (a guide at the action prior, a critic at 0).

    Args:
        state_space: ``Discrete`` or ``Box``.
        num_outputs: the size of the last dimension.
        horizon: the number of steps; None leaves time out (a stationary function).
        hidden_sizes: the widths of the hidden layers.
        activation: ``"tanh"``, smooth, for the dozens of units of exact problems; ``"relu"``, the
            usual one of soft actor-critic.
        architecture: ``"plain"``, or ``"batch_norm"``: a box, and what each hidden layer gives, are normalised by
            :class:`~rl_as_inference.batch_norm.BatchRenorm`, as in CrossQ's policy (arXiv:1902.05605). Or
            ``"residual"``: a :class:`~rl_as_inference.residual_network.ResidualNetwork` of the state (one-hot where it
            is discrete) and the features of time, a block for each of ``hidden_sizes``; it is rectified, and does not
            start at zero, since its last layer too has weights of unit length.

    Raises:
        ValueError: for another kind of space, a width < 1, or another activation.
    """

    batch_steps = True

    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        num_outputs: int,
        *,
        horizon: int | None = None,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        architecture: Architecture = "plain",
    ) -> None:
        super().__init__()
        check_hidden_sizes(hidden_sizes)
        check_architecture(architecture)
        if activation not in get_args(Activation):
            raise ValueError(f"activation must be one of {', '.join(get_args(Activation))}; got {activation!r}")
        if not isinstance(state_space, gymnasium.Space):
            what = f"Discrete({state_space})" if isinstance(state_space, int) else "Box(-1, 1, (3,))"
            raise ValueError(f"state_space must be a gymnasium space such as {what}, got {state_space!r}")
        first = hidden_sizes[0] if hidden_sizes else num_outputs
        self.horizon = horizon = check_horizon(horizon)
        self.event_dim = len(state_space.shape or ())
        self.layout = layout_of(state_space)
        self.state_layer: nn.Module
        self.norm: nn.Module | None = None
        self.residual: ResidualNetwork | None = None
        if architecture == "residual":
            self.num_states = int(state_space.n) if isinstance(state_space, gymnasium.spaces.Discrete) else None
            if self.num_states is None and not isinstance(state_space, gymnasium.spaces.Box):
                raise ValueError(f"state_space must be Discrete or Box, got {state_space}")
            size = math.prod(state_space.shape or ()) if self.layout is None else self.layout.num_inputs
            inputs = self.num_states or size
            inputs += 0 if horizon is None else NUM_TIME_FEATURES
            self.residual = ResidualNetwork(inputs, num_outputs, hidden_sizes)
            return
        if isinstance(state_space, gymnasium.spaces.Discrete):
            self.state_layer = nn.Embedding(int(state_space.n), first)
            nn.init.normal_(self.state_layer.weight, std=1.0)
        elif isinstance(state_space, gymnasium.spaces.Box):
            size = math.prod(state_space.shape) if self.layout is None else self.layout.num_inputs
            self.state_layer = nn.Linear(size, first)
            if architecture == "batch_norm":
                self.norm = BatchRenorm(size)
        else:
            raise ValueError(f"state_space must be Discrete or Box, got {state_space}")
        self.time_layer = None if horizon is None else nn.Linear(NUM_TIME_FEATURES, first)
        widths = [*hidden_sizes, num_outputs]
        layers: list[nn.Module] = []
        for size, after in pairwise(widths):
            layers.append(nn.Tanh() if activation == "tanh" else nn.ReLU())
            layers += [BatchRenorm(size)] if architecture == "batch_norm" else []
            layers.append(nn.Linear(size, after))
        self.layers = nn.Sequential(*layers)
        last = layers[-1] if layers else self.state_layer
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        if not layers and self.time_layer is not None:
            nn.init.zeros_(self.time_layer.weight)
            nn.init.zeros_(self.time_layer.bias)
        if getattr(last, "bias", None) is not None:
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, state: Tensor, t: int | Tensor) -> Tensor:
        if self.residual is not None:
            return self._residual(self.residual, state, t)
        lead = state.shape[: state.dim() - self.event_dim]
        if isinstance(self.state_layer, nn.Embedding):
            hidden = self.state_layer(_once(state))
        else:
            flat = state[..., None] if self.event_dim == 0 else state.flatten(-self.event_dim)
            if self.layout is not None:
                flat = self.layout.inputs(flat.to(next(self.state_layer.parameters()).dtype))
            hidden = self.state_layer(flat if self.norm is None else self.norm(flat))
        if self.time_layer is not None and self.horizon is not None:
            if isinstance(t, Tensor):
                lead, t = torch.broadcast_shapes(lead, t.shape), _once(t)
            hidden = hidden + self.time_layer(time_features(t, self.horizon, hidden))
        out: Tensor = self.layers(hidden)
        return out.expand(*lead, out.shape[-1])

    def _residual(self, network: ResidualNetwork, state: Tensor, t: int | Tensor) -> Tensor:
        dtype = network.head.weight.dtype
        if self.num_states is not None:
            rows = (state[..., None] == torch.arange(self.num_states, device=state.device)).to(dtype)
        else:
            rows = state[..., None] if self.event_dim == 0 else state.flatten(-self.event_dim)
            rows = rows if self.layout is None else self.layout.inputs(rows.to(dtype))
        if self.horizon is not None:
            features = time_features(t, self.horizon, rows)
            lead = torch.broadcast_shapes(rows.shape[:-1], features.shape[:-1])
            rows = torch.cat([rows.expand(*lead, rows.shape[-1]), features.expand(*lead, NUM_TIME_FEATURES)], -1)
        out: Tensor = network(rows)
        return out


def _once(values: Tensor) -> Tensor:
    """Returns the values without the copies that ``expand`` made: all states at all times are embedded state by state.

    Example:
        >>> _once(torch.arange(3).expand(5, 3)).shape
        torch.Size([1, 3])
    """
    for dim, stride in enumerate(values.stride()):
        if stride == 0:
            values = values.narrow(dim, 0, min(1, values.shape[dim]))
    return values
