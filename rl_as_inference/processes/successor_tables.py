"""Tables of finite processes: their checks, and sparse ones as lists of successors."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_as_inference.checks import holds, is_deferred

__all__ = [
    "as_floating",
    "as_terminal",
    "check_one_reward_each",
    "check_reward_shape",
    "check_successors",
    "check_transition_shape",
    "checked_rows",
    "sparse_reward",
    "stay_where_terminal",
    "successor_lists",
]


def as_floating(value: Any, name: str) -> Tensor:
    """Returns numbers as a floating-point tensor; ValueError names the argument that holds none."""
    if isinstance(value, np.ndarray):  # PyTorch reads no foreign byte order, and no negative strides
        value = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
    elif isinstance(value, list | tuple) and value and all(isinstance(each, Tensor) for each in value):
        value = torch.stack(list(value)) if len({each.shape for each in value}) == 1 else value
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        mend = ""
        if name == "transition" and isinstance(value, str):
            mend = f"; the table of an environment is read by TabularMDP.from_gymnasium({value!r}, horizon=...)"
        raise ValueError(f"{name} must be a tensor or an array of numbers, got {value!r:.80}{mend}") from error
    if tensor.is_complex():
        raise ValueError(f"{name} must hold real numbers, got {tensor.dtype}; give its .real")
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def as_terminal(value: Any, num_states: int, device: torch.device) -> Tensor:
    """Returns which states are terminal, bool ``(S,)``; None is none of them.

    Raises:
        ValueError: for anything but a bool of each state.
    """
    if value is None:
        return torch.zeros(num_states, dtype=torch.bool, device=device)
    told = type(value).__name__
    if isinstance(value, Tensor | np.ndarray | list | tuple):
        try:
            terminal = torch.as_tensor(value, device=device)
        except (TypeError, ValueError, RuntimeError):
            pass
        else:
            if terminal.shape == (num_states,) and terminal.dtype == torch.bool:
                return terminal
            told = f"{terminal.dtype} of shape {tuple(terminal.shape)}"
    raise ValueError(
        f"terminal must be a bool tensor of shape ({num_states},), got {told}; of numbers of states it is "
        f"torch.isin(torch.arange({num_states}), torch.tensor(numbers))"
    )


def check_transition_shape(transition: Tensor) -> None:
    """Raises ValueError unless a table of transitions is ``(S, A, S)``."""
    shape = tuple(transition.shape)
    if len(shape) == 3 and shape[0] == shape[2] and 0 not in shape:
        return
    other = len(shape) == 3 and shape[1] == shape[2]
    mend = "; a table (A, S, S) becomes one by transition.transpose(0, 1)" if other else ""
    raise ValueError(f"transition must have shape (S, A, S) with S, A >= 1, got {shape}{mend}")


def checked_rows(name: str, probabilities: Tensor) -> Tensor:
    """Returns the rows, which sum to one up to rounding.

    Rows are divided by their sums where these are off by more; for slopes the sums are constants.

    Raises:
        ValueError: unless every row is a distribution.
    """
    values = probabilities.detach()
    if not holds(values >= 0):  # also false for NaN
        where = tuple(int(i) for i in (~(values >= 0)).nonzero()[0])
        raise ValueError(f"{name} must hold probabilities >= 0; it is {float(values[where]):g} at index {where}")
    sums = values.sum(-1, keepdim=True)
    tolerance = 1e-4 if values.dtype == torch.float32 else 1e-8
    off = (sums - 1).abs()
    if not holds(off <= tolerance):
        where = tuple(int(i) for i in (off > tolerance).squeeze(-1).nonzero()[0])
        row, total = f"row {where} sums" if where else "it sums", float(sums[where])
        told = f"{total:.6g}" if f"{total:.6g}" != "1" else f"1 {total - 1:+.1g}"
        raise ValueError(f"{name} must have rows that sum to one; {row} to {told}; divide by the row sums")
    if is_deferred() or bool((off <= 16 * torch.finfo(values.dtype).eps).all()):
        return probabilities
    return probabilities / sums


def stay_where_terminal(
    indices: Tensor | None, probabilities: Tensor, terminal: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Returns successors and probabilities of a transition in which nothing leaves a terminal state."""
    states = torch.arange(len(terminal), device=terminal.device)
    here = terminal[:, None, None]
    if indices is None:
        stay = torch.eye(len(terminal), dtype=probabilities.dtype, device=terminal.device)[:, None, :]
        return None, torch.where(here, stay, probabilities)
    first = torch.zeros_like(probabilities)
    first[..., 0] = 1.0
    return torch.where(here, states[:, None, None], indices), torch.where(here, first, probabilities)


def successor_lists(transition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns indices and probabilities ``(S, A, K)`` of a sparse transition, and each entry's slot."""
    transition = transition.coalesce()
    num_states, num_actions, _ = transition.shape
    entries, values = transition.indices(), transition.values()
    row = entries[0] * num_actions + entries[1]
    counts = torch.bincount(row, minlength=num_states * num_actions)
    if int(counts.min()) == 0:
        empty = int(counts.argmin())
        raise ValueError(
            f"transition must have rows that sum to one; row ({empty // num_actions}, {empty % num_actions}) "
            f"has no entries"
        )
    most = int(counts.max())
    starts = counts.cumsum(0) - counts
    slot = row * most + (torch.arange(len(row), device=row.device) - starts[row])
    indices = entries[2].new_zeros(num_states * num_actions * most).index_copy(0, slot, entries[2])
    probabilities = values.new_zeros(len(indices)).index_copy(0, slot, values)
    shape = (num_states, num_actions, most)
    return indices.view(shape), probabilities.view(shape), slot


def check_successors(indices: Tensor, probabilities: Tensor) -> None:
    """Raises ValueError unless there is a state for each probability."""
    if indices.shape != probabilities.shape or indices.is_floating_point():
        raise ValueError(
            f"indices must be integers of the shape of probabilities, {tuple(probabilities.shape)}, got "
            f"{indices.dtype} of shape {tuple(indices.shape)}"
        )
    if int(indices.min()) < 0 or int(indices.max()) >= len(probabilities):
        raise ValueError(f"indices must be states 0 … {len(probabilities) - 1}")


def check_one_reward_each(indices: Tensor, probabilities: Tensor, reward: Tensor) -> None:
    """Raises ValueError if a successor stands in several slots of a row with different rewards: r(s,a,s') is one."""
    if reward.dim() == 2 or indices.shape[-1] == 1:
        return
    # Sorted by successor, those that are the same stand side by side; slots of probability 0 go last.
    keys, order = torch.where(probabilities.detach() > 0, indices, len(indices)).sort(dim=-1, stable=True)
    paid = reward.detach().gather(-1, order)
    differ = (keys[..., 1:] == keys[..., :-1]) & (keys[..., 1:] < len(indices)) & (paid[..., 1:] != paid[..., :-1])
    if not holds(~differ):
        state, action, slot = (int(i) for i in differ.nonzero()[0])
        one, other = (float(paid[state, action, slot + i]) for i in (0, 1))
        raise ValueError(
            f"reward must be one number for each state, action and next state; from state {state} by action {action} "
            f"next state {int(keys[state, action, slot])} stands twice, with rewards {one:g} and {other:g}; give their "
            f"mean, or a state to each"
        )


def check_reward_shape(reward: Tensor, shape: Any, on_arrival: str | None = None) -> None:
    """Raises ValueError unless a reward is ``(S, A)`` or of the whole shape, ``(S, A, S)`` or ``(S, A, K)``.

    Args:
        reward: as given.
        shape: the whole shape.
        on_arrival: what makes the whole shape of one number a next state; None where they are in order.
    """
    by_action = tuple(shape[:2])
    if reward.shape in (by_action, tuple(shape)):
        return
    mends = []  # where there are as many actions as states, either may be meant
    if reward.shape == shape[:1]:
        whole = on_arrival or f"reward.expand{tuple(shape)}"
        mends.append(
            f"if a state earns it, give reward[:, None].expand{by_action}, and if arriving there does, {whole}"
        )
    if reward.shape == shape[1:2]:
        mends.append(f"if an action earns it in every state, give reward.expand{by_action}")
    mend = "".join(f"; {each}" for each in mends)
    raise ValueError(f"reward must have shape {by_action} or {tuple(shape)}, got {tuple(reward.shape)}{mend}")


def sparse_reward(reward: Any, transition: Tensor, slots: Tensor, shape: Any, options: Any) -> Tensor:
    """Returns rewards on the slots of a sparse transition's successors, or ``(S, A)`` as given."""
    transition = transition.coalesce()
    flat = transition.values().new_zeros(math.prod(shape))
    if not (isinstance(reward, Tensor) and reward.is_sparse):
        reward = as_floating(reward, "reward").to(**options)
        if reward.shape == transition.shape:
            return flat.index_copy(0, slots, reward[tuple(transition.indices())]).view(shape)
        if reward.dim() != 2:
            check_reward_shape(reward, transition.shape)
        return reward
    if reward.shape != transition.shape:
        raise ValueError(
            f"reward must have the shape of transition, {tuple(transition.shape)}, got {tuple(reward.shape)}"
        )
    # Entries that reward does not have are 0; those where nothing can happen are dropped.
    reward = reward.coalesce().to(**options)
    wanted, had = (_keys(sparse) for sparse in (transition, reward))
    values = torch.cat([reward.values(), flat[:1]])
    place = torch.searchsorted(had, wanted).clamp(max=max(len(had) - 1, 0))
    found = had[place] == wanted if len(had) else torch.zeros_like(wanted, dtype=torch.bool)
    return flat.index_copy(0, slots, values[torch.where(found, place, len(had))]).view(shape)


def _keys(sparse: Tensor) -> Tensor:
    """Returns one ascending integer for each entry of a coalesced ``(S, A, S)`` tensor."""
    state, action, after = sparse.indices()
    return (state * sparse.shape[1] + action) * sparse.shape[2] + after
