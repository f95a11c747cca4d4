"""Target entropies that a policy can reach, and what is said where one cannot."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import gymnasium
import torch
from torch import Tensor

from rl_as_inference.checks import check_positive
from rl_as_inference.factored import FactoredCategorical
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.processes.mdp import unvalidated
from rl_as_inference.spaces import uniform_log_density

__all__ = ["MASKED", "TargetEntropy", "TemperatureWatch", "check_target_entropy", "entropy_of_scale"]

MASKED = -1e6
"""Log probabilities below this are of actions that a mask forbids (some masks are a large negative number)."""
_RUNS_AWAY = 1e6
"""Of a tuned α to where it started: it then pays for entropy alone, and goes on growing."""


@dataclass(frozen=True)
class TargetEntropy:
    """What a tuned α holds the policy's mean entropy to, in nats.

    Attributes:
        nats: of a state in which every action is allowed; of all states, if it was given as a number.
        given: whether it was given.
    """

    nats: float
    given: bool

    def factor_shortfall(self, chosen: FactoredCategorical) -> Tensor:
        """Returns the same of distributions of too many joint actions, ``(*batch,)``: the factors' sum."""
        factors = chosen.factors
        possible = factors.in_row(chosen.log_factors.detach()) > MASKED
        counts = factors.by_factor(possible.to(chosen.log_factors.dtype), 0.0).sum(-1)
        share = counts / factors.limits
        return torch.zeros_like(share[..., 0]) if self.given else 0.5 * share.log().sum(-1)

    def shortfall(self, log_policy_a: Tensor) -> Tensor:
        """Returns by how much less is asked of each state in which fewer actions are allowed, ``(*batch,)``, ≤ 0.

        Half of ``log`` of the share allowed: the target of a state is half of the most that it allows. A state with
        one action alone asks for nothing. A target that was given is the same of all states.

        Args:
            log_policy_a: log probabilities of all discrete actions, ``-inf`` (or nearly so) of those not allowed.
        """
        share = (log_policy_a > MASKED).sum(-1).to(log_policy_a.dtype) / log_policy_a.shape[-1]
        return torch.zeros_like(share) if self.given else 0.5 * share.log()


def check_target_entropy(
    target_entropy: float | None,
    action_space: gymnasium.Space[Any],
    masks: MarkovDecisionProcess | None = None,
    *,
    action_scale: float | None = None,
) -> TargetEntropy:
    """Returns the target entropy; by default half of ``log`` of the discrete actions allowed, ``-d`` for others.

    ``-d`` is soft actor-critic's own (arXiv:1812.05905, appendix D), of a density about a fifth of the
    box wide in every dimension. Discrete actions have no density: their entropy lies between 0 and
    ``log|A|``, which is the sum over the factors of an action that has several. Near the top (0.98 log|A| in
    arXiv:1910.07207) a policy may hardly prefer any action, and α grows without bound wherever it should; near 0
    nothing is explored and α vanishes. At half, two of four actions stay open on average, or one of two is taken
    eight times in nine.

    Args:
        target_entropy: nats, or None for the default.
        action_space: what the policy is over.
        masks: the process whose action prior the policy stays within.
        action_scale: in its place, see :func:`entropy_of_scale`.

    Raises:
        ValueError: if no policy can reach it, or both are given.

    Example:
        >>> check_target_entropy(None, gymnasium.spaces.Discrete(4)).nats == 0.5 * math.log(4)
        True
    """
    if action_scale is not None:
        if target_entropy is not None:
            raise ValueError("action_scale and target_entropy say the same thing twice; give one of them")
        return TargetEntropy(entropy_of_scale(action_scale, action_space), given=True)
    most = -uniform_log_density(action_space)
    discrete = not isinstance(action_space, gymnasium.spaces.Box)
    if target_entropy is None:
        return TargetEntropy(0.5 * most if discrete else -float(math.prod(action_space.shape or ())), given=False)
    if isinstance(target_entropy, bool) or not isinstance(target_entropy, Real):
        raise ValueError(f"target_entropy must be a number of nats, or None for the default, got {target_entropy!r}")
    name = f"log {round(math.exp(most))}" if discrete else "d log 2"
    if masks is not None and isinstance(masks.state_space, gymnasium.spaces.Discrete):
        states = torch.arange(int(masks.state_space.n))
        allowed = round(float(_log_counts(masks, states).max().exp()))
        if allowed < round(math.exp(most)):
            most, name = math.log(allowed), f"log {allowed}, of the actions that the prior allows,"
    if not math.isfinite(target_entropy) or target_entropy >= most:
        raise ValueError(
            f"target_entropy is {target_entropy} nats, which no policy on {action_space} can hold: the uniform one has "
            f"{name} = {most:.4g} nats, and no other has as much; choose less, {0.5 * most:.3g} say"
        )
    if discrete and target_entropy < 0:
        raise ValueError(
            f"target_entropy is {target_entropy} nats, and the entropy of discrete actions is never below 0; choose "
            f"between 0 and {most:.4g}"
        )
    return TargetEntropy(float(target_entropy), given=True)


def entropy_of_scale(action_scale: float, action_space: gymnasium.Space[Any]) -> float:
    """Returns the entropy of Gaussians of one standard deviation σ, one in each of ``d`` dimensions, in nats.

    ``d · ½ log(2πe σ²)``: a target that means the same noise whatever ``d`` is (FlashSAC, arXiv:2604.04539, which takes
    σ = 0.15). Soft actor-critic's own ``-d`` is σ = 0.089.

    No density on ``[-1, 1]`` has more entropy than the uniform one, log 2, and a Gaussian has as much at σ = 2/√(2πe) =
    0.484: there σ must end, below the uniform density's own standard deviation of 1/√3 = 0.577.

    Args:
        action_scale: σ on normalised actions, in (0, 0.484).
        action_space: what the policy is over, continuous.

    Raises:
        ValueError: for discrete actions, or a σ that no policy can hold.

    Example:
        >>> round(entropy_of_scale(0.15, gymnasium.spaces.Box(-1, 1, (6,))), 3)
        -2.869
    """
    uniform = -uniform_log_density(action_space)
    if isinstance(action_space, gymnasium.spaces.Discrete):
        raise ValueError(
            f"action_scale is a standard deviation of continuous actions, and these are {action_space}; give "
            f"target_entropy in nats, {0.5 * uniform:.3g} say"
        )
    check_positive("action_scale", action_scale)
    nats = math.prod(action_space.shape or ()) * 0.5 * math.log(2 * math.pi * math.e * float(action_scale) ** 2)
    if nats >= uniform:
        raise ValueError(
            f"action_scale is {action_scale}, and no policy on [-1, 1] can hold the entropy of a Gaussian that wide: "
            f"from 0.484 on the uniform policy has less; choose less, 0.15 say"
        )
    return nats


class TemperatureWatch:
    """Says, once each, that a target entropy is out of reach in the states seen, and that α runs away.

    Args:
        target: what α is tuned to.
        start: where α starts, in reward units per nat.
        log_counts: of states, the log of how many actions are allowed in each; None where all are.
    """

    def __init__(
        self, target: TargetEntropy, start: float, log_counts: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.target, self.start, self.log_counts = target, start, log_counts
        self._said: set[str] = set()

    def look(self, temperatures: Sequence[float], states: Tensor) -> None:
        """Warns if there is a reason to.

        Args:
            temperatures: α of every seed.
            states: some of those visited lately.
        """
        most = math.inf
        if self.target.given and self.log_counts is not None and len(states):
            most = float(self.log_counts(states).mean())
        if self.target.nats >= most:
            self._say(
                "reach",
                f"target_entropy is {self.target.nats:.4g} nats, and in the states visited the action prior allows "
                f"{most:.4g} on average, so that α will grow without bound; lower target_entropy, or leave it out: it "
                f"then follows what each state allows",
            )
        elif max(temperatures) > _RUNS_AWAY * self.start:
            self._say(
                "away",
                f"α has grown from {self.start:.3g} to {max(temperatures):.3g} reward units per nat, where rewards "
                f"count for nothing: no policy has target_entropy, {self.target.nats:.4g} nats, in the states visited "
                f"(does a mask leave fewer actions there?); lower target_entropy, or fix temperature",
            )

    def _say(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(text, stacklevel=4)


@torch.no_grad()
def _log_counts(process: MarkovDecisionProcess, states: Tensor) -> Tensor:
    """Returns the log of how many discrete actions the prior allows in each state where any is taken, nats."""
    with unvalidated():
        counts = (process.prior_at(states).logits > MASKED).sum(-1).double().log()
        ended = process.has_ended(states)
    return counts if ended is None else counts[~ended]
