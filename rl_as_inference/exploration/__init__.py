"""Unknown dynamics: what is known of them from what was seen, and how to find out more."""

from rl_as_inference.exploration.conjugate import ConjugatePosterior

__all__ = ["ConjugatePosterior"]
