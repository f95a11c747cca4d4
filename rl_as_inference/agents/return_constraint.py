"""The temperature as the dual variable of a constraint on return."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rl_as_inference.agents.arena import Arena
    from rl_as_inference.agents.options import LearnerOptions

__all__ = ["ReturnConstraint", "check_target_return", "constraint_of"]

_BEFORE = 0.2
"""Of α's steps until the target is first reached: a policy that earns too little may only not have learned enough yet,
and does not explore at an α that has left it behind."""
_BELOW = math.log(3)
"""How far ``log α`` may fall from where the target was last reached, for the same reason."""
_SLOW, _FAST = 0.99, 0.9
"""What an episode counts for after one more, in means over a hundred or so, and over ten."""
_CLIP = 3.0
"""Of gaps in their own scale: far enough out that what is cut off hardly moves the mean."""
_PATIENCE = 3.0
"""Crossings of the target after which steps are half as long."""
_RUN, _FORGOTTEN = 50, 0.95
"""Episodes on one side of the target after which crossings count less and less: chance alone does not stay there."""
_LEAST = 0.02
"""The share of its first length below which no step falls, so that α follows a policy that goes on improving."""
_FAR = math.log(1e6)
"""How far ``log α`` may go from where it began, where no policy earns the target."""


def check_target_return(target_return: Any) -> float:
    """Returns the target as a float; raises ValueError unless it is a finite number."""
    if isinstance(target_return, bool) or not isinstance(target_return, Real) or not math.isfinite(target_return):
        raise ValueError(f"target_return must be a finite number of reward units, got {target_return!r}")
    return float(target_return)


def constraint_of(arena: Arena, options: LearnerOptions, num_seeds: int) -> ReturnConstraint | None:
    """Returns what holds a learner to its ``target_return``; None where it has none.

    Raises:
        ValueError: if its environment has no end, and so no returns to hold.
    """
    target = options["target_return"]
    if target is None:
        return None
    arena.check_ends("target_return is held by whole episodes")
    return ReturnConstraint(
        float(target),
        discount=1.0 if arena.process is None else float(arena.process.discount),
        num_seeds=num_seeds,
        num_envs=arena.num_envs,
        learning_rate=options["learning_rate"],
        initial_temperature=arena.task.temperature,
    )


class ReturnConstraint:
    """Tunes α so that the exploring policy's expected return is a target: satisficing, for a learned policy.

    Of all policies that earn the target the one of most entropy is the MaxEnt policy at one α, ``1/α`` being the
    multiplier of the constraint (:func:`rl_as_inference.satisfice` has it exactly). The dual's
    slope in ``log α`` has the sign of ``E[return] - target``, and every episode that the policy plays to its end is
    an unbiased draw of that. So ``log α`` takes one step of stochastic approximation (Robbins & Monro 1951) an episode,

        log α  <-  log α + k · learning_rate · updates · w · clip((return - target) / scale, -3, 3)

    with ``updates`` the gradient steps of the networks in an episode (the mean of the ten or so before: an episode's
    own length tells how good it was, and would bias the mean), and ``scale`` the root mean square of
    ``return - target`` over the latest hundred or so. ``w = 1/(1 + crossings/3)``, at least 0.02, shortens the steps
    with every crossing of the target by the mean of the latest ten returns or so (Kesten 1958, "Accelerated
    stochastic approximation"): they stay long while the target lies ahead. After fifty episodes on one side the
    crossings are forgotten, 5% an episode.

    A policy that earns too little may only not have learned enough yet, and explores no more once α has fallen away
    from it. So ``k`` is 1/5 until that mean first reaches the target, then 1; and α stays above a third of where the
    mean reached the target last.

    Args:
        target: the return to be earned, in reward units.
        discount: γ of the return.
        num_seeds, num_envs: learners, and environments of each.
        learning_rate: of the networks.
        initial_temperature: where α begins, which it leaves by a factor of a million at most.

    Example:
        >>> constraint = ReturnConstraint(1.0, num_seeds=1, num_envs=1, learning_rate=0.1)
        >>> step = {"ended": np.array([True]), "valid": np.array([True]), "acts": True}
        >>> constraint.observe(np.array([5.0]), num_updates=0, **step)  # it began before the policy acted
        {}
        >>> constraint.observe(np.array([3.0]), num_updates=5, **step)  # 0.1 · 5 updates
        {0: 0.5}
    """

    def __init__(
        self,
        target: float,
        *,
        discount: float = 1.0,
        num_seeds: int,
        num_envs: int,
        learning_rate: float,
        initial_temperature: float = 1.0,
    ) -> None:
        self.target, self.discount, self.learning_rate = target, discount, learning_rate
        start = math.log(initial_temperature)
        self._bounds = start - _FAR, start + _FAR
        self._duals = [_Dual(start) for _ in range(num_seeds)]
        self._running = {
            "return": np.zeros(num_seeds * num_envs),
            "weight": np.ones(num_seeds * num_envs),
            "counts": np.zeros(num_seeds * num_envs),  # whether the policy played the episode from its start
        }

    @property
    def recent(self) -> list[float]:
        """The mean return of each seed's latest ten episodes or so; NaN before the first."""
        return [dual.mean if dual.episodes else math.nan for dual in self._duals]

    def observe(self, reward: Any, *, ended: Any, valid: Any, acts: bool, num_updates: int) -> dict[int, float]:
        """Takes in a step of every environment, and returns the new ``log α`` of the seeds of which an episode ended.

        Args:
            reward: of the step, ``(num_seeds · num_envs,)``.
            ended: whether the episode ended with it.
            valid: false where the step was only a reset.
            acts: whether the policy acts from the next step on, and no longer the action prior.
            num_updates: gradient steps so far.
        """
        running = self._running
        running["return"] += running["weight"] * reward * valid
        running["weight"] = np.where(valid, running["weight"] * self.discount, running["weight"])
        moved = {}
        for index in np.flatnonzero(ended & (running["counts"] > 0)).tolist():
            seed = index * len(self._duals) // len(ended)
            moved[seed] = self._step(self._duals[seed], float(running["return"][index]), num_updates)
        running["return"][ended], running["weight"][ended], running["counts"][ended] = 0.0, 1.0, float(acts)
        return moved

    def _step(self, dual: _Dual, earned: float, num_updates: int) -> float:
        """Returns ``log α`` after a return that was earned."""
        gap = earned - self.target
        updates, dual.updates_before = num_updates - dual.updates_before, num_updates
        pace = dual.updates if dual.episodes else updates
        dual.episodes += 1
        dual.updates = _mean(dual.updates, updates, dual.episodes, _FAST)
        dual.mean = _mean(dual.mean, earned, dual.episodes, _FAST)
        dual.square = _mean(dual.square, gap**2, dual.episodes, _SLOW)
        side = float(np.sign(dual.mean - self.target))
        dual.run += 1
        if side * dual.side < 0:
            dual.crossings, dual.run = dual.crossings + 1, 1
        elif dual.run > _RUN:
            dual.crossings *= _FORGOTTEN
        dual.side = side or dual.side
        if side >= 0:
            dual.reached = dual.log_temperature
        if gap:
            share = max(1 / (1 + dual.crossings / _PATIENCE), _LEAST) * (_BEFORE if dual.reached is None else 1.0)
            move = min(max(gap / math.sqrt(dual.square), -_CLIP), _CLIP)
            least, most = self._bounds if dual.reached is None else (dual.reached - _BELOW, self._bounds[1])
            after = dual.log_temperature + self.learning_rate * pace * share * move
            dual.log_temperature = min(max(after, least, self._bounds[0]), most)
        return dual.log_temperature

    def restart(self, acts: bool, which: Any = slice(None)) -> None:
        """Forgets the running episodes, or which of them; new ones begin, by the policy if it ``acts``."""
        for name, start in (("return", 0.0), ("weight", 1.0), ("counts", float(acts))):
            self._running[name][which] = start

    def state_dict(self) -> dict[str, Any]:
        """Returns all that it goes on from, as JSON holds it."""
        running = {name: array.tolist() for name, array in self._running.items()}
        return {"running": running, "duals": [asdict(dual) for dual in self._duals]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self._running = {name: np.array(values, float) for name, values in state["running"].items()}
        self._duals = [_Dual(**dual) for dual in state["duals"]]


@dataclass
class _Dual:
    """What is known of a seed's α."""

    log_temperature: float
    episodes: int = 0
    updates_before: int = 0
    """Gradient steps until its last episode ended."""
    updates: float = 0.0
    """In an episode, the mean of ten or so."""
    mean: float = 0.0
    """Of the latest ten returns or so."""
    square: float = 0.0
    """Of returns less the target, the mean of a hundred or so."""
    side: float = 0.0
    """On which side of the target the mean is: -1 or 1."""
    run: int = 0
    """Episodes since it crossed the target."""
    crossings: float = 0.0
    reached: float | None = None
    """``log α`` where the mean was last at the target or above."""


def _mean(mean: float, value: float, count: int, memory: float) -> float:
    """Returns the mean with one more value, in which the ``count`` values so far count ``memory`` to their age."""
    return mean + (value - mean) * (1 - memory) / (1 - memory**count)
