"""The language: write a reinforcement-learning problem as a Pyro program, and read it."""

from rl_as_inference.program.conditions import given_return
from rl_as_inference.program.language import act, reward, steps, terminate
from rl_as_inference.program.readings import Follow, Guide, follow, simulate, survival

__all__ = ["Follow", "Guide", "act", "follow", "given_return", "reward", "simulate", "steps", "survival", "terminate"]
