"""Where the particles of a filter look: the proposal and the soft value that twists it."""

from typing import Any, Literal

from rl_as_inference import exact
from rl_as_inference.critics import TableCritic
from rl_as_inference.nouns import Policy, Process, SoftV
from rl_as_inference.processes import LinearGaussianPOMDP, TabularPOMDP

__all__ = ["LookAhead", "check_look_ahead", "filtered_process", "proposal_and_look_ahead"]

LookAhead = SoftV | None | Literal["auto"]
"""A soft value ``(state, t)`` in reward units, None for none, or ``"auto"``."""


def check_look_ahead(critic: LookAhead, method: str) -> None:
    """Raises ValueError for another word than ``"auto"``, or a critic for a method that is no filter."""
    if isinstance(critic, str) and critic != "auto":
        raise ValueError(f"critic must be a callable (state, t) -> V, None or 'auto', got {critic!r}")
    if critic not in (None, "auto") and method != "smc":
        raise ValueError(f"critic is the look-ahead of method='smc', and method is {method!r}; leave one out")


def filtered_process(process: Process, policy: Policy | None) -> Process:
    """Returns what a filter of the posterior runs on: where the state is hidden, the same with it seen.

    What is seen on the way says nothing more of success, and a proposal that knows the state is the better one. (A
    policy of the history needs the process as it is.)
    """
    if isinstance(process, TabularPOMDP | LinearGaussianPOMDP) and policy is None:
        return process.fully_observed
    return process


def proposal_and_look_ahead(
    process: Process, policy: Policy | None, critic: LookAhead
) -> tuple[Policy | None, SoftV | None]:
    """Returns the proposal and the critic of a filter of ``process``.

    ``"auto"`` is the soft value of exact conditioning where the process has exact answers, and none elsewhere.
    With it and without a policy, the proposal is that plan's action rule. A filter that does not look ahead, or
    looks where control would go, can miss nearly all of the posterior with a small standard error
    (docs/posterior_testbed.md). Evidence is unbiased whatever the critic, so that it still checks the messages.
    """
    if critic != "auto":
        return policy, critic
    if not exact.is_available(process) or process.horizon is None:
        return policy, None
    if isinstance(process, TabularPOMDP | LinearGaussianPOMDP):
        # It weighs particles, and may see their states.
        return policy, proposal_and_look_ahead(process.fully_observed, None, "auto")[1]
    plan: Any = exact.plan(process, "posterior")
    # A table is indexed by step and state; a linear-Gaussian plan has the value as a function.
    look_ahead = plan.soft_v if callable(plan.soft_v) else TableCritic(plan.soft_v)
    return plan if policy is None else policy, look_ahead
