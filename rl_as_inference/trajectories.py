"""Batches of trajectories, and their weights."""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_as_inference.checks import check_discount, check_temperature, holds
from rl_as_inference.histories import Histories, History

__all__ = ["Decision", "Genealogy", "Rows", "Trajectories", "Transition", "discounts"]


def discounts(discount: float | Tensor, horizon: int, like: Tensor) -> Tensor:
    """Returns ``γ^t`` for ``t = 0 … horizon - 1``, shape ``(horizon,)``, on the device of ``like``."""
    if not like.is_floating_point():
        like = like.to(torch.get_default_dtype())
    gamma = torch.as_tensor(discount, dtype=like.dtype, device=like.device)
    return gamma ** torch.arange(horizon, dtype=like.dtype, device=like.device)


_TENSORS = ("states", "actions", "rewards", "mask", "log_prior", "log_policy", "log_factors")


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
        observations: what the agent saw where the state is hidden, ``(T+1, N, *observation)``; ``(T, N,
            *observation)`` where nothing is seen before the first action, or after the last; None where it sees
            the state.
        observed_first: whether the first of them was seen before the first action.
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
    observations: Tensor | None = None
    observed_first: bool = True

    def __post_init__(self) -> None:
        for name in _TENSORS:
            if not isinstance(value := getattr(self, name), Tensor):
                raise ValueError(f"Trajectories: {name} must be a tensor, got {value!r:.80}")
        if self.observations is not None and not isinstance(self.observations, Tensor):
            raise ValueError(f"Trajectories: observations must be a tensor or None, got {self.observations!r:.80}")
        if not isinstance(self.latents, dict):
            raise ValueError(f"Trajectories: latents must be a dictionary of tensors, got {self.latents!r:.80}")
        if not isinstance(self.observed_first, bool):
            raise ValueError(f"Trajectories: observed_first must be True or False, got {self.observed_first!r:.80}")
        # Tensors were looked at where they came from: on a GPU a look is a wait.
        if not isinstance(self.temperature, Tensor) or self.temperature.dim() > 0 or self.temperature.is_complex():
            check_temperature(self.temperature)
        if not isinstance(self.discount, Tensor) or self.discount.dim() > 0 or self.discount.is_complex():
            check_discount(self.discount)
        shape = self.rewards.shape
        for name in ("mask", "log_prior", "log_policy", "log_factors"):
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"Trajectories: {name} must have the shape of rewards, {tuple(shape)} (time, "
                    f"trajectory), got {tuple(getattr(self, name).shape)}"
                )
        if self.states.dim() < 2 or self.states.shape[1:2] != shape[1:] or len(self.states) - shape[0] not in (0, 1):
            raise ValueError(
                f"Trajectories: states must begin with (time + 1, trajectory) = ({shape[0] + 1}, {shape[1]}), or with "
                f"time alone where a program names no last state, got {tuple(self.states.shape)}"
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
        terms = self.log_factors + self.log_prior - self.log_policy
        return terms if not isinstance(self.discount, Tensor) and self.discount == 1 else self.scales * terms

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

    def history(self) -> History:
        """Returns what was observed and done in all steps.

        Raises:
            ValueError: if there are no observations.
        """
        if self.observations is None:
            raise ValueError("Trajectories without observations have no history: their agent sees the state")
        before = self.observations[: self.horizon] if self.observed_first else self.observations[: self.horizon - 1]
        after = self.observations[len(before) :]
        return History(before, self.actions[:-1]).then(self.actions[-1], after[0] if len(after) else None)

    def views(self) -> Any:
        """Returns what the policy saw before each action: states ``(T, N, *state)``, or histories where hidden."""
        return self.states[: self.horizon] if self.observations is None else Histories(self.history())

    def select(self, index: Tensor) -> "Trajectories":
        """Returns the trajectories at ``index`` (a mask or integers over ``N``)."""
        changes: dict[str, Any] = {name: value[:, index] for name, value in self._over_time().items()}
        changes["latents"] = {name: value[index] for name, value in self.latents.items()}
        return replace(self, **changes)

    @staticmethod
    def joined(parts: "list[Trajectories]") -> "Trajectories":
        """Returns the trajectories of several batches, of one horizon, as one batch."""
        changes: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts], 1) for name in parts[0]._over_time()
        }
        names = parts[0].latents
        return replace(parts[0], **changes, latents={n: torch.cat([part.latents[n] for part in parts]) for n in names})

    def padded(self, horizon: int) -> "Trajectories":
        """Returns the trajectories filled up to ``horizon`` steps: masked out, staying in their last state."""
        missing = horizon - self.horizon
        if missing <= 0:
            return self
        changes: dict[str, Any] = {}
        for name, value in self._over_time().items():
            last = value[-1:] if name in ("states", "actions", "observations") else torch.zeros_like(value[-1:])
            changes[name] = torch.cat([value, last.expand(missing, *last.shape[1:])])
        return replace(self, **changes)

    def _over_time(self) -> dict[str, Tensor]:
        """Returns what is time first, by name."""
        apart = ("temperature", "discount", "latents", "observed_first")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}
        return {name: value for name, value in values.items() if value is not None}

    def with_latent(self, name: str, value: Tensor, states: Tensor) -> "Trajectories":
        """Returns the trajectories with other states, and what was drawn once for each, ``(N, ...)``, as a latent."""
        return replace(self, states=states, latents={**self.latents, name: value})

    def to(self, *args: Any, **kwargs: Any) -> "Trajectories":
        """Returns the trajectories with every tensor moved as :meth:`torch.Tensor.to` does to a device."""
        moved: dict[str, Any] = {
            f.name: value.to(*args, **kwargs)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved, latents={k: v.to(*args, **kwargs) for k, v in self.latents.items()})

    def sites(self) -> dict[str, Tensor]:
        """Returns the draws by site name, for :func:`pyro.poutine.condition` or ``replay``.

        The names are those of a process's own program: ``state_t``, ``action_t`` and ``observation_t``.
        """
        named = {f"state_{t}": state for t, state in enumerate(self.states)}
        named.update({f"action_{t}": action for t, action in enumerate(self.actions)})
        if self.observations is not None:
            first = 0 if self.observed_first else 1
            named.update({f"observation_{t}": seen for t, seen in enumerate(self.observations, first)})
        return {**named, **self.latents}


class Decision(NamedTuple):
    """What a policy did in every state of a batch."""

    action: Tensor
    """``(N, *action)``."""
    log_prior: Tensor
    """``log p(a|s)``, ``(N,)`` in nats."""
    log_policy: Tensor
    """``log π(a|s)``, ``(N,)`` in nats."""


class Transition(NamedTuple):
    """What one step of every trajectory gave."""

    next_state: Tensor
    """``(N, *state)``."""
    reward: Tensor
    """``(N,)`` in reward units; 0 where the trajectory had ended."""
    alive: Tensor | None
    """Which trajectories took the step, bool ``(N,)``; None for all."""


class Genealogy:
    """Who descends from whom in a filter: of each step the ancestors, kept only where particles were resampled.

    Whole trajectories are made of it once, at the end, and only those that are wanted (Jacob, Murray & Rubenthaler
    2015, arXiv:1307.3180, keep their paths so).
    """

    def __init__(self, wanted: Tensor, ancestors: list[Tensor | None]) -> None:
        self.wanted, self.ancestors = wanted, ancestors

    def gathered(self, rows: "list[Tensor] | Block") -> Tensor:
        """Returns the rows of the wanted particles' ancestors, ``(T, K, …)``."""
        line, found = self.wanted, rows[0].new_empty(len(rows), len(self.wanted), *rows[0].shape[1:])
        for t in reversed(range(len(rows))):
            if (ancestors := self.ancestors[t]) is not None:
                line = ancestors[line].long()
            torch.index_select(rows[t], 0, line, out=found[t])
        return found


class Block:
    """Rows in one tensor, of a walk whose length is known and that nobody differentiates.

    Many rows of a megabyte each would leave the heap in pieces that are not given back.
    """

    def __init__(self, length: int) -> None:
        self._length, self._count = length, 0
        self._rows: Tensor | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        assert self._rows is not None
        return self._rows[: self._count][index]

    def append(self, row: Tensor) -> None:
        """Writes the next row."""
        if self._rows is None:
            self._rows = row.new_empty(self._length, *row.shape)
        self._rows[self._count] = row
        self._count += 1

    def clear(self) -> None:
        """Lets go of all."""
        self._rows, self._count = None, 0


class Rows:
    """The rows of trajectories that are walked step by step, each of ``N`` trajectories.

    Args:
        horizon: the number of steps, of walks that resample and so have a :class:`Genealogy`; their rows stand in one
            block.
    """

    def __init__(self, horizon: int | None = None) -> None:
        def column() -> Any:
            return [] if horizon is None else Block(horizon)

        self.states, self.actions, self.rewards = column(), column(), column()
        self.mask, self.log_prior, self.log_policy = column(), column(), column()

    def add(self, state: Tensor, action: Tensor, reward: Tensor, alive: Tensor | None, *logs: Tensor) -> None:
        """Adds a step: where it began, what was done, what it earned, who took it (None for all).

        Then ``log p`` and ``log π`` of the action, in nats; without them they are set before the end.
        """
        self.states.append(state)
        self.actions.append(action)
        self.rewards.append(reward)
        self.mask.append(torch.ones_like(reward, dtype=torch.bool) if alive is None else alive)
        for column, log in zip((self.log_prior, self.log_policy), logs, strict=False):
            column.append(log)

    def log_ratio(self) -> Tensor:
        """Returns ``log p - log π`` of the latest step, ``(N,)`` in nats; 0 where nobody took it."""
        return torch.where(self.mask[-1], self.log_prior[-1] - self.log_policy[-1], 0.0)

    def trajectories(
        self,
        final_state: Tensor,
        temperature: float | Tensor,
        discount: float | Tensor,
        lines: "Genealogy | None" = None,
        seen: Any = None,
    ) -> Trajectories:
        """Returns the trajectories; the rows are let go of on the way, column by column.

        Args:
            final_state: after the last step, ``(N, *state)``, in the order of the answer.
            temperature, discount: of the process; a discount of 1 where survival was drawn.
            lines: who descends from whom, where rows were resampled; None for all, in order.
            seen: what a policy may look at after the last step; a :class:`History` where the state is hidden.

        Raises:
            ValueError: if a log probability of the policy is NaN while its trajectory is alive; the step is named.
        """

        def column(rows: list[Tensor]) -> Tensor:
            found = torch.stack(rows) if lines is None else lines.gathered(rows)
            rows.clear()
            return found

        mask, rewards = column(self.mask), column(self.rewards)
        log_prior, log_policy = column(self.log_prior), torch.where(mask, column(self.log_policy), 0.0)
        if not holds(~(bad := log_policy.detach().isnan())):
            step = int(bad.any(1).int().argmax())
            raise ValueError(f"policy gives NaN as a log probability at step {step}; check its parameters")
        return Trajectories(
            states=torch.cat([column(self.states), final_state[None]]),
            actions=column(self.actions),
            rewards=rewards,
            mask=mask,
            log_prior=torch.where(mask, log_prior, 0.0),
            log_policy=log_policy,
            log_factors=rewards / temperature,
            temperature=temperature,
            discount=discount,
            observations=seen.observations if isinstance(seen, History) else None,
            observed_first=not isinstance(seen, History) or seen.observed_first,
        )
