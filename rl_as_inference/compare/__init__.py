"""One objective, many names: the ELBO beside SAC's objective, and every gradient beside the true one."""

from rl_as_inference.compare.comparison import ActionRule, Comparison, compare
from rl_as_inference.compare.gradient_table import GradientComparison, GradientRow
from rl_as_inference.compare.gradients import compare_gradients
from rl_as_inference.compare.identities import Identity

__all__ = ["ActionRule", "Comparison", "GradientComparison", "GradientRow", "Identity", "compare", "compare_gradients"]
