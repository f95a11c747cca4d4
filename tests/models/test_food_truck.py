"""The campus of the food trucks: who sees what from where, and what the best plan does with it."""

import re

import pytest
import torch
from torch import Tensor

from rl_as_inference import History, TabularPOMDP, exact
from rl_as_inference.models import food_truck
from rl_as_inference.models.food_truck import CAMPUS, FAR, TRUCKS

F64 = torch.float64
LEFT, DOWN, RIGHT, UP, EAT = range(5)
CELLS = sum(letter != "#" for row in CAMPUS for letter in row)


def start(campus: TabularPOMDP, far: str) -> int:
    cell = int(campus.fully_observed.initial_probabilities.argmax()) % CELLS
    return CELLS * FAR.index(far) + cell


def led_by_the_plan(far: str, belief: list[float], utility: list[float]) -> list[int]:
    """The likeliest actions of a walk."""
    campus = food_truck(torch.tensor(utility, dtype=F64), torch.tensor(belief, dtype=F64))
    plan, moves = exact.plan(campus), campus.fully_observed.kernel.dense()
    state, actions = start(campus, far), []
    seen = History().then(None, campus.observation_table[state].argmax()[None])
    while not bool(campus.fully_observed.terminal[state]):
        action = plan(seen, len(actions)).probs[0].argmax()
        state = int(moves[state, action].argmax())
        actions.append(int(action))
        seen = seen.then(action[None], campus.observation_table[state].argmax()[None])
    return actions


def test_the_far_spot_is_seen_from_the_top_and_the_right_alone() -> None:
    campus = food_truck()
    views = campus.observation_table.argmax(-1)[:-1].reshape(len(FAR), CELLS) % (len(FAR) + 1)
    cells = [(r, c) for r, row in enumerate(CAMPUS) for c, letter in enumerate(row) if letter != "#"]
    for cell, (row, column) in enumerate(cells):
        expected = list(range(4)) if row == 0 or column == 4 else [4] * 4
        assert views[:, cell].tolist() == expected, (row, column)


def test_walks_end_with_a_meal_at_a_truck() -> None:
    """At each truck its utility less the cost of a step, and nowhere else."""
    utility = torch.tensor([1.0, 0.5, 2.0], dtype=F64)
    campus = food_truck(utility, near="Lebanese", step_cost=0.25).fully_observed
    reward, moves = campus.reward_table, campus.kernel.dense()
    meals = (moves[:-1, EAT, -1] == 1).nonzero()[:, 0]
    near = {state for state in meals.tolist() if reward[state, EAT] == 0.25}
    assert len(meals) == len(FAR) + len(TRUCKS)
    assert len(near) == len(FAR) + 1  # Lebanese food at the near spot, whatever is at the far one, or at both
    assert sorted(float(x) for x in reward[meals, EAT].unique()) == [0.25, 0.75, 1.75]
    assert bool((reward[:-1, :EAT] == -0.25).all())
    assert bool((reward[-1] == 0).all())


@pytest.mark.parametrize(
    ("far", "belief", "utility", "walk"),
    [
        ("Lebanese", [0, 0.2, 0.7, 0.1], [0.6, 0.0, 1.8], [RIGHT] * 2 + [LEFT] * 4 + [EAT]),
        ("Mexican", [0, 0.2, 0.7, 0.1], [0.6, 0.0, 1.8], [RIGHT] * 2 + [UP] * 2 + [EAT]),
        ("Mexican", [0, 0.7, 0.2, 0.1], [1.2, 0.0, 1.5], [LEFT] * 2 + [EAT]),
        ("Mexican", [0, 0.2, 0.7, 0.1], [1.8, 0.0, 0.6], [LEFT] * 2 + [EAT]),
    ],
)
def test_what_the_best_plan_does(far: str, belief: list[float], utility: list[float], walk: list[int]) -> None:
    assert led_by_the_plan(far, belief, utility) == walk


def test_equal_beliefs_are_one() -> None:
    """Where she is, and whether she knows what is there: at most one belief for each of 12 cells and 4 states of
    knowledge at each of 12 steps."""
    sizes = [len(each) for each in exact.plan(food_truck(dtype=F64)).beliefs]
    assert max(sizes) <= 4 * CELLS
    assert sizes[-1] == sizes[-3], "no more after she may have been everywhere"


def test_slopes_in_utility_and_belief() -> None:
    """Of the largest ELBO, against differences."""
    utility = torch.tensor([1.0, 0.5, 2.0], dtype=F64, requires_grad=True)
    belief = torch.tensor([0.1, 0.2, 0.6, 0.1], dtype=F64, requires_grad=True)

    def objective(utility: Tensor, belief: Tensor) -> Tensor:
        return exact.optimal_elbo(food_truck(utility, belief / belief.sum(), horizon=6))

    assert torch.autograd.gradcheck(objective, (utility, belief), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"utility": torch.ones(2)}, "utility must be a tensor of 3 numbers"),
        ({"utility": torch.ones(3).long()}, "utility must be a tensor of 3 numbers"),
        ({"belief": torch.ones(3) / 3}, "belief must be a tensor of 4 probabilities"),
        ({"belief": torch.ones(4)}, "belief must hold probabilities >= 0 that sum to one"),
        ({"near": "Thai"}, "near must be one of ('Korean', 'Lebanese', 'Mexican')"),
        ({"horizon": 0}, "horizon must be an integer >= 1"),
        ({"temperature": 0.0}, "temperature must be"),
    ],
)
def test_arguments(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        food_truck(**arguments)  # type: ignore[arg-type]
