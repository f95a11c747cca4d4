"""Amortized policies over several discrete actions at once."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from torch import Tensor, nn

from rl_as_inference.arguments import checked
from rl_as_inference.factored import JOINT_ACTIONS, FactoredCategorical, Factors, JointCategorical
from rl_as_inference.state_time_network import Activation, Architecture, StateTimeNetwork

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
        architecture: how layers are put together, ``"plain"``, ``"batch_norm"`` or ``"residual"``.
        joint: add a logit for each joint action, of which there must be few: every distribution is then in the family,
            a :class:`~rl_as_inference.factored.JointCategorical`.

    Raises:
        ValueError: if a size is < 1, or joint actions are too many for ``joint``.

    Example:
        >>> import torch
        >>> policy = FactoredCategoricalPolicy(gymnasium.spaces.Discrete(5), (3, 2), horizon=10)
        >>> chosen = policy(torch.tensor([0, 4]), 3)
        >>> chosen.batch_shape, chosen.event_shape, chosen.entropy().exp()
        (torch.Size([2]), torch.Size([2]), tensor([6., 6.], grad_fn=<ExpBackward0>))
    """

    batch_steps = True

    @checked
    def __init__(
        self,
        state_space: gymnasium.Space[Any],
        sizes: Sequence[int],
        *,
        horizon: int | None = None,
        hidden_sizes: Sequence[int] = (64, 64),
        prior: Callable[[Tensor], Any] | None = None,
        activation: Activation = "tanh",
        architecture: Architecture = "plain",
        joint: bool = False,
    ) -> None:
        super().__init__()
        self.factors, self.joint, self.prior = Factors(sizes), joint, prior
        if joint and not self.factors.is_small:
            raise ValueError(
                f"joint=True needs at most {JOINT_ACTIONS} joint actions, and sizes {self.factors.sizes} have "
                f"{self.factors.num_joint}; leave it out"
            )
        outputs = self.factors.num_values + (self.factors.num_joint if joint else 0)
        self.network = StateTimeNetwork(
            state_space,
            outputs,
            horizon=horizon,
            hidden_sizes=hidden_sizes,
            activation=activation,
            architecture=architecture,
        )

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        factors, logits = self.factors, self.network(state, t)
        prior = None if self.prior is None else self.prior(state)
        by_factor, together = logits[..., : factors.num_values], logits[..., factors.num_values :]
        if isinstance(prior, FactoredCategorical) and not self.joint:
            by_factor = by_factor + factors.in_row(prior.log_factors)
        product = FactoredCategorical(by_factor, factors)
        if not self.joint and (prior is None or isinstance(prior, FactoredCategorical)):
            return product
        table = product.joint_logits
        table = table + together if self.joint else table
        return JointCategorical(table if prior is None else table + prior.joint_logits, factors)
