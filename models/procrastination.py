"""A task with a deadline, and an agent who may put it off.

day 0 ──wait──► day 1 ──wait──► … ──wait──► day D   (too late: nothing earned)
  │               │
 work            work
  ▼               ▼
 done            done      the reward comes the day after the work
"""

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer
from rl_as_inference.processes import TabularMDP

__all__ = ["procrastination"]


@checked
def procrastination(
    days: int = 10,
    horizon: int | None = None,
    temperature: float | Tensor = 0.1,
    *,
    reward: float | Tensor = 4.5,
    work_cost: float | Tensor = 1.0,
    wait_cost: float | Tensor = 0.1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularMDP:
    """Returns the problem as a deterministic finite process.

        states   0 … D-1 the day, with the work undone; D too late; D+1 worked yesterday; D+2 over
        actions  0 wait, 1 work
        r        -wait_cost for waiting, -work_cost for working, reward on the day after the work

    An agent who does not discount works at once. A naive hyperbolic one
    (:func:`rl_as_inference.reasoning.hyperbolic_policy`) means to work tomorrow, every day until it is too late; a
    sophisticated one knows that it would, and works early.

    Source: Evans, Stuhlmüller, Salvatier & Filan, "Modeling Agents with Probabilistic Programs", chapter 5b.

    Args:
        days: days on which the work can be done, ≥ 1.
        horizon: the number of steps; all of them, ``days + 1``, by default.
        temperature: α > 0, in reward units per nat.
        reward, work_cost, wait_cost: in reward units; tensors, where they are to be inferred.
        dtype, device: of the tables.

    Raises:
        ValueError: if ``days`` is no integer ≥ 1, or the temperature is not positive.

    Example:
        >>> procrastination(days=3).num_states
        6
    """
    check_integer("days", days, 1)
    late, worked, over = days, days + 1, days + 2
    like = torch.zeros((), dtype=dtype or torch.get_default_dtype(), device=device)
    transition = like.new_zeros(days + 3, 2, days + 3)
    for day in range(days):
        transition[day, 0, day + 1] = 1
        transition[day, 1, worked] = 1
    transition[late, :, over] = transition[worked, :, over] = transition[over, :, over] = 1
    gain, work, wait = (torch.as_tensor(value).to(like) for value in (reward, work_cost, wait_cost))
    states = torch.arange(days + 3, device=device)
    undone = (states < days).to(like)
    paid = gain * (states == worked)
    table = torch.stack([paid - wait * undone, paid - work * undone], -1)
    mdp = TabularMDP(
        transition,
        table,
        (states == 0).to(like),
        horizon=days + 1 if horizon is None else horizon,
        temperature=temperature,
        terminal=states == over,
    )
    mdp.name = "procrastination"
    return mdp
