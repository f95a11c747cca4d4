"""Demonstrations of behaviour: read in any form, checked against a process, and their likelihood."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self, TypeAlias

import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.exact.tabular import log_policy_table
from rl_as_inference.nouns import DemonstrationsLike, ExactPolicy
from rl_as_inference.processes import MarkovDecisionProcess, TabularMDP, TabularPOMDP
from rl_as_inference.trajectories import Trajectories

__all__ = ["Acting", "Demonstrations", "read_demonstrations", "was_seen"]

Acting: TypeAlias = ExactPolicy | TabularPOMDP
"""How an agent acts: by a policy, or by the exact plan of its own model of a hidden state."""


@dataclass(frozen=True)
class Demonstrations:
    """Demonstrations, time first.

    Attributes:
        states: ``(T+1, N, *state)``; -1 (integers) or NaN where a state was not seen.
        actions: ``(T, N, *action)``; likewise.
        mask: ``(T, N)`` bool, true while the demonstration lasts.
        observations: what the agent saw, ``(T+1, N, *observation)``, likewise; None where nothing is known of it.
    """

    noun: ClassVar[str] = "demonstrations"
    advice: ClassVar[str] = (
        "give other demonstrations or fix the unknown. Rewards and temperature are known only up to a common factor, "
        "and rewards up to a constant"
    )
    states: Tensor
    actions: Tensor
    mask: Tensor
    observations: Tensor | None = None

    @property
    def num(self) -> int:
        """The number of demonstrations."""
        return self.mask.shape[1]

    @cached_property
    def state_seen(self) -> Tensor:
        """``(T+1, N)`` bool."""
        return was_seen(self.states)

    @cached_property
    def action_seen(self) -> Tensor:
        """``(T, N)`` bool."""
        return was_seen(self.actions) & self.mask

    @cached_property
    def complete(self) -> Tensor:
        """Whether a demonstration can be scored step by step, ``(N,)``: all its states and actions were seen."""
        states = self.state_seen[:-1] | ~self.mask
        return (states & (self.action_seen | ~self.mask)).all(0)

    @cached_property
    def cells(self) -> tuple[Tensor, Tensor]:
        """The distinct ``(t, s, a)`` of complete demonstrations ``(M, 3)``, and how often each has them ``(N, M)``."""
        here = self.mask & self.complete
        t, n = here.nonzero(as_tuple=True)
        rows = torch.stack([t, self.states[t, n], self.actions[t, n]], -1)
        cells, which = torch.unique(rows, dim=0, return_inverse=True)
        options: dict[str, Any] = {"dtype": torch.float64, "device": cells.device}
        counts = torch.zeros(self.num, len(cells), **options)
        counts.index_put_((n, which), torch.ones(len(n), **options), accumulate=True)
        return cells, counts

    def to(self, device: torch.device) -> Self:
        """Returns the demonstrations on a device."""
        return replace(
            self,
            states=self.states.to(device),
            actions=self.actions.to(device),
            mask=self.mask.to(device),
            observations=None if self.observations is None else self.observations.to(device),
        )

    def prepare(self, process: MarkovDecisionProcess, acting: Acting) -> None:
        """Takes note of an agent of the family, before anything is asked of the demonstrations."""

    def width(self, process: MarkovDecisionProcess) -> int | None:
        """Returns how many numbers a step of planning goes through; None where that is the process's to say."""
        return None

    def check(self, process: MarkovDecisionProcess) -> None:
        """Raises ValueError where the demonstrations are not of ``process``."""
        self._check_values(process)
        steps, horizon = len(self.mask), process.horizon
        if horizon is None or steps <= horizon:
            return
        ended = self.ended(process)
        over = ended.cummax(0).values
        wrong = self.mask[horizon:] & (~over[horizon:-1] | (self.state_seen[horizon + 1 :] & ~ended[horizon + 1 :]))
        if bool(wrong.any()):
            raise ValueError(
                f"demonstrations have up to {steps} steps, and the family's process has a horizon of {horizon}; set "
                f"its horizon to {steps} or more, or cut them: past the horizon they may only stay in a terminal state"
            )

    def within(self, process: MarkovDecisionProcess) -> Self:
        """Returns the demonstrations without what follows the horizon of a process that they are of."""
        horizon = process.horizon
        if horizon is None or len(self.mask) <= horizon:
            return self
        return replace(
            self,
            states=self.states[: horizon + 1],
            actions=self.actions[:horizon],
            mask=self.mask[:horizon],
            observations=None if self.observations is None else self.observations[: horizon + 1],
        )

    def ended(self, process: MarkovDecisionProcess) -> Tensor:
        """Returns which states were seen and are terminal, ``(T+1, N)`` bool: no action is taken there."""
        states = torch.where(_as_wide(self.state_seen, self.states), self.states, torch.zeros_like(self.states))
        ended = process.terminated(states)
        return torch.zeros_like(self.state_seen) if ended is None else ended & self.state_seen

    def _check_values(self, process: MarkovDecisionProcess) -> None:
        if isinstance(process, TabularMDP):
            self._check_finite(
                ("state", self.states, self.state_seen, process.num_states),
                ("action", self.actions, self.action_seen, process.num_actions),
            )
        else:
            self._check_continuous(process)

    def _check_finite(self, *parts: tuple[str, Tensor, Tensor, int]) -> None:
        for name, values, seen, size in parts:
            if values.is_floating_point() or values.dim() != 2:
                raise ValueError(
                    f"demonstrations: the family's process is finite, so {name}s must be one integer a step, got "
                    f"{values.dtype} of shape {tuple(values.shape)} (time, demonstration)"
                )
            wrong = seen & ((values >= size) | (values < 0))
            if bool(wrong.any()):
                step, which = (int(i) for i in wrong.nonzero()[0])
                raise ValueError(
                    f"demonstrations: {name} {int(values[step, which])} at step {step} of demonstration {which} is "
                    f"outside 0 … {size - 1}; -1 stands for what was not seen"
                )

    def refuted(self, process: MarkovDecisionProcess, acting: Acting, logs: Tensor) -> str | None:
        """Returns what the demonstrations do that a finite process cannot; None where there is nothing.

        Args:
            process, acting: what the family returned.
            logs: their :meth:`log_probabilities`.
        """
        return self._refuted_moves(process) if isinstance(process, TabularMDP) else None

    def _refuted_moves(self, process: TabularMDP) -> str | None:
        known = self.state_seen[:-1] & self.state_seen[1:] & self.action_seen
        t, n = known.nonzero(as_tuple=True)
        state, action, after = self.states[t, n], self.actions[t, n], self.states[t + 1, n]
        indices, probabilities = process.kernel.successors(state, action)
        chance = (probabilities.detach() * (indices == after[:, None])).sum(-1)
        if bool((chance == 0).any()):
            i = int((chance == 0).nonzero()[0])
            return (
                f"at step {int(t[i])} of demonstration {int(n[i])}, action {int(action[i])} in state "
                f"{int(state[i])} cannot lead to state {int(after[i])} in the family's process; mend the "
                f"demonstration or the dynamics, or write -1 for a state that was not seen"
            )
        return None

    def _check_continuous(self, process: MarkovDecisionProcess) -> None:
        for name, values, space in (
            ("state", self.states, process.state_space),
            ("action", self.actions, process.action_space),
        ):
            shape = tuple(space.shape or ())
            if not values.is_floating_point() or tuple(values.shape[2:]) != shape:
                raise ValueError(
                    f"demonstrations: {name}s must be floating and of shape (time, demonstration, "
                    f"{', '.join(map(str, shape))}), got {values.dtype} of shape {tuple(values.shape)}"
                )
        lost = self.mask & ~self.state_seen[:-1] & self.action_seen
        if bool(lost.any()):
            t, n = (int(i) for i in lost.nonzero()[0])
            raise ValueError(
                f"demonstrations: the state at step {t} of demonstration {n} is NaN, and unseen states are summed over "
                f"in finite processes only; leave the step's action out too (NaN)"
            )

    def log_probabilities(self, process: MarkovDecisionProcess, policy: Acting) -> Tensor:
        """Returns the log probabilities of what was seen, in nats: see :meth:`weights` for the order.

        Of a finite process, those of ``cells`` and then those of each demonstration with something
        unseen; of a continuous one, those of each action seen. In a terminal state that was seen no action is taken,
        and one written down there, as padding is, has probability one.

        Raises:
            ValueError: if the policy does not answer for states of the process.
        """
        assert not isinstance(policy, TabularPOMDP)
        if not isinstance(process, TabularMDP):
            t, n = self.action_seen.nonzero(as_tuple=True)
            if isinstance(policy, exact.LinearGaussianPlan):
                return torch.as_tensor(policy(self.states[t, n], t).log_prob(self.actions[t, n]))
            if isinstance(policy, Tensor) or not callable(policy):
                raise ValueError(
                    f"family: the policy beside a {type(process).__name__} must be a callable (state, t) -> "
                    f"Distribution, got {type(policy).__name__}"
                )
            parts = [
                policy(self.states[step][seen], step).log_prob(self.actions[step][seen])
                for step, seen in enumerate(self.action_seen)
                if bool(seen.any())
            ]
            logs = torch.cat([part.sum(-1) if part.dim() > 1 else part for part in parts])
            return torch.where(self.ended(process)[t, n], 0.0, logs)
        table = log_policy_table(process, policy)
        cells, _ = self.cells
        seen = table[cells[:, 1], cells[:, 2]] if table.dim() == 2 else table[cells[:, 0], cells[:, 1], cells[:, 2]]
        if process.has_terminal:
            seen = torch.where(process.terminal[cells[:, 1]], 0.0, seen)
        if bool(self.complete.all()):
            return seen
        return torch.cat([seen, self._forward(process, table)])

    @cached_property
    def weights(self) -> Tensor:
        """Returns how often each demonstration has each entry of :meth:`log_probabilities`, ``(N, M)``."""
        if self.states.is_floating_point():
            _, n = self.action_seen.nonzero(as_tuple=True)
            return torch.nn.functional.one_hot(n, self.num).T.double()
        _, counts = self.cells
        own = torch.eye(self.num, dtype=torch.float64, device=counts.device)[:, ~self.complete]
        return torch.cat([counts, own], 1)

    @cached_property
    def tally(self) -> Tensor:
        """Returns how often all demonstrations have each entry of :meth:`log_probabilities`, ``(M,)``."""
        return self.weights.sum(0)

    def by_one(self, logs: Tensor) -> Tensor:
        """Returns the sums over each demonstration's entries ``(*batch, N)``, of logarithms ``(*batch, M)``."""
        return logs @ self.weights.T

    def improbable(self, entry: int) -> str:
        """Returns that an entry has no probability under the family."""
        t, n = self.where(entry)
        if bool(self.complete[n]):
            what = f"the action at step {t} of demonstration {n} has no probability under the family's policy"
        else:
            what = f"demonstration {n}, of which a part is unseen, has no probability under the family"
        return f"{what}; mend the demonstration, or give the action an action_prior > 0"

    def where(self, entry: int) -> tuple[int, int]:
        """Returns the step and the demonstration of an entry of :meth:`log_probabilities`."""
        if self.states.is_floating_point():
            t, n = self.action_seen.nonzero()[entry]
            return int(t), int(n)
        cells, _ = self.cells
        n = int(self.weights[:, entry].nonzero()[0])
        return (int(cells[entry, 0]) if entry < len(cells) else 0), n

    def _forward(self, process: TabularMDP, table: Tensor) -> Tensor:
        """Returns log p(what was seen) of the demonstrations that are not complete, by the forward algorithm."""
        partial = ~self.complete
        states, actions, mask = self.states[:, partial], self.actions[:, partial], self.mask[:, partial]
        seen_s, seen_a = self.state_seen[:, partial], self.action_seen[:, partial]
        moves = process.kernel.dense().flatten(0, 1)

        def only(which: Tensor, seen: Tensor, size: int) -> Tensor:
            marks = torch.nn.functional.one_hot(which.clamp(min=0), size).to(moves)
            return torch.where(seen[:, None], marks, 1.0)

        # A first state that was seen is taken as given; one that was not has the initial distribution.
        belief = only(states[0], seen_s[0], process.num_states)
        belief = torch.where(seen_s[0][:, None], belief, process.initial_probabilities)
        total = belief.new_zeros(len(belief))
        for t in range(len(actions)):
            policy = (table if table.dim() == 2 else table[t]).exp()
            acts = policy * only(actions[t], seen_a[t], process.num_actions)[:, None]
            ended = process.terminal & seen_s[t][:, None]
            acts = torch.where(ended[..., None], 1 / process.num_actions, acts)
            after = (
                (belief[:, :, None] * acts).flatten(1) @ moves * only(states[t + 1], seen_s[t + 1], process.num_states)
            )
            after = torch.where(mask[t][:, None], after, belief)
            size = after.sum(-1)
            total = total + torch.where(size > 0, size, 1.0).log() + torch.where(size > 0, 0.0, -torch.inf)
            belief = after / torch.where(size > 0, size, 1.0)[:, None]
        return total


def read_demonstrations(given: DemonstrationsLike) -> Demonstrations:
    """Returns demonstrations given in any of the forms of :func:`infer_agent`, on the host.

    Raises:
        ValueError: if they have none of these forms, or there is nothing in them.
    """
    if isinstance(given, Trajectories):
        states, seen = given.states, given.observations
        if len(states) == given.horizon:
            states = torch.cat([states, _unseen(states[:1])])
        if seen is not None and len(seen) == given.horizon:
            nothing = _unseen(seen[:1])
            seen = torch.cat([seen, nothing] if given.observed_first else [nothing, seen])
        return _checked(Demonstrations(states, given.actions, given.mask, seen).to(torch.device("cpu")))
    try:
        given = [tuple(_on_host(part) for part in one) for one in _as_lists(given)]
        if wrong := [len(one) for one in given if len(one) not in (2, 3)]:
            raise ValueError(f"got {wrong[0]} parts of one")
    except (TypeError, ValueError) as problem:
        raise ValueError(
            "demonstrations must be Trajectories, a pair of tensors (states, actions) with time first and "
            f"demonstration second, or a list of such pairs with one demonstration each; where the state is hidden, "
            f"(states, actions, observations) ({problem})"
        ) from None
    if not given:
        raise ValueError("demonstrations: there are none; give at least one")
    longest = max(len(one[1]) for one in given)
    observing = [one[2] for one in given if len(one) == 3]
    columns = []
    for n, (states, actions, *observed) in enumerate(given):
        for name, values in (("states", states), *(("observations", values) for values in observed)):
            if len(values) - len(actions) not in (0, 1) or len(actions) == 0:
                raise ValueError(
                    f"demonstrations: demonstration {n} has {len(values)} {name} and {len(actions)} actions; it needs "
                    f"one or more actions, and as many {name} or one more"
                )
        mask = torch.arange(longest) < len(actions)
        parts = [_padded(states, longest + 1), _padded(actions, longest), mask]
        if observing:
            parts.append(_padded(observed[0] if observed else _unseen(observing[0][:1]), longest + 1))
        columns.append(parts)
    try:
        return _checked(Demonstrations(*(torch.stack(parts, 1) for parts in zip(*columns, strict=True))))
    except RuntimeError as problem:
        raise ValueError(f"demonstrations: all must have states and actions of one shape ({problem})") from None


def _on_host(values: Any) -> Tensor:
    tensor = torch.as_tensor(values).cpu()
    return tensor.long() if tensor.dtype == torch.bool else tensor


def _as_lists(given: Any) -> Any:
    if isinstance(given, tuple) and len(given) in (2, 3) and all(getattr(part, "ndim", 0) >= 2 for part in given):
        parts = [torch.as_tensor(part) for part in given]
        names = ("states", "actions", "observations")
        for name, part in zip(names[1:], parts[1:], strict=False):
            if part.shape[1] != parts[0].shape[1]:
                raise ValueError(f"states are of {parts[0].shape[1]} demonstrations, {name} of {part.shape[1]}")
        return [tuple(part[:, n] for part in parts) for n in range(parts[0].shape[1])]
    return given


def _checked(read: Demonstrations) -> Demonstrations:
    if not bool(read.action_seen.any()) and not bool(read.state_seen.any()):
        raise ValueError("demonstrations: no state and no action was seen")
    return read


def _as_wide(seen: Tensor, values: Tensor) -> Tensor:
    return seen.reshape(seen.shape + (1,) * (values.dim() - seen.dim()))


def was_seen(values: Tensor) -> Tensor:
    """Returns which of the values ``(T, N, ...)`` are neither -1 (integers) nor NaN, ``(T, N)`` bool."""
    seen = ~values.isnan() if values.is_floating_point() else values != -1
    return seen.flatten(2).all(-1) if values.dim() > 2 else seen


def _unseen(like: Tensor) -> Tensor:
    return torch.full_like(like, torch.nan if like.is_floating_point() else -1)


def _padded(values: Tensor, length: int) -> Tensor:
    missing = length - len(values)
    return values if missing == 0 else torch.cat([values, _unseen(values[:1]).expand(missing, *values.shape[1:])])
