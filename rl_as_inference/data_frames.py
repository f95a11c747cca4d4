"""Results as pandas frames.

One convention for all: a row is an observation, a column a quantity, and ``frame.attrs["units"]`` says each column's
unit; what is not named there is a count, a name or a number without one. The standard error of a column ``NAME`` is the
column ``NAME_standard_error`` (``standard_error`` where there is but one mean), in the same unit. None becomes NaN.

Example:
    >>> import rl_as_inference as rlai
    >>> from rl_as_inference.models import gridworld
    >>> found = rlai.rationality_curve(gridworld(), [0.1, 1.0]).to_frame()
    >>> found.attrs["units"]["expected_return"], found["bits"].round(2).tolist()
    ('reward', [10.99, 7.49])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from rl_as_inference.host import as_found

if TYPE_CHECKING:
    import pandas

__all__ = ["REWARD", "REWARD_PER_NAT", "UNITS", "Frame", "frame", "history_frame", "units_of"]

Frame: TypeAlias = "pandas.DataFrame"
"""As annotations have it: pandas is loaded by the first frame."""

REWARD, REWARD_PER_NAT = "reward", "reward/nat"

_BY_UNIT = {
    REWARD: (
        *("return", "regret", "q", "td_error"),
        *("mean_return", "least_return", "largest_return", "standard_error", "return_standard_error"),
        *("expected_return", "best_return", "target_return", "prior_return", "believed_return"),
        *("robust_return", "nominal_return", "relaxed_return", "bound"),
        *("sac_objective", "sac_exact", "prior_term", "prior_term_exact", "expected_return_exact"),
        *("sac_standard_error", "prior_term_standard_error", "expected_return_standard_error"),
    ),
    "nats": (
        *("elbo", "elbo_standard_error", "elbo_exact", "elbo_critic", "elbo_critic_standard_error", "gradient_norm"),
        *("critic_difference", "critic_difference_standard_error", "optimal_elbo", "log_evidence"),
        *("dynamics_gap", "information_gap", "policy_gap", "family_gap", "training_gap"),
        *("entropy", "entropy_standard_error", "entropy_exact"),
        *("action_cost", "action_cost_standard_error", "action_cost_exact"),
        *("information", "reward_cost", "dynamics_cost", "kl_improvement", "model_log_likelihood"),
    ),
    "bits": ("bits",),
    REWARD_PER_NAT: ("temperature", "reward_multiplier", "dynamics_multiplier"),
    "nats/reward": ("multiplier",),
    "nats²": ("variance", "variance_standard_error"),
    "nats² s": ("variance_seconds",),
    "standard errors": ("z_along", "z_global"),
    "steps": ("step",),
    "updates": ("policy_lag", "largest_policy_lag"),
    "s": ("seconds",),
    "1/s": ("steps_per_second", "updates_per_second"),
}
UNITS = {name: unit for unit, names in _BY_UNIT.items() for name in names}
"""Of every quantity, by the name that it has in results, reports and files. Losses have none: what an algorithm makes
small may have any scale."""


def units_of(names: Iterable[str], **own: str) -> dict[str, str]:
    """Returns the units of those names that have one; ``own`` goes before what they are elsewhere."""
    known = {**UNITS, **own}
    return {name: known[name] for name in names if name in known}


def frame(columns: Mapping[str, Any], **own_units: str) -> Frame:
    """Returns columns as a frame.

    Args:
        columns: by name, tensors ``(N,)`` or sequences; None in one is NaN.
        **own_units: of those that have another unit here than :data:`UNITS` says.
    """
    with as_found():
        import pandas
    values = {
        name: value.detach().cpu().numpy() if isinstance(value, Tensor) else [nan if x is None else x for x in value]
        for name, value in columns.items()
    }
    made = pandas.DataFrame(values)
    made.attrs["units"] = units_of(values, **own_units)
    return made


def history_frame(rows: Sequence[Mapping[str, float]]) -> Frame:
    """Returns reports as a frame, a row each; a number that one of them does not have is NaN there."""
    names = dict.fromkeys(name for row in rows for name in row)
    return frame({name: [row.get(name) for row in rows] for name in names})
