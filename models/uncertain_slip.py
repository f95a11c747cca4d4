"""A frozen lake to cross, without knowing how slippery it is.

shore                               cabin
  │ 0   1   2   3   4   5   6   7 │ 8        action 0: creep one cell
  └~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~┘          action 1: run two cells, or fall
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer, check_program
from rl_as_inference.program import act, reward, steps

__all__ = ["uncertain_slip"]


@checked
def uncertain_slip(
    length: int = 8,
    horizon: int = 8,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 0.5,
    slip_prior: tuple[float, float] = (2.0, 4.0),
    fall_cost: float = 0.5,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Callable[[], None]:
    """Returns the program of a crossing whose dynamics have an unknown parameter.

        slip    ~ Beta(slip_prior)                     drawn once a trajectory
        slick_t ~ Bernoulli(slip)                      the ice under step t
        s'      = s + 1 for creeping;  s + 2 for running, or s where the ice is slick
        r       = 1 for every step in the cabin, -fall_cost for every fall

    The policy sees the position ``s / length``, a vector of one number, and not the slip; the cabin is
    at ``s = length``. The sites that tell of the slip are the ``slick_t``, so that given these it is
    exactly ``Beta(a + Σ slick_t, b + Σ (1 - slick_t))``, whatever the actions and rewards were. Given only
    that the crossing went well, the ice is believed to be better than it is; an agent under
    :func:`~rl_as_inference.follow` has to take the ice as it comes.

    Source: a Bayes-adaptive process with one parameter; Duff, "Optimal learning: computational
    procedures for Bayes-adaptive Markov decision processes", PhD thesis, 2002.

    Args:
        length: the width of the lake in cells, ≥ 1.
        horizon: the number of steps.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        slip_prior: the Beta distribution's two parameters, > 0.
        fall_cost: in reward units, ≥ 0.
        dtype, device: of the probabilities and rewards.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> _ = pyro.set_rng_seed(0)
        >>> with pyro.plate("walkers", 3):
        ...     trace = pyro.poutine.trace(uncertain_slip()).get_trace()
        >>> trace.nodes["slip"]["value"].shape
        torch.Size([3])
    """
    check_integer("length", length, 1)
    if not len(slip_prior) == 2 or not min(slip_prior) > 0:
        raise ValueError(f"slip_prior must be the two parameters of a Beta distribution, > 0; got {slip_prior}")
    if not fall_cost >= 0:
        raise ValueError(f"fall_cost must be >= 0, since it is subtracted from the reward; got {fall_cost}")
    check_program(horizon, discount, temperature)
    a, b = torch.tensor(slip_prior, dtype=dtype or torch.get_default_dtype(), device=device)

    def program() -> None:
        slip = pyro.sample("slip", dist.Beta(a, b))
        position = torch.zeros_like(slip)
        for t in steps(horizon, discount, like=a):
            action = act(f"action_{t}", position[..., None] / length, prior=dist.Categorical(logits=a.new_zeros(2)))
            slick = pyro.sample(f"slick_{t}", dist.Bernoulli(slip)).bool()
            fallen = slick & (action == 1) & (position < length)
            position = torch.where(fallen, position, position + 1 + action).clamp(max=length)
            reward(f"reward_{t}", (position == length).to(a) - fall_cost * fallen.to(a), temperature)

    program.__name__ = "uncertain_slip"
    return program
