"""Two comparisons: objectives here, gradients in the room ``gradients``.

- :func:`compare`: a policy's ELBO beside SAC's objective, the largest ELBO and the log evidence.
- :func:`compare_gradients`: every estimator of the ELBO's gradient beside the exact one.
"""

from rl_as_inference.compare.comparison import compare
from rl_as_inference.compare.comparison_table import ActionRule, Comparison, ComparisonRow
from rl_as_inference.compare.gradients import GradientComparison, GradientRow, compare_gradients
from rl_as_inference.compare.identities import Identity

__all__ = [
    "ActionRule",
    "Comparison",
    "ComparisonRow",
    "GradientComparison",
    "GradientRow",
    "Identity",
    "compare",
    "compare_gradients",
]
