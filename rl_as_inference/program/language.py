"""The words that turn a Pyro program into a reinforcement-learning problem."""

from collections.abc import Iterator
from numbers import Real
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.util import is_validation_enabled
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK, am_i_wrapped, effectful
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from rl_as_inference.histories import kept_history, note_action, note_observation
from rl_as_inference.program.sites import ACTION, COIN, FIRST, OBSERVATION, REWARD, STEP, both

__all__ = ["Rendering", "act", "observe", "reward", "steps", "terminate"]

Rendering = Literal["scaled", "survival"]


def act(name: str, state: Any, prior: Any) -> Tensor:
    """Returns the action drawn at this site: from ``prior``, unless a reading says otherwise.

    It is ``pyro.sample(name, prior)`` with a mark that lets a reading replace the action prior
    ``p(a|s)`` by a policy ``π(a|s, t)``. Levine (2018, arXiv:1805.00909), section 2.2.

    Args:
        name: the site's name, unique within the program (``f"action_{t}"``).
        state: what the policy may look at: a tensor; :func:`history` where the agent does not see the state; or
            whatever the policy understands.
        prior: the action prior, a Pyro distribution. Several action dimensions that make one
            action belong to its event: ``dist.Uniform(low, high).to_event(1)``.

    Raises:
        ValueError: if ``prior`` is not a distribution.

    Example:
        >>> _ = pyro.set_rng_seed(0)
        >>> act("action_0", torch.tensor(2), dist.Categorical(logits=torch.zeros(4)))
        tensor(2)
    """
    _check_name("act", name)
    if not isinstance(prior, torch.distributions.Distribution):
        raise ValueError(
            f"act({name!r}): prior must be a Pyro distribution such as dist.Categorical(logits=...), "
            f"not {type(prior).__name__}"
        )
    value: Tensor = pyro.sample(name, prior, infer={ACTION: {"state": state}})
    note_action(value)
    return value


def observe(name: str, distribution: Any) -> Tensor:
    """Returns what the agent sees at this site, drawn from ``distribution``, and adds it to :func:`history`.

    It is ``pyro.sample(name, distribution)``, part of the dynamics to every reading, which ``pyro.condition`` fixes:
    then posteriors are filters and smoothers.

    Args:
        name: the site's name, unique within the program (``f"observation_{t}"``).
        distribution: ``p(y|s)``, a Pyro distribution. Several numbers that are seen together belong to its event.

    Raises:
        ValueError: if ``distribution`` is not one; outside of :func:`steps`; or for a second observation without an
            action in between.

    Example:
        >>> _ = pyro.set_rng_seed(0)
        >>> for t in steps(1):
        ...     print(observe("observation_0", dist.Bernoulli(0.9)))
        tensor(1.)
    """
    _check_name("observe", name)
    if not isinstance(distribution, torch.distributions.Distribution):
        raise ValueError(
            f"observe({name!r}): distribution must be a Pyro distribution such as dist.Normal(state, 1.0), "
            f"not {type(distribution).__name__}"
        )
    value: Tensor = pyro.sample(name, distribution, infer={OBSERVATION: True})
    note_observation(name, value)
    return value


def reward(name: str, value: Tensor | float, temperature: Tensor | float = 1.0) -> None:
    """Adds the optimality factor ``exp(value / temperature)`` to the program's density.

    Levine (2018, arXiv:1805.00909), equation 3, with a temperature. Under :func:`simulate` and
    :func:`follow` the factor is silent.

    Args:
        name: the site's name (``f"reward_{t}"``).
        value: the reward, in reward units; its shape is that of the enclosing plates.
        temperature: α > 0, in reward units per nat.

    Raises:
        ValueError: if the temperature is not positive, or a reward is NaN. (On tensors these are
            checked while Pyro's validation is on, its default.)
    """
    _check_name("reward", name)
    if not isinstance(value, Tensor | Real | np.ndarray) or (isinstance(value, Tensor) and value.is_complex()):
        raise ValueError(f"reward({name!r}): value must be a tensor or a real number, got {value!r:.80}")
    if is_validation_enabled() or not isinstance(temperature, Tensor):
        given = torch.as_tensor(temperature) if isinstance(temperature, int | float | Tensor) else None
        if given is None or given.is_complex() or not bool(((given > 0) & given.isfinite()).all()):
            raise ValueError(f"reward({name!r}): temperature must be a number > 0 and finite, got {temperature!r}")
        # A reward of -inf forbids; one of +inf has no weight, and NaN none either.
        if not bool((torch.as_tensor(value) < torch.inf).all()):
            what = "NaN" if bool(torch.as_tensor(value).isnan().any()) else "+inf"
            raise ValueError(f"reward({name!r}): the reward is {what}; check the value passed at this site")
    if not am_i_wrapped() or not _factors_count():
        return
    factor = torch.as_tensor(value / temperature)
    if not factor.is_floating_point():
        factor = factor.to(torch.get_default_dtype())
    unit = dist.Unit(factor)
    mark = {"value": value, "temperature": temperature}
    pyro.sample(name, unit, obs=unit.sample(), infer={"is_auxiliary": True, REWARD: mark})


def terminate(done: Tensor | bool, *, absorbing: bool = False) -> None:
    """Ends the episode where ``done`` is true: from here on rewards are silent and no action is taken.

    Call it inside :func:`steps`, before the step's action, once the state is known. In an ended
    trajectory the program runs on, so that batches keep their shape, but rewards count nothing,
    a policy under :func:`follow` leaves the action to the action prior, and what is observed
    (``obs=``, ``pyro.condition``) is not looked at, so that the ended part adds exactly 0 to every
    ELBO and evidence. What is observed earlier in the step, before this call, still counts.

    Args:
        done: a bool, or a boolean tensor with the shape of the enclosing plates.
        absorbing: says that terminal states are never left, so that the current ``done`` alone
            tells whether the episode has ended. ``steps(..., markov=True)`` needs this. The states of a
            process with such endings stay where they are, and a condition on one holds to the last.
    """
    kind = done.dtype if isinstance(done, Tensor) else type(done)
    if kind not in (bool, np.bool_, torch.bool):
        raise ValueError(f"terminate: done must be True, False or a bool tensor, got {kind} {done!r:.80}")
    if not isinstance(absorbing, bool):
        raise ValueError(f"terminate: absorbing must be True or False, got {absorbing!r}")
    if am_i_wrapped():
        # As a plain tensor: readings know of endings by their mask, and need not follow where they came from.
        _terminate(torch.as_tensor(done).as_subclass(Tensor), absorbing)


def steps(
    horizon: int,
    discount: float | Tensor = 1.0,
    rendering: Rendering = "scaled",
    *,
    markov: bool = False,
    like: Tensor | None = None,
) -> Iterator[int]:
    """Iterates over ``t = 0 … horizon - 1``, each step in its scope.

    Discount is survival: after each step the episode goes on with probability γ. Two renderings
    of the one meaning:

    - ``"scaled"``: every term of step ``t`` counts γ^t times (``pyro.poutine.scale``). The coins
      are summed out of the ELBO; use it wherever an ELBO is wanted.
    - ``"survival"``: the coins are sites of the program, ``alive_1 … alive_{horizon-1}``, to be
      sampled or enumerated; once one falls, later rewards are silent. Use it wherever a log
      evidence or a posterior is wanted. :func:`survival` switches a whole program to it.

    An ended episode observes nothing, whether a coin has ended it, :func:`terminate` or ``break``. So sites
    inside the loop that are observed, by ``obs=`` or by ``pyro.condition``, count as rewards do: γ^t times, or while
    the coins stand. (A condition that fixes everything that has been drawn so far only asks for the density of a
    run, as Pyro's samplers do, and keeps every factor.)

    Args:
        horizon: the number of steps, an integer ≥ 0.
        discount: γ in [0, 1].
        rendering: ``"scaled"`` or ``"survival"``.
        markov: says that each step depends on the one before alone, as :func:`pyro.markov` does,
            so that enumerating the program over a long horizon may reuse tensor dimensions. For
            the program itself (evidence, ``infer_discrete``) only: Pyro 1.9 gives a wrong ELBO when it
            enumerates a *guide* inside ``markov`` for more than two steps.
        like: a tensor whose dtype and device the survival coins take.

    Raises:
        ValueError: if the horizon is not an integer ≥ 0, the discount is outside [0, 1], or the
            rendering is unknown.

    Example:
        >>> list(steps(3))
        [0, 1, 2]
    """
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 0:
        raise ValueError(f"steps: horizon must be an integer >= 0, got {horizon!r}")
    if not isinstance(discount, int | float | Tensor) or not bool(
        torch.as_tensor((discount >= 0) & (discount <= 1)).all()
    ):
        raise ValueError(f"steps: discount must be in [0, 1], got {discount!r}")
    if rendering not in ("scaled", "survival"):
        raise ValueError(f"steps: rendering must be 'scaled' or 'survival', got {rendering!r}")
    if not isinstance(markov, bool):
        raise ValueError(f"steps: markov must be True or False, got {markov!r}")
    if like is not None and not isinstance(like, Tensor):
        raise ValueError(f"steps: like must be a tensor or None, got {like!r:.80}")
    return _steps(horizon, discount, rendering, markov, torch.empty(0) if like is None else like)


def _check_name(word: str, name: object) -> None:
    if not isinstance(name, str):
        raise ValueError(f"{word}: name must be a string, unique within the program, got {name!r:.80}")


def _steps(horizon: int, discount: float | Tensor, rendering: Rendering, markov: bool, like: Tensor) -> Iterator[int]:
    if not am_i_wrapped():
        # Nobody listens, so there is nothing to mark; and a scope left behind by an exception in
        # the loop's body could not be cleared away by an outer handler.
        with kept_history():
            yield from range(horizon)
        return
    times = pyro.markov(range(horizon)) if markov else range(horizon)
    with kept_history(), _StepScope(discount, _rendering(rendering), like) as scope:
        for t in times:
            scope.begin(t)
            yield t


@effectful(type="rlai_factors_count")
def _factors_count() -> bool:
    """Whether reward factors are part of the present reading.

    Readings that silence them answer here, before there is a site: a site that is hidden later has
    already been counted by ``pyro.markov``, which then breaks enumeration.
    """
    return True


@effectful(type="rlai_rendering")
def _rendering(rendering: Rendering) -> Rendering:
    return rendering


@effectful(type="rlai_terminate")
def _terminate(done: Tensor, absorbing: bool) -> Tensor:
    return done


@effectful(type="rlai_sites_so_far")
def _sites_so_far() -> list[Any]:
    """Returns the sites of this run before the loop, of which a recorder or one of Pyro's traces around it knows."""
    traces = [handler.trace for handler in _PYRO_STACK if isinstance(handler, TraceMessenger)]
    return [site for trace in traces[:1] for site in trace.nodes.values() if site["type"] == "sample"]


class _StepScope(Messenger):
    """Scales or silences the sites of the current step, and tells action sites where they are."""

    def __init__(self, discount: float | Tensor, rendering: Rendering, like: Tensor) -> None:
        super().__init__()
        self.like = like
        self.discount = discount
        self.undiscounted = not isinstance(discount, Tensor) and discount == 1
        self.survival = rendering == "survival" and not self.undiscounted
        self.step = 0
        self.scale: float | Tensor = 1.0
        self.coin: Tensor | None = None
        self.ended: Tensor | None = None
        self.absorbing = False
        # Those around the loop speak after it, so that it has to look at them beforehand; the innermost comes first.
        self.conditions = [handler for handler in reversed(_PYRO_STACK) if isinstance(handler, ConditionMessenger)]
        self.drawn: list[str] = []  # latent sites so far, kept where there are conditions
        for msg in _sites_so_far() if self.conditions else ():
            self._note(msg)

    def begin(self, step: int) -> None:
        self.step = step
        if step == 0 or self.undiscounted:
            return
        if not self.survival:
            self.scale = self.scale * self.discount
            return
        alive = torch.as_tensor(self.discount, dtype=self.like.dtype, device=self.like.device)
        if self.coin is not None:
            # The coin's site holds "still alive", a Markov chain, and not the single toss.
            alive = alive * self.coin
        self.coin = pyro.sample(f"alive_{step}", dist.Bernoulli(alive), infer={COIN: True})

    def standing(self) -> Tensor | None:
        """Which trajectories no coin has ended; None where all stand."""
        return None if self.coin is None else self.coin.bool()

    def alive(self) -> Tensor | None:
        """Which trajectories still earn, act and observe; None where all do."""
        return both(self.standing(), None if self.ended is None else ~self.ended)

    def _is_observed(self, msg: Any) -> bool:
        """Whether the program fixes a site, or a condition around it that leaves something to be drawn."""
        if msg["is_observed"]:
            return True
        if COIN in msg["infer"]:
            return False
        inside: list[Any] = []
        for condition in self.conditions:
            if msg["name"] in condition.data:
                fixed = (*inside, condition.data)
                if not self.drawn:  # an ending before the first draw of the loop
                    return ACTION not in msg["infer"]
                return any(not any(name in data for data in fixed) for name in self.drawn)
            inside.append(condition.data)
        return False

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = msg["scale"] * self.scale
        # In nested loops the innermost scope speaks first, and it is the one that numbers the step.
        discount = 1.0 if self.survival else self.discount
        outermost = {"step": self.step, "discount": discount, "scale": 1.0, "alive": None}
        mark = msg["infer"].setdefault(STEP, outermost)
        mark["scale"] = mark["scale"] * self.scale
        mark["alive"] = both(mark["alive"], self.alive())
        if (self.coin is not None or self.ended is not None) and self._is_observed(msg):
            stays = self.absorbing and FIRST in msg["infer"]
            msg["mask"] = both(msg["mask"], self.standing() if stays else self.alive())

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.conditions:
            self._note(msg)

    def _note(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if not msg["is_observed"] or any(msg["name"] in condition.data for condition in self.conditions):
            self.drawn.append(msg["name"])

    def _pyro_rlai_terminate(self, msg: Any) -> None:
        done, self.absorbing = msg["args"]
        self.ended = done if self.absorbing or self.ended is None else self.ended | done
        msg["stop"] = True
