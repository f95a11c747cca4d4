"""One objective, many names: the ELBO beside SAC's objective, and every gradient beside the true one."""

from rl_as_inference.compare.comparison import compare
from rl_as_inference.compare.comparison_table import ActionRule, Comparison, ComparisonRow
from rl_as_inference.compare.gradient_table import GradientComparison, GradientRow
from rl_as_inference.compare.gradients import compare_gradients
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
