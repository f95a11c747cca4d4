"""Distributions over several discrete actions at once: a product of categoricals, and a table of what they do jointly.

An action is a vector of integers from 0, one for each factor. Joint actions stand in the order of
``itertools.product``: the last factor moves fastest.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from rl_as_inference.randomness import drawn_from_logits

__all__ = ["JOINT_ACTIONS", "FactoredCategorical", "Factors", "JointCategorical"]

JOINT_ACTIONS = 256
"""So many joint actions are few: they are summed over, and critics have an output for each.

Eight switches, or five actions of three, are the most. Beyond it sums are exact factor by factor, and critics are asked
with one action.
"""


class Factors(nn.Module):
    """How many values each factor of an action has, and where these lie in rows of numbers; it learns nothing.

    Args:
        sizes: of the factors, each ≥ 1.

    Attributes:
        sizes: likewise; ``limits`` is the same as a tensor, ``(F,)``.
        num_values: of all factors together, ``sum(sizes)``.
        num_joint: of joint actions, ``prod(sizes)``.
        actions: all joint actions, ``(num_joint, F)``; None where they are more than :data:`JOINT_ACTIONS`.

    Raises:
        ValueError: if there is no factor, or one without a value.

    Example:
        >>> factors = Factors((3, 2))
        >>> factors.actions.tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
        >>> factors.index(torch.tensor([2, 1])), factors.action(torch.tensor(5))
        (tensor(5), tensor([2, 1]))
    """

    actions: Tensor | None
    limits: Tensor
    _strides: Tensor
    _factor_of: Tensor
    _value_of: Tensor
    _padding: Tensor
    _jointly: Tensor | None

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(int(size) for size in sizes)
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes must be one number >= 1 for each factor, got {tuple(sizes)}")
        self.num_factors, self.num_values, self.most = len(self.sizes), sum(self.sizes), max(self.sizes)
        self.num_joint = math.prod(self.sizes)
        self.is_small = self.num_joint <= JOINT_ACTIONS
        limits = torch.tensor(self.sizes)
        ends = list(accumulate(self.sizes, initial=0))
        factor_of = torch.repeat_interleave(torch.arange(self.num_factors), limits)
        place = torch.arange(self.most)
        there = place < limits[:, None]
        buffers: dict[str, Tensor | None] = {
            "limits": limits,
            "_factor_of": factor_of,
            "_value_of": torch.arange(self.num_values) - torch.tensor(ends)[factor_of],
            # Behind the values stands the one that fills up factors of fewer values.
            "_padding": torch.where(there, torch.tensor(ends[:-1])[:, None] + place, self.num_values).flatten(),
            "actions": None,
            "_strides": None,
            "_jointly": None,
        }
        if self.is_small:
            strides = torch.tensor([math.prod(self.sizes[k + 1 :]) for k in range(self.num_factors)])
            actions = (torch.arange(self.num_joint)[:, None] // strides) % limits
            buffers |= {"_strides": strides, "actions": actions}
            buffers["_jointly"] = actions + self.most * torch.arange(self.num_factors)
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def index(self, action: Tensor) -> Tensor:
        """Returns the places ``(*batch,)`` of actions ``(*batch, F)`` among the joint ones."""
        return (action * self._strides).sum(-1)

    def action(self, index: Tensor) -> Tensor:
        """Returns the joint actions ``(*batch, F)`` in places ``(*batch,)``."""
        return (index[..., None] // self._strides) % self.limits

    def by_factor(self, values: Tensor, fill: float) -> Tensor:
        """Returns values ``(*batch, num_values)`` as ``(*batch, F, most)``, filled up."""
        if self.num_values != self.num_factors * self.most:
            values = torch.cat([values, values.new_full((*values.shape[:-1], 1), fill)], -1)
            values = values.index_select(-1, self._padding)
        return values.unflatten(-1, (self.num_factors, self.most))

    def together(self, values: Tensor) -> Tensor:
        """Returns sums over factors for all joint actions, ``(*batch, num_joint)``, of ``(*batch, F, most)``.

        Raises:
            ValueError: if joint actions are more than :data:`JOINT_ACTIONS`.
        """
        if self._jointly is None:
            raise ValueError(f"factors {self.sizes} have {self.num_joint} joint actions, more than {JOINT_ACTIONS}")
        picked = values.flatten(-2).index_select(-1, self._jointly.flatten())
        return picked.unflatten(-1, self._jointly.shape).sum(-1)

    def in_row(self, values: Tensor) -> Tensor:
        """Returns values ``(*batch, F, most)`` as rows ``(*batch, num_values)``: the way back of :meth:`by_factor`."""
        return values.flatten(-2).index_select(-1, self._factor_of * self.most + self._value_of)

    def taken(self, values: Tensor, action: Tensor) -> Tensor:
        """Returns the values ``(*batch, F)`` of an action's factors, of ``(*batch, F, most)``."""
        return values.gather(-1, action[..., None].expand(*values.shape[:-1], 1)).squeeze(-1)

    def one_hot(self, action: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns actions ``(*batch, F)`` as rows ``(*batch, num_values)`` of a 1 for each factor, and 0."""
        return (action.index_select(-1, self._factor_of) == self._value_of).to(dtype)

    def varied(self, action: Tensor) -> Tensor:
        """Returns actions ``(*batch, F)`` with each factor at each of its values, ``(*batch, num_values, F)``."""
        own = self._factor_of[:, None] == torch.arange(self.num_factors, device=action.device)
        return torch.where(own, self._value_of[:, None], action[..., None, :])


class _OverFactors(TorchDistribution):
    """What distributions over vectors of integers have in common."""

    has_enumerate_support = True
    factors: Factors
    _validate_args: bool

    def _begin(self, batch_shape: torch.Size, validate_args: bool | None) -> None:
        """Says the shapes; log probabilities, which may be infinite, are not to be looked at."""
        validates = self._validate_args if validate_args is None else validate_args
        super().__init__(batch_shape, torch.Size([self.factors.num_factors]), validate_args=False)
        self._validate_args = validates

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Integers from 0, less than the factor's size."""
        return constraints.independent(constraints.integer_interval(0, self.factors.limits - 1), 1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each factor has."""
        return self.factors.sizes

    @property
    @abstractmethod
    def joint_logits(self) -> Tensor:
        """Log probabilities of all joint actions, ``(*batch, num_joint)``, nats."""

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Returns all joint actions, ``(num_joint, *batch, F)``; batch dimensions are 1 unless expanded."""
        if self.factors.actions is None:
            raise NotImplementedError(f"{self.factors.num_joint} joint actions are too many to enumerate")
        values = self.factors.actions.reshape(-1, *(1 for _ in self.batch_shape), self.factors.num_factors)
        return values.expand(-1, *self.batch_shape, -1) if expand else values


class FactoredCategorical(_OverFactors):
    """A product of categoricals, one for each factor of an action.

    Args:
        logits: ``(*batch, sum(sizes))``, of each factor's values, factor after factor; unnormalised.
        sizes: how many values each factor has.

    Attributes:
        log_factors: log probabilities by factor, ``(*batch, F, max(sizes))``, nats; ``-inf`` where a factor has fewer.

    Example:
        >>> product = FactoredCategorical(torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]), (3, 2))
        >>> product.log_prob(torch.tensor([2, 1])).exp() == product.log_factors[0, 2].exp() * 0.5
        tensor(True)
        >>> product.deterministic
        tensor([2, 0])
    """

    arg_constraints: ClassVar[Any] = {"log_factors": constraints.independent(constraints.real, 2)}

    def __init__(self, logits: Tensor, sizes: Sequence[int] | Factors, *, validate_args: bool | None = None) -> None:
        self.factors = sizes if isinstance(sizes, Factors) else Factors(sizes).to(logits.device)
        if logits.shape[-1:] != (self.factors.num_values,):
            raise ValueError(
                f"logits must have {self.factors.num_values} numbers, as many as all factors {self.factors.sizes} have "
                f"values, got shape {tuple(logits.shape)}"
            )
        self.log_factors = self.factors.by_factor(logits, -torch.inf).log_softmax(-1)
        self._begin(logits.shape[:-1], validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FactoredCategorical:
        row = self.factors.in_row(self.log_factors)
        return type(self)(row.expand(*batch_shape, row.shape[-1]), self.factors, validate_args=self._validate_args)

    @property
    def probs(self) -> Tensor:
        """Probabilities by factor, ``(*batch, F, max(sizes))``."""
        return self.log_factors.exp()

    @property
    def joint_logits(self) -> Tensor:
        return self.factors.together(self.log_factors)

    @property
    def deterministic(self) -> Tensor:
        """The likeliest action, ``(*batch, F)``."""
        return self.log_factors.argmax(-1)

    @property
    def mean(self) -> Tensor:
        """Of each factor's value, ``(*batch, F)``."""
        values = torch.arange(self.factors.most, device=self.log_factors.device).to(self.log_factors.dtype)
        return (self.probs * values).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return drawn_from_logits(self.log_factors.expand(*sample_shape, *self.log_factors.shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        logs = self.log_factors.expand(*shape, *self.log_factors.shape[-2:])
        return self.factors.taken(logs, value.long().expand(*shape, value.shape[-1])).sum(-1)

    def factor_entropies(self) -> Tensor:
        """Returns the entropy of each factor, ``(*batch, F)``, nats."""
        return -expected(self.log_factors, self.log_factors)

    def entropy(self) -> Tensor:
        """Returns the sum of the factors' entropies, ``(*batch,)``, nats."""
        return self.factor_entropies().sum(-1)


class JointCategorical(_OverFactors):
    """Any distribution over the joint actions of few factors, by a table.

    Args:
        joint_logits: ``(*batch, prod(sizes))``, unnormalised.
        sizes: how many values each factor has.

    Raises:
        ValueError: if joint actions are more than :data:`JOINT_ACTIONS`, or another number of them is given.

    Example:
        >>> joint = JointCategorical(torch.tensor([0.5, 0.0, 0.0, 0.5]).log(), (2, 2))
        >>> joint.log_prob(torch.tensor([[0, 0], [0, 1]])).exp(), joint.entropy()
        (tensor([0.5000, 0.0000]), tensor(0.6931))
    """

    arg_constraints: ClassVar[Any] = {"_log_table": constraints.independent(constraints.real, 1)}

    def __init__(
        self, joint_logits: Tensor, sizes: Sequence[int] | Factors, *, validate_args: bool | None = None
    ) -> None:
        self.factors = sizes if isinstance(sizes, Factors) else Factors(sizes).to(joint_logits.device)
        if not self.factors.is_small or joint_logits.shape[-1:] != (self.factors.num_joint,):
            raise ValueError(
                f"joint_logits must have a number for each of the {self.factors.num_joint} joint actions of "
                f"{self.factors.sizes}, at most {JOINT_ACTIONS}, got shape {tuple(joint_logits.shape)}"
            )
        self._log_table = joint_logits.log_softmax(-1)
        self._begin(joint_logits.shape[:-1], validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> JointCategorical:
        table = self._log_table.expand(*batch_shape, self._log_table.shape[-1])
        return type(self)(table, self.factors, validate_args=self._validate_args)

    @property
    def joint_logits(self) -> Tensor:
        return self._log_table

    @property
    def deterministic(self) -> Tensor:
        """The likeliest action, ``(*batch, F)``."""
        return self.factors.action(self._log_table.argmax(-1))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.factors.action(drawn_from_logits(self._log_table.expand(*sample_shape, *self._log_table.shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        index = self.factors.index(value.long())
        shape = torch.broadcast_shapes(index.shape, self.batch_shape)
        return self._log_table.expand(*shape, -1).gather(-1, index.expand(shape)[..., None]).squeeze(-1)

    def entropy(self) -> Tensor:
        """Returns ``(*batch,)``, nats."""
        return -expected(self._log_table, self._log_table)


def expected(log_probability: Tensor, value: Tensor) -> Tensor:
    """Returns ``Σ_a p(a) f(a)`` over the last dimension, where what has no probability counts nothing."""
    possible = log_probability > -torch.inf
    return (log_probability.exp() * torch.where(possible, value, 0.0)).sum(-1)
