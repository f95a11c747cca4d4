"""How much return each bit of deliberation buys: the MaxEnt policies over all temperatures."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_temperature
from rl_as_inference.data_frames import Frame, frame
from rl_as_inference.host import in_turn
from rl_as_inference.processes import LinearGaussianMDP, TabularMDP
from rl_as_inference.reasoning.returns import account, best, in_own_unit

__all__ = ["RationalityCurve", "rationality_curve"]


@dataclass(frozen=True)
class RationalityCurve:
    """The MaxEnt policies of one process, one entry a temperature, float64, temperatures ascending.

    Attributes:
        temperature: α in reward units per nat, ``(K,)``.
        expected_return: ``E_π Σ γ^t r_t`` in reward units, ``(K,)``; it falls with α.
        entropy: ``E_π Σ γ^t H[π(.|s_t)]`` in nats, ``(K,)``; differential for continuous actions.
        information: ``E_π Σ γ^t KL(π(.|s_t) || p(.|s_t))`` in nats, ``(K,)``; it falls with α.
        best_return: what the curve tends to as α → 0; None where it is not known.
        prior_return: what it tends to as α → inf: the return of the action prior.
    """

    temperature: Tensor
    expected_return: Tensor
    entropy: Tensor
    information: Tensor
    best_return: float | None
    prior_return: float

    @property
    def bits(self) -> Tensor:
        """``information`` in bits, ``(K,)``: what it costs to depart from the prior so far."""
        return self.information / math.log(2)

    def to_frame(self) -> Frame:
        """Returns a row for each temperature (see :mod:`rl_as_inference.data_frames`)."""
        names = ("temperature", "expected_return", "entropy", "information", "bits")
        return frame({name: getattr(self, name) for name in names})


@checked
@in_turn
@torch.no_grad()
def rationality_curve(mdp: exact.Solvable, temperatures: Any = None) -> RationalityCurve:
    """Returns return, entropy and information of the MaxEnt policy at each temperature.

    The curve is the frontier of bounded rationality: no policy earns as much with less information, since
    its slope ``d return / d information = α`` is the trade that the MaxEnt policy makes
    (Ortega & Braun 2013; Tishby & Polani 2011).

    Args:
        mdp: a finite or linear-Gaussian process. Its own temperature plays no part, unless it is linear-Gaussian
            and ``temperatures`` is None.
        temperatures: α > 0 in reward units per nat; by default 41 from a hundredth to a hundred times the
            process's own scale, ``(best return - prior return) / information of the best policy``.

    Raises:
        ValueError: if the process has no exact answers, or a temperature is not a finite number > 0.

    Example:
        >>> bandit = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=1)
        >>> curve = rationality_curve(bandit, [0.1, 1.0])
        >>> [round(float(bits), 3) for bits in curve.bits]
        [0.999, 0.16]
    """
    if not isinstance(mdp, TabularMDP | LinearGaussianMDP):
        raise ValueError(
            f"rationality_curve needs a TabularMDP or a LinearGaussianMDP, got {type(mdp).__name__}; other processes "
            f"have no exact answers"
        )
    top: float | None = None
    if isinstance(mdp, TabularMDP):
        mdp = mdp.to(torch.float64)
        plain, unit = in_own_unit(mdp)
        limit = best(plain)
        top, prior = limit.value * unit, account(mdp, mdp.action_prior).expected_return
        information = account(mdp, limit.policy).information
        scale = (top - prior) / information if information > 1e-12 and top > prior else 1.0
    else:
        prior = float(exact.expected_return(mdp, None))
        scale = float(mdp.temperature)
    if temperatures is None:
        alphas = [scale * 10**power for power in torch.linspace(-2, 2, 41, dtype=torch.float64).tolist()]
    else:
        try:
            alphas = sorted(torch.as_tensor(temperatures, dtype=torch.float64).flatten().tolist())
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"temperatures must be numbers > 0, got {temperatures!r}") from None
        for alpha in alphas:
            check_temperature(alpha, "temperatures")
        if not alphas:
            raise ValueError("temperatures must hold at least one number > 0")
    rows = torch.tensor([_at(mdp, alpha) for alpha in alphas], dtype=torch.float64)
    columns = rows.unbind(1)
    return RationalityCurve(torch.tensor(alphas, dtype=torch.float64), columns[0], columns[1], columns[2], top, prior)


def _at(mdp: TabularMDP | LinearGaussianMDP, alpha: float) -> tuple[float, float, float]:
    if isinstance(mdp, TabularMDP):
        process = mdp.at_temperature(alpha)
        return account(process, exact.plan(process).policy)
    at, plan = mdp.at_temperature(alpha), exact.plan(mdp.at_temperature(alpha))
    earned = float(exact.expected_return(at, plan))
    entropy = 0.5 * float(torch.linalg.slogdet(2 * math.pi * math.e * plan.covariance)[1].sum())
    return earned, entropy, earned / alpha - float(plan.objective)
