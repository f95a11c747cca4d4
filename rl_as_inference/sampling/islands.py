"""Islands: independent runs of a sampler, on one rank or spread over several, pooled by their evidence."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pyro
import torch

from rl_as_inference.distributed import ALONE, Ranks
from rl_as_inference.nouns import Policy, Process
from rl_as_inference.processes.gymnasium_process import GymnasiumProcess
from rl_as_inference.randomness import seeded
from rl_as_inference.sampling.importance import WeightedDraws, check_weights, evidence_of, weighted_rollout
from rl_as_inference.sampling.pool import Pool
from rl_as_inference.sharing import failing_together

__all__ = ["in_step", "islands", "spread_importance"]


def islands(
    run: Callable[[Pool, int], None], num_islands: int, num_draws: int | None, ranks: Ranks = ALONE
) -> WeightedDraws:
    """Returns the pooled draws of independent runs, the same on every rank.

    Each island draws from a seed of its own, which the caller's random numbers tell, so that it finds the same on
    whichever rank it runs. Ranks work without a word to each other until all islands have run. Then evidences and
    weights go to everyone, and of the trajectories those that a resampling of all can ask for. The mean of the islands'
    evidences is unbiased where each of them is (Vergé, Dubarry, Del Moral & Moulines 2015, arXiv:1306.3911; here
    islands meet once, at the end).

    Args:
        run: of a pool and the number of an island: runs it and adds its draws to the pool.
        num_islands: how many.
        num_draws: how many draws will be resampled; None keeps all.
        ranks: over which the islands are spread, as evenly as can be; their random numbers must be :func:`in_step`.

    Raises:
        ValueError: if there are fewer islands than ranks, or what an island raises; on every rank.
    """
    ranks.share(num_islands, "num_repeats")
    seeds = torch.randint(2**62, (num_islands,)).tolist()
    pool = Pool(num_draws)
    with failing_together(ranks):
        for island in range(*ranks.bounds(num_islands)):
            with seeded(seeds[island]):
                run(pool, island)
    return pool.draws(ranks)


def spread_importance(
    process: Process,
    policy: Policy | None,
    num_proposals: int,
    ranks: Ranks,
    *,
    num_parts: int,
    num_draws: int | None = None,
) -> WeightedDraws:
    """Returns what importance sampling does, of proposals whose parts are spread over ranks.

    The evidence is the mean of all weights, and its standard error from the spread of the parts': where weights have
    heavy tails that of the weights themselves is too small.

    Args:
        process, policy: as in :func:`~rl_as_inference.sampling.importance.importance_sampling`.
        num_proposals: of all parts.
        ranks: over which the parts are spread.
        num_parts: in how many islands proposals are drawn.
        num_draws: how many draws will be resampled of them; None keeps all.

    Raises:
        ValueError: if there are fewer proposals than parts, or all weights are zero.
    """
    if num_proposals < num_parts:
        raise ValueError(
            f"num_proposals must be >= {num_parts}, one for each of num_repeats parts, got {num_proposals}"
        )
    each, more = divmod(num_proposals, num_parts)
    sizes = [each + (part < more) for part in range(num_parts)]

    def run(pool: Pool, island: int) -> None:
        # A simulator's episodes have seeds of their own, which would be the same on every rank.
        seed = int(torch.randint(2**31, ()))
        with process.episodes_of(seed) if isinstance(process, GymnasiumProcess) else nullcontext():
            pool.add(weighted_rollout(process, policy, sizes[island]), math.log(sizes[island]))

    found = islands(run, num_parts, num_draws, ranks)
    assert found.all_log_weight is not None
    check_weights(found.all_log_weight, process, policy)
    return replace(found, log_evidence=evidence_of(found.all_log_weight).mean)  # of parts of several sizes


def in_step(ranks: Ranks) -> None:
    """Has every rank draw from here on what the first would draw."""
    if ranks.size == 1:
        return
    pyro.util.set_rng_state(ranks.broadcast(pyro.util.get_rng_state()))
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(ranks.broadcast(torch.cuda.get_rng_state()))
