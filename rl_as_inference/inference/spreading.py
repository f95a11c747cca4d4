"""Evidence and posterior draws by many processes: which methods can be spread, and what ranks agree on before."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rl_as_inference.distributed import Ranks
from rl_as_inference.inference.look_ahead import LookAhead
from rl_as_inference.nouns import Policy, Process
from rl_as_inference.sampling.islands import in_step
from rl_as_inference.sharing import agree_on, sharing

__all__ = ["SPREAD", "check_spread", "spread"]

SPREAD = ("importance", "smc", "annealed")
"""Methods whose work is of independent parts, which are weighed by their evidence."""


def check_spread(method: str) -> None:
    """Raises ValueError for a method that ranks cannot share."""
    if method not in SPREAD:
        raise ValueError(
            f"distributed=True spreads the methods {', '.join(map(repr, SPREAD))} over ranks, and method is "
            f"{method!r}; take one of these, or leave distributed out"
        )


@contextmanager
def spread(
    distributed: bool, process: Process, policy: Policy | None, critic: LookAhead, **options: Any
) -> Iterator[Ranks]:
    """Yields the ranks that share a computation, which agree on what it is and draw the same random numbers.

    Args:
        distributed: whether this process is one of a job.
        process, policy, critic: what all have.
        **options: what else all have, by name.

    Raises:
        ValueError: on every rank, if something differs on one.
    """
    with sharing(distributed, process, policy, **options) as ranks:
        agree_on(ranks, critic=critic)
        in_step(ranks)
        yield ranks
