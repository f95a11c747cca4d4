"""Policies whose actions are normal around a linear function of the state."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_positive
from rl_as_inference.processes.linear_gaussian import linear_gaussian_rule

__all__ = ["LinearGaussianPolicy"]


class LinearGaussianPolicy(nn.Module):
    """The policy ``π_t(a|s) = N(K_t s + k_t, L_t L_t')``, with a rule for each step or one for all.

    With a rule for each step the family contains the exact causal optimum of every
    :class:`~rl_as_inference.processes.LinearGaussianMDP`, so that training can close the policy gap
    to 0. It starts with ``K = 0``, ``k = 0`` and ``L = initial_scale I``; the diagonal of ``L`` is
    learned by its logarithm, so that the covariance stays positive definite.

    Args:
        state_size: ``ds``.
        action_size: ``da``.
        horizon: ``T`` for a rule for each step; None for a stationary policy, which ignores ``t``.
        initial_scale: the actions' standard deviation before training, > 0.
        device, dtype: of the parameters.

    Raises:
        ValueError: if a size is not an integer ≥ 1 or ``initial_scale`` is not positive.

    Example:
        >>> policy = LinearGaussianPolicy(state_size=4, action_size=2, horizon=10)
        >>> policy(torch.zeros(7, 4), 3)
        MultivariateNormal(loc: torch.Size([7, 2]), scale_tril: torch.Size([7, 2, 2]))
    """

    batch_steps = True
    """One call may ask for many steps: ``t`` may be integers broadcastable to the state's batch."""

    @checked
    def __init__(
        self,
        state_size: int,
        action_size: int,
        horizon: int | None = None,
        initial_scale: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"state_size": state_size, "action_size": action_size}
        if horizon is not None:
            sizes["horizon"] = horizon
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {size!r}")
        check_positive("initial_scale", initial_scale)
        self.horizon = horizon
        steps = 1 if horizon is None else horizon
        options: Any = {"device": device, "dtype": dtype}
        self.gain = nn.Parameter(torch.zeros(steps, action_size, state_size, **options))
        self.offset = nn.Parameter(torch.zeros(steps, action_size, **options))
        self.log_diagonal = nn.Parameter(torch.full((steps, action_size), math.log(initial_scale), **options))
        self.below_diagonal = nn.Parameter(torch.zeros(steps, action_size, action_size, **options))

    @property
    def scale_tril(self) -> Tensor:
        """The lower Cholesky factors ``L`` of the covariances, ``(T, da, da)``; ``T = 1`` if stationary."""
        return torch.diag_embed(self.log_diagonal.exp()) + self.below_diagonal.tril(-1)

    def forward(self, state: Tensor, t: int | Tensor) -> Any:
        """Returns the distribution over actions, of the batch shape of ``state``, ``(*batch, ds)``.

        Raises:
            ValueError: if ``t`` is an integer outside ``0 … horizon - 1``.
        """
        step = 0 if self.horizon is None else t
        return linear_gaussian_rule(state, step, self.gain, self.offset, self.scale_tril)

    def extra_repr(self) -> str:
        _, action_size, state_size = self.gain.shape
        return f"state_size={state_size}, action_size={action_size}, horizon={self.horizon}"
