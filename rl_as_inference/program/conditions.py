"""Conditions on whole trajectories, for what ``pyro.condition`` cannot say of a single site."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.program.sites import CONDITION, REWARD, is_reward

__all__ = ["given_return"]


@checked
def given_return(program: Callable[..., Any], at_least: float) -> Callable[..., Any]:
    """Returns the program conditioned on a total reward of at least ``at_least``.

    To condition on states or actions use ``pyro.condition``; the two go together. The optimality factors
    stay as they are: for the action prior's own trajectories of such a return raise the temperature
    (``process.at_temperature(1e6)``).

    A return that falls short by no more than rounding counts as reached: ten payoffs of 0.1 are a return of 1,
    though their sum is not. Rounding is four units in the last place of every reward, ``4 ε Σ_t |r_t|`` with the ε of
    the rewards' own type, since returns are summed in float64.

    Args:
        program: a process or a Pyro program that tags its rewards (:func:`rl_as_inference.reward`).
        at_least: in reward units, of the undiscounted sum over the steps that were survived.

    Raises:
        ValueError: if ``at_least`` is not a finite number; when run, if the program has no rewards.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> trace = pyro.poutine.trace(given_return(mdp, 5.0)).get_trace()
        >>> float(trace.log_prob_sum())
        -inf
    """
    if not math.isfinite(at_least):
        raise ValueError(f"at_least must be a finite number of reward units, got {at_least}")

    def conditioned(*args: Any, **kwargs: Any) -> Any:
        with _Rewards() as rewards:
            answer = program(*args, **kwargs)
        if rewards.total is None:
            raise ValueError("given_return: the program has no rewards; write them by reward(name, value, temperature)")
        with _InPlates(rewards.plates):
            short = rewards.total < at_least - rewards.rounding
            unit = dist.Unit(torch.where(short, -math.inf, 0.0).to(rewards.dtype))
            mark = {"is_auxiliary": True, CONDITION: at_least}
            pyro.sample("return_at_least", unit, obs=unit.sample(), infer=mark)
        return answer

    conditioned.__wrapped__ = program  # type: ignore[attr-defined]
    conditioned.__qualname__ = str(getattr(program, "name", None) or getattr(program, "__qualname__", "program"))
    return conditioned


class _Rewards(Messenger):
    """Adds up the rewards of a run, and remembers the program's plates that they stand in."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor | None = None
        self.rounding: Tensor | float = 0.0
        self.dtype = torch.get_default_dtype()
        self.plates: tuple[Any, ...] = ()

    def _pyro_sample(self, msg: Any) -> None:
        if not is_reward(msg):
            return
        value = torch.as_tensor(msg["infer"][REWARD]["value"]).detach()
        if msg["mask"] is not None:
            value = torch.where(torch.as_tensor(msg["mask"], device=value.device), value, 0.0)
        if value.is_floating_point():
            self.dtype = value.dtype
        ulp = torch.finfo(self.dtype).eps
        value = value.double()
        self.total = value if self.total is None else self.total + value
        self.rounding = self.rounding + 4 * ulp * value.abs()
        self.plates = msg["cond_indep_stack"]  # those inside; the ones outside have yet to add themselves


class _InPlates(Messenger):
    """Puts sites into plates that have been left."""

    def __init__(self, plates: tuple[Any, ...]) -> None:
        super().__init__()
        self.plates = plates

    def _pyro_sample(self, msg: Any) -> None:
        msg["cond_indep_stack"] = self.plates + msg["cond_indep_stack"]
