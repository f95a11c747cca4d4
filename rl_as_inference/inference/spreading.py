"""Evidence and posterior draws by many processes: which methods can be spread, and how."""

from typing import Any

from rl_as_inference.distributed import Ranks
from rl_as_inference.inference.look_ahead import LookAhead, filtered_process, proposal_and_look_ahead
from rl_as_inference.nouns import Policy, Process
from rl_as_inference.processes.programs import ProgramProcess
from rl_as_inference.randomness import seeded
from rl_as_inference.sampling.annealing import spread_annealing
from rl_as_inference.sampling.importance import WeightedDraws
from rl_as_inference.sampling.islands import in_step, spread_importance
from rl_as_inference.sampling.smc import repeated_filters

__all__ = ["SPREAD", "check_spread", "spread_draws"]

SPREAD = ("importance", "smc", "annealed")
"""Methods whose work is of independent parts, which are weighed by their evidence."""


def check_spread(method: str) -> None:
    """Raises ValueError for a method that ranks cannot share."""
    if method not in SPREAD:
        raise ValueError(
            f"distributed=True spreads the methods {', '.join(map(repr, SPREAD))} over ranks, and method is "
            f"{method!r}; take one of these, or leave distributed out"
        )


def spread_draws(
    ranks: Ranks,
    method: str,
    process: Process,
    policy: Policy | None,
    critic: LookAhead,
    *,
    num_particles: int,
    num_proposals: int,
    num_repeats: int,
    num_draws: int,
) -> tuple[WeightedDraws, dict[str, Any]]:
    """Returns draws of islands that are spread over ranks, the same on each, and what is to be noted of them.

    Args:
        ranks: of a job.
        method: one of :data:`SPREAD`.
        process, policy, critic: as of :func:`rl_as_inference.posterior`.
        num_particles: of each run of ``smc`` and ``annealed``.
        num_proposals: of ``importance``, over all islands.
        num_repeats: how many islands.
        num_draws: how many draws will be resampled.
    """
    in_step(ranks)
    if isinstance(process, ProgramProcess):
        with seeded(0):  # found out once, by running it, which must not move the stream of the first island on a rank
            process.is_vectorized()
    if method == "importance":
        drawn = spread_importance(process, policy, num_proposals, ranks, num_parts=num_repeats, num_draws=num_draws)
        return drawn, {"proposal_log_weight": drawn.all_log_weight}
    if method == "annealed":
        drawn, least = spread_annealing(process, num_particles, ranks, num_repeats=num_repeats, num_draws=num_draws)
        return drawn, {"least_acceptance": least}
    filtered = filtered_process(process, policy)
    proposal, look_ahead = proposal_and_look_ahead(filtered, policy, critic)
    drawn = repeated_filters(
        filtered, proposal, num_particles, critic=look_ahead, num_repeats=num_repeats, num_draws=num_draws, ranks=ranks
    )
    return drawn, {"unseen": filtered is not process}
