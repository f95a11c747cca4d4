"""A walk along a slippery corridor to a prize at its end, written as a Pyro program.

 start                         prize
┌─────┬─────┬─────┬─────┬─────┐
│  0  │  1  │  2  │  3  │  4  │     ◀ action 0     action 1 ▶
└─────┴─────┴─────┴─────┴─────┘
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer, check_probability, check_program
from rl_as_inference.program import act, reward, steps

__all__ = ["corridor"]


@checked
def corridor(
    length: int = 5,
    horizon: int = 8,
    discount: float | Tensor = 0.95,
    temperature: float | Tensor = 0.5,
    slip: float = 0.1,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Callable[[], None]:
    """Returns the program of a walk along ``length`` cells to a prize in the last of them.

        s_0  = 0
        s'   = s + d or s - d, the latter with probability slip;   d = -1 for action 0, +1 for action 1
        r(s) = 1 in the last cell, 0 elsewhere

    Walls stop a step at both ends. Every step that begins in the last cell pays 1, so that an early
    arrival is worth more. It is the smallest problem that has everything: delayed reward, luck,
    discount. The program takes no arguments, names its sites ``state_t``, ``action_t`` and
    ``reward_t``, and runs in any plate.

    Source: a chain of states as in Sutton & Barto, "Reinforcement Learning: An Introduction", 2018,
    example 6.2, with actions.

    Args:
        length: the number of cells, ≥ 2.
        horizon: the number of steps.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        slip: the probability in [0, 1] of stepping the other way.
        dtype, device: of the probabilities and rewards.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> _ = pyro.set_rng_seed(0)
        >>> with pyro.plate("walkers", 3):
        ...     trace = pyro.poutine.trace(corridor(horizon=2)).get_trace()
        >>> trace.nodes["state_2"]["value"]
        tensor([2, 0, 2])
    """
    check_integer("length", length, 2, ", so that there is somewhere to go")
    check_probability("slip", slip)
    check_program(horizon, discount, temperature)
    cells = torch.arange(length, device=device)
    moves = torch.nn.functional.one_hot(torch.stack([cells - 1, cells + 1], 1).clamp(0, length - 1), length)
    moves = moves.to(dtype or torch.get_default_dtype())
    # Logarithms, since probabilities of 0 are clamped to be a little more than impossible.
    move = ((1 - slip) * moves + slip * moves.flip(1)).log()
    start = (cells == 0).to(move).log()
    payoff = (cells == length - 1).to(move)[:, None].expand(length, 2)

    def program() -> None:
        state = pyro.sample("state_0", dist.Categorical(logits=start))
        for t in steps(horizon, discount, like=start):
            action = act(f"action_{t}", state, prior=dist.Categorical(logits=start.new_zeros(2)))
            reward(f"reward_{t}", payoff[state, action], temperature)
            state = pyro.sample(f"state_{t + 1}", dist.Categorical(logits=move[state, action]))

    program.__name__ = "corridor"
    return program
