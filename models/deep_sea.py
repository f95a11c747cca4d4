"""A dive of N steps through an N×N grid: one treasure, in the far corner, and every step towards it costs.

╲                 row by row the diver sinks; left or right is all there is to choose
│╲                right costs 0.01/N, left costs nothing
│ ╲               only N times right reaches the treasure; a diver who tries at random
│  ╲              finds it once in 2^N dives
└───╲ treasure, 1
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

__all__ = ["deep_sea", "deep_sea_family"]


@checked
def deep_sea(
    size: int = 10,
    horizon: int | None = None,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 0.1,
    *,
    mapping_seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularMDP:
    """Returns the problem of deep exploration.

        states   s = row · N + column, from (0, 0)
        actions  left, right: which of 0 and 1 is right is thrown once for every cell by mapping_seed
        s'       (row + 1, column ± 1), the column kept in 0 … N-1
        r        -0.01/N for right, and 1 for right in the last row's last column, where only N times right leads

    Without a seed action 1 is right everywhere. The best return is 0.99, and the best policy that never goes right
    earns 0. What follows the last row is the first, which within N steps nobody sees.

    Source: Osband, Van Roy, Russo & Wen, "Deep exploration via randomized value functions", JMLR 20(124), 2019; with
    the numbers of bsuite (Osband et al. 2020, arXiv:1908.03568).

    Args:
        size: ``N``, ≥ 2.
        horizon: the number of steps; None for ``N``.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        mapping_seed: of which action is right in which cell.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> from rl_as_inference import exact
        >>> sea = deep_sea(10, dtype=torch.float64)
        >>> always_right = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(sea.num_states, 2)
        >>> round(float(exact.expected_return(sea, always_right)), 9)
        0.99
    """
    check_integer("size", size, 2)
    options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    right = torch.ones(size * size, dtype=torch.long)
    if mapping_seed is not None:
        right = torch.randint(2, (size * size,), generator=torch.Generator().manual_seed(mapping_seed))
    right = right.to(device)
    cell = torch.arange(size * size, device=device)
    goes_right = torch.arange(2, device=device) == right[:, None]
    column = (cell % size)[:, None] + torch.where(goes_right, 1, -1)
    below = (cell // size + 1)[:, None] % size * size + column.clamp(0, size - 1)
    reward = torch.where(goes_right, torch.tensor(-0.01 / size, **options), torch.tensor(0.0, **options))
    reward[-1] += goes_right[-1].to(reward)
    mdp = TabularMDP.from_successors(
        below[..., None],
        torch.ones(size * size, 2, 1, **options),
        reward,
        _first(size, options),
        horizon=size if horizon is None else horizon,
        discount=discount,
        temperature=temperature,
    )
    mdp.name = "deep_sea"
    return mdp


@checked
def deep_sea_family(
    size: int = 10,
    *,
    reach: int | None = 1,
    concentration: float | None = None,
    scale: float = 1.0,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 0.1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Callable[[], TabularMDP]:
    """Returns the family that an agent who has never dived believes in.

        transition (s, a) ~ Dirichlet(concentration, …)   over the cells of the next row within reach
        reward (s, a)     ~ N(0, scale²)

    The agent knows that it sinks one row a step and moves by at most ``reach`` columns (near the edges the window is
    moved inwards). It does not know which action does what, nor that they do alike in all rows, nor where rewards are.
    The priors of rewards are those of O'Donoghue, Osband & Ionescu (2020, arXiv:2001.00805), and so are the weights,
    1/N; they spread them over the whole row, which is ``reach=None`` and takes many more episodes.

    Args:
        size: ``N``, ≥ 2.
        reach: by how many columns a step may move, ≥ 1; None for any number.
        concentration: > 0; None for 1/N.
        scale: the standard deviation of an unknown reward, > 0.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> _ = pyro.set_rng_seed(0)
        >>> sea = deep_sea_family(4)()
        >>> sea.num_states, sea.num_actions, sea.horizon
        (16, 2, 4)
    """
    check_integer("size", size, 2)
    if reach is not None:
        check_integer("reach", reach, 1, " or None")
    weight = 1 / size if concentration is None else concentration
    for name, value in (("concentration", weight), ("scale", scale)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value!r}")
    options: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device}
    num_states = size * size
    cell = torch.arange(num_states, device=device)
    width = size if reach is None else min(2 * reach + 1, size)
    # A window of cells around the diver, moved inwards where it would stick out of the sea.
    window = (cell % size - width // 2).clamp(0, size - width)[:, None] + torch.arange(width, device=device)
    below = ((cell // size + 1) % size * size)[:, None] + window
    successors = below[:, None].expand(num_states, 2, width)
    weights, loc = torch.full((num_states, 2, width), weight, **options), torch.zeros(num_states, 2, **options)

    def family() -> TabularMDP:
        transition = pyro.sample("transition", dist.Dirichlet(weights).to_event(2))
        reward = pyro.sample("reward", dist.Normal(loc, scale).to_event(2))
        mdp = TabularMDP.from_successors(
            successors,
            transition,
            reward,
            _first(size, options),
            horizon=size,
            discount=discount,
            temperature=temperature,
        )
        mdp.name = "deep_sea"
        return mdp

    return family


def _first(size: int, options: dict[str, Any]) -> Tensor:
    first = torch.zeros(size * size, **options)
    first[0] = 1.0
    return first
