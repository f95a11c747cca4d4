"""Return against information: what each bit of deliberation buys."""

from typing import TYPE_CHECKING

from rl_as_inference.arguments import checked
from rl_as_inference.reasoning import RationalityCurve, Satisficing
from rl_as_inference.style import BLUE, GREY, ORANGE, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_rationality"]


@checked
def plot_rationality(
    curve: RationalityCurve, *, satisficing: Satisficing | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draws expected return against information in bits, points coloured by temperature.

    Args:
        curve: of :func:`rl_as_inference.rationality_curve`.
        satisficing: a policy to mark on it, with the return it had to reach.
        ax: where to draw.
    """
    from matplotlib.colors import LogNorm

    ax = new_axes(ax)
    bits, returns = curve.bits.cpu().numpy(), curve.expected_return.cpu().numpy()
    ax.plot(bits, returns, color=GREY, linewidth=1, zorder=1)
    points = ax.scatter(
        bits, returns, c=curve.temperature.cpu().numpy(), norm=LogNorm(), cmap="cividis", s=22, zorder=2
    )
    ax.figure.colorbar(points, ax=ax, label="temperature α (reward units per nat)")
    if curve.best_return is not None:
        ax.axhline(curve.best_return, color=BLUE, linewidth=1, linestyle="--", label="best return")
    ax.axhline(curve.prior_return, color=GREY, linewidth=1, linestyle=":", label="action prior")
    if satisficing is not None:
        place = satisficing.information / 0.6931471805599453
        ax.plot(place, satisficing.expected_return, "D", color=ORANGE, markersize=8, zorder=3, label="good enough")
    ax.legend(frameon=False, loc="lower right")
    return tidy(ax, "information about the action (bits an episode)", "expected return (reward units)")
