"""How the words of the language mark their sites, so that readings can tell them apart.

A mark is an entry of the site's ``infer`` dictionary: Pyro carries it along untouched and its own
inference ignores it.
"""

from typing import Any

__all__ = [
    "ACTION",
    "COIN",
    "CONDITION",
    "FIRST",
    "OBSERVATION",
    "REWARD",
    "STEP",
    "both",
    "is_action",
    "is_observation",
    "is_reward",
    "step_of",
]

ACTION = "rlai_action"
"""Marks an action site; holds ``{"state": what the policy may look at}``."""

REWARD = "rlai_reward"
"""Marks a reward factor; holds ``{"value": in reward units, "temperature": reward units per nat}``."""


CONDITION = "rlai_condition"
"""Marks a factor that is a condition on the whole trajectory; holds the value that was asked for."""

OBSERVATION = "rlai_observation"
"""Marks what the agent sees."""

COIN = "rlai_coin"
"""Marks a survival coin."""

FIRST = "rlai_first"
"""Marks a state site; holds the integer that its space starts with, which readers take off."""

STEP = "rlai_step"
"""Marks every site inside :func:`rl_as_inference.steps`; see :func:`step_of`."""

_OUTSIDE: dict[str, Any] = {"step": None, "discount": 1.0, "scale": 1.0, "alive": None}


def both(first: Any, second: Any) -> Any:
    """Returns where two masks are both true; None is a mask that is true everywhere."""
    if first is None or second is None:
        return second if first is None else first
    return first & second


def is_action(site: Any) -> bool:
    """Whether a Pyro message is an action site, written by :func:`rl_as_inference.act`."""
    return site["type"] == "sample" and ACTION in (site["infer"] or ())


def is_reward(site: Any) -> bool:
    """Whether a Pyro message is a reward factor, written by :func:`rl_as_inference.reward`."""
    return site["type"] == "sample" and REWARD in (site["infer"] or ())


def is_observation(site: Any) -> bool:
    """Whether a Pyro message is something the agent sees, written by :func:`rl_as_inference.observe`."""
    return site["type"] == "sample" and OBSERVATION in (site["infer"] or ())


def step_of(site: Any) -> dict[str, Any]:
    """Returns a message's place in time.

    ``step`` is the step's number (None outside of any); ``discount`` the loop's γ where it is
    rendered by scaling, else 1; ``scale`` what the loops multiplied the site's scale by; ``alive``
    which trajectories have not ended (None where all live).
    """
    mark: dict[str, Any] = (site["infer"] or {}).get(STEP, _OUTSIDE)
    return mark
