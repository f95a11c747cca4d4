"""Which options of the loop go together."""

from __future__ import annotations

from rl_as_inference.agents.options import LearnerOptions

__all__ = ["check_together"]


def check_together(options: LearnerOptions, *, plans: bool, holds_return: bool) -> None:
    """Raises ValueError for options that do not go together.

    Args:
        options: with their defaults.
        plans: whether a plan in a model acts, and updates learn from what is imagined in it.
        holds_return: whether α is tuned to a return.
    """
    if plans and options["priority_exponent"] > 0:
        raise ValueError(
            "priority_exponent is of transitions that were lived, and these updates learn from imagined ones; "
            "leave it out"
        )
    if plans and options["num_actors"] is not None:
        raise ValueError("num_actors: actors run a policy, and here a plan in a model acts; leave it out")
    if options["reset_every"] is None:
        return
    for name in ("policy", "critic"):
        if options.get(name) is not None:
            raise ValueError(
                f"reset_every makes networks anew, and {name} is one of your own, of which there is but this one; "
                f"leave one of them out"
            )
    if holds_return:
        raise ValueError("reset_every makes a tuned α anew, and target_return holds it; leave one of them out")
