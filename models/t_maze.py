"""A T-shaped maze: cheese in one arm, a shock in the other, and a cue that tells which is where.

┌──────┐   ┌───────┐   ┌───────┐
│ left │ ─ │ start │ ─ │ right │      who enters an arm stays there
└──────┘   └───┬───┘   └───────┘
            ┌──┴──┐
            │ cue │
            └─────┘
"""

from typing import Any

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer, check_probability
from rl_as_inference.processes import TabularPOMDP

__all__ = ["CUE", "LEFT", "RIGHT", "START", "t_maze"]

START, LEFT, RIGHT, CUE = 0, 1, 2, 3
"""Places, and the actions that lead there."""


@checked
def t_maze(
    horizon: int = 2,
    temperature: float | Tensor = 0.5,
    reward_probability: float = 0.98,
    *,
    cue_validity: float = 1.0,
    win: float = 1.0,
    loss: float = -1.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularPOMDP:
    """Returns the T-maze, whose context (which arm is the good one) is hidden.

        states        2 · place + context; places 0 start, 1 left, 2 right, 3 cue; context 0 left is good, 1 right is
        actions       0 … 3: go to that place. Arms keep who is in them, the context stays.
        observations  0 at the start, 1 left and won, 2 left and lost, 3 right and won, 4 right and lost,
                      5 cue says left, 6 cue says right; at the start and after every step
        r(s')         in an arm p win + (1 - p) loss, with p = reward_probability in the good one, its complement in
                      the other; 0 elsewhere

    Every step in an arm pays, so that to read the cue costs one of ``horizon`` payments. It is worth it where the
    expected payment of an arm entered blindly, (win + loss)/2, is small enough.

    Source: Friston, Rigoli, Ognibene, Mathys, Fitzgerald & Pezzulo, "Active inference and epistemic value", Cognitive
    Neuroscience 6(4), 2015; the T-maze of pymdp (Heins et al. 2022, Journal of Open Source Software 7(73)).

    Args:
        horizon: the number of steps.
        temperature: α > 0, in reward units per nat.
        reward_probability: of winning in the good arm.
        cue_validity: the probability that the cue is right.
        win, loss: in reward units.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from rl_as_inference import exact
        >>> maze = t_maze()
        >>> first = exact.plan(maze)(maze.fully_observed.initial_probabilities, 0).probs
        >>> [round(p, 2) for p in first.tolist()]  # start, left, right, cue
        [0.19, 0.19, 0.19, 0.43]
        >>> exact.belief(maze, torch.tensor([0, 5, 1]), torch.tensor([CUE, LEFT]))[-1, [2 * LEFT, 2 * LEFT + 1]]
        tensor([1., 0.])
    """
    check_integer("horizon", horizon, 1)
    check_probability("reward_probability", reward_probability)
    check_probability("cue_validity", cue_validity)
    options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    transition = torch.zeros(4, 2, 4, 4, 2, **options)  # place, context, action, next place, next context
    seen = torch.zeros(4, 2, 7, **options)
    reward = torch.zeros(4, 2, **options)
    for context in range(2):
        for place in range(4):
            for action in range(4):
                transition[place, context, action, place if place in (LEFT, RIGHT) else action, context] = 1.0
        seen[START, context, 0] = 1.0
        for arm in (LEFT, RIGHT):
            wins = reward_probability if arm == LEFT + context else 1 - reward_probability
            seen[arm, context, 2 * arm - 1], seen[arm, context, 2 * arm] = wins, 1 - wins
            reward[arm, context] = wins * win + (1 - wins) * loss
        seen[CUE, context, 5 + context], seen[CUE, context, 6 - context] = cue_validity, 1 - cue_validity
    initial = torch.zeros(4, 2, **options)
    initial[START] = 0.5
    pomdp = TabularPOMDP(
        transition.reshape(8, 4, 8),
        reward.reshape(8).expand(8, 4, 8),
        initial.reshape(8),
        seen.reshape(8, 7),
        horizon=horizon,
        temperature=temperature,
    )
    pomdp.name = "t_maze"
    return pomdp
