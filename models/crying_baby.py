"""A baby that is hungry or sated, and cries now and then either way.

         becomes hungry, 0.1
┌───────┐ ──────────────▶ ┌────────┐      feed     makes it sated
│ sated │                 │ hungry │      ignore   and see
└───────┘ ◀────────────── └────────┘      sing     a sated baby then never cries, a hungry one nearly always
               feed
"""

from typing import Any

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer, check_probability
from rl_as_inference.processes import TabularPOMDP

__all__ = ["crying_baby"]

FEED, IGNORE, SING = 0, 1, 2


@checked
def crying_baby(
    horizon: int = 8,
    discount: float | Tensor = 0.9,
    temperature: float | Tensor = 2.0,
    *,
    becomes_hungry: float = 0.1,
    cries_hungry: float = 0.8,
    cries_sated: float = 0.1,
    cries_to_song: float = 0.9,
    hungry_cost: float = 10.0,
    feed_cost: float = 5.0,
    sing_cost: float = 0.5,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularPOMDP:
    """Returns the crying baby, whose hunger is hidden.

        states        0 sated, 1 hungry; 1/2 each at the start
        actions       0 feed, 1 ignore, 2 sing
        observations  0 quiet, 1 cry, after every step: cries_hungry or cries_sated by the state it leads to;
                      after a song cries_to_song when hungry, never when sated
        r(s,a)        -hungry_cost when hungry, -feed_cost for feeding, -sing_cost for singing

    To sing is to ask: it costs little, and tells more than waiting does.

    Source: Kochenderfer, Wheeler & Wray, "Algorithms for Decision Making", MIT Press 2022, appendix F.7.

    Args:
        horizon: the number of steps.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        becomes_hungry: the probability that a sated baby that is not fed becomes hungry in a step.
        cries_hungry, cries_sated: probabilities of crying after feeding or ignoring.
        cries_to_song: of a hungry baby that is sung to.
        hungry_cost, feed_cost, sing_cost: in reward units.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from rl_as_inference import exact
        >>> baby = crying_baby()
        >>> [round(p, 3) for p in exact.belief(baby, torch.tensor([1, 1]), torch.tensor([1, 1]))[:, 1].tolist()]
        [0.5, 0.907, 0.989]
    """
    check_integer("horizon", horizon, 1)
    for name, value in {
        "becomes_hungry": becomes_hungry,
        "cries_hungry": cries_hungry,
        "cries_sated": cries_sated,
        "cries_to_song": cries_to_song,
    }.items():
        check_probability(name, value)
    options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    left_alone = torch.tensor([[1 - becomes_hungry, becomes_hungry], [0.0, 1.0]], **options)
    fed = torch.tensor([[1.0, 0.0], [1.0, 0.0]], **options)
    cries = torch.tensor([[cries_sated, cries_hungry], [cries_sated, cries_hungry], [0.0, cries_to_song]], **options)
    cost = torch.tensor([feed_cost, 0.0, sing_cost], **options)
    hungry = torch.tensor([0.0, hungry_cost], **options)
    pomdp = TabularPOMDP(
        torch.stack([fed, left_alone, left_alone], 1),
        -(hungry[:, None] + cost),
        torch.full((2,), 0.5, **options),
        torch.stack([1 - cries, cries], -1),
        horizon=horizon,
        discount=discount,
        temperature=temperature,
    )
    pomdp.name = "crying_baby"
    return pomdp
