"""Transition kernels of finite processes, dense and sparse, behind one small interface.

A kernel holds ``p(s'|s,a)``. Both kinds answer the same questions with the same shapes, so that
nothing above needs to know which one it has. ``(S, A)`` tables are returned with time-free layout.
"""

from functools import cached_property
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from rl_as_inference.checks import is_deferred
from rl_as_inference.processes.inversion import Sampler, cumulated, invert
from rl_as_inference.processes.log_sums import (
    WORTH_LIMIT,
    change_of_sum,
    exp_from,
    log_mean_exp,
    log_or_minus_inf,
    log_to,
    span,
)
from rl_as_inference.turns import silenced

__all__ = [
    "DenseKernel",
    "Kernel",
    "SparseKernel",
    "Successors",
    "drawn",
    "gathered",
    "unclamped",
]


class Kernel(Protocol):
    """What a transition kernel answers. ``S`` states, ``A`` actions, ``K`` successors at most."""

    num_states: int
    num_actions: int
    probabilities: Tensor
    """``(S, A, S)``, or ``(S, A, K)`` on the kernel's support."""

    def expect(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns ``E_{s'}[values(s')]``, ``(S, A)``.

        A kernel may write it into ``out``, ``(S, A)`` in action-major memory, when no gradient is tracked.
        """

    def log_expect(self, log_values: Tensor, log_factor: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Returns ``log E_{s'}[exp(log_factor(s,a,s') + log_values(s'))]``, ``(S, A)``.

        ``log_factor`` lies on the kernel's own support, as rewards given per transition do; ``out``
        is as in :meth:`expect`.
        """

    def mean(self, table: Tensor) -> Tensor:
        """Returns ``E_{s'}[table(s,a,s')]`` of a table on the kernel's support, ``(S, A)``."""

    def push(self, flow: Tensor) -> Tensor:
        """Returns ``Σ_{s,a} flow(s,a) p(s'|s,a)``, ``(S,)``."""

    def under(self, weights: Tensor) -> Tensor:
        """Returns ``Σ_a weights(s,a) p(s'|s,a)``, ``(S, S)``: for a policy's weights, the chain of its states."""

    def lookup(self, table: Tensor, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Returns ``table(s,a,s')`` of a table on the kernel's support."""

    def successors(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the next states and their probabilities, both ``(*batch, K)``."""

    def rows(self) -> tuple[Tensor, Tensor]:
        """Returns :meth:`successors` of all states and actions, both ``(S, A, K)``."""

    def dense(self) -> Tensor:
        """Returns ``p(s'|s,a)``, ``(S, A, S)``."""

    def dense_table(self, table: Tensor) -> Tensor:
        """Returns ``table(s,a,s')`` of a table on the kernel's support, ``(S, A, S)``; 0 where it holds nothing."""

    def distribution(self, state: Tensor, action: Tensor) -> Any:
        """Returns ``p(s'|s,a)`` as a Pyro distribution of the batch shape of ``state``."""

    @property
    def sampler(self) -> Sampler:
        """Draws ``s'`` by uniform numbers, of rows ``s · A + a``; many times faster than ``distribution``."""


def check_distribution(value: Any, what: str) -> Any:
    """Returns ``value``; raises ValueError, which names ``what`` gave it, unless it is a distribution."""
    if isinstance(value, torch.distributions.Distribution):
        return value
    raise ValueError(
        f"{what} must return a distribution, got {type(value).__name__}; what is certain is dist.Delta(value), of a "
        f"vector dist.Delta(value, event_dim=1)"
    )


def drawn(distribution: Any) -> Tensor:
    """Returns a draw without gradient; of a categorical several times faster than its own ``sample``.

    Example:
        >>> drawn(torch.distributions.Categorical(torch.tensor([[0.0, 1.0], [1.0, 0.0]])))
        tensor([1, 0])
    """
    if _is_plain_categorical(distribution):
        logits = distribution.logits
        uniform = torch.rand((*logits.shape[:-1], 1), dtype=logits.dtype, device=logits.device)
        return invert(cumulated(logits), uniform)
    value: Tensor = distribution.sample()
    return value


def unclamped(distribution: Any) -> Any:
    """Returns the distribution, a Categorical given by probabilities as one by logits, where 0 stays impossible.

    torch clamps the probabilities that a Categorical is given to ε, so that what is impossible would be drawn now
    and then, with a weight without bound.

    Example:
        >>> unclamped(dist.Categorical(torch.tensor([1.0, 0.0]))).logits
        tensor([0., -inf])
    """
    if not _is_plain_categorical(distribution) or "logits" in vars(distribution):
        return distribution
    return dist.Categorical(logits=log_or_minus_inf(distribution.probs))


def _is_plain_categorical(distribution: Any) -> bool:
    """Returns whether draws are those of torch's own Categorical; a subclass may shift them, say."""
    plain = torch.distributions.Categorical
    return isinstance(distribution, plain) and type(distribution).sample is plain.sample


def _log_expect(kernel: Kernel, log_values: Tensor, out: Tensor | None) -> Tensor | None:
    """Returns ``log E_{s'}[exp(log_values(s'))]`` with one exponential a state; None where they lie too far apart."""
    values = span(log_values)
    if kernel.probabilities.requires_grad and values.top - values.low > WORTH_LIMIT:
        return None
    if values.is_small:
        moved = kernel.expect(torch.expm1(log_values), out)
        return (moved + change_of_sum(kernel.probabilities)).log1p() if moved.requires_grad else moved.log1p_()
    if (scale := values.scale) is None:
        return None
    moved = kernel.expect(exp_from(scale, log_values), out)
    return moved.log() + scale if moved.requires_grad else log_to(scale, moved)


class DenseKernel:
    """A kernel held as one tensor ``(S, A, S)``."""

    def __init__(self, probabilities: Tensor) -> None:
        self.probabilities = probabilities
        self.num_states, self.num_actions, _ = probabilities.shape

    def expect(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        return self.probabilities @ values

    def log_expect(self, log_values: Tensor, log_factor: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        if log_factor is None and (logs := _log_expect(self, log_values, out)) is not None:
            return logs
        exponents = log_values.expand_as(self.probabilities)
        return log_mean_exp(self.probabilities, exponents if log_factor is None else exponents + log_factor)

    def mean(self, table: Tensor) -> Tensor:
        return (self.probabilities * table).sum(-1)

    def push(self, flow: Tensor) -> Tensor:
        return torch.einsum("sa,sat->t", flow, self.probabilities)

    def under(self, weights: Tensor) -> Tensor:
        return torch.einsum("sa,sat->st", weights, self.probabilities)

    def lookup(self, table: Tensor, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        return table[state, action, next_state]

    def successors(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = self.probabilities[state, action]
        return self._everywhere.expand_as(probabilities), probabilities

    def rows(self) -> tuple[Tensor, Tensor]:
        return self._everywhere.expand_as(self.probabilities), self.probabilities

    def dense(self) -> Tensor:
        return self.probabilities

    def dense_table(self, table: Tensor) -> Tensor:
        return table

    def distribution(self, state: Tensor, action: Tensor) -> Any:
        return dist.Categorical(logits=self._log_probabilities[state, action])

    @property
    def _everywhere(self) -> Tensor:
        return torch.arange(self.num_states, device=self.probabilities.device)

    @property
    def _log_probabilities(self) -> Tensor:
        # Not probs=...: Categorical clamps them, and what is impossible would become possible.
        if self.probabilities.requires_grad:
            return log_or_minus_inf(self.probabilities)
        return self._fixed_log_probabilities

    @cached_property
    def _fixed_log_probabilities(self) -> Tensor:
        return log_or_minus_inf(self.probabilities)

    @cached_property
    def sampler(self) -> Sampler:
        rows = self.probabilities.flatten(0, 1)
        most = int((rows > 0).sum(-1).max())
        if most == self.num_states:
            return Sampler(None, rows)
        largest = rows.topk(most, dim=-1)
        return Sampler(largest.indices, largest.values)


class SparseKernel:
    """A kernel held as ``K`` successors a state and action: indices and probabilities ``(S, A, K)``.

    Rows with fewer successors repeat an index with probability 0.
    """

    def __init__(self, indices: Tensor, probabilities: Tensor) -> None:
        self.indices = indices
        self.probabilities = probabilities
        self.num_states, self.num_actions, _ = probabilities.shape
        self._matrices: dict[torch.dtype, Tensor] = {}

    def expect(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        if self._tracked(values):
            return (self.probabilities * values[self.indices]).sum(-1)
        # The matrix's rows are ordered action first, which makes the sum over actions that follows
        # every use of this table contiguous; the (S, A) table is a view of it.
        rows = torch.mv(self._matrix(values.dtype), values, out=None if out is None else out.mT.view(-1))
        return rows.view(self.num_actions, self.num_states).mT

    def log_expect(self, log_values: Tensor, log_factor: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        if log_factor is None and (logs := _log_expect(self, log_values, out)) is not None:
            return logs
        if log_factor is None and not self._tracked(log_values):
            # What underflows in single precision seldom does in double, and gathering takes far longer.
            wide = log_values.double()
            if (scale := span(wide).scale) is not None:
                logs = log_to(scale, self.expect(exp_from(scale, wide)))
                return logs.to(log_values.dtype) if out is None else out.copy_(logs)
        exponents = log_values[self.indices]
        return log_mean_exp(self.probabilities, exponents if log_factor is None else exponents + log_factor)

    def mean(self, table: Tensor) -> Tensor:
        return (self.probabilities * table).sum(-1)

    def push(self, flow: Tensor) -> Tensor:
        out = flow.new_zeros(self.num_states)
        return out.index_add(0, self.indices.flatten(), (flow[..., None] * self.probabilities).flatten())

    def under(self, weights: Tensor) -> Tensor:
        return gathered(self.indices.flatten(1), (weights[..., None] * self.probabilities).flatten(1), self.num_states)

    def lookup(self, table: Tensor, state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        indices, probabilities = self.successors(state, action)
        # A successor may stand in several slots of a row, with one reward; weigh them to count it once.
        weight = torch.where(indices == next_state[..., None], probabilities.detach(), 0.0)
        total = weight.sum(-1)
        return (weight * table[state, action]).sum(-1) / torch.where(total > 0, total, 1.0)

    def successors(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        return self.indices[state, action], self.probabilities[state, action]

    def rows(self) -> tuple[Tensor, Tensor]:
        return self.indices, self.probabilities

    def dense(self) -> Tensor:
        return gathered(self.indices, self.probabilities, self.num_states)

    def dense_table(self, table: Tensor) -> Tensor:
        # A successor may stand in several slots of a row; each has its share in what the table says of it.
        weights = self.probabilities.detach()
        total = gathered(self.indices, weights, self.num_states).gather(-1, self.indices)
        share = weights / torch.where(total > 0, total, 1.0)
        return gathered(self.indices, share * table, self.num_states)

    def distribution(self, state: Tensor, action: Tensor) -> Any:
        indices, probabilities = self.successors(state, action)
        return Successors(indices, probabilities, self.num_states)

    def _tracked(self, values: Tensor) -> bool:
        if is_deferred():  # nor may values be looked at, as the ways without gradient do
            return True
        return torch.is_grad_enabled() and (values.requires_grad or self.probabilities.requires_grad)

    def _matrix(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._matrices:
            self._matrices[dtype] = self._make_matrix(dtype)
        return self._matrices[dtype]

    def _make_matrix(self, dtype: torch.dtype) -> Tensor:
        # Measured on a grid of 10^6 states, 4 actions, 5 successors, two cores: 11 ms with int32
        # indices, 45 ms with int64, 120 ms by gathering, multiplying and summing.
        per_row = self.indices.shape[-1]
        index = torch.int32 if self.indices.numel() < 2**31 else torch.int64
        rows = self.num_actions * self.num_states
        with silenced(".*Sparse (CSR|invariant)"):  # in beta since 2021
            return torch.sparse_csr_tensor(
                torch.arange(0, rows * per_row + 1, per_row, dtype=index, device=self.indices.device),
                self.indices.transpose(0, 1).to(index).flatten(),
                self.probabilities.detach().transpose(0, 1).to(dtype).flatten(),
                size=(rows, self.num_states),
                check_invariants=False,
            )

    @cached_property
    def sampler(self) -> Sampler:
        return Sampler(self.indices.flatten(0, 1), self.probabilities.flatten(0, 1))


def gathered(indices: Tensor, values: Tensor, num_states: int) -> Tensor:
    """Returns for each state the sum of the values that belong to it, ``(*batch, S)``, from slots ``(*batch, K)``."""
    return values.new_zeros(*values.shape[:-1], num_states).scatter_add(-1, indices, values)


class Successors(TorchDistribution):
    """A distribution over ``num_states`` states that puts its mass on few of them.

    Args:
        indices: the states that carry mass, ``(*batch, K)``.
        probabilities: their probabilities, ``(*batch, K)``, rows summing to one.
        num_states: the size of the support ``0 … num_states - 1``.

    Example:
        >>> p = Successors(torch.tensor([3, 7]), torch.tensor([0.25, 0.75]), 1000)
        >>> p.log_prob(torch.tensor([7, 8])).exp()
        tensor([0.7500, 0.0000])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - torch's own protocol
    has_enumerate_support = True

    def __init__(
        self, indices: Tensor, probabilities: Tensor, num_states: int, validate_args: bool | None = None
    ) -> None:
        self.indices, self.probabilities, self.num_states = indices, probabilities, num_states
        super().__init__(probabilities.shape[:-1], torch.Size(), validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.integer_interval(0, self.num_states - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Successors":
        shape = (*batch_shape, self.probabilities.shape[-1])
        return Successors(self.indices.expand(shape), self.probabilities.expand(shape), self.num_states, False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        k = dist.Categorical(probs=self.probabilities, validate_args=False).sample(sample_shape)
        drawn: Tensor = self.indices.expand(*shape, -1).gather(-1, k[..., None]).squeeze(-1)
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        mass = torch.where(self.indices == value[..., None], self.probabilities, 0.0).sum(-1)
        return log_or_minus_inf(mass)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = torch.arange(self.num_states, device=self.indices.device)
        values = values.reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values
