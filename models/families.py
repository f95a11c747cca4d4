"""Families: the problems of this package as someone believes in them who does not know their numbers.

Each is a function whose arguments all have defaults. It returns a Pyro program without arguments that draws what is
unknown (``pyro.sample``) and returns a process: what :func:`rl_as_inference.explore` and
:func:`rl_as_inference.infer_dynamics` take.
"""

from rl_as_inference.models.bandit import bandit_family as bandit
from rl_as_inference.models.deep_sea import deep_sea_family as deep_sea
from rl_as_inference.models.river_swim import river_swim_family as river_swim

__all__ = ["bandit", "deep_sea", "river_swim"]
