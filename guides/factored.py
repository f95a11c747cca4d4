"""Amortized policies over several discrete actions at once."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from torch import Tensor, nn

from rl_as_inference.factored import FactoredCategorical, Factors, JointCategorical
from rl_as_inference.state_time_network import Activation, StateTimeNetwork

__all__ = ["FactoredCategoricalPolicy"]


class FactoredCategoricalPolicy(nn.Module):
    """A network from state and time to a categorical for each factor of an action, independent given the state.

    ``π(a|s, t) ∝ p(a|s) Π_f exp(f(s, t)_{f, a_f})``: it starts at the action prior and never leaves its support. Its
    distribution is a :class:`~rl_as_inference.factored.FactoredCategorical`, whose logits are as many as all factors
    have values together, and not as many as there are joint actions. Under a prior that is itself no product (a mask
    of pairs), it is a :class:`~rl_as_inference.factored.JointCategorical`: the product, within that prior.

    A product of independent factors is a mean-field family. Where the best actions of factors hang together it can
    not hold the optimum (a softmax of a joint soft Q), and what is missing is part of the policy gap.

    Args:
        state_space: what it sees.
        sizes: how many values each factor has: ``nvec`` of a MultiDiscrete space, twos for a MultiBinary one.
        horizon: the number of steps; None for a stationary policy.
        hidden_sizes: widths of the hidden layers.
        prior: the action prior, ``state -> FactoredCategorical`` or ``JointCategorical``; uniform by default.
        activation: of the hidden layers, ``"tanh"`` or ``"relu"``.

    Example:
        >>> import torch
        >>> policy = FactoredCategoricalPolicy(gymnasium.spaces.Discrete(5), (3, 2), horizon=10)
        >>> chosen = policy(torch.tensor([0, 4]), 3)
        >>> chosen.batch_shape, chosen.event_shape, chosen.entropy().exp()
        (torch.Size([2]), torch.Size([2]), tensor([6., 6.], grad_fn=<ExpBackward0>))
    """

    batch_steps = True

    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        sizes: Sequence[int],
        *,
        horizon: int | None = None,
        hidden_sizes: Sequence[int] = (64, 64),
        prior: Callable[[Tensor], Any] | None = None,
        activation: Activation = "tanh",
    ) -> None:
        super().__init__()
        self.factors = Factors(sizes)
        self.network = StateTimeNetwork(
            state_space, self.factors.num_values, horizon=horizon, hidden_sizes=hidden_sizes, activation=activation
        )
        self.prior = prior

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        logits = self.network(state, t)
        if self.prior is None:
            return FactoredCategorical(logits, self.factors)
        prior = self.prior(state)
        if isinstance(prior, FactoredCategorical):
            return FactoredCategorical(logits + self.factors.in_row(prior.log_factors), self.factors)
        product = FactoredCategorical(logits, self.factors)
        return JointCategorical(product.joint_logits + prior.joint_logits, self.factors)
