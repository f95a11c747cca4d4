"""Transitions seen: read in any form, checked against a process, and their likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from rl_as_inference.processes import MarkovDecisionProcess, TabularMDP
from rl_as_inference.processes.kernels import DenseKernel, check_distribution
from rl_as_inference.processes.log_sums import log_or_minus_inf
from rl_as_inference.processes.reward_shapes import checked_reward
from rl_as_inference.program.recording import log_prob_of
from rl_as_inference.trajectories import Trajectories

__all__ = ["Cells", "ReplayLike", "Transitions", "checked_noise", "read_transitions"]


@runtime_checkable
class ReplayLike(Protocol):
    """Transitions of no order, such as a learner's replay."""

    state: Any
    action: Any
    reward: Any
    next_state: Any


@dataclass(frozen=True)
class Cells:
    """Distinct transitions, and how often each trajectory has them; of real numbers, every transition by itself."""

    state: Tensor
    action: Tensor
    next_state: Tensor
    which: Tensor
    """The cell of each transition."""
    reward: Tensor | None = None
    """The distinct rewards of cells, float64 in reward units; None where rewards were not seen."""
    rewarded: Tensor | None = None
    """The cell of each of these."""
    paid: Tensor | None = None
    """Which of these each transition has."""


@dataclass(frozen=True)
class Transitions:
    """Transitions, time first.

    Attributes:
        states: ``(T+1, N, *state)``.
        actions: ``(T, N, *action)``.
        mask: ``(T, N)`` bool: which steps were seen, with the state that they led to.
        rewards: ``(T, N)`` in reward units; None where they were not seen.
        reward_noise: the standard deviation of the Gaussian noise that rewards are seen with.
    """

    states: Tensor
    actions: Tensor
    mask: Tensor
    rewards: Tensor | None = None
    reward_noise: float = 0.0

    noun: ClassVar[str] = "trajectories"
    advice: ClassVar[str] = "give other trajectories or fix the unknown"

    @property
    def num(self) -> int:
        """The number of trajectories."""
        return self.mask.shape[1]

    @cached_property
    def place(self) -> tuple[Tensor, Tensor]:
        """The step and the trajectory of each of the ``M`` transitions."""
        t, n = self.mask.nonzero(as_tuple=True)
        return t, n

    @cached_property
    def flat(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """States, actions, rewards and next states of all transitions, ``(M, ...)``."""
        t, n = self.place
        rewards = None if self.rewards is None else self.rewards[t, n]
        return self.states[t, n], self.actions[t, n], rewards, self.states[t + 1, n]

    @property
    def observed(self) -> dict[str, Tensor]:
        """What was seen, by name."""
        seen = {"state": self.states, "action": self.actions}
        return seen if self.rewards is None else {**seen, "reward": self.rewards}

    def name(self, transition: int) -> str:
        """Returns what messages call one of the transitions."""
        t, n = self.place
        return f"step {int(t[transition])} of trajectory {int(n[transition])}"

    def to(self, device: torch.device) -> Self:
        """Returns the transitions on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("states", "actions", "mask")}
        return replace(self, **moved, rewards=None if self.rewards is None else self.rewards.to(device))

    def within(self, process: MarkovDecisionProcess) -> Self:
        """Returns the transitions: they tell of the dynamics whatever the horizon is."""
        return self

    @cached_property
    def cells(self) -> Cells:
        """The distinct transitions."""
        state, action, reward, after = self.flat
        if state.is_floating_point() or action.is_floating_point() or state.dim() > 1 or action.dim() > 1:
            every = torch.arange(len(state), device=state.device)
            cells = Cells(state, action, after, every)
        else:
            (state, action, after), which, _ = _distinct(state, action, after)
            cells = Cells(state, action, after, which)
        if reward is None:
            return cells
        values, back = reward.double().unique(return_inverse=True)
        (rewarded, value), paid, _ = _distinct(cells.which, back)
        return replace(cells, reward=values[value], rewarded=rewarded, paid=paid)

    @cached_property
    def _links(self) -> tuple[Tensor, Tensor, Tensor]:
        """Which trajectory has which entry of :meth:`log_probabilities`, and how often, ``(L,)`` each."""
        cells, (_, n) = self.cells, self.place
        entries, owners = [cells.which], [n]
        if cells.paid is not None:
            entries.append(cells.paid + len(cells.state))
            owners.append(n)
        (owner, entry), _, counts = _distinct(torch.cat(owners), torch.cat(entries))
        return owner, entry, counts.double()

    @cached_property
    def tally(self) -> Tensor:
        """How often each entry of :meth:`log_probabilities` was seen, ``(M,)`` float64."""
        _, entry, count = self._links
        cells = self.cells
        size = len(cells.state) + (0 if cells.reward is None else len(cells.reward))
        return torch.zeros(size, dtype=torch.float64, device=count.device).index_add(0, entry, count)

    def by_one(self, logs: Tensor) -> Tensor:
        """Returns the sums over each trajectory's entries ``(*batch, N)``, of logarithms ``(*batch, M)``."""
        owner, entry, count = self._links
        return logs.new_zeros(*logs.shape[:-1], self.num).index_add(-1, owner, logs[..., entry] * count)

    def check(self, process: MarkovDecisionProcess) -> None:
        """Raises ValueError where the transitions are not of ``process``."""
        state, action, _, after = self.flat
        for what, values, space in (
            ("state", state, process.state_space),
            ("action", action, process.action_space),
            ("next state", after, process.state_space),
        ):
            shape = tuple(space.shape or ())
            if isinstance(space, Discrete):
                if values.is_floating_point() or values.dim() != 1:
                    raise ValueError(
                        f"{self.noun}: the family's process has {what}s in {space}, so they must be one integer a "
                        f"step, got {values.dtype} of shape {tuple(values.shape[1:])} a step"
                    )
                wrong = (values < 0) | (values >= int(space.n))
                if bool(wrong.any()):
                    i = int(wrong.nonzero()[0])
                    raise ValueError(
                        f"{self.noun}: {what} {int(values[i])} at {self.name(i)} is outside 0 … {int(space.n) - 1}"
                    )
            elif tuple(values.shape[1:]) != shape or (isinstance(space, Box) and not values.is_floating_point()):
                raise ValueError(
                    f"{self.noun}: {what}s must be floating and of shape (time, trajectory, "
                    f"{', '.join(map(str, shape))}), got {values.dtype} of shape {tuple(values.shape[1:])} a step"
                )

    def log_probabilities(self, process: MarkovDecisionProcess, acting: Any = None) -> Tensor:
        """Returns the log probability of each distinct transition, then of each distinct reward, in nats.

        What is written down of a terminal state counts for nothing.

        Raises:
            ValueError: if the process's transition is no distribution over single states.
        """
        cells = self.cells
        ended = process.has_ended(cells.state)
        state, action = process._own_state(cells.state), process._own_action(cells.action)
        after = process._own_state(cells.next_state)
        if isinstance(process, TabularMDP) and isinstance(process.kernel, DenseKernel):
            logs = log_or_minus_inf(process.kernel.probabilities[state, action, after])
        else:
            moves = check_distribution(
                process.transition(state, action), f"transition(state, action) of {process.name}"
            )
            logs = log_prob_of(moves, after)
            if logs.shape != (len(state),):
                raise ValueError(
                    f"family: the log probability of the process's transition has shape {tuple(logs.shape)} for "
                    f"{len(state)} transitions; declare one state with .to_event(n)"
                )
        logs = logs.double() if ended is None else torch.where(ended, 0.0, logs.double())
        if cells.reward is None or cells.rewarded is None:
            return logs
        expected, rounding = self.expected(process)
        off = cells.reward - expected
        if self.reward_noise > 0:
            scaled = (off / self.reward_noise) ** 2
            told = -scaled / 2 - math.log(self.reward_noise * math.sqrt(2 * math.pi))
        else:
            told = torch.where(off.abs() <= rounding * (1 + cells.reward.abs()), 0.0, -torch.inf)
        if ended is not None:
            told = torch.where(ended[cells.rewarded], 0.0, told)
        return torch.cat([logs, told])

    def expected(self, process: MarkovDecisionProcess) -> tuple[Tensor, float]:
        """Returns what the process pays for each distinct reward seen, float64 in reward units; and its rounding.

        The rounding is how far a reward seen exactly may be off, relative to it.
        """
        cells = self.cells
        assert cells.rewarded is not None
        assert self.rewards is not None
        own = (process._own_state(cells.state), process._own_action(cells.action), process._own_state(cells.next_state))
        batch = torch.Size((len(cells.state),))
        paid = checked_reward(process.reward(*own), cells.state, batch, 0, type(process).__name__)
        fine = paid.dtype == self.rewards.dtype == torch.float64
        return paid.expand(batch).double()[cells.rewarded], 1e-9 if fine else 1e-5

    def refuted(self, process: MarkovDecisionProcess, acting: Any, logs: Tensor) -> str | None:
        """Returns the first transition that has no probability in a process; None where all have some."""
        if not bool((logs == -torch.inf).any()):
            return None
        return self.improbable(int((logs == -torch.inf).nonzero()[0]))

    def improbable(self, entry: int) -> str:
        """Returns that an entry of :meth:`log_probabilities` has no probability in the family."""
        cells = self.cells
        state, action, reward, after = self.flat
        if entry < len(cells.state):
            i = int((cells.which == entry).nonzero()[0])
            return (
                f"at {self.name(i)}, action {_told(action[i])} in state {_told(state[i])} leads to state "
                f"{_told(after[i])}, which the family gives no probability; widen its support, or mend what was seen"
            )
        assert cells.paid is not None
        assert reward is not None
        i = int((cells.paid == entry - len(cells.state)).nonzero()[0])
        return (
            f"at {self.name(i)}, the reward is {float(reward[i]):g}, in state {_told(state[i])} by action "
            f"{_told(action[i])}, which the family's process does not pay; with reward_noise = 0 rewards are seen "
            f"exactly, so give reward_noise > 0, mend the family's reward, or leave rewards out, (states, actions)"
        )


def _distinct(*columns: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Returns the distinct rows of columns of integers >= 0, which each is, and how often each is there."""
    key = torch.zeros_like(columns[0], dtype=torch.long)  # one number a row: far faster than unique(dim=0)
    for column in columns:
        key = key * (int(column.max()) + 1) + column
    _, which, counts = key.unique(return_inverse=True, return_counts=True)
    first = which.new_full((len(counts),), len(which)).scatter_reduce(
        0, which, torch.arange(len(which), device=which.device), "amin"
    )
    return [column[first] for column in columns], which, counts


def _told(value: Tensor) -> str:
    return f"{value.item():g}" if value.dim() == 0 else str([round(x, 4) for x in value.flatten().tolist()])


def checked_noise(reward_noise: Any) -> float:
    """Returns a standard deviation; raises ValueError unless it is a finite number, and not negative."""
    if isinstance(reward_noise, bool) or not isinstance(reward_noise, Real) or not 0 <= float(reward_noise) < math.inf:
        raise ValueError(f"reward_noise must be a finite number >= 0 (reward units), got {reward_noise!r}")
    return float(reward_noise)


def read_transitions(given: Any, reward_noise: float = 0.0) -> Transitions:
    """Returns trajectories given in any of the forms of :func:`infer_dynamics`, on the host.

    Raises:
        ValueError: if they have none of these forms, there are no transitions in them, or one of them is NaN.
    """
    noise = checked_noise(reward_noise)
    if isinstance(given, Transitions):
        return given
    rewards: Tensor | None
    if isinstance(given, Trajectories):
        if given.observations is not None:
            raise ValueError(
                "trajectories have observations, so that their process hides its state; infer_dynamics takes those of "
                "a process whose states are seen"
            )
        states, actions, rewards = _on_host(given.states), _on_host(given.actions), _on_host(given.rewards)
        mask = given.mask.cpu()
    elif isinstance(given, ReplayLike):
        state, action, reward, after = (
            _on_host(part) for part in (given.state, given.action, given.reward, given.next_state)
        )
        states, actions, rewards = torch.stack([state, after]), action[None], reward[None]
        mask = torch.ones(1, len(state), dtype=torch.bool)
    else:
        states, actions, rewards, mask = _columns(given)
    if len(states) == len(actions):  # where the last action led is not known
        states = torch.cat([states, states[-1:]])
        mask = torch.cat([mask[:-1], torch.zeros_like(mask[-1:])])
    if not bool(mask.any()):
        raise ValueError(
            "trajectories: there are no transitions in them; give one or more steps, and the states that they led to"
        )
    if rewards is not None and not rewards.is_floating_point():
        rewards = rewards.double()
    read = Transitions(states, actions, mask, rewards, noise)
    state, action, seen, after = read.flat
    for what, values in (("state", state), ("action", action), ("next state", after), ("reward", seen)):
        wrong = None if values is None or not values.is_floating_point() else ~values.isfinite().reshape(len(state), -1)
        if values is not None and wrong is not None and bool(wrong.any()):
            at = int(wrong.any(1).nonzero()[0])
            raise ValueError(
                f"trajectories: the {what} at {read.name(at)} is {_told(values[at])}; mend it, or leave "
                f"{'rewards out, (states, actions)' if what == 'reward' else 'the step out'}"
            )
    return read


def _on_host(values: Any) -> Tensor:
    tensor = torch.as_tensor(values).detach().cpu()
    return tensor.long() if tensor.dtype == torch.bool else tensor


def _columns(given: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Returns states, actions, rewards and mask, time first, of tensors or of a list of single trajectories."""
    try:
        if isinstance(given, tuple) and given and not all(isinstance(part, tuple) for part in given):
            parts = [_on_host(part) for part in given]
            if any(part.dim() < 2 for part in parts):
                raise ValueError("a tuple has an axis of trajectories; give one alone in a list, [(states, actions)]")
            each = [tuple(part[:, n] for part in parts) for n in range(parts[1].shape[1])]
            if wrong := [part.shape[1] for part in parts if part.shape[1] != parts[1].shape[1]]:
                raise ValueError(f"states and rewards are of {wrong[0]} trajectories, actions of {parts[1].shape[1]}")
        else:
            each = [tuple(_on_host(part) for part in one) for one in given]
        if sizes := {len(one) for one in each} - {2, 3}:
            raise ValueError(f"got {sizes.pop()} parts of one")
    except (TypeError, ValueError, IndexError) as problem:
        raise ValueError(
            "trajectories must be Trajectories, a tuple of tensors (states, actions) or (states, actions, rewards) "
            "with time first and trajectory second, a list of such tuples with one trajectory each, or a replay with "
            f"state, action, reward and next_state ({problem})"
        ) from None
    if len({len(one) for one in each}) > 1:
        raise ValueError("trajectories: some have rewards and others do not; give them of all, or of none")
    longest = max((len(one[1]) for one in each), default=0)
    if longest == 0:
        raise ValueError("trajectories: there are no transitions in them; give one or more steps")
    columns = []
    for n, (states, actions, *rewards) in enumerate(each):
        if len(states) - len(actions) not in (0, 1) or (rewards and rewards[0].shape != actions.shape[:1]):
            raise ValueError(
                f"trajectories: trajectory {n} has {len(states)} states, {len(actions)} actions and "
                f"{tuple(rewards[0].shape) if rewards else 'no'} rewards; it needs as many states as actions or one "
                f"more, and a reward an action"
            )
        mask = torch.arange(longest) < len(states) - 1
        columns.append([_padded(states, longest + 1), _padded(actions, longest), mask])
        columns[-1] += [_padded(part, longest) for part in rewards]
    try:
        states, actions, mask, *paid = (torch.stack(parts, 1) for parts in zip(*columns, strict=True))
    except RuntimeError as problem:
        raise ValueError(f"trajectories: all must have states and actions of one shape ({problem})") from None
    return states, actions, paid[0] if paid else None, mask


def _padded(values: Tensor, length: int) -> Tensor:
    """Returns values filled up with zeros, which no mask lets count."""
    return torch.cat([values, values.new_zeros(length - len(values), *values.shape[1:])])
