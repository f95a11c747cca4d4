"""Batches of trajectories, and their weights."""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

__all__ = ["Trajectories", "discounts"]


def discounts(discount: float | Tensor, horizon: int, like: Tensor) -> Tensor:
    """Returns ``γ^t`` for ``t = 0 … horizon - 1``, shape ``(horizon,)``, on the device of ``like``."""
    if not like.is_floating_point():
        like = like.to(torch.get_default_dtype())
    gamma = torch.as_tensor(discount, dtype=like.dtype, device=like.device)
    return gamma ** torch.arange(horizon, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Trajectories:
    """A batch of ``N`` trajectories of ``T`` steps, time first.

    Attributes:
        states: ``(T+1, N, *state)``; an ended trajectory stays in its last state. A program that
            names no state after its last action has ``(T, N, *state)``.
        actions: ``(T, N, *action)``.
        rewards: ``(T, N)``, in reward units; 0 once the trajectory has ended.
        mask: ``(T, N)`` bool, true while the trajectory is alive.
        log_prior: ``(T, N)``, ``log p(a_t|s_t)`` in nats; 0 once the trajectory has ended.
        log_policy: ``(T, N)``, ``log π(a_t|s_t)`` in nats, likewise.
        log_factors: ``(T, N)`` in nats, the optimality factors ``r_t/α`` and whatever else the
            program observes at that step.
        temperature: α, in reward units per nat.
        discount: γ; the terms of step ``t`` count ``γ^t`` times. It is 1 where survival was
            sampled: then ``mask`` holds the coins.
        latents: whatever else the program drew once per trajectory (a hidden goal), ``(N, ...)``.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    mask: Tensor
    log_prior: Tensor
    log_policy: Tensor
    log_factors: Tensor
    temperature: float | Tensor = 1.0
    discount: float | Tensor = 1.0
    latents: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.rewards.shape
        for name in ("mask", "log_prior", "log_policy", "log_factors"):
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"Trajectories: {name} must have the shape of rewards, {tuple(shape)} (time, "
                    f"trajectory), got {tuple(getattr(self, name).shape)}"
                )
        if self.actions.shape[:2] != shape:
            raise ValueError(
                f"Trajectories: actions must begin with (time, trajectory) = {tuple(shape)}, got "
                f"{tuple(self.actions.shape)}"
            )

    @property
    def horizon(self) -> int:
        """The number of steps, ``T``."""
        return self.rewards.shape[0]

    @property
    def num_trajectories(self) -> int:
        """The number of trajectories, ``N``."""
        return self.rewards.shape[1]

    @cached_property
    def scales(self) -> Tensor:
        """``γ^t``, shape ``(T, 1)``."""
        return discounts(self.discount, self.horizon, self.rewards)[:, None]

    def terms(self) -> Tensor:
        """Returns each step's term of the ELBO, ``γ^t (r_t/α + log p - log π)``, ``(T, N)`` in nats."""
        return self.scales * (self.log_factors + self.log_prior - self.log_policy)

    def log_weight(self) -> Tensor:
        """Returns each trajectory's log weight, ``(N,)`` in nats.

        It is ``log p(τ, O) - log q(τ)``: the program's density against the guide's, in which the
        dynamics cancel. Its mean estimates the ELBO; the mean of its exponential the evidence
        (with γ < 1 under survival only).
        """
        return self.terms().sum(0)

    def returns(self, *, discounted: bool = False) -> Tensor:
        """Returns ``Σ_t r_t`` or ``Σ_t γ^t r_t``, ``(N,)`` in reward units."""
        return ((self.scales if discounted else 1.0) * self.rewards).sum(0)

    def lengths(self) -> Tensor:
        """Returns the number of steps before each trajectory ended, ``(N,)``."""
        return self.mask.sum(0)

    def select(self, index: Tensor) -> "Trajectories":
        """Returns the trajectories at ``index`` (a mask or integers over ``N``)."""
        changes: dict[str, Any] = {
            f.name: getattr(self, f.name)[:, index]
            for f in fields(self)
            if f.name not in ("temperature", "discount", "latents")
        }
        changes["latents"] = {name: value[index] for name, value in self.latents.items()}
        return replace(self, **changes)

    @staticmethod
    def joined(parts: "list[Trajectories]") -> "Trajectories":
        """Returns the trajectories of several batches, of one horizon, as one batch."""
        changes: dict[str, Any] = {
            f.name: torch.cat([getattr(part, f.name) for part in parts], 1)
            for f in fields(Trajectories)
            if f.name not in ("temperature", "discount", "latents")
        }
        names = parts[0].latents
        return replace(parts[0], **changes, latents={n: torch.cat([part.latents[n] for part in parts]) for n in names})

    def padded(self, horizon: int) -> "Trajectories":
        """Returns the trajectories filled up to ``horizon`` steps: masked out, staying in their last state."""
        missing = horizon - self.horizon
        if missing <= 0:
            return self
        changes: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("temperature", "discount", "latents"):
                continue
            last = value[-1:] if f.name in ("states", "actions") else torch.zeros_like(value[-1:])
            changes[f.name] = torch.cat([value, last.expand(missing, *last.shape[1:])])
        return replace(self, **changes)

    def to(self, *args: Any, **kwargs: Any) -> "Trajectories":
        """Returns the trajectories with every tensor moved as :meth:`torch.Tensor.to` does to a device."""
        moved = {
            f.name: value.to(*args, **kwargs)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved, latents={k: v.to(*args, **kwargs) for k, v in self.latents.items()})

    def sites(self) -> dict[str, Tensor]:
        """Returns the draws by site name, for :func:`pyro.poutine.condition` or ``replay``.

        The names are those of a process's own program: ``state_t`` and ``action_t``.
        """
        named = {f"state_{t}": state for t, state in enumerate(self.states)}
        named.update({f"action_{t}": action for t, action in enumerate(self.actions)})
        return {**named, **self.latents}
