"""Which processes have exact answers."""

from typing import TypeAlias, TypeGuard

from rl_as_inference.nouns import Problem, is_process
from rl_as_inference.processes import LinearGaussianMDP, LinearGaussianPOMDP, TabularMDP, TabularPOMDP

__all__ = ["Solvable", "is_available"]

Solvable: TypeAlias = TabularMDP | LinearGaussianMDP | TabularPOMDP | LinearGaussianPOMDP
"""What :mod:`rl_as_inference.exact` answers for; its functions raise ValueError for others."""


def is_available(process: Problem) -> TypeGuard[Solvable]:
    """Returns whether ``process`` has exact answers."""
    return is_process(process) and process.has_exact_answers
