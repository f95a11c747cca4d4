"""The nouns: what everything else may ask of a process, a policy, a soft value, demonstrations and an environment.

Readings take these and nothing narrower than they need. A capability is a member of a noun: ask
:func:`takes_all_steps` or ``process.has_exact_answers``, and never an attribute by a string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeGuard, runtime_checkable

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from torch import Tensor

from rl_as_inference.trajectories import Trajectories

__all__ = [
    "DemonstrationsLike",
    "EnvironmentLike",
    "ExactPolicy",
    "HasBeliefs",
    "LearnedSoftValue",
    "Policy",
    "Problem",
    "Process",
    "Program",
    "SoftQ",
    "SoftV",
    "SoftValue",
    "answers_by_drawing",
    "asked_in_rollouts",
    "has_no_time_limit",
    "is_process",
    "keeps_beliefs",
    "takes_all_steps",
    "what_is_seen",
]


class Policy(Protocol):
    """``π(a|s, t)``: what says how to act, normally a module from ``guides``.

    Where the state is hidden it is asked with a :class:`rl_as_inference.History` in its place, and may say by an
    attribute ``sees`` what exact answers should ask it with, ``"history"`` or ``"belief"``; see :func:`what_is_seen`.
    One that can also be asked for many steps at once, with states ``(T, N, *state)`` and times ``(T, N)``, says so
    by an attribute ``batch_steps = True``; see :func:`takes_all_steps`. One that answers differently each time it is
    asked has ``answers_by_drawing = True``; see :func:`answers_by_drawing`.
    """

    def __call__(self, state: Any, t: Any, /) -> Any:
        """Returns a Pyro distribution over actions, of the batch shape of ``state``."""


class SoftV(Protocol):
    """A soft state value; ``batch_steps`` as in :class:`Policy`."""

    def __call__(self, state: Any, t: Any, /) -> Tensor:
        """Returns ``V_t(s)``, of the batch shape of ``state``, in reward units."""


class SoftQ(Protocol):
    """A soft action value of discrete actions; ``batch_steps`` as in :class:`Policy`."""

    def __call__(self, state: Any, t: Any, /) -> Tensor:
        """Returns ``Q_t(s, a)`` of every action, ``(*batch, A)``, in reward units."""


SoftValue: TypeAlias = SoftV | SoftQ
"""A critic of either kind."""


@runtime_checkable
class LearnedSoftValue(Protocol):
    """A learner's soft value, which says what it was learned for."""

    temperature: float
    """α, in reward units per nat."""
    discount: float
    action_prior: str
    """``"uniform"``, or ``"flat"`` where log p was taken for 0."""
    objective: str
    """``"maxent"``, or what else its values are of."""

    def __call__(self, state: Any, t: Any, /) -> Tensor:
        """Returns ``V(s)``, in reward units."""


class Process(Protocol):
    """A problem with rollouts: one in parts, a program run in a plate, or a simulator."""

    name: str
    """What tables and pictures call it."""
    has_exact_answers: bool
    """Whether :mod:`rl_as_inference.exact` answers for it."""
    has_uniform_prior: bool
    """Whether the action prior is known to be uniform over the action space."""

    @property
    def horizon(self) -> int | None:
        """The number of steps; None for no horizon."""

    @property
    def discount(self) -> float | Tensor:
        """γ in [0, 1]."""

    @property
    def temperature(self) -> float | Tensor:
        """α, in reward units per nat."""

    @property
    def state_space(self) -> gymnasium.Space[Any]:
        """The space of a state."""

    @property
    def action_space(self) -> gymnasium.Space[Any]:
        """The space of an action."""

    def rollout(self, policy: Policy | None, num_trajectories: int) -> Trajectories:
        """Returns trajectories of ``policy``; None for the action prior."""


Program: TypeAlias = Callable[..., Any]
"""Any callable that runs Pyro statements."""

Problem: TypeAlias = Process | Program
"""What readings take: a process, or a Pyro program, which is run in a plate."""

ExactPolicy: TypeAlias = Policy | Tensor | None
"""What exact answers take: a policy (a plan is one), a table of probabilities, or None for the action prior."""

DemonstrationsLike: TypeAlias = Trajectories | tuple[Any, Any] | Sequence[Any]
"""What was seen of an agent: trajectories, states and actions ``(states, actions)``, or a list of episodes."""

EnvironmentLike: TypeAlias = (
    str | EnvSpec | gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any] | Callable[[], gymnasium.Env[Any, Any]] | Process
)
"""What learners learn in: a Gymnasium id, an environment, a vector of them, a factory, or a process in parts."""


@runtime_checkable
class _HasRollouts(Protocol):
    def rollout(self, policy: Policy | None, num_trajectories: int) -> Trajectories: ...


@runtime_checkable
class _TakesAllSteps(Protocol):
    batch_steps: bool


@runtime_checkable
class _AnswersRowByRow(Protocol):
    row_by_row: bool


@runtime_checkable
class _MayBeStationary(Protocol):
    stationary: bool


@runtime_checkable
class _MayDraw(Protocol):
    answers_by_drawing: bool


@runtime_checkable
class _SaysWhatItSees(Protocol):
    sees: str


class HasBeliefs(Protocol):
    """A process whose state is hidden."""

    def believes_as(self, other: Any) -> bool:
        """Returns whether the same is believed of the same histories in another process."""


@runtime_checkable
class _KeepsBeliefs(Protocol):
    process: Any
    exact: bool


def is_process(problem: object) -> TypeGuard[Process]:
    """Returns whether a problem is a process, which has rollouts; else it is a Pyro program, or nothing we know."""
    return isinstance(problem, _HasRollouts)


def takes_all_steps(asked: object) -> bool:
    """Returns whether a policy or a soft value may be asked for many steps at once.

    Example:
        >>> takes_all_steps(lambda state, t: None)
        False
    """
    return isinstance(asked, _TakesAllSteps) and asked.batch_steps


def answers_row_by_row(policy: object) -> bool:
    """Returns whether each of many answers at once depends on its own state and time alone, and is worth sharing out.

    Such a policy says so by ``row_by_row = True``. One that normalises over a batch is none.
    """
    return isinstance(policy, _AnswersRowByRow) and policy.row_by_row


def answers_by_drawing(policy: object) -> bool:
    """Returns whether a policy draws its distributions anew whenever it is asked, as planners do.

    Such a policy says so by ``answers_by_drawing = True``. Its exact answers are those of one set of its distributions.
    """
    return isinstance(policy, _MayDraw) and policy.answers_by_drawing


def what_is_seen(policy: object) -> str | None:
    """Returns what a policy of a hidden state is asked with by exact answers, as its attribute ``sees`` says.

    ``"belief"`` or ``"history"``; None if it does not say.
    """
    return policy.sees if isinstance(policy, _SaysWhatItSees) else None


def asked_in_rollouts(policy: object) -> Literal["history"] | None:
    """Returns what exact answers should ask a policy with, so that it is the one of rollouts: a history, unless it says
    itself what will do."""
    return None if policy is None or what_is_seen(policy) is not None else "history"


def keeps_beliefs(policy: object, process: HasBeliefs) -> bool:
    """Returns whether a policy that says that beliefs will do keeps those of this process.

    Raises:
        ValueError: if its beliefs are drawn, so that there is no exact answer.
    """
    if not isinstance(policy, _KeepsBeliefs):
        return True
    if not policy.exact:
        raise ValueError(
            "policy keeps its beliefs by particles, which are drawn, so that it has no exact answers; estimate_elbo "
            "takes it"
        )
    return policy.process is process or process.believes_as(policy.process)


def has_no_time_limit(critic: object) -> bool:
    """Returns whether a soft value says of itself that it does not look at the time (``stationary = True``)."""
    return isinstance(critic, _MayBeStationary) and critic.stationary
