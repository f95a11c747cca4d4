"""Two doors: behind one is a tiger, behind the other a prize, and one may listen first.

┌───────┐ ┌───────┐
│   ?   │ │   ?   │      listen       costs 1; a growl is heard from the tiger's side, by accuracy
│ left  │ │ right │      open left    10, or -100 with the tiger behind it; then the tiger is placed anew
└───────┘ └───────┘      open right   likewise
"""

from typing import Any

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer, check_probability
from rl_as_inference.processes import TabularPOMDP

__all__ = ["tiger"]

LISTEN, OPEN_LEFT, OPEN_RIGHT = 0, 1, 2


@checked
def tiger(
    horizon: int = 8,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 5.0,
    accuracy: float = 0.85,
    *,
    listen_cost: float = 1.0,
    prize: float = 10.0,
    bite: float = 100.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularPOMDP:
    """Returns the tiger problem, whose state is hidden.

        states        0 tiger left, 1 tiger right; 1/2 each at the start and after a door was opened
        actions       0 listen, 1 open left, 2 open right
        observations  0 growl left, 1 growl right, after every step; after listening p(y = s) = accuracy, else 1/2
        r(s,a)        -listen_cost; prize at the door without the tiger, -bite at the other

    To open a door at once is worth -45, after one growl from the other side -6.5, after two 6.7: so one listens twice
    at least.

    Source: Kaelbling, Littman & Cassandra, "Planning and acting in partially observable stochastic domains",
    Artificial Intelligence 101, 1998, section 5.

    Args:
        horizon: the number of steps.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        accuracy: the probability that the growl comes from the tiger's side.
        listen_cost, prize, bite: in reward units.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from rl_as_inference import exact
        >>> plan = exact.plan(tiger(horizon=1, temperature=0.1))  # one step is left
        >>> for growls in ([1], [1, 1]):  # from the right; how probable it is to open the left door then
        ...     listened = tiger(horizon=len(growls))
        ...     here = exact.belief(listened, torch.tensor(growls), torch.zeros(len(growls), dtype=torch.int))[-1]
        ...     print(round(float(plan(here, 0).probs[OPEN_LEFT]), 3))
        0.0
        1.0
    """
    check_integer("horizon", horizon, 1)
    check_probability("accuracy", accuracy)
    options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    half = torch.full((2,), 0.5, **options)
    transition = half.expand(2, 3, 2).clone()
    transition[:, LISTEN] = torch.eye(2, **options)
    hearing = torch.full((3, 2, 2), 0.5, **options)
    hearing[LISTEN] = torch.tensor([[accuracy, 1 - accuracy], [1 - accuracy, accuracy]], **options)
    pomdp = TabularPOMDP(
        transition,
        torch.tensor([[-listen_cost, -bite, prize], [-listen_cost, prize, -bite]], **options),
        half,
        hearing,
        horizon=horizon,
        discount=discount,
        temperature=temperature,
    )
    pomdp.name = "tiger"
    return pomdp
