"""Every estimator of the ELBO's gradient, and every actor's loss, beside the exact gradient."""

from rl_as_inference.compare.gradients.gradient_comparison import compare_gradients
from rl_as_inference.compare.gradients.gradient_table import GradientComparison, GradientRow

__all__ = ["GradientComparison", "GradientRow", "compare_gradients"]
