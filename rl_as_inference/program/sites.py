"""How the words of the language mark their sites, so that readings can tell them apart.

A mark is an entry of the site's ``infer`` dictionary: Pyro carries it along untouched and its own
inference ignores it.
"""

from typing import Any

__all__ = ["ACTION", "REWARD", "is_action", "is_reward"]

ACTION = "rlai_action"
"""Marks an action site; holds ``{"state": what the policy may look at}``."""

REWARD = "rlai_reward"
"""Marks a reward factor; holds ``{"value": in reward units, "temperature": reward units per nat}``."""


def is_action(site: Any) -> bool:
    """Whether a Pyro message is an action site, written by :func:`rl_as_inference.act`."""
    return site["type"] == "sample" and ACTION in (site["infer"] or ())


def is_reward(site: Any) -> bool:
    """Whether a Pyro message is a reward factor, written by :func:`rl_as_inference.reward`."""
    return site["type"] == "sample" and REWARD in (site["infer"] or ())
