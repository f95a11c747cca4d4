"""A river of six pools: the current brings a swimmer back, and what is worth having lies upstream.

0.005                                             1
┌───┐   ┌───┐   ┌───┐   ┌───┐   ┌───┐   ┌───┐
│ 0 │ ◀ │ 1 │ ◀ │ 2 │ ◀ │ 3 │ ◀ │ 4 │ ◀ │ 5 │     left: with the current, always one pool
└───┘   └───┘   └───┘   └───┘   └───┘   └───┘     right: against it, 0.35 on, 0.6 where it is, 0.05 back
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer
from rl_as_inference.processes import TabularMDP

__all__ = ["river_swim", "river_swim_family"]


@checked
def river_swim(
    length: int = 6,
    horizon: int | None = 20,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 0.1,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularMDP:
    """Returns the river.

        actions  0 left, 1 right
        s'       left: s - 1, or 0 in pool 0
                 right: from 0 it is 0.6 on, 0.4 there; from the last 0.6 there, 0.4 back; else 0.35 on, 0.6 there,
                 0.05 back
        r        0.005 for left in pool 0, 1 for right in the last pool
        p(s_0)   pool 0

    Source: Strehl & Littman, "An analysis of model-based interval estimation for Markov decision processes", JCSS
    74(8), 2008; these numbers and the horizon are those of Osband, Russo & Van Roy, "(More) efficient reinforcement
    learning via posterior sampling", NeurIPS 2013, figure 2.

    Args:
        length: the number of pools, ≥ 2.
        horizon: the number of steps, or None for no horizon.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> river_swim().kernel.probabilities[2, 1]
        tensor([0.0000, 0.0500, 0.6000, 0.3500, 0.0000, 0.0000])
    """
    check_integer("length", length, 2)
    options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    transition = torch.zeros(length, 2, length, **options)
    for pool in range(length):
        transition[pool, 0, max(pool - 1, 0)] = 1.0
        back, stay, on = 0.05, 0.6, 0.35
        if pool == 0:
            back, stay, on = 0.0, 0.4, 0.6
        elif pool == length - 1:
            back, stay, on = 0.4, 0.6, 0.0
        for after, chance in ((pool - 1, back), (pool, stay), (pool + 1, on)):
            if chance:
                transition[pool, 1, after] += chance
    reward = torch.zeros(length, 2, **options)
    reward[0, 0], reward[-1, 1] = 0.005, 1.0
    mdp = TabularMDP(
        transition, reward, _first(length, options), horizon=horizon, discount=discount, temperature=temperature
    )
    mdp.name = "river_swim"
    return mdp


@checked
def river_swim_family(
    length: int = 6,
    horizon: int = 20,
    *,
    concentration: float | None = None,
    scale: float = 1.0,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 0.1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Callable[[], TabularMDP]:
    """Returns the family of a swimmer who knows the pools and not the river.

        transition (s, a) ~ Dirichlet(concentration, …, concentration)   over all pools
        reward (s, a)     ~ N(0, scale²)

    Args:
        length: the number of pools, ≥ 2.
        horizon: the number of steps of an episode.
        concentration: > 0; None for 1/length, the weight of one observation a row.
        scale: the standard deviation of an unknown reward, > 0.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> _ = pyro.set_rng_seed(0)
        >>> river_swim_family()().num_states
        6
    """
    check_integer("length", length, 2)
    check_integer("horizon", horizon, 1)
    weight = 1 / length if concentration is None else concentration
    for name, value in (("concentration", weight), ("scale", scale)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value!r}")
    options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    weights, loc = torch.full((length, 2, length), weight, **options), torch.zeros(length, 2, **options)

    def family() -> TabularMDP:
        transition = pyro.sample("transition", dist.Dirichlet(weights).to_event(2))
        reward = pyro.sample("reward", dist.Normal(loc, scale).to_event(2))
        mdp = TabularMDP(
            transition, reward, _first(length, options), horizon=horizon, discount=discount, temperature=temperature
        )
        mdp.name = "river_swim"
        return mdp

    return family


def _first(length: int, options: dict[str, Any]) -> Tensor:
    first = torch.zeros(length, **options)
    first[0] = 1.0
    return first
