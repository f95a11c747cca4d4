"""A hungry walker in a town with four places to eat.

# # # # # V # #
# # # # . . . #        S start     V vegetarian café     N noodle bar
# # # D . # . N        D, d        two shops of one chain of doughnut makers
# # # # . # . #
# # # # . . . #        The café is as far by the road that passes the doughnuts as
# # # # # . # #        by the one that passes the noodles.
d . . . . S # #
"""

import numpy as np
import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer
from rl_as_inference.processes import TabularMDP

__all__ = ["RESTAURANTS", "restaurants"]

RESTAURANTS = ("doughnuts", "vegetarian", "noodles")
"""What the entries of ``utility`` are the utilities of."""

_TOWN = ("#####V##", "####...#", "###D.#.N", "####.#.#", "####...#", "#####.##", "d....S##")
_SERVES = {"D": 0, "d": 0, "V": 1, "N": 2}
_MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))


@checked
def restaurants(
    utility: Tensor | None = None,
    horizon: int = 12,
    temperature: float | Tensor = 0.1,
    *,
    step_cost: float | Tensor = 0.1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularMDP:
    """Returns a walk through the town, as a deterministic process that ends in a restaurant.

        actions  0 left, 1 down, 2 right, 3 up; walls leave the walker where it is
        r(s,a)   utility of the restaurant that the step enters, less step_cost

    States are numbered row by row, walls included, and ``layout`` holds a letter a cell. Differentiable in its tensors.

    Source: after the town of Evans, Stuhlmüller, Salvatier & Filan, "Modeling Agents with Probabilistic Programs"
    (agentmodels.org), chapters 4 and 5.

    Args:
        utility: of doughnuts, vegetarian food and noodles, ``(3,)``, reward units; 1, 2 and 1 by default.
        horizon: the number of steps.
        temperature: α > 0, in reward units per nat.
        step_cost: of every step, reward units.
        dtype, device: of the tables; those of ``utility`` by default.

    Raises:
        ValueError: if ``utility`` is no tensor of three numbers, or another argument is out of range.

    Example:
        >>> town = restaurants()
        >>> "".join(town.layout[6]), town.num_states
        ('d....S##', 56)
    """
    check_integer("horizon", horizon, 1)
    utility = torch.tensor([1.0, 2.0, 1.0]) if utility is None else utility
    if not isinstance(utility, Tensor) or utility.shape != (len(RESTAURANTS),) or not utility.is_floating_point():
        raise ValueError(f"utility must be a tensor of {len(RESTAURANTS)} numbers, one for each of {RESTAURANTS}")
    utility = utility.to(dtype=dtype, device=device)
    layout = np.array([list(row) for row in _TOWN])
    rows, columns = layout.shape
    letters = layout.ravel()
    row, column = np.divmod(np.arange(letters.size), columns)
    after = np.stack(
        [(row + down).clip(0, rows - 1) * columns + (column + right).clip(0, columns - 1) for down, right in _MOVES], -1
    )
    after = np.where(letters[after] == "#", np.arange(letters.size)[:, None], after)
    served = torch.tensor([_SERVES.get(letter, -1) for letter in letters], device=utility.device)
    next_cell = torch.as_tensor(after, device=utility.device)
    transition = torch.nn.functional.one_hot(next_cell, letters.size).to(utility)
    worth = torch.where(served >= 0, utility[served.clamp(min=0)], 0.0)
    mdp = TabularMDP(
        transition,
        worth[next_cell] - torch.as_tensor(step_cost).to(utility),
        torch.as_tensor(letters == "S", device=utility.device).to(utility),
        horizon=horizon,
        temperature=temperature,
        terminal=served >= 0,
    )
    mdp.name, mdp.layout = "restaurants", layout
    return mdp
