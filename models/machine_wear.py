"""A machine whose parts break unseen: its products tell, if they are looked at.

0 broken ─▶ 1 broken ─▶ 2 broken        manufacture   make a product, and sell it unseen
    ▲           │           │           examine       make one, and look at it first
    └───────────┴───────────┘           inspect       open the machine, replace what is broken
         inspect, replace               replace       all parts, broken or not
"""

import math
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer, check_probability
from rl_as_inference.processes import TabularPOMDP

__all__ = ["machine_wear"]

MANUFACTURE, EXAMINE, INSPECT, REPLACE = 0, 1, 2, 3


@checked
def machine_wear(
    horizon: int = 8,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 0.2,
    parts: int = 2,
    *,
    breaks: float = 0.1,
    spoils: float = 0.5,
    examine_cost: float = 0.25,
    inspect_cost: float = 0.5,
    part_cost: float = 1.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularPOMDP:
    """Returns the machine, whose wear is hidden.

        states        s = 0 … parts: how many parts are broken; 0 at the start
        actions       0 manufacture, 1 examine, 2 inspect, 3 replace
        s'            making a product breaks each whole part with probability breaks; inspect and replace lead to 0
        observations  0 a good product, 1 a bad one, after every step: when examined, p(good|s') = (1 - spoils)^s', as
                      each broken part spoils the product; else no news, always 0
        r             p(good|s') for making one, less examine_cost if examined; -inspect_cost - part_cost s;
                      -part_cost parts

    Source: Smallwood & Sondik, "The optimal control of partially observable Markov processes over a finite horizon",
    Operations Research 21(5), 1973, the example of machine maintenance.

    Args:
        horizon: the number of steps.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        parts: ≥ 1.
        breaks: the probability that a part breaks while a product is made.
        spoils: the probability that a broken part spoils the product.
        examine_cost, inspect_cost, part_cost: in reward units, as is a good product's worth, 1.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> machine = machine_wear(dtype=torch.float64)
        >>> [round(r, 4) for r in machine.fully_observed.expected_reward()[:, MANUFACTURE].tolist()]
        [0.9025, 0.475, 0.25]
    """
    check_integer("horizon", horizon, 1)
    check_integer("parts", parts, 1)
    check_probability("breaks", breaks)
    check_probability("spoils", spoils)
    options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    levels = range(parts + 1)
    worn = torch.tensor([[_binomial(parts - i, j - i, breaks) for j in levels] for i in levels], **options)
    renewed = torch.eye(parts + 1, **options)[:1].expand(parts + 1, -1)
    good = (1 - spoils) ** torch.arange(parts + 1, **options)
    unseen = torch.ones_like(good)
    broken = torch.arange(parts + 1, **options)
    costs = torch.stack(
        [0 * broken, 0 * broken + examine_cost, inspect_cost + part_cost * broken, 0 * broken + part_cost * parts], 1
    )
    making = torch.tensor([1.0, 1.0, 0.0, 0.0], **options)
    seen_good = torch.stack([unseen, good, unseen, unseen])
    pomdp = TabularPOMDP(
        torch.stack([worn, worn, renewed, renewed], 1),
        making[:, None] * good - costs[..., None],
        torch.eye(parts + 1, **options)[0],
        torch.stack([seen_good, 1 - seen_good], -1),
        horizon=horizon,
        discount=discount,
        temperature=temperature,
    )
    pomdp.name = "machine_wear"
    return pomdp


def _binomial(trials: int, successes: int, chance: float) -> float:
    if successes < 0:
        return 0.0
    return math.comb(trials, successes) * chance**successes * (1 - chance) ** (trials - successes)
