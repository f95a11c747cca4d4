"""Good enough: the least determined policy whose return is within ε of the best."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import pyro.distributions as dist
import torch
from scipy.optimize import brentq
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.data_frames import Frame, frame
from rl_as_inference.host import in_turn
from rl_as_inference.processes import LinearGaussianMDP, TabularMDP
from rl_as_inference.reasoning.returns import account, best, in_own_unit

__all__ = ["Satisficing", "satisfice"]


@dataclass(frozen=True)
class Satisficing:
    """The answer of :func:`satisfice`. It can be called as a policy, ``(state, t) -> Categorical``.

    Attributes:
        temperature: α at which the MaxEnt policy is the answer, in reward units per nat; 0 for ε = 0, inf
            where the action prior is good enough.
        policy: ``π_t(a|s)``, ``(T, S, A)`` or ``(S, A)``, float64.
        expected_return: ``E_π Σ γ^t r_t`` in the process as it is, in reward units.
        best_return: the largest return of any policy.
        entropy: ``E_π Σ γ^t H[π(.|s_t)]`` over the steps alive, in nats.
        information: ``E_π Σ γ^t KL(π(.|s_t) || p(.|s_t))``, in nats, which is as small as it can be.
        target_return: the return that was asked for.
        multiplier: of the constraint, ``1/α``: nats of entropy that one more unit of return costs.
        rule: ``"fraction"`` if the target is ``(1-ε)`` of the best return, ``"range"`` if it is ε of the way
            from the best to the worst.
    """

    temperature: float
    policy: Tensor
    expected_return: float
    best_return: float
    entropy: float
    information: float
    target_return: float
    multiplier: float
    rule: Literal["fraction", "range"]

    batch_steps = True

    def to_frame(self) -> Frame:
        """Returns a row with everything but the policy (see :mod:`rl_as_inference.data_frames`)."""
        return frame({name: [value] for name, value in vars(self).items() if name != "policy"})

    def __call__(self, state: Tensor, t: int | Tensor) -> Any:
        """Returns the policy's distribution over actions, of the batch shape of ``state``."""
        table = self.policy.log()
        return dist.Categorical(logits=table[state] if table.dim() == 2 else table[t, state])


@in_turn
@torch.no_grad()
def satisfice(mdp: TabularMDP, epsilon: float) -> Satisficing:
    """Returns the policy of most entropy among those that are good enough.

        max_π  E_π Σ_t γ^t H[π(.|s_t)]     subject to     E_π Σ_t γ^t r_t >= target

    where ``target = (1-ε) R_max`` if the best return ``R_max`` is positive, and otherwise
    ``R_max - ε (R_max - R_min)`` with ``R_min`` the smallest return of any policy (for a best return that is
    negative or 0, ``(1-ε) R_max`` would ask for more than the best). ``rule`` says which was used. A best return of
    1e-12 of the rewards that it is summed from, ``E Σ γ^t |r_t|``, or less is rounding and counts as 0.

    Entropy is relative to the action prior, as it is in the ELBO: what is maximised is ``-E Σ γ^t KL(π || p)``.
    With a uniform prior and episodes of fixed length it differs from the plain entropy by a constant. Where
    episodes end in terminal states it counts the steps alive, and does not pay for staying alive.

    The Lagrangian is ``α`` times the ELBO at temperature ``α = 1/multiplier``, so that the answer is the
    MaxEnt policy at one α, found as the root of ``E[return](α) = target``, which falls in α; α lies above
    ``(R_max - target) / information(α → 0)``. The constraint holds to 1e-8 of the
    largest reward. Everything is done in float64, and the temperature of ``mdp`` plays no part.

    Source: Simon 1956, "Rational choice and the structure of the environment"; the dual is that of Ziebart 2010,
    section 5.

    Args:
        mdp: a finite process, with a horizon, a discount < 1, or terminal states that every state can reach.
        epsilon: ε in [0, 1). For ε = 0 the answer is the least determined of the optimal policies, with
            temperature 0.

    Raises:
        ValueError: if ε is outside [0, 1), the process is not finite, or its best return (for ``"range"``:
            its worst) is infinite.

    Example:
        >>> bandit = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=1)
        >>> answer = satisfice(bandit, 0.25)
        >>> round(answer.expected_return, 6), round(answer.temperature, 4)  # 1 / log 3
        (0.75, 0.9102)
    """
    if isinstance(epsilon, bool) or not isinstance(epsilon, Real) or not 0 <= float(epsilon) < 1:
        raise ValueError(f"epsilon must be a number in [0, 1), the share of the best return to forgo, got {epsilon!r}")
    if isinstance(mdp, LinearGaussianMDP):
        raise ValueError(
            "mdp: satisfice needs a TabularMDP: returns of a LinearGaussianMDP are below 0 without bound, so no "
            "share of their range can be forgone; choose a temperature from rationality_curve(mdp) instead"
        )
    if not isinstance(mdp, TabularMDP):
        raise ValueError(f"mdp: satisfice needs a TabularMDP, got {type(mdp).__name__}")
    epsilon = float(epsilon)
    mdp, unit = in_own_unit(mdp)
    top = best(mdp)
    if top.value > 1e-12 * _magnitude(mdp, top.policy):
        rule: Literal["fraction", "range"] = "fraction"
        slack = epsilon * top.value
    else:
        rule, slack = "range", epsilon * (top.value + best(mdp, -1).value) if epsilon else 0.0
    target = top.value - slack

    def answer(alpha: float, policy: Tensor) -> Satisficing:
        found = account(mdp, policy)
        multiplier = math.inf if alpha == 0 else 1 / (alpha * unit)
        return Satisficing(
            alpha * unit,
            policy,
            found.expected_return * unit,
            top.value * unit,
            found.entropy,
            max(found.information, 0.0),
            target * unit,
            multiplier,
            rule,
        )

    prior = mdp.action_prior if mdp.horizon is None else mdp.action_prior.expand(mdp.horizon, -1, -1)
    loosest = answer(math.inf, prior)
    rounding = 1e-12 * (1 + abs(top.value))
    if loosest.expected_return / unit >= target - rounding:
        return loosest
    tightest = answer(0.0, top.policy)
    if slack <= rounding or tightest.information == 0:
        return tightest

    def soft(log_alpha: float) -> Tensor:
        policy: Tensor = exact.plan(mdp.at_temperature(math.exp(log_alpha))).policy
        return policy

    def surplus(log_alpha: float) -> float:
        return account(mdp, soft(log_alpha)).expected_return - target

    # The optimum at α gives up at most α · information for its entropy.
    low = math.log(slack / tightest.information)
    high = low + 1
    while surplus(high) > 0:
        low, high = high, high + 2
    # The surplus at the lower end can be 0, but for rounding: there the bound is met with equality.
    root = low if surplus(low) <= 0 else float(brentq(surplus, low, high, xtol=1e-15, rtol=4e-15))
    return answer(math.exp(root), soft(root))


def _magnitude(mdp: TabularMDP, policy: Tensor) -> float:
    """Returns ``E_π Σ γ^t |r_t|``: what a return is summed from, to which its rounding is in proportion."""
    return account(mdp.replace(reward=mdp.reward_table.abs()), policy).expected_return
