"""Which trajectories explain success: posterior draws by any method, as ArviZ data."""

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from rl_as_inference import exact
from rl_as_inference.inspect.inference_data import from_trajectories, import_arviz
from rl_as_inference.inspect.look_ahead import LookAhead, check_look_ahead, proposal_and_look_ahead
from rl_as_inference.nouns import Policy
from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.processes.programs import ProgramProcess, as_process
from rl_as_inference.sampling import (
    WeightedDraws,
    importance_sampling,
    nuts_with_statistics,
    repeated_annealing,
    repeated_filters,
    surviving_rollout,
)
from rl_as_inference.sampling.importance import check_conditions, resample

if TYPE_CHECKING:
    import arviz

__all__ = ["Method", "posterior"]

Method = Literal["guide", "exact", "importance", "smc", "annealed", "nuts"]

_PROPOSALS_PER_DRAW = 10


def posterior(
    process: Any,
    policy: Policy | None = None,
    *,
    method: Method = "guide",
    num_draws: int = 1000,
    dynamics: exact.Dynamics = "posterior",
    critic: LookAhead = "auto",
) -> "arviz.InferenceData":
    """Returns draws of trajectories given optimality, as ArviZ data.

    - ``"guide"``: the policy's own trajectories; ``log_weight`` says how far each is from the
      posterior. With ``policy=None`` the action prior's.
    - ``"exact"``: exact draws, for finite and linear-Gaussian processes; ``dynamics="causal"`` for
      the posterior over actions alone.
    - ``"importance"``: ten proposals a draw from the policy (or the action prior), resampled by weight.
    - ``"smc"``: eight particle filters over time, of ``num_draws`` particles each, with the policy as
      proposal and, for processes in parts, the critic as look-ahead; a program, which must run in a plate, is run
      anew for each step; the standard error of the evidence is from their spread. By
      default exact messages are both where the process has them; elsewhere the proposal is the action
      prior, and nothing looks ahead. ``critic=None`` is the plain filter.
    - ``"annealed"``: eight runs of ``num_draws`` particles, brought from the action prior down to the temperature by
      Metropolis moves (:func:`rl_as_inference.sampling.annealing`); needs a process in parts.
    - ``"nuts"``: Pyro's NUTS, for continuous programs; two chains.

    With γ < 1 survival coins are drawn (see :func:`rl_as_inference.steps`), whatever the program's
    rendering. Variables ``state``, ``action``, ``reward``; ``sample_stats`` has ``alive``,
    ``return`` and ``log_weight``. The posterior's attributes tell the method, and for ``importance``
    and ``smc`` the log evidence with its standard error, the effective sample size, and for
    ``importance`` Pareto k̂ (Vehtari et al. 2024): above 0.7 the weights are not to be trusted. For
    ``guide`` they tell ``kl_to_posterior``, ``KL(guide || posterior)`` in nats, where exact answers are available.
    Always beside it: ``prior``, as many draws of the action prior (of a conditioned program, given the values at
    its sites but not weighted by them), and ``observed_data`` with what a program was conditioned on. ``nuts`` has
    ``energy``, ``diverging``, ``acceptance_rate``, ``tree_depth`` and ``n_steps`` among its statistics.

    Raises:
        ValueError: for an unknown method, ``num_draws`` < 1, or a process the method cannot treat.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> data = posterior(mdp, method="exact", num_draws=2000)
        >>> abs(float(data.posterior["action"].mean()) - 0.7311) < 0.03
        True
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    if num_draws < 1:
        raise ValueError(f"num_draws must be >= 1, got {num_draws}")
    check_look_ahead(critic, method)
    process = as_process(process)
    notes: dict[str, Any] = {"method": method, "problem": str(getattr(process, "name", "program"))}
    notes["discount"] = None if isinstance(process, ProgramProcess) else process.discount
    with torch.no_grad():
        if method == "exact":
            draws = exact.sample_posterior(process, num_draws, dynamics)
            prior = surviving_rollout(process, None, num_draws)
            return from_trajectories(draws, prior=prior, dynamics=dynamics, **_told(process), **notes)
        if method == "nuts":
            with torch.enable_grad():
                chains, statistics = nuts_with_statistics(process, num_draws)
            prior = surviving_rollout(process, None, num_draws)
            return from_trajectories(
                chains,
                prior=prior,
                statistics=statistics,
                **_told(process),
                **notes,
            )
        if method == "guide":
            draws = surviving_rollout(process, policy, num_draws)
            if bool(draws.log_weight().isneginf().all()):
                check_conditions(process, policy, num_draws)
            prior = draws if policy is None else surviving_rollout(process, None, num_draws)
            notes["kl_to_posterior"] = _kl_to_posterior(process, policy)
            return from_trajectories(draws, prior=prior, **_told(process), **notes)
        if method == "annealed":
            if policy is not None:
                raise ValueError(
                    "policy is no part of method='annealed', which starts from the action prior; leave it out"
                )
            run = repeated_annealing(process, num_draws)
            weighted = run.draws
            notes["least_acceptance"] = float(run.acceptance[1:].min())
        elif method == "importance":
            weighted = importance_sampling(process, policy, _PROPOSALS_PER_DRAW * num_draws)
            notes["pareto_k"] = _pareto_k(weighted)
        else:
            proposal, look_ahead = proposal_and_look_ahead(process, policy, critic)
            weighted = repeated_filters(process, proposal, num_draws, critic=look_ahead)
        index = resample(weighted.log_weight, num_draws)
        if method == "importance" and policy is None:  # the proposals are the prior's own
            prior = weighted.trajectories.select(torch.arange(num_draws, device=index.device))
        else:
            prior = surviving_rollout(process, None, num_draws)
        return from_trajectories(
            weighted.trajectories.select(index),
            prior=prior,
            log_weight=weighted.log_weight[index][None],
            proposal_log_weight=weighted.log_weight if method == "importance" else None,
            log_evidence=weighted.log_evidence,
            log_evidence_standard_error=None if math.isnan(weighted.standard_error) else weighted.standard_error,
            effective_sample_size=weighted.effective_sample_size,
            effective_ancestors=weighted.effective_ancestors,
            **_told(process),
            **notes,
        )


def _told(process: Any) -> dict[str, Any]:
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


def _kl_to_posterior(process: Any, policy: Policy | None) -> float | None:
    """Returns ``log p(O) - ELBO(π)`` in nats, exact; None where one of the two cannot be computed."""
    if not exact.is_available(process):
        return None
    try:
        return float(exact.trajectory_kl(process, policy))
    except ValueError:  # a policy without a linear-Gaussian form, or an evidence that is infinite
        return None


def _pareto_k(weighted: WeightedDraws) -> float:
    with np.errstate(all="ignore"):  # weights that are all alike have no tail to fit
        _, k = import_arviz().psislw(weighted.log_weight.cpu().numpy())
    return float(k)
