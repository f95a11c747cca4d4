"""The cliff walk of Sutton and Barto, on ground that may be slippery.

F F F F F F F F F F F F       S start    C cliff: a fall costs 100
F F F F F F F F F F F F       F free     G goal: the episode is over
F F F F F F F F F F F F
S C C C C C C C C C C G
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_probability
from rl_as_inference.processes import TabularMDP

__all__ = ["cliff"]

_ROWS, _COLUMNS = 4, 12
_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Up, right, down, left: in a circle, so that the neighbours in this list are at right angles."""


@checked
def cliff(
    horizon: int | None = 50,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 1.0,
    slip: float = 0.1,
    fall_cost: float = 100.0,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularMDP:
    """Returns the walk along a cliff, of 48 states and 4 actions: 0 up, 1 right, 2 down, 3 left.

        s'  the cell the action points at, or one at a right angle to it, with probability slip / 2 each;
            from the foot of the cliff the start, whatever the action
        r   -1 a step, -fall_cost for one that ends at the foot of the cliff

    The short way runs along the edge and the safe one higher up. Where the ground is slippery the two
    posteriors part: exact conditioning on optimality walks the edge, believing that it will not
    slip; the causal one keeps its distance. The log evidence does not even depend on ``slip``:
    under the uniform action prior a step goes each way with probability 1/4, astray or not.

    Source: Sutton & Barto, "Reinforcement Learning: An Introduction", 2018, example 6.6, to which
    the way back from the foot of the cliff adds a step. Numbers of states and actions are those of
    Gymnasium's ``CliffWalking-v1``, which is this problem with ``slip=0``.

    Args:
        horizon: the number of steps; None for no horizon.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        slip: the probability in [0, 1] that a step goes astray.
        fall_cost: in reward units, ≥ 0.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> mdp = cliff()
        >>> mdp.layout.shape, int(mdp.terminal.sum())
        ((4, 12), 1)
    """
    check_probability("slip", slip)
    if not 0 <= fall_cost < math.inf:
        raise ValueError(f"fall_cost must be a finite number >= 0, since it is subtracted; got {fall_cost}")
    layout = np.full((_ROWS, _COLUMNS), "F")
    layout[-1] = ["S"] + ["C"] * (_COLUMNS - 2) + ["G"]
    letters = layout.ravel()
    start, foot, goal = (torch.as_tensor(letters == letter) for letter in "SCG")

    here = torch.arange(layout.size)
    row, column = here // _COLUMNS, here % _COLUMNS
    aim = torch.stack(
        [
            (row + down).clamp(0, _ROWS - 1) * _COLUMNS + (column + right).clamp(0, _COLUMNS - 1)
            for down, right in _MOVES
        ],
        1,
    )
    arrive = one_hot(aim, layout.size).double()
    astray = (arrive.roll(1, 1) + arrive.roll(-1, 1)) / 2
    transition = torch.where(foot[:, None, None], start.double(), (1 - slip) * arrive + slip * astray)
    reward = torch.where(foot, -fall_cost, -1.0).expand_as(transition)

    def table(values: Tensor) -> Tensor:
        return values.to(dtype=dtype or torch.get_default_dtype(), device=device)

    mdp = TabularMDP(
        table(transition),
        table(reward),
        table(start),
        horizon=horizon,
        discount=discount,
        temperature=temperature,
        terminal=goal.to(device=device),
    )
    mdp.name, mdp.layout = "cliff", layout
    return mdp
