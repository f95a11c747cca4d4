"""A machine with several arms, which pay or do not: an episode is one pull.

        arm 0 ──▶ won, with probability p_0 (else lost)
choose
        arm 1 ──▶ won, with probability p_1 (else lost)
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.models._arguments import check_integer, check_probability
from rl_as_inference.processes import TabularMDP

__all__ = ["bandit", "bandit_family"]

CHOOSE, LOST, WON = 0, 1, 2


@checked
def bandit(
    probabilities: Sequence[float] = (0.4, 0.6),
    horizon: int | None = 1,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 0.1,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TabularMDP:
    """Returns a bandit with Bernoulli arms, whose outcome is the next state.

        states   0 choose, 1 lost, 2 won; the last two are terminal
        actions  the arms
        s'       won with probability p_a, else lost
        r        1 for won

    Whoever pulls a known machine has nothing to learn; one who does not know it learns from one episode to the next.

    Source: Thompson, "On the likelihood that one unknown probability exceeds another in view of the evidence of two
    samples", Biometrika 25, 1933.

    Args:
        probabilities: how likely each arm is to pay, at least one.
        horizon: the number of steps; all but the first pass in a terminal state.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> bandit().expected_reward()[0]
        tensor([0.4000, 0.6000])
    """
    if not len(probabilities):
        raise ValueError("probabilities must be those of at least one arm, got none")
    for chance in probabilities:
        check_probability("probabilities", chance)
    pays = torch.tensor(list(probabilities), dtype=dtype or torch.get_default_dtype(), device=device)
    return _machine(pays, horizon, discount, temperature)


@checked
def bandit_family(
    num_arms: int = 2,
    prior: tuple[float, float] = (1.0, 1.0),
    *,
    discount: float | Tensor = 1.0,
    temperature: float | Tensor = 0.1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Callable[[], TabularMDP]:
    """Returns the family of such machines: ``p_a ~ Beta(prior)`` for each arm.

    Args:
        num_arms: ≥ 1.
        prior: the Beta distribution's two parameters, > 0.
        discount: γ in [0, 1].
        temperature: α > 0, in reward units per nat.
        dtype, device: of the tables.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> _ = pyro.set_rng_seed(0)
        >>> bandit_family(3)().num_actions
        3
    """
    check_integer("num_arms", num_arms, 1)
    if not len(prior) == 2 or not min(prior) > 0:
        raise ValueError(f"prior must be the two parameters of a Beta distribution, > 0; got {prior}")
    a, b = torch.tensor(prior, dtype=dtype or torch.get_default_dtype(), device=device)

    def family() -> TabularMDP:
        pays = pyro.sample("arms", dist.Beta(a, b).expand([num_arms]).to_event(1))
        return _machine(pays, 1, discount, temperature)

    return family


def _machine(pays: Tensor, horizon: int | None, discount: float | Tensor, temperature: float | Tensor) -> TabularMDP:
    options: dict[str, Any] = {"dtype": pays.dtype, "device": pays.device}
    stay = torch.eye(3, **options)[:, None].expand(3, len(pays), 3)
    chosen = torch.stack([torch.zeros_like(pays), 1 - pays, pays], -1)
    transition = torch.cat([chosen[None], stay[1:]])
    reward = torch.zeros(3, len(pays), 3, **options)
    reward[CHOOSE, :, WON] = 1.0
    mdp = TabularMDP(
        transition,
        reward,
        torch.tensor([1.0, 0.0, 0.0], **options),
        horizon=horizon,
        discount=discount,
        temperature=temperature,
        terminal=torch.tensor([False, True, True], device=pays.device),
    )
    mdp.name = "bandit"
    return mdp
