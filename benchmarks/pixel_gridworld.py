"""A gridworld of ten by ten that is seen as pixels, and the most that can be earned in it."""

from typing import Any

import gymnasium
import numpy as np

from rl_as_inference import exact
from rl_as_inference.models import gridworld
from rl_as_inference.processes import TabularMDP, to_gymnasium

WALLS = [*((3, column) for column in (0, 1, 2, 4, 5, 6, 7)), *((6, column) for column in (2, 3, 4, 5, 6, 8, 9))]
"""Two walls with gaps, of which those on the way to the goal are at columns 3 to 8 and at 7."""
HORIZON = 60


def grid() -> TabularMDP:
    """Returns the process: no slipping, 1 a step at the goal, 60 steps."""
    return gridworld(10, 10, HORIZON, slip=0.0, start=(4, 1), goal=(8, 8), walls=WALLS)


def pixel_gridworld() -> gymnasium.Env[Any, Any]:
    """Returns the grid as an environment whose observations are bytes ``(10, 10, 3)``: walker, goal, walls."""
    process = grid()
    picture = np.zeros((10, 10, 3), np.uint8)
    for channel, letter in ((1, "G"), (2, "#")):
        picture[..., channel] = 255 * (process.layout == letter)

    def seen(state: Any) -> Any:
        drawn = picture.copy()
        drawn[int(state) // 10, int(state) % 10, 0] = 255
        return drawn

    space = gymnasium.spaces.Box(0, 255, picture.shape, np.uint8)
    return gymnasium.wrappers.TransformObservation(to_gymnasium(process), seen, space)


def most() -> int:
    """Returns the greatest return: what the soft value at the start tends to as the temperature goes to 0."""
    process = grid()
    plan = exact.plan(process.at_temperature(1e-4))
    return round(float(plan.soft_v[0, int((process.layout == "S").argmax())]))
