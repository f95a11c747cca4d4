"""The log evidence of a process by any method that estimates it."""

from typing import Literal, get_args

import torch

from rl_as_inference import exact
from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_at_least
from rl_as_inference.estimate import Estimate
from rl_as_inference.host import in_turn
from rl_as_inference.inference.look_ahead import LookAhead, check_look_ahead, filtered_process, proposal_and_look_ahead
from rl_as_inference.inference.spreading import check_spread, spread
from rl_as_inference.nouns import Policy, Problem
from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.processes.programs import as_process
from rl_as_inference.sampling.annealing import repeated_annealing, spread_annealing
from rl_as_inference.sampling.importance import check_whole_plates, importance_sampling
from rl_as_inference.sampling.islands import spread_importance
from rl_as_inference.sampling.smc import repeated_filters

__all__ = ["EvidenceMethod", "estimate_log_evidence"]

EvidenceMethod = Literal["exact", "importance", "smc", "annealed"]


@checked
@in_turn
def estimate_log_evidence(
    process: Problem,
    policy: Policy | None = None,
    *,
    method: EvidenceMethod | None = None,
    critic: LookAhead = "auto",
    num_particles: int = 10_000,
    num_repeats: int = 8,
    num_proposals: int | None = None,
    num_draws: int | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    distributed: bool = False,
) -> Estimate:
    """Returns ``log p(O)`` of a process or program in nats, with its standard error.

    - ``"exact"``: by messages, for finite and linear-Gaussian processes; the standard error is 0.
    - ``"importance"``: the mean weight of ``num_proposals`` trajectories of the policy.
    - ``"smc"``: particle filters over time (:func:`sequential_monte_carlo`), twisted by the critic.
    - ``"annealed"``: from the action prior down to the temperature (:func:`annealing`).

    By default exact where that is possible, else smc for processes in parts and importance for others. The
    last two methods run ``num_repeats`` times with ``num_particles`` particles, and the standard error is from their
    spread (:func:`rl_as_inference.sampling.importance.mean_evidence` says when it holds); each run's evidence is
    unbiased, and so is their mean, whose logarithm this is. With γ < 1 survival coins are drawn.

    Args:
        process: a process or a Pyro program.
        policy: the proposal of ``importance`` and ``smc``. None is the action prior, and for a filter that looks
            ahead by exact messages their action rule.
        method: see above.
        critic: the look-ahead of ``smc``, ``(state, t) -> V`` in reward units; ``"auto"`` for exact messages where
            the process has them; None for none (with ``policy=None`` the bootstrap filter).
        num_particles: of each run of ``smc`` and ``annealed``, ≥ 2.
        num_repeats: runs of these, ≥ 2; four are the least whose error means much.
        num_proposals: trajectories of ``importance``, ≥ 2; by default ``num_particles · num_repeats``.
        num_draws: another name for ``num_particles``, which calls from before it have; no draws are returned.
        seed: of what is drawn; None follows PyTorch's generator, from where it is.
        generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.
        distributed: spreads the runs over the ranks of a ``torchrun`` job, and the proposals of ``importance`` in
            ``num_repeats`` parts. Each rank calls it with the same arguments and has the same answer, which a seed
            fixes whatever the number of ranks; without one the first rank's random numbers count. What is exact is
            not spread, so that no method is ``smc`` or ``importance`` then.

    Raises:
        ValueError: for an unknown method or one that does not fit the process, ``num_proposals`` for a method that has
            none, a program with a subsampled plate, or if all weights are zero. If ``distributed``, outside
            ``torchrun``, for ``"exact"``, fewer runs than ranks, or ranks that disagree on the arguments.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> _ = torch.manual_seed(0)
        >>> print(estimate_log_evidence(mdp), "|", estimate_log_evidence(mdp, method="importance"))
        2.48 | 2.485 ± 0.0038
    """
    if method is not None and method not in get_args(EvidenceMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(EvidenceMethod))}, or None; got {method!r}")
    particles = {"num_particles": num_particles} if num_draws is None else {"num_draws": num_draws}
    for name, value in {**particles, "num_repeats": num_repeats, "num_proposals": num_proposals}.items():
        if value is not None:
            check_at_least(name, value, least=2)
    (num_particles,) = particles.values()
    process = as_process(process)
    check_whole_plates(process)
    in_parts = isinstance(process, MarkovDecisionProcess) and process.horizon is not None
    asked = method
    if method is None:
        whole = exact.is_available(process) and not distributed
        method = "exact" if whole else "smc" if in_parts else "importance"
    check_look_ahead(critic, method)
    if num_proposals is not None and method != "importance":
        raise ValueError(f"num_proposals is of method='importance', and method is {method!r}; leave one out")
    if policy is not None and (asked == "exact" or method == "annealed"):
        why = "starts from the action prior" if method == "annealed" else "has no use for one"
        raise ValueError(f"policy is a proposal, and method={method!r} {why}; leave it out")
    if distributed:
        check_spread(method)
    if method == "exact":
        with torch.no_grad():
            return Estimate(float(exact.log_evidence(process)), 0.0)
    proposals = num_proposals or num_particles * num_repeats
    options = {"method": method, "num_particles": num_particles, "num_repeats": num_repeats, "seed": seed}
    with spread(distributed, process, policy, critic, **options, num_proposals=proposals) as ranks:
        # Where nobody shares the work one batch of all proposals, or of all runs, takes less time than islands.
        if method == "importance" and distributed:
            weighted = spread_importance(process, policy, proposals, ranks, num_parts=num_repeats, num_draws=1)
        elif method == "importance":
            weighted = importance_sampling(process, policy, proposals)
        elif method == "smc":
            process = filtered_process(process, policy)
            proposal, look_ahead = proposal_and_look_ahead(process, policy, critic)
            numbers = {"num_repeats": num_repeats, "num_draws": 1}
            weighted = repeated_filters(process, proposal, num_particles, critic=look_ahead, ranks=ranks, **numbers)
        elif distributed:
            weighted, _ = spread_annealing(process, num_particles, ranks, num_repeats=num_repeats, num_draws=1)
        else:
            weighted = repeated_annealing(process, num_particles, num_repeats=num_repeats).draws
    return Estimate(weighted.log_evidence, weighted.standard_error)
