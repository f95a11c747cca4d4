"""The frozen lake of Gymnasium, read from its own table.

S F F F       S start    H hole: the episode is over
F H F H       F frozen   G goal: pays 1, and the episode is over
F F F H
H F F G       (map_name="4x4")
"""

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.processes import TabularMDP

__all__ = ["frozen_lake"]


@checked
def frozen_lake(
    map_name: str = "8x8",
    horizon: int | None = 100,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 0.005,
    is_slippery: bool = True,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularMDP:
    """Returns the walk over a frozen lake with holes; actions 0 left, 1 down, 2 right, 3 up.

        s'  on slippery ice the cell the action points at or one at a right angle, 1/3 each
        r   1 for the step that reaches the goal, 0 else

    A return of 1 and a temperature this low make success worth 200 nats, so that the *dynamics gap*
    shows: the exact posterior explains success by luck, and its action rule, run on the real ice,
    hardly ever arrives; the causal posterior's rule does in every second walk.

    Source: Gymnasium's ``FrozenLake-v1``.

    Args:
        map_name: ``"4x4"`` or ``"8x8"``.
        horizon: the number of steps; None for no horizon.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        is_slippery: whether moves go astray.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> lake = frozen_lake()
        >>> lake.num_states, "".join(lake.layout[7])
        (64, 'FFFHFFFG')
    """
    if map_name not in ("4x4", "8x8"):
        raise ValueError(f"map_name must be '4x4' or '8x8', got {map_name!r}")
    mdp = TabularMDP.from_gymnasium(
        "FrozenLake-v1",
        horizon=horizon,
        discount=discount,
        temperature=temperature,
        dtype=dtype,
        device=device,
        map_name=map_name,
        is_slippery=is_slippery,
    )
    mdp.name = "frozen_lake"
    return mdp
