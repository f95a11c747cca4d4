"""A hungry student on a campus with two parking spots for food trucks, one of them behind a building.

. . . . F        S start              N near spot, in sight from everywhere
. # # # .        # building           F far spot: who stands at the top, or at the right, sees what is there
N . S . .

From the start the building hides the far spot. Two steps to the right there is a view of it, two more steps from
it; the near spot is two steps to the left.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.checks import holds
from rl_as_inference.models._arguments import check_integer
from rl_as_inference.processes import TabularPOMDP

__all__ = ["CAMPUS", "FAR", "TRUCKS", "food_truck"]

CAMPUS = ("....F", ".###.", "N.S..")
"""A letter a cell, as in the picture above."""

TRUCKS = ("Korean", "Lebanese", "Mexican")
"""What the entries of ``utility`` are the utilities of."""

FAR = (*TRUCKS, "nothing")
"""What the entries of ``belief`` are the probabilities of."""

_STEPS = ((0, -1), (1, 0), (0, 1), (-1, 0))
_EAT = len(_STEPS)
_UNSEEN = len(FAR)


@checked
def food_truck(
    utility: Tensor | None = None,
    belief: Tensor | None = None,
    horizon: int = 12,
    temperature: float | Tensor = 0.1,
    *,
    near: str = "Korean",
    step_cost: float | Tensor = 0.1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularPOMDP:
    """Returns a walk over the campus as a partially observed process, which ends with a meal.

        hidden state  (cell, what stands at the far spot), or fed
        actions       0 left, 1 down, 2 right, 3 up, 4 eat; buildings leave the student where it is, and so does
                      eating where no truck stands
        seen          (cell, what stands at the far spot if no building is in the line of sight)
        r(s,a)        utility of the truck that is eaten from, less step_cost

    With the ``C`` free cells numbered row by row, state ``C * i + c`` has ``FAR[i]`` at the far spot and the student in
    cell ``c``; the last state is fed. Observation ``5 * c + i`` is cell ``c`` with ``FAR[i]`` in view, ``5 * c + 4``
    without a view, and the last one that the student is fed. ``initial`` is what the student believes before the first
    step, and the process's own: an onlooker who knows what stands there conditions on the first state.
    Differentiable in its tensors.

    Source: after the campus of Baker, Jara-Ettinger, Saxe & Tenenbaum, "Rational quantitative attribution of beliefs,
    desires and percepts in human mentalizing", Nature Human Behaviour 1, 2017.

    Args:
        utility: of Korean, Lebanese and Mexican food, ``(3,)``, reward units; 1, 0.5 and 2 by default.
        belief: probabilities of what stands at the far spot, ``(4,)``: a Korean, a Lebanese, a Mexican truck, nothing.
            By default all that is not at the near spot is equally probable.
        horizon: the number of steps.
        temperature: α > 0, in reward units per nat.
        near: the truck at the near spot, one of ``TRUCKS``.
        step_cost: of every step, reward units.
        dtype, device: of the tables; those of ``utility`` by default.

    Raises:
        ValueError: if ``utility`` is no tensor of three numbers, ``belief`` is no distribution over four things, or
            another argument is out of range.

    Example:
        >>> campus = food_truck()
        >>> campus.num_states, campus.num_observations
        (49, 61)
        >>> from rl_as_inference import exact
        >>> exact.plan(campus).num_beliefs
        329
    """
    check_integer("horizon", horizon, 1)
    utility = torch.tensor([1.0, 0.5, 2.0]) if utility is None else utility
    if not isinstance(utility, Tensor) or utility.shape != (len(TRUCKS),) or not utility.is_floating_point():
        raise ValueError(f"utility must be a tensor of {len(TRUCKS)} numbers, one for each of {TRUCKS}")
    if near not in TRUCKS:
        raise ValueError(f"near must be one of {TRUCKS}, got {near!r}")
    utility = utility.to(dtype=dtype, device=device)
    if belief is None:
        belief = torch.tensor([float(truck != near) for truck in FAR], dtype=utility.dtype) / len(TRUCKS)
    if not isinstance(belief, Tensor) or belief.shape != (len(FAR),) or not belief.is_floating_point():
        raise ValueError(f"belief must be a tensor of {len(FAR)} probabilities, one for each of {FAR}")
    belief = belief.to(utility)
    if not holds((belief.detach() >= 0) & ((belief.detach().sum() - 1).abs() < 1e-5)):
        raise ValueError(f"belief must hold probabilities >= 0 that sum to one, got {belief.tolist()}")
    belief = belief / belief.sum()

    place, moves, views, eaten = (part.to(utility.device) for part in _campus(near))
    terminal = torch.arange(len(moves), device=utility.device) == len(moves) - 1
    meal = torch.where(eaten >= 0, utility[eaten.clamp(min=0)], 0.0)
    eats = torch.arange(_EAT + 1, device=utility.device) == _EAT
    reward = torch.where(eats, meal[:, None], 0.0) - torch.as_tensor(step_cost).to(utility)
    initial = (torch.nn.functional.one_hot(place, len(moves)).to(utility) * belief[:, None]).sum(0)
    pomdp = TabularPOMDP(
        torch.nn.functional.one_hot(moves).to(utility),
        torch.where(terminal[:, None], 0.0, reward),
        initial,
        torch.nn.functional.one_hot(views).to(utility),
        horizon=horizon,
        temperature=temperature,
        terminal=terminal,
    )
    pomdp.name = "food_truck"
    return pomdp


@functools.cache
def _campus(near: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the first states by what stands at the far spot ``(4,)``; where actions lead ``(S, A)``; what is seen in
    each state ``(S,)``; and which truck it can be eaten from, ``(S,)``, -1 for none."""
    letters = np.array([list(row) for row in CAMPUS])
    cells = [(int(row), int(column)) for row, column in np.argwhere(letters != "#")]
    start, near_spot, far_spot = (cells.index(tuple(np.argwhere(letters == letter)[0].tolist())) for letter in "SNF")
    count = len(cells)
    fed = count * len(FAR)
    moves, views, eaten = [], [], []
    for thing, name in enumerate(FAR):
        for here, (row, column) in enumerate(cells):
            around = [(row + down, column + right) for down, right in _STEPS]
            truck = TRUCKS.index(near) if here == near_spot else thing if here == far_spot and name in TRUCKS else -1
            stays = count * thing + here
            moves.append([count * thing + cells.index(to) if to in cells else stays for to in around])
            moves[-1].append(fed if truck >= 0 else stays)
            views.append(here * (_UNSEEN + 1) + (thing if _in_view(cells[here], cells[far_spot], letters) else _UNSEEN))
            eaten.append(truck)
    moves.append([fed] * (_EAT + 1))
    return (
        start + count * torch.arange(len(FAR)),
        torch.tensor(moves),
        torch.tensor([*views, count * (_UNSEEN + 1)]),
        torch.tensor([*eaten, -1]),
    )


def _in_view(cell: tuple[int, int], spot: tuple[int, int], letters: np.ndarray[Any, Any]) -> bool:
    """Returns whether the line between the middles of two cells goes through no building."""
    points = np.linspace(cell, spot, 201)
    distance = np.abs(points[:, None] - np.argwhere(letters == "#")).max(-1)
    return bool((distance >= 0.5 - 1e-9).all())
