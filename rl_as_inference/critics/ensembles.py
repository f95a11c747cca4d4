"""Ensembles of soft action values: the twin critics of soft actor-critic, of any number."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from rl_as_inference.batch_norm import BatchRenorm, RewardScale
from rl_as_inference.factored import Factors
from rl_as_inference.residual_network import ResidualNetwork
from rl_as_inference.spaces import factor_sizes
from rl_as_inference.state_layout import layout_of
from rl_as_inference.state_time_network import (
    NUM_TIME_FEATURES,
    Architecture,
    check_architecture,
    check_hidden_sizes,
    time_features,
)

__all__ = ["QEnsemble"]


class QEnsemble(nn.Module):
    """Several independent networks of soft action values, in reward units.

    For continuous actions ``forward(state, action, t)`` is ``(num_critics, *batch)``; for discrete ones
    ``forward(state, t=t)`` is ``(num_critics, *batch, A)``. Rectified layers of the usual initialisation;
    discrete states are one-hot, and so is each factor of an action that has several, of which one action is asked for.
    Of rows in parts and of images they see :meth:`StateLayout.inputs`.

    Args:
        state_space: ``Discrete`` or ``Box``.
        action_space: ``Discrete``, ``Box``, ``MultiDiscrete`` or ``MultiBinary``.
        num_critics: how many networks, ≥ 1.
        horizon: the number of steps; None for stationary values, which do not look at ``t``.
        hidden_sizes: widths of the hidden layers.
        scale: the size of a typical value, in reward units: the networks learn ``Q / scale``.
        architecture: ``"plain"``, or ``"batch_norm"``: the inputs, and what each hidden layer gives, are normalised by
            :class:`~rl_as_inference.batch_norm.BatchRenorm`, with statistics of each network's own, as CrossQ's
            critics are (Bhatt et al. 2024, arXiv:1902.05605). Or ``"residual"``: each network is a
            :class:`~rl_as_inference.residual_network.ResidualNetwork` whose outputs are a categorical distribution
            over ``support`` (Bellemare, Dabney & Munos 2017, arXiv:1707.06887), and the value is its mean. With
            ``logits=True``, ``forward`` returns that distribution's logits, ``(num_critics, *batch, K)``, for discrete
            actions ``(num_critics, *batch, A, K)``.
        num_atoms: ``K``, of that distribution.
        value_bound: how far its atoms reach to either side of 0, in units of its scale.

    Attributes:
        reward_scale: of a residual ensemble; its atoms, and ``value_bound``, are in units of ``scale`` times its value.

    Raises:
        ValueError: for other spaces, or a number < 1.

    Example:
        >>> box = gymnasium.spaces.Box(-1, 1, (3,))
        >>> QEnsemble(box, box, num_critics=2)(torch.zeros(5, 3), torch.zeros(5, 3)).shape
        torch.Size([2, 5])
        >>> QEnsemble(box, gymnasium.spaces.Discrete(4), num_critics=1)(torch.zeros(5, 3)).shape
        torch.Size([1, 5, 4])
    """

    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        num_critics: int = 2,
        horizon: int | None = None,
        hidden_sizes: Sequence[int] = (256, 256),
        scale: float = 1.0,
        architecture: Architecture = "plain",
        num_atoms: int = 101,
        value_bound: float = 5.0,
    ) -> None:
        super().__init__()
        check_hidden_sizes(hidden_sizes)
        check_architecture(architecture)
        self.scale = scale
        if num_critics < 1:
            raise ValueError(f"num_critics must be >= 1, got {num_critics}")
        self.num_critics, self.horizon = num_critics, horizon
        self.state_size, self.state_dims = _size("state_space", state_space)
        self.layout = layout_of(state_space)
        if self.layout is not None:
            self.state_size = self.layout.num_inputs
        sizes = factor_sizes(action_space)
        self.factors = None if sizes is None else Factors(sizes)
        action_size, self.action_dims = _size("action_space", action_space) if sizes is None else (sum(sizes), 1)
        self.discrete_states = isinstance(state_space, gymnasium.spaces.Discrete)
        self.discrete_actions = isinstance(action_space, gymnasium.spaces.Discrete)
        inputs = self.state_size if self.discrete_actions else self.state_size + action_size
        inputs += 0 if horizon is None else NUM_TIME_FEATURES
        outputs = action_size if self.discrete_actions else 1
        self.residual: ResidualNetwork | None = None
        if architecture == "residual":
            self.residual = ResidualNetwork(inputs, outputs * num_atoms, hidden_sizes, num_members=num_critics)
            self.reward_scale = RewardScale()
            self.num_atoms, self.value_bound = num_atoms, value_bound
            return
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        widths = [inputs, *hidden_sizes] if architecture == "batch_norm" else []
        self.norms = nn.ModuleList(BatchRenorm(width, num_critics) for width in widths)
        for size, after in pairwise([inputs, *hidden_sizes, outputs]):
            # As nn.Linear starts: uniform within one over the root of the inputs.
            bound = 1 / math.sqrt(size)
            self.weights.append(torch.empty(num_critics, size, after).uniform_(-bound, bound))
            self.biases.append(torch.empty(num_critics, after).uniform_(-bound, bound))

    def forward(self, state: Tensor, action: Tensor | None = None, t: int | Tensor = 0, logits: bool = False) -> Tensor:
        dtype = self.weights[0].dtype if self.residual is None else self.residual.head.weight.dtype
        if self.discrete_states:
            inputs = (state[..., None] == torch.arange(self.state_size, device=state.device)).to(dtype)
        else:
            inputs = state.flatten(-self.state_dims) if self.state_dims else state[..., None]
            if self.layout is not None:
                inputs = self.layout.inputs(inputs.to(dtype))
        if not self.discrete_actions:
            if action is None:
                raise ValueError("action is needed: a critic of continuous actions is asked for one action's value")
            if self.factors is not None:
                action = self.factors.one_hot(action, inputs.dtype)
            inputs = torch.cat(
                [inputs, action.flatten(-self.action_dims) if self.action_dims else action[..., None]], -1
            )
        if self.horizon is not None:
            features = time_features(t, self.horizon, inputs)
            inputs = torch.cat([inputs, features.expand(*inputs.shape[:-1], NUM_TIME_FEATURES)], -1)
        batch = inputs.shape[:-1]
        inputs = inputs.reshape(-1, inputs.shape[-1])
        values = inputs.expand(self.num_critics, *inputs.shape)
        if self.residual is not None:
            return self._categorical(self.residual(values), batch, logits)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = values.relu() if layer else values
            values = self.norms[layer](values) if self.norms else values
            values = _times(values, weight) + bias[:, None]
        values = values.reshape(self.num_critics, *batch, values.shape[-1])
        values = values if self.scale == 1 else self.scale * values
        return values if self.discrete_actions else values.squeeze(-1)

    def _categorical(self, outputs: Tensor, batch: torch.Size, logits: bool) -> Tensor:
        """Returns logits of atoms, or the means of their distributions in reward units."""
        atoms = outputs.reshape(self.num_critics, *batch, -1, self.num_atoms)
        atoms = atoms if self.discrete_actions else atoms.squeeze(-2)
        return atoms if logits else self.scale * self.reward_scale.value * (atoms.softmax(-1) * self.support).sum(-1)

    @property
    def support(self) -> Tensor:
        """The atoms of a residual ensemble, ``(K,)``, in units of its scale."""
        like = self.reward_scale.value
        return torch.linspace(-self.value_bound, self.value_bound, self.num_atoms, dtype=like.dtype, device=like.device)


def _times(values: Tensor, weight: Tensor) -> Tensor:
    """Returns the members' matrix products; onto a single number as a sum, which fuses with what is around it."""
    if weight.shape[-1] == 1:
        return (values * weight.transpose(-1, -2)).sum(-1, keepdim=True)
    return torch.bmm(values, weight)


def _size(name: str, space: gymnasium.Space[Any]) -> tuple[int, int]:
    """Returns how many numbers describe a member of the space, and the dimensions of its tensors."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(space.n), 0
    if isinstance(space, gymnasium.spaces.Box):
        return math.prod(space.shape), len(space.shape)
    raise ValueError(f"{name} must be Discrete or Box, got {space}")
