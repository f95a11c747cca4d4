"""The language: write a reinforcement-learning problem as a Pyro program, and read it."""

from rl_as_inference.histories import History, history
from rl_as_inference.program.conditions import given_return
from rl_as_inference.program.language import act, observe, reward, steps, terminate
from rl_as_inference.program.readings import Follow, Guide, follow, simulate, survival

__all__ = [
    "Follow",
    "Guide",
    "History",
    "act",
    "follow",
    "given_return",
    "history",
    "observe",
    "reward",
    "simulate",
    "steps",
    "survival",
    "terminate",
]
