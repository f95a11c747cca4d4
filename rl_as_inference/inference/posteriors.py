"""Which trajectories explain success: posterior draws by any method, as ArviZ data."""

import math
from dataclasses import replace
from typing import Any, Literal, get_args

import torch

from rl_as_inference import exact
from rl_as_inference.arguments import checked
from rl_as_inference.arviz_data import PosteriorData
from rl_as_inference.checks import check_at_least
from rl_as_inference.distributed import present
from rl_as_inference.host import in_turn
from rl_as_inference.inference.inference_data import from_trajectories
from rl_as_inference.inference.look_ahead import LookAhead, check_look_ahead, filtered_process, proposal_and_look_ahead
from rl_as_inference.inference.pareto import pareto_k
from rl_as_inference.inference.spreading import SPREAD, check_spread, spread
from rl_as_inference.nouns import Policy, Problem, Process
from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.processes.partially_observed import PartiallyObservedMDP
from rl_as_inference.processes.programs import ProgramProcess, as_process
from rl_as_inference.sampling import (
    WeightedDraws,
    importance_sampling,
    nuts_with_statistics,
    repeated_annealing,
    repeated_filters,
    surviving_rollout,
)
from rl_as_inference.sampling.annealing import spread_annealing
from rl_as_inference.sampling.importance import check_conditions, check_whole_plates, resample
from rl_as_inference.sampling.islands import spread_importance
from rl_as_inference.trajectories import Trajectories

__all__ = ["Method", "posterior", "shared_posterior"]

Method = Literal["guide", "exact", "importance", "smc", "annealed", "nuts"]

_PROPOSALS_PER_DRAW, _REPEATS = 10, 8
_WITHOUT_POLICY = {
    "exact": "draws from the posterior itself",
    "annealed": "starts from the action prior",
    "nuts": "starts anywhere",
}
"""Methods that have no use for a policy, and why."""


@checked
@in_turn
def posterior(
    process: Problem,
    policy: Policy | None = None,
    *,
    method: Method = "guide",
    num_draws: int = 1000,
    num_particles: int | None = None,
    num_proposals: int | None = None,
    num_repeats: int | None = None,
    dynamics: exact.Dynamics = "posterior",
    critic: LookAhead = "auto",
    progress: bool | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    distributed: bool = False,
) -> PosteriorData:
    """Returns ``num_draws`` draws of trajectories given optimality, as ArviZ data.

    - ``"guide"``: the policy's own trajectories; ``log_weight`` says how far each is from the
      posterior. With ``policy=None`` the action prior's.
    - ``"exact"``: exact draws, for finite and linear-Gaussian processes; ``dynamics="causal"`` for
      the posterior over actions alone.
    - ``"importance"``: ``num_proposals`` trajectories of the policy (or the action prior), resampled by weight.
    - ``"smc"``: ``num_repeats`` particle filters over time, of ``num_particles`` each, with the policy as
      proposal and, for processes in parts, the critic as look-ahead; a program, which must run in a plate, is run
      anew for each step; the standard error of the evidence is from their spread. By
      default exact messages are both where the process has them; elsewhere the proposal is the action
      prior, and nothing looks ahead. ``critic=None`` is the plain filter.
    - ``"annealed"``: ``num_repeats`` runs of ``num_particles``, brought from the action prior down to the temperature
      by Metropolis moves (:func:`rl_as_inference.sampling.annealing`); needs a process in parts.
    - ``"nuts"``: Pyro's NUTS, for continuous programs; two chains.

    With γ < 1 survival coins are drawn (see :func:`rl_as_inference.steps`), whatever the program's
    rendering. Variables ``state``, ``action``, ``reward``; ``sample_stats`` has ``alive``,
    ``return`` and ``log_weight``. The posterior's attributes tell the method, and for ``importance``
    and ``smc`` the log evidence with its standard error, the effective sample size, and for
    ``importance`` Pareto k̂ (Vehtari et al. 2024): above 0.7 the weights are not to be trusted. Where exact answers
    are available they also tell ``exact_log_evidence``, and for ``guide`` ``kl_to_posterior``,
    ``KL(guide || posterior)``, in nats: what :func:`rl_as_inference.inspect.diagnose` holds the draws against.
    Always beside it: ``prior``, as many draws of the action prior (of a conditioned program, given the values at
    its sites but not weighted by them), and ``observed_data`` with what a program was conditioned on. ``nuts`` has
    ``energy``, ``diverging``, ``acceptance_rate``, ``tree_depth`` and ``n_steps`` among its statistics.

    Args:
        process: a process or a Pyro program.
        policy: the guide, or the proposal of ``importance`` and ``smc``; None for the action prior.
        method: see above.
        num_draws: draws returned, over all chains.
        num_particles: of each run of ``smc`` and ``annealed``; by default as many as draws.
        num_proposals: of ``importance``; by default ten a draw.
        num_repeats: runs of ``smc`` and ``annealed``, ≥ 2, and the parts that proposals are drawn in if
            ``distributed``; by default eight.
        dynamics: of ``exact``.
        progress: of ``nuts``, whether to show a bar; by default on a terminal.
        critic: of ``smc``, ``(state, t) -> V`` in reward units.
        seed: of what is drawn; None follows PyTorch's generator, from where it is.
        generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.
        distributed: spreads the runs of ``smc`` and ``annealed``, or the proposals of ``importance``, over the ranks
            of a ``torchrun`` job. Each rank calls it with the same arguments and has the whole answer, the same as
            the others, which a seed fixes whatever the number of ranks; without one the first rank's random numbers
            count. Draws are resampled of all ranks' runs in proportion to their evidences, and weights are judged
            together.

    Raises:
        ValueError: for an unknown method, a number < 1, a number or a policy that is none of the method's, a process
            the method cannot treat, or, but for ``guide``, a program with a subsampled plate. If ``distributed``,
            outside ``torchrun``, for other methods, fewer runs than ranks, or ranks that disagree on the arguments.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> data = posterior(mdp, method="exact", num_draws=2000)
        >>> abs(float(data.posterior["action"].mean()) - 0.7311) < 0.03
        True
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    _check_numbers(method, num_draws, num_particles, num_proposals, num_repeats, distributed=distributed)
    if policy is not None and method in _WITHOUT_POLICY:
        raise ValueError(f"policy is no part of method={method!r}, which {_WITHOUT_POLICY[method]}; leave it out")
    if dynamics != "posterior" and method != "exact":
        raise ValueError(f"dynamics={dynamics!r} is of method='exact', and method is {method!r}; leave one out")
    check_look_ahead(critic, method)
    if distributed:
        check_spread(method)
    process = as_process(process)
    if method in ("importance", "smc", "nuts"):  # the others that weigh need a process in parts
        check_whole_plates(process)
    particles, repeats = num_particles or num_draws, num_repeats or _REPEATS
    proposals = num_proposals or _PROPOSALS_PER_DRAW * num_draws
    numbers = {"num_draws": num_draws, "num_particles": particles, "num_proposals": proposals, "num_repeats": repeats}
    with torch.no_grad(), spread(distributed, process, policy, critic, method=method, **numbers, seed=seed) as ranks:
        if method == "exact":
            draws = exact.sample_posterior(process, num_draws, dynamics)
            return _data(process, method, draws, num_draws, dynamics=dynamics)
        if method == "nuts":
            with torch.enable_grad():
                chains, statistics = nuts_with_statistics(process, num_draws, progress=progress)
            return _data(process, method, chains, num_draws, statistics=statistics)
        if method == "guide":
            draws = surviving_rollout(process, policy, num_draws)
            if bool(draws.log_weight().isneginf().all()):
                check_conditions(process, policy, num_draws)
            prior = draws if policy is None else None
            return _data(
                process, method, draws, num_draws, prior=prior, kl_to_posterior=_kl_to_posterior(process, policy)
            )
        # Draws are handed on, and held nowhere else: of many they are most of the memory. Where nobody shares the work
        # one batch of all proposals, or of all runs, takes less time than islands.
        if method == "annealed" and distributed:
            shared = spread_annealing(process, particles, ranks, num_repeats=repeats, num_draws=num_draws)
            return _resampled(process, method, shared[0], num_draws, least_acceptance=shared[1])
        if method == "annealed":
            run = repeated_annealing(process, particles, num_repeats=repeats)
            least = float(run.acceptance[1:].min())
            return _resampled(process, method, run.draws, num_draws, least_acceptance=least)
        if method == "smc":
            filtered = filtered_process(process, policy)
            proposal, look_ahead = proposal_and_look_ahead(filtered, policy, critic)
            asked = {"num_repeats": repeats, "num_draws": num_draws}
            return _resampled(
                process,
                method,
                repeated_filters(filtered, proposal, particles, critic=look_ahead, ranks=ranks, **asked),
                num_draws,
                unseen=filtered is not process,
            )
        prior = None
        if distributed:
            weighted = spread_importance(process, policy, proposals, ranks, num_parts=repeats, num_draws=num_draws)
        else:
            weighted = importance_sampling(process, policy, proposals)
            if policy is None and num_draws <= proposals:  # proposals of the prior are draws of it
                prior = weighted.trajectories.select(torch.arange(num_draws, device=weighted.log_weight.device))
        every = weighted.log_weight if weighted.all_log_weight is None else weighted.all_log_weight
        judged: dict[str, Any] = {"proposal_log_weight": every, "pareto_k": pareto_k(every.cpu())}
        return _resampled(process, method, weighted, num_draws, prior=prior, **judged)


def shared_posterior(
    process: Problem, policy: Policy | None, *, method: Method, num_draws: int, distributed: bool
) -> PosteriorData:
    """Returns the posterior, by the ranks that are joined, in as many islands as these need; alone if it is not spread.

    For whoever takes the method as it comes.
    """
    if not distributed or method not in SPREAD:
        return posterior(process, policy, method=method, num_draws=num_draws)
    number, proposals = max(_REPEATS, present().size), None
    if method == "importance":
        proposals = max(_PROPOSALS_PER_DRAW * num_draws, number)
    return posterior(
        process,
        policy,
        method=method,
        num_draws=num_draws,
        num_proposals=proposals,
        num_repeats=number,
        distributed=True,
    )


def _check_numbers(
    method: Method,
    num_draws: int,
    num_particles: int | None,
    num_proposals: int | None,
    num_repeats: int | None,
    *,
    distributed: bool,
) -> None:
    numbers = {"num_draws": num_draws, "num_particles": num_particles, "num_proposals": num_proposals}
    for name, value in {**numbers, "num_repeats": num_repeats}.items():
        if value is not None:
            check_at_least(name, value, least=2 if name == "num_repeats" else 1)
    takers = {"num_particles": ("smc", "annealed"), "num_proposals": ("importance",)}
    if not distributed:  # else it also says in how many parts proposals are drawn
        takers["num_repeats"] = ("smc", "annealed")
    for name, methods in takers.items():
        if {**numbers, "num_repeats": num_repeats}[name] is not None and method not in methods:
            of = " and ".join(map(repr, methods))
            raise ValueError(f"{name} is of method {of}, and method is {method!r}; leave one out")


def _resampled(
    process: Process, method: Method, weighted: WeightedDraws, num_draws: int, *, unseen: bool = False, **notes: Any
) -> PosteriorData:
    """Returns ``num_draws`` of weighted draws, by their weights; what was seen is drawn to them where ``unseen``."""
    index = resample(weighted.log_weight if weighted.log_chance is None else weighted.log_chance, num_draws)
    draws, log_weight = weighted.trajectories.select(index), weighted.log_weight[index][None]
    if unseen and isinstance(process, PartiallyObservedMDP):
        draws = process.with_observations(draws)
    # Their weights are told beside them, and of what these came is not needed: a fifth of the memory of many draws.
    nothing = log_weight.new_zeros(1, 1).expand(draws.rewards.shape)
    draws = replace(draws, log_prior=nothing, log_policy=nothing)
    notes = {
        "log_weight": log_weight,
        "log_evidence": weighted.log_evidence,
        "log_evidence_standard_error": None if math.isnan(weighted.standard_error) else weighted.standard_error,
        "effective_sample_size": weighted.effective_sample_size,
        "effective_ancestors": weighted.effective_ancestors,
        **notes,
    }
    del weighted
    return _data(process, method, draws, num_draws, **notes)


def _data(
    process: Process,
    method: Method,
    draws: Trajectories | list[Trajectories],
    num_draws: int,
    *,
    prior: Trajectories | None = None,
    **notes: Any,
) -> PosteriorData:
    """Returns draws with what is always told beside them."""
    return from_trajectories(
        draws,
        prior=surviving_rollout(process, None, num_draws) if prior is None else prior,
        method=method,
        problem=process.name,
        discount=None if isinstance(process, ProgramProcess) else process.discount,
        exact_log_evidence=_exact_log_evidence(process),
        **_told(process),
        **notes,
    )


def _told(process: Process) -> dict[str, Any]:
    """Returns what a process is conditioned on, and which methods draw from its posterior, NUTS aside.

    The latter for advice that can be followed.
    """
    program = process if isinstance(process, ProgramProcess) else None
    in_parts = isinstance(process, MarkovDecisionProcess) and process.horizon is not None
    possible = {
        "exact": exact.is_available(process) and process.horizon is not None,
        "smc": in_parts or (program is not None and program.is_vectorized()),
        "annealed": in_parts,
        "importance": True,
    }
    return {
        "observed": None if program is None else program.observed(),
        "methods": [method for method, can in possible.items() if can],
    }


def _exact_log_evidence(process: Process) -> float | None:
    """Returns ``log p(O)`` in nats by messages; None where there are none, or it is infinite."""
    if not exact.is_available(process) or process.horizon is None:
        return None
    evidence = float(exact.log_evidence(process))
    return evidence if math.isfinite(evidence) else None


def _kl_to_posterior(process: Process, policy: Policy | None) -> float | None:
    """Returns ``log p(O) - ELBO(π)`` in nats, exact; None where one of the two cannot be computed."""
    if not exact.is_available(process):
        return None
    try:
        return float(exact.trajectory_kl(process, policy))
    except ValueError:  # a policy without a linear-Gaussian form, or an evidence that is infinite
        return None
