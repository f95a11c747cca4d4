"""The ELBO beside the SAC objective, the largest ELBO and the log evidence."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_at_least
from rl_as_inference.compare.comparison_table import ActionRule, Comparison
from rl_as_inference.compare.critic_values import check_critic, elbo_by_critic
from rl_as_inference.compare.exact_values import exact_parts, support_note
from rl_as_inference.compare.family import best_of_family
from rl_as_inference.compare.gradients.finite_problem import TableOfLogs
from rl_as_inference.compare.identities import Identity, agrees, is_equal, not_negative
from rl_as_inference.exact.tabular import log_policy_table
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import (
    Policy,
    Problem,
    Process,
    SoftValue,
    answers_by_drawing,
    asked_in_rollouts,
)
from rl_as_inference.objectives.rollout_elbo import Estimate
from rl_as_inference.processes import (
    GymnasiumProcess,
    LinearGaussianPOMDP,
    MarkovDecisionProcess,
    TabularMDP,
    TabularPOMDP,
)
from rl_as_inference.processes.gymnasium_process import own_episodes
from rl_as_inference.processes.point_masses import check_density
from rl_as_inference.processes.programs import as_process
from rl_as_inference.sharing import sharing
from rl_as_inference.trajectories import Trajectories

__all__ = ["compare"]

_OF_POLICY = (
    "elbo_exact",
    "policy_gap",
    "family_gap",
    "training_gap",
    "sac_exact",
    "prior_term_exact",
    "expected_return_exact",
    "entropy_exact",
    "action_cost_exact",
)
_EXACT = (*_OF_POLICY, "optimal_elbo", "log_evidence", "dynamics_gap", "information_gap")


@checked
@in_turn
def compare(
    process: Problem,
    policy: Policy | None,
    *,
    num_trajectories: int = 4096,
    critic: SoftValue | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    distributed: bool = False,
) -> Comparison:
    """Returns the trajectory ELBO of ``policy`` beside SAC's objective and the exact ceilings.

    Args:
        process: a process, or a Pyro program without arguments.
        policy: a callable ``(state, t) -> Distribution``; None for the action prior. Of a planner, whose answers are
            drawn, exact rows are those of one set of answers; their mean over many is what rollouts estimate.
        num_trajectories: rollouts for the estimates, ≥ 2.
        critic: soft values in reward units, ``(state, t)`` to one value a state (soft V) or one an
            action (soft Q); adds the ELBO as the critic sees it. A learner's critic has its own
            temperature and discount: a :class:`GymnasiumProcess` without any takes them over.
        seed: of what is drawn; None follows PyTorch's generator, from where it is.
        generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.
        distributed: the rollouts are shared out among the ranks of a ``torchrun`` job, and every rank returns the
            comparison from all of them; rank 0 takes the exact answers.

    Raises:
        RankError: if another rank has ended.
        ValueError: if there are too few trajectories, the policy has no density, the critic's answer has
            another shape, or it was learned at another temperature or discount than the process has, or for
            another objective than the ELBO.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> comparison = compare(mdp, exact.plan(mdp), num_trajectories=100)
        >>> round(comparison.log_evidence, 3), abs(comparison.policy_gap) < 1e-6
        (2.48, True)
    """
    check_at_least("num_trajectories", num_trajectories, least=2)  # for a standard error
    process = check_critic(as_process(process), critic)
    with torch.no_grad(), sharing(distributed, process, policy, num_trajectories=num_trajectories) as ranks:
        with ranks.own_stream(), own_episodes(process, ranks):
            draws, cut_off = _rollout(process, policy, ranks.share(num_trajectories))
        check_density(policy, draws)
        alpha, scales = draws.temperature, draws.scales
        elbo = Estimate.of(draws.log_weight(), ranks)
        sac = Estimate.of((scales * (draws.rewards - alpha * draws.log_policy)).sum(0), ranks)
        earned = Estimate.of(draws.returns(discounted=True), ranks)
        action_cost = Estimate.of((scales * (draws.log_policy - draws.log_prior)).sum(0), ranks)
        by_critic = difference = None
        if critic is not None:
            values = elbo_by_critic(process, policy, critic, draws, cut_off)
            by_critic, difference = Estimate.of(values, ranks), Estimate.of(values - draws.log_weight(), ranks)
        prior_term = Estimate.of((-alpha * scales * draws.log_prior).sum(0), ranks)
        entropy = Estimate.of((-scales * draws.log_policy).sum(0), ranks)
        # From one rank for all: some exact answers are of a policy that draws its own.
        exactly = _exact_values(process, _one_set_of_answers(process, policy)) if ranks.is_first else {}
        found = ranks.broadcast(exactly)
    reasons = found.pop("reasons")
    if critic is None:
        reasons["elbo_critic"] = reasons["critic_difference"] = "no critic was given"
    comparison = Comparison(
        problem=process.name,
        num_trajectories=num_trajectories,
        temperature=float(alpha),
        discount=float(draws.discount),
        elbo=elbo.mean,
        elbo_standard_error=elbo.standard_error,
        elbo_critic=None if by_critic is None else by_critic.mean,
        critic_difference=None if by_critic is None else by_critic.mean - elbo.mean,
        sac_objective=sac.mean,
        sac_standard_error=sac.standard_error,
        prior_term=prior_term.mean,
        expected_return=earned.mean,
        entropy=entropy.mean,
        action_cost=action_cost.mean,
        elbo_critic_standard_error=None if by_critic is None else by_critic.standard_error,
        critic_difference_standard_error=None if difference is None else difference.standard_error,
        prior_term_standard_error=prior_term.standard_error,
        expected_return_standard_error=earned.standard_error,
        entropy_standard_error=entropy.standard_error,
        action_cost_standard_error=action_cost.standard_error,
        reasons=reasons,
        **found,
    )
    identities = _identities(comparison, process, earned.standard_error, draws.rewards.dtype)
    if answers_by_drawing(policy):  # then each rollout met answers of its own
        identities = tuple(each for each in identities if not each.name.endswith("by rollouts = exact"))
    return replace(comparison, identities=identities)


def _one_set_of_answers(process: Process, policy: Policy | None) -> Policy | None:
    """Returns a policy that answers the same whenever it is asked: one that draws its answers as a table of some."""
    if answers_by_drawing(policy) and isinstance(process, TabularMDP):
        table = log_policy_table(process, policy)
        return TableOfLogs(table.expand(process.horizon or 1, *table.shape[-2:]))
    return policy


def _exact_values(process: Process, policy: Policy | None) -> dict[str, Any]:
    """Returns the rows that need exact answers, each None where there are none, and the reasons why."""
    found: dict[str, Any] = dict.fromkeys(_EXACT)
    reasons: dict[str, str] = {}
    if not exact.is_available(process):
        reasons.update(dict.fromkeys(_EXACT, f"no exact answers for {type(process).__name__}"))
        return {**found, "rules": (), "reasons": reasons}
    # What could be done, were the state seen: the same process, unless it is hidden.
    seen = process.fully_observed if isinstance(process, TabularPOMDP | LinearGaussianPOMDP) else process
    try:
        causal: Any = exact.plan(process, "causal")
    except ValueError as error:
        if seen is process:
            raise
        reasons.update(dict.fromkeys(_EXACT, str(error)))  # beliefs without end
        return {**found, "rules": (), "reasons": reasons}
    found["optimal_elbo"] = best = float(causal.objective)
    reached = best if seen is process else float(exact.optimal_elbo(seen))
    if seen is not process:
        found["information_gap"] = reached - best
    try:
        bent: Any = exact.plan(seen, "posterior")
    except ValueError as error:  # with no horizon the evidence may be infinite where the ELBO is not
        bent = None
        reasons.update(dict.fromkeys(("log_evidence", "dynamics_gap"), str(error)))
    else:
        found["log_evidence"] = float(bent.objective)
        found["dynamics_gap"] = float(bent.objective) - reached
    try:
        found["elbo_exact"] = elbo = float(exact.elbo(process, policy, asked_in_rollouts(policy)))
    except ValueError as error:  # a policy without a linear-Gaussian form, say: its rows stay empty
        reasons.update(dict.fromkeys(_OF_POLICY, str(error)))
    else:
        found["policy_gap"] = best - elbo
        alpha, parts = float(process.temperature), exact_parts(process, policy)
        found["expected_return_exact"], found["entropy_exact"] = parts.expected_return, parts.entropy
        found["action_cost_exact"] = parts.prior_cost - parts.entropy
        found["sac_exact"] = parts.expected_return + alpha * parts.entropy
        found["prior_term_exact"] = alpha * parts.prior_cost
        family, reasons["family"] = best_of_family(process, policy)
        if family is None:
            reasons["family_gap"] = reasons["training_gap"] = reasons["family"]
        else:
            found["family_gap"], found["training_gap"] = best - family, family - elbo
        if (note := support_note(process, policy)) is not None:
            reasons["support"] = note
    guide = None if found["elbo_exact"] is None else (policy,)
    if seen is process:
        found["rules"] = _action_rules(process, guide, causal, bent)
    else:
        found["rules"] = _hidden_rules(process, seen, guide, causal)
    return {**found, "reasons": reasons}


def _action_rules(
    process: Process, guide: tuple[Policy | None] | None, causal: Any, bent: Any
) -> tuple[ActionRule, ...]:
    wanted = [] if guide is None else [("the guide", guide[0])]
    wanted.append(("exact causal posterior", causal))
    if bent is not None:
        wanted.append(("exact posterior", bent))
    rules = []
    for name, rule in [*wanted, ("action prior", None)]:
        gets = float(exact.expected_return(process, rule))
        believes = float(exact.posterior_return(process)) if name == "exact posterior" else gets
        rules.append(ActionRule(name, gets, believes, float(exact.elbo(process, rule))))
    return tuple(rules)


def _hidden_rules(
    process: Process, seen: Process, guide: tuple[Policy | None] | None, causal: Any
) -> tuple[ActionRule, ...]:
    wanted = [] if guide is None else [("the guide", process, guide[0])]
    wanted += [("exact, on the history", process, causal), ("exact, the state seen", seen, exact.plan(seen))]
    rules = []
    for name, of, rule in [*wanted, ("action prior", process, None)]:
        gets = float(exact.expected_return(of, rule, asked_in_rollouts(rule)))
        rules.append(ActionRule(name, gets, gets, float(exact.elbo(of, rule, asked_in_rollouts(rule)))))
    return tuple(rules)


def _identities(found: Comparison, process: Process, return_error: float, dtype: torch.dtype) -> tuple[Identity, ...]:
    """Returns the identities among the values that are there; those by rollouts hold up to rounding as well."""
    alpha, precision = found.temperature, 1e-9 if dtype == torch.float64 else 1e-3
    assert found.action_cost is not None
    scaled = alpha * found.elbo
    parts = (found.expected_return, alpha * found.entropy, found.prior_term)
    cost = alpha * found.action_cost
    held = []
    if math.isfinite(found.elbo):
        right = scaled + found.prior_term
        name = "SAC = α ELBO + prior term (rollouts)"
        held.append(is_equal(name, found.sac_objective, right, precision, *parts))
        name = "α ELBO = return - α KL cost (rollouts)"
        held.append(is_equal(name, scaled, found.expected_return - cost, precision, *parts))
    elbo, best, evidence = found.elbo_exact, found.optimal_elbo, found.log_evidence
    if best is not None and evidence is not None:
        unseen = found.information_gap or 0.0
        held.append(not_negative("dynamics gap >= 0", evidence - best - unseen, precision, evidence, best))
    if best is not None and found.information_gap is not None:
        held.append(not_negative("information gap >= 0", found.information_gap, precision, best))
    if elbo is None or best is None:
        return tuple(held)
    sac, term, earned = found.sac_exact, found.prior_term_exact, found.expected_return_exact
    cost_exact, entropy, gap = found.action_cost_exact, found.entropy_exact, found.policy_gap
    assert sac is not None
    assert term is not None
    assert earned is not None
    assert cost_exact is not None
    assert entropy is not None
    assert gap is not None
    if math.isfinite(elbo):
        parts = (earned, alpha * entropy, term)
        held.append(is_equal("SAC = α ELBO + prior term (exact)", sac, alpha * elbo + term, precision, *parts))
        name = "α ELBO = return - α KL cost (exact)"
        held.append(is_equal(name, alpha * elbo, earned - alpha * cost_exact, precision, *parts))
        if evidence is not None and found.dynamics_gap is not None:
            total = elbo + found.dynamics_gap + (found.information_gap or 0.0) + gap
            between = "" if found.information_gap is None else " + information gap"
            name = f"log p(O) = ELBO + dynamics gap{between} + policy gap"
            held.append(is_equal(name, evidence, total, precision, elbo, best))
    held.append(not_negative("policy gap >= 0", gap, precision, elbo, best))
    if found.family_gap is not None and found.training_gap is not None:
        total = found.family_gap + found.training_gap
        held.append(is_equal("policy gap = family gap + training gap", gap, total, precision, elbo, best))
        held.append(not_negative("family gap >= 0", found.family_gap, precision, elbo, best))
        held.append(not_negative("training gap >= 0", found.training_gap, precision, elbo, best))
    number, rare = found.num_trajectories, _largest_step(process)
    for name, estimate, error, value, unit in (
        ("ELBO", found.elbo, found.elbo_standard_error, elbo, 1.0),
        ("SAC objective", found.sac_objective, found.sac_standard_error, sac, alpha),
        ("return", found.expected_return, return_error, earned, alpha),
    ):
        if math.isfinite(value):
            held.append(agrees(f"{name} by rollouts = exact", estimate, error, value, number, unit * rare, precision))
    return tuple(held)


def _largest_step(process: Process) -> float:
    """Returns the range of one step's reward in nats, which a rare event may add; 0 where it has no bound."""
    table = getattr(process, "reward_table", None)
    return 0.0 if table is None else float((table.max() - table.min()) / process.temperature)


def _rollout(process: Process, policy: Policy | None, num_trajectories: int) -> tuple[Trajectories, Tensor]:
    """Returns trajectories, and which of them would have gone on after their last step, ``(N,)`` bool."""
    if isinstance(process, GymnasiumProcess):
        return process.rollout_with_ends(policy, num_trajectories)
    draws = process.rollout(policy, num_trajectories)
    done = process.has_ended(draws.states[-1]) if isinstance(process, MarkovDecisionProcess) else None
    return draws, draws.mask[-1] if done is None else draws.mask[-1] & ~done
