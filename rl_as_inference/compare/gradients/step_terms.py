"""Trajectories as the rows of a gradient comparison take them."""

from dataclasses import dataclass

from torch import Tensor

from rl_as_inference.trajectories import Trajectories

__all__ = ["Draws"]


@dataclass(frozen=True)
class Draws:
    """``N`` trajectories in nats, time first; without gradient but for ``log_policy``."""

    states: Tensor
    """``(T, N, *state)``."""
    actions: Tensor
    """``(T, N, *action)``."""
    weights: Tensor
    """``γ^t`` where the trajectory is alive, 0 elsewhere, ``(T, N)``."""
    alive: Tensor
    """``(T, N)`` bool."""
    rewards: Tensor
    """``γ^t r_t/α``, ``(T, N)``."""
    log_ratio: Tensor
    """``γ^t (log p - log π)``, ``(T, N)``."""
    log_policy: Tensor
    """``log π(a_t|s_t)``, unscaled, differentiable in the policy, ``(T, N)``."""

    @classmethod
    def of(cls, found: Trajectories, log_policy: Tensor) -> "Draws":
        """Returns the draws of a rollout, with its log policy as the rows differentiate it."""
        return cls(
            states=found.states[:-1],
            actions=found.actions,
            weights=found.scales * found.mask,
            alive=found.mask,
            rewards=found.scales * found.log_factors,
            log_ratio=found.scales * (found.log_prior - found.log_policy),
            log_policy=log_policy,
        )

    @property
    def terms(self) -> Tensor:
        """The ELBO's terms, ``(T, N)``."""
        return self.rewards + self.log_ratio
