"""Beliefs over the hidden state of a finite process: Bayes' rule, step by step."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_as_inference.exact.precision import in_double
from rl_as_inference.histories import History
from rl_as_inference.processes.tabular_pomdp import TabularPOMDP

__all__ = ["BeliefFilter", "BeliefTables", "belief", "first_beliefs", "next_belief", "tables_of"]


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class BeliefTables(NamedTuple):
    """The tables of a partially observed process, in double precision."""

    transition: Tensor
    """``p(s'|s,a)``, ``(S, A, S)``."""
    observation: Tensor
    """``p(y|a,s')``, ``(A, S, O)``."""
    first_observation: Tensor | None
    """``p(y|s)``, ``(S, O)``; None where nothing is seen before the first action."""
    reward: Tensor
    """``E r(s,a)``, ``(S, A)``, in nats."""
    initial: Tensor
    """``p(s_0)``, ``(S,)``."""
    log_prior: Tensor
    """``log p(a)``, ``(A,)``."""
    going: Tensor
    """Which states are not terminal, ``(S,)``, as numbers."""
    discount: float | Tensor

    def detached(self) -> "BeliefTables":
        """Returns the tables as numbers."""
        numbers: Any = (x.detach() if isinstance(x, Tensor) else x for x in self)
        return BeliefTables(*numbers)


def tables_of(pomdp: TabularPOMDP) -> BeliefTables:
    """Returns the tables of a process, differentiable in its own."""
    mdp = in_double(pomdp.fully_observed)
    seen = pomdp.observation_table.double()
    seen = seen / seen.detach().sum(-1, keepdim=True)
    return BeliefTables(
        mdp.kernel.dense(),
        seen.expand(pomdp.num_actions, -1, -1),
        seen if pomdp.sees_first else None,
        mdp.expected_reward() / mdp.temperature,
        mdp.initial_probabilities,
        mdp.log_action_prior[0],
        (~mdp.terminal).double(),
        mdp.discount,
    )


def first_beliefs(tables: BeliefTables) -> tuple[Tensor, Tensor]:
    """Returns ``p(y_0, s_0)`` of episodes that go on, by what is seen first, and its sums over states.

    Rows ``(O or 1, S)`` are not divided by their sums, ``(O or 1,)``.
    """
    start = tables.initial * tables.going
    joint = start[None] if tables.first_observation is None else start * tables.first_observation.mT
    return joint, joint.sum(-1)


def next_belief(tables: BeliefTables, belief: Tensor, action: Tensor, observation: Tensor) -> tuple[Tensor, Tensor]:
    """Returns beliefs one step on, ``(N, S)``, and the probabilities of going on and seeing that, ``(N,)``.

    Where that is impossible the belief is NaN.

    Args:
        tables: of the process.
        belief: ``(N, S)``.
        action, observation: integers ``(N,)``.
    """
    after = (belief @ tables.transition.flatten(1)).unflatten(-1, tables.transition.shape[1:])
    after = after[torch.arange(len(action), device=action.device), action] * tables.going
    joint = after * tables.observation[action, :, observation]
    mass = joint.sum(-1)
    return joint / mass[:, None], mass


class BeliefFilter:
    """The belief, moved on one step at a time, as :meth:`rl_as_inference.History.recall` asks for; ``(*batch, S)``."""

    def __init__(self, pomdp: TabularPOMDP) -> None:
        self.process, self.dtype = pomdp, pomdp.observation_table.dtype
        self.tables = tables_of(pomdp).detached()
        joint, sums = first_beliefs(self.tables)
        # Where an episode begins at its end nothing is believed, and nothing asked.
        anything = torch.full_like(joint, 1 / joint.shape[1])
        self.first = torch.where(sums[:, None] > 0, joint / sums[:, None], anything)

    def start(self, observation: Tensor | None) -> Tensor:
        """Returns the belief after the first observation, ``(*batch,)``."""
        return self.first[0] if observation is None else self.first[observation]

    def move(self, belief: Tensor, action: Tensor, observation: Tensor | None) -> Tensor:
        """Returns the belief one step on."""
        assert observation is not None
        batch = torch.broadcast_shapes(belief.shape[:-1], action.shape, observation.shape)
        flat, taken, seen = belief.expand(*batch, -1).flatten(0, -2), action.expand(batch), observation.expand(batch)
        after, mass = next_belief(self.tables, flat, taken.flatten(), seen.flatten())
        # Where the episode has ended nothing is believed, and nothing asked.
        return torch.where(mass[:, None] > 0, after, flat).reshape(*batch, -1)

    def features(self, belief: Tensor) -> Tensor:
        """Returns a belief in the process's own precision."""
        return belief.to(self.dtype)

    def belief_of(self, history: History) -> Tensor:
        """Returns the belief after a history, ``(*batch, S)``."""
        return self.features(history.recall(self, self.start, self.move))


def belief(pomdp: TabularPOMDP, observations: Tensor, actions: Tensor) -> Tensor:
    """Returns ``p(s_t | h_t)`` of every time, ``(T+1, S)``, or ``(T+1, N, S)`` of many histories.

    That the episode goes on is seen too, so that terminal states have no probability.

    Args:
        pomdp: a finite, partially observed process.
        observations: integers ``(T+1,)`` or ``(T+1, N)``; ``(T, …)`` where nothing is seen before the first action.
        actions: integers ``(T,)`` or ``(T, N)``.

    Raises:
        ValueError: if the shapes do not fit, a number is out of range, or what was seen has probability 0 (the step is
            named).

    Example:
        >>> stay = torch.eye(2)[:, None].expand(2, 1, 2)
        >>> pomdp = TabularPOMDP(stay, torch.zeros(2, 1), torch.tensor([0.5, 0.5]),
        ...                      torch.tensor([[0.8, 0.2], [0.2, 0.8]]), horizon=1)
        >>> belief(pomdp, torch.tensor([0, 0]), torch.tensor([0]))
        tensor([[0.8000, 0.2000],
                [0.9412, 0.0588]])
    """
    if not isinstance(pomdp, TabularPOMDP):
        raise ValueError(f"belief needs a TabularPOMDP, got {type(pomdp).__name__}")
    device = pomdp.observation_table.device
    seen, taken = (torch.as_tensor(x, device=device) for x in (observations, actions))
    wanted = len(taken) + pomdp.sees_first
    if seen.dim() not in (1, 2) or seen.shape[1:] != taken.shape[1:] or len(seen) != wanted:
        raise ValueError(
            f"observations must have shape ({wanted},) or ({wanted}, N) with actions ({len(taken)},) or "
            f"({len(taken)}, N), got {tuple(seen.shape)} and {tuple(taken.shape)}"
        )
    for name, values, count in (
        ("observations", seen, pomdp.num_observations),
        ("actions", taken, pomdp.num_actions),
    ):
        if values.dtype not in _INTEGERS or bool(((values < 0) | (values >= count)).any()):
            raise ValueError(f"{name} must be integers from 0 to {count - 1}")
    tables = tables_of(pomdp)
    count = seen.shape[1] if seen.dim() == 2 else 1
    flat, moves = seen.reshape(len(seen), count), taken.reshape(len(taken), count)
    joint, sums = first_beliefs(tables)
    index = flat[0] if pomdp.sees_first else torch.zeros(count, dtype=torch.long, device=device)
    _check_possible(sums[index], flat[0] if pomdp.sees_first else None, 0)
    rows = [joint[index] / sums[index][:, None]]
    for t, action in enumerate(moves):
        after = flat[t + pomdp.sees_first]
        now, mass = next_belief(tables, rows[-1], action, after)
        _check_possible(mass, after, t + 1)
        rows.append(now)
    found = torch.stack(rows).to(pomdp.observation_table.dtype)
    return found[:, 0] if seen.dim() == 1 and taken.dim() == 1 else found


def _check_possible(mass: Tensor, seen: Tensor | None, step: int) -> None:
    impossible = ~(mass > 0)
    if bool(impossible.any()):
        if seen is None:
            raise ValueError("initial: every episode begins in a terminal state, and nothing is believed there")
        value = int(seen[impossible][0])
        raise ValueError(
            f"observations: observation {value} at step {step} has probability 0 under the belief there; check what "
            f"was seen, or the process's tables"
        )
