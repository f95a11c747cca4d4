"""How far a policy's trajectories are from the exponentiated-return distribution, by any method."""

import math
import sys
import warnings
from typing import Literal, get_args

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_at_least
from rl_as_inference.estimate import Estimate
from rl_as_inference.exact.divergence import Direction, check_direction
from rl_as_inference.host import in_turn, levels_to_the_user
from rl_as_inference.inference.pareto import pareto_k, pareto_k_threshold
from rl_as_inference.nouns import ExactPolicy, Policy, Problem, Process
from rl_as_inference.processes import PartiallyObservedMDP, TabularMDP
from rl_as_inference.processes.programs import ProgramProcess, as_process
from rl_as_inference.program.readings import survival
from rl_as_inference.program.recording import log_prob_of, policy_of, record
from rl_as_inference.program.sites import both, is_action, step_of
from rl_as_inference.sampling.importance import check_whole_plates, surviving_rollout
from rl_as_inference.trajectories import Trajectories

__all__ = ["DivergenceMethod", "trajectory_kl"]

DivergenceMethod = Literal["exact", "enumeration", "posterior", "sample"]

_SINGLE_RUNS = 1000
"""The most draws of the action prior from a program that runs for one trajectory at a time."""


@checked
@in_turn
@torch.no_grad()
def trajectory_kl(
    process: Problem,
    policy: ExactPolicy,
    *,
    direction: Direction = "reverse",
    method: DivergenceMethod | None = None,
    num_trajectories: int = 10_000,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Returns the KL divergence between a policy's trajectories and the exponentiated return, in nats.

    With ``π(τ) = p(s_0) Π_t π(a_t|s_t) p(s_{t+1}|s_t,a_t)`` and ``p*(τ) = p(τ) e^{R(τ)/α} / p(O)``, dynamics
    included in both, it is ``KL(π || p*)`` (``"reverse"``) or ``KL(p* || π)`` (``"forward"``). The first is
    the log evidence minus the ELBO (Levine 2018, arXiv:1805.00909, section 3); both are expectations of
    ``log w(τ) = log p(τ, O) - log π(τ)``.

    - ``"exact"``: by messages, for finite and linear-Gaussian processes (:func:`exact.trajectory_kl`).
    - ``"enumeration"``: every trajectory of a small finite process written out.
    - ``"posterior"``: ``log w`` of exact draws from ``p*`` (forward) or of rollouts (reverse), beside the
      exact log evidence; for finite and linear-Gaussian processes.
    - ``"sample"``: from rollouts of the policy alone, weighted by ``w`` and normalised by their own sum.
      Its error is of order ``1/num_trajectories``, if the weights have tails that a sample can know: a
      forward divergence from modes that no rollout visits is missed. A warning says so by Pareto k̂.

    By default exact where there are exact answers, else sample. Standard errors are 0 for the first two,
    and by the delta method for the last. With γ < 1 trajectories include their survival. It is infinite
    where the first distribution reaches what the second excludes. A policy's own draws never show what it excludes,
    so as many draws of the action prior are asked whether the policy could have made them. If it could not,
    the forward divergence is infinite, and the reverse one has its log evidence from the prior's draws. What the
    prior does too rarely for that, draws do not notice.

    Args:
        process: a process or a Pyro program.
        policy: a callable ``(state, t) -> Distribution``, or for finite processes a plan or a table; None
            for the action prior.
        direction: ``"reverse"`` or ``"forward"``.
        method: see above.
        num_trajectories: draws of the last two, ≥ 2.
        seed: of what is drawn; None follows PyTorch's generator, from where it is.
        generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.

    Raises:
        ValueError: for an unknown direction or method, a method that does not fit the process, too many
            trajectories to enumerate (their number is said), or a program with a subsampled plate.

    Warns:
        UserWarning: if the weights of ``"sample"`` are not to be trusted.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> _ = torch.manual_seed(0)
        >>> print(trajectory_kl(mdp, None), "|", trajectory_kl(mdp, None, method="sample"))
        0.4805 | 0.4745 ± 0.0057
        >>> print(trajectory_kl(mdp, None, direction="forward"))
        0.4438
    """
    check_direction(direction)
    if method is not None and method not in get_args(DivergenceMethod):
        raise ValueError(f"method must be one of {', '.join(get_args(DivergenceMethod))}, or None; got {method!r}")
    check_at_least("num_trajectories", num_trajectories, least=2)
    process = as_process(process)
    if method is None:
        forward_hidden = direction == "forward" and isinstance(process, PartiallyObservedMDP)
        method = "exact" if exact.is_available(process) and not forward_hidden else "sample"
    if method == "exact":
        return Estimate(float(exact.trajectory_kl(process, policy, direction)), 0.0)
    if method == "enumeration":
        return Estimate(float(_enumerated(exact.enumerate_trajectories(process, policy), direction)), 0.0)
    if isinstance(policy, Tensor):
        # A table, checked and as a callable; its soft values are not needed.
        evaluated: Policy = exact.evaluate(process, policy)
        policy = evaluated
    if method == "posterior":
        return _from_posterior(process, policy, direction, num_trajectories)
    check_whole_plates(process)
    log_weight = surviving_rollout(process, policy, num_trajectories).log_weight().double()
    excluded = _excluded(process, policy, num_trajectories)
    if excluded is None or bool(log_weight.isneginf().all()):  # the latter is told below
        return _self_normalised(log_weight, direction)
    if direction == "forward":
        return Estimate(math.inf, 0.0)
    # What the policy can do has its evidence from the policy's draws, and what it cannot from the prior's.
    if bool(log_weight.isneginf().any()):
        return Estimate(math.inf, 0.0)
    evidence = torch.logaddexp(_log_mean(log_weight), _log_mean(excluded))
    own = (log_weight - evidence).exp() - log_weight
    errors = (Estimate.of(own).standard_error, Estimate.of((excluded - evidence).exp()).standard_error)
    return Estimate(float(evidence - log_weight.mean()), math.hypot(*errors))


def _log_mean(logs: Tensor) -> Tensor:
    return torch.logsumexp(logs, 0) - math.log(len(logs))


def _excluded(process: Process, policy: Policy | None, count: int) -> Tensor | None:
    """Returns log weights of draws of the action prior, ``(N,)``, -∞ for those that the policy could have made.

    None if it could have made all that meet the program: then nothing is known of what they did not do.
    """
    if policy is None:
        return None
    with pyro.validation_enabled(False):  # a distribution may be asked of what is outside of its support
        if isinstance(process, ProgramProcess):
            pairs = [_prior_run(process, policy, n) for n in _batches(process, count)]
            log_weight, never = (torch.cat(column) for column in zip(*pairs, strict=True))
        else:
            draws = surviving_rollout(process, None, count)
            log_weight, never = draws.log_weight(), _log_policy(process, policy, draws).isneginf().any(0)
    excluded = torch.where(never, log_weight.double(), -torch.inf)
    return excluded if bool((excluded > -torch.inf).any()) else None


def _batches(process: ProgramProcess, count: int) -> list[int]:
    return [count] if process.is_vectorized() else [1] * min(count, _SINGLE_RUNS)


def _prior_run(process: ProgramProcess, policy: Policy, count: int) -> tuple[Tensor, Tensor]:
    """Returns log weights of draws of the action prior, and which of them the policy excludes, ``(count,)``."""
    process = ProgramProcess(survival(process.program), vectorized=process.vectorized)
    draws, values = process.first_steps(None, count, sys.maxsize, {})  # all of them
    never, plates = torch.zeros(count, dtype=torch.bool, device=draws.rewards.device), (1,) * process._nesting

    def per_trajectory(value: Tensor) -> Tensor:
        return value.expand(torch.broadcast_shapes(value.shape, (count, *plates))).reshape(count, -1).any(1)

    for msg in record(process.in_plate(count), policy, values=values):
        if is_action(msg) and not msg["is_observed"]:
            counts = both(step_of(msg)["alive"], msg["mask"])
            never |= per_trajectory(scale_and_mask(log_prob_of(policy_of(msg), msg["value"]), 1.0, counts).isneginf())
    return draws.log_weight(), never


def _enumerated(found: exact.Enumeration, direction: Direction) -> Tensor:
    first, second = found.log_guide, found.log_target
    if direction == "forward":
        first, second = second, first
    possible = first > -torch.inf  # 0 log 0 = 0
    first, second = first[possible], second[possible]
    if bool(second.isneginf().any()):  # however small the probability of that is, and though it be rounded to 0
        return torch.full_like(first.sum(), torch.inf)
    return (first.exp() * (first - second)).sum()


def _from_posterior(process: Process, policy: Policy | None, direction: Direction, num_draws: int) -> Estimate:
    if not exact.is_available(process):
        raise ValueError(
            f"method='posterior' needs exact posterior draws, and a {type(process).__name__} has none; use "
            f"method='sample'"
        )
    evidence = exact.log_evidence(process)
    if direction == "reverse":
        log_weight = process.rollout(policy, num_draws).log_weight()
        return Estimate.of(evidence - log_weight)
    draws = exact.sample_posterior(process, num_draws)
    log_weight = (draws.log_factors + draws.log_prior - _log_policy(process, policy, draws)).sum(0)
    if bool(log_weight.isposinf().any()) or _excluded(process, policy, num_draws) is not None:
        return Estimate(math.inf, 0.0)
    return Estimate.of(log_weight - evidence)


def _log_policy(process: Process, policy: Policy | None, draws: Trajectories) -> Tensor:
    """Returns ``log π(a_t|s_t)`` of draws from elsewhere, ``(T, N)``; 0 once a trajectory has ended."""
    if policy is None:
        return draws.log_prior
    rows = []
    for t, (state, action) in enumerate(zip(draws.views(), draws.actions, strict=True)):
        chosen = policy(state, t)
        if isinstance(process, TabularMDP):
            logits = process.log_probabilities(chosen, state, f"at step {t}")
            rows.append(logits.gather(-1, action[:, None]).squeeze(-1))
        else:
            rows.append(log_prob_of(chosen, action))
    return torch.where(draws.mask, torch.stack(rows), 0.0)


def _self_normalised(log_weight: Tensor, direction: Direction) -> Estimate:
    """Returns the divergence from weights of the policy's own draws, with a standard error by the delta method."""
    size = len(log_weight)
    total = torch.logsumexp(log_weight, 0)
    if not bool(total.isfinite()):
        raise ValueError(
            f"all {size} weights p(τ, O)/π(τ) are zero (or one is infinite): the policy never does what the program "
            f"allows; use another policy"
        )
    k = pareto_k(log_weight[log_weight > -torch.inf])
    if k is not None and k > pareto_k_threshold(size):
        warnings.warn(
            f"the weights of these rollouts have Pareto k̂ = {k:.2f} > {pareto_k_threshold(size):.2f}: what the policy "
            f"rarely does counts much, and neither the divergence nor its standard error can be trusted; use more "
            f"trajectories, or method='exact' or 'posterior' where the process allows them",
            UserWarning,
            stacklevel=levels_to_the_user(),
        )
    evidence = _log_mean(log_weight)
    share = (log_weight - evidence).exp()  # of mean one
    if direction == "reverse":
        if bool(log_weight.isneginf().any()):  # the policy does what the program forbids
            return Estimate(math.inf, 0.0)
        mean = evidence - log_weight.mean()
        influence = share - log_weight
    else:
        weighted = torch.where(share > 0, share * torch.where(share > 0, log_weight - evidence, 0.0), 0.0)
        mean = weighted.mean()
        influence = weighted - share * (1 + mean)
    return Estimate(float(mean), float(influence.std()) / size**0.5)
