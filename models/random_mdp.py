"""A random process: the dense problem of reference for estimators and speed.

┌─────┐ a ~ 4 actions   ┌─────┐
│ s_t │ ──────────────▶ │ s'  │    every state can follow every other,
└─────┘  p(s'|s,a)      └─────┘    with probabilities thrown once
"""

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer
from rl_as_inference.processes import TabularMDP

__all__ = ["random_mdp"]


@checked
def random_mdp(
    num_states: int = 25,
    num_actions: int = 4,
    horizon: int | None = 30,
    discount: float | Tensor = 0.95,
    temperature: float | Tensor = 1.0,
    seed: int = 0,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularMDP:
    """Returns a dense process whose tables are drawn at random.

        p(·|s,a) ~ Dirichlet(1, …, 1)        r(s,a) ~ N(0, 1)        p(s_0) uniform

    The same seed gives the same problem in every floating type and on every device.

    Source: random processes of this kind test solvers since Archibald, McKinnon & Thomas, "On the
    generation of Markov decision processes", Journal of the Operational Research Society 46(3), 1995.

    Args:
        num_states: ``S``, ≥ 1.
        num_actions: ``A``, ≥ 1.
        horizon: the number of steps, or None for no horizon.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        seed: of the tables.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> random_mdp().reward_table[0]
        tensor([-0.3663,  1.0787, -1.4136, -0.3900])
    """
    check_integer("num_states", num_states, 1)
    check_integer("num_actions", num_actions, 1)
    generator = torch.Generator().manual_seed(seed)
    # Exponential draws over their sum are Dirichlet(1, …, 1).
    transition = torch.empty(num_states, num_actions, num_states, dtype=torch.float64)
    transition.exponential_(generator=generator)
    reward = torch.randn(num_states, num_actions, generator=generator, dtype=torch.float64)
    initial = torch.full((num_states,), 1 / num_states, dtype=torch.float64)
    tables = [
        table.to(dtype=dtype or torch.get_default_dtype(), device=device)
        for table in (transition / transition.sum(-1, keepdim=True), reward, initial)
    ]
    mdp = TabularMDP(*tables, horizon=horizon, discount=discount, temperature=temperature)
    mdp.name = "random_mdp"
    return mdp
