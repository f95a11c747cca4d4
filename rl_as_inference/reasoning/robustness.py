"""The worst reward and the worst dynamics that an adversary can find for a policy."""

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.arguments import checked_but
from rl_as_inference.data_frames import Frame, frame
from rl_as_inference.exact.tabular import discounted_visits, log_policy_table
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import ExactPolicy
from rl_as_inference.processes import TabularMDP
from rl_as_inference.reasoning.adversary import worst_dynamics

__all__ = ["WorstCase", "worst_case"]

_NEVER = -60.0
"""The log of the odds given to an action that a policy never takes: e^-60 is lost beside 1 in float64."""


@dataclass(frozen=True)
class WorstCase:
    """The answer of :func:`worst_case`.

    Attributes:
        process: the perturbed process, float64, usable by every other reading.
        robust_return: ``E Σ γ^t r_t`` of the policy in it, in reward units.
        nominal_return: the same in the process as it was.
        reward_cost, dynamics_cost: how much of each budget is used, in nats; None without a budget. The reward
            budget is always used up.
        reward_multiplier, dynamics_multiplier: by how much the robust return falls for one more nat of
            budget, in reward units per nat; None without a budget. For the reward it is α.
        bound: ``f(J_MaxEnt)``, which the robust return cannot fall below, in reward units; None where the
            theorem gives none (see :func:`worst_case`).
        relaxed_return: a lower bound, to the optimiser's accuracy, on the return under *any* dynamics within the
            budget, in reward units: the global optimum of a convex relaxation. Where it equals ``robust_return``
            no worse dynamics exist. None without a dynamics budget, with both budgets, or where a reward is negative.
    """

    process: TabularMDP
    robust_return: float
    nominal_return: float
    reward_cost: float | None
    dynamics_cost: float | None
    reward_multiplier: float | None
    dynamics_multiplier: float | None
    bound: float | None
    relaxed_return: float | None

    def to_frame(self) -> Frame:
        """Returns a row with everything but the process (see :mod:`rl_as_inference.data_frames`)."""
        return frame({name: [value] for name, value in vars(self).items() if name != "process"})


@checked_but("reward_budget", "dynamics_budget")
@in_turn
def worst_case(
    mdp: TabularMDP, policy: ExactPolicy, *, reward_budget: float | None = None, dynamics_budget: float | None = None
) -> WorstCase:
    """Returns the perturbed process in which ``policy`` earns least, within the sets of Eysenbach & Levine.

    Write ``D(s) = E_π Σ_t γ^t 1[s_t = s]`` for the discounted visits to states that have not ended, ``μ(a|s)`` for
    the action prior, and α for the temperature of ``mdp``.

    **Reward.** The adversary pays ``r̃`` for ``r``, with

        Σ_s D(s) log Σ_a μ(a|s) exp((r(s,a) - r̃(s,a)) / α) <= reward_budget.

    By the Donsker-Varadhan inequality the worst reward is ``r̃ = r - α (log π̄(a|s) - log μ(a|s) + budget / Σ_s D(s))``
    with ``π̄`` the policy averaged over the visits (the policy itself where it is stationary), and

        min E_π Σ γ^t r̃_t  =  E_π Σ γ^t r_t - α Σ_s D(s) KL(π̄ || μ) - α budget  >=  α (ELBO(π) - budget)

    with equality for stationary policies: the MaxEnt objective *is* the return under the worst reward. With α = 1
    and the counting measure for μ this is the paper's theorem on adversarial reward functions.

    **Dynamics.** The adversary's ``p̃(s'|s,a)`` may be any kernel, impossible transitions included, with

        Σ_s D(s) log Σ_a μ(a|s) Σ_{s'} ν(s'|s,a) p(s'|s,a) / p̃(s'|s,a) <= dynamics_budget

    where ``ν`` is uniform over the states that ``p`` can reach from ``(s, a)``, so that ``p̃ = p`` costs nothing.
    The paper sums over actions and states without weights: for A actions and K successors in every state, its
    ε is ``dynamics_budget + Σ_s D(s) log(A K)``. A policy that spreads over actions is hard to attack, because the
    sum inside the logarithm makes the second action nearly free of charge to be attacked but the first one dear.
    If all rewards are > 0 and no state is terminal,

        robust return  >=  f(J) = Z exp(J - dynamics_budget),       Z = Σ_t γ^t  (the horizon, if γ = 1)

    where ``J`` is the ELBO of π at temperature 1 for the pessimistic reward
    ``r̄(s,a) = E_{s'}[log r] / Z - KL(p(.|s,a) || ν)``: the paper's theorem on adversarial dynamics, with γ. It
    follows from two uses of Jensen's inequality and the same duality as above; ``bound`` is this number (for a
    reward budget alone, ``α (ELBO - budget)``; with both there is none).

    Finding ``p̃`` is a polynomial problem, not a convex one, and with one budget over all states its general
    form is NP-hard (Wiesemann et al. 2013). It is solved by an augmented Lagrangian from several starts. For
    rewards >= 0 the return and the constraint are convex in ``log p̃`` once rows may sum to *less* than one (a
    geometric program), whose optimum is global: it is ``relaxed_return``. Where a terminal state exists, what a
    row lacks can go there, and the relaxation is tight; elsewhere the gap bounds how far from the global
    optimum the answer may be.

    **Both.** The reward constraint is then taken under the perturbed dynamics, and the two are chosen together.

    The perturbed tables do not depend on time, also where the policy does. Everything is done in float64.

    Source: Eysenbach & Levine 2021, arXiv:2103.06257, section 4.

    Args:
        mdp: a finite process.
        policy: a plan, a table of probabilities ``(S, A)`` or ``(T, S, A)``, or a callable ``(state, t)``.
        reward_budget: nats >= 0, summed over an episode; None leaves the reward as it is.
        dynamics_budget: the same for the dynamics.

    Raises:
        ValueError: if neither budget is given, one is negative or not finite, the process is not finite, or the
            policy takes an action that the action prior forbids.

    Example:
        >>> bandit = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=1)
        >>> worst = worst_case(bandit, torch.tensor([[0.2, 0.8]]), reward_budget=0.0)
        >>> round(worst.robust_return, 6), round(worst.bound, 6)
        (0.607255, 0.607255)
        >>> round(float(exact.expected_return(worst.process, torch.tensor([[0.2, 0.8]]))), 6)
        0.607255
    """
    if not isinstance(mdp, TabularMDP):
        raise ValueError(
            f"worst_case needs a TabularMDP, got {type(mdp).__name__}; other processes have no exact answer"
        )
    for name, budget in (("reward_budget", reward_budget), ("dynamics_budget", dynamics_budget)):
        if budget is not None and (
            isinstance(budget, bool) or not isinstance(budget, Real) or not 0 <= float(budget) < float("inf")
        ):
            raise ValueError(f"{name} must be a finite number of nats >= 0, or None, got {budget!r}")
    if reward_budget is None and dynamics_budget is None:
        raise ValueError(
            "worst_case needs reward_budget or dynamics_budget (nats >= 0): without one nothing is perturbed"
        )
    with torch.no_grad():
        process = mdp.to(torch.float64)
        table = log_policy_table(mdp, policy).to(torch.float64).softmax(-1)
        weight = discounted_visits(process, table)
        forbidden = (table > 0) & (process.action_prior == 0) & (weight > 0)[..., None]
        if bool(forbidden.any()):
            state, action = (int(i) for i in forbidden.nonzero()[0][-2:])
            raise ValueError(
                f"policy takes action {action} in state {state}, which the action prior forbids; give it probability 0"
            )
        alpha = float(process.temperature)
        nominal = float((weight * _mean(process.expected_reward(), table)).sum())
    dynamics_cost = dynamics_multiplier = relaxed = reward_cost = bound = None
    if dynamics_budget is not None:
        tilt = None if reward_budget is None else alpha
        attack = worst_dynamics(process, table, weight, float(dynamics_budget), tilt)
        dynamics_cost, dynamics_multiplier = attack.cost, attack.multiplier
        if tilt is None:
            relaxed = attack.relaxed
            bound = _dynamics_bound(process, table, weight, float(dynamics_budget))
        process = attack.process
        with torch.no_grad():
            weight = discounted_visits(process, table)
    if reward_budget is not None:
        reward_cost = float(reward_budget)
        with torch.no_grad():
            process = _worst_reward(process, table, weight, reward_cost)
            if dynamics_budget is None:
                bound = alpha * (float(exact.elbo(mdp.to(torch.float64), table)) - reward_cost)
    with torch.no_grad():
        robust = float((weight * _mean(process.expected_reward(), table)).sum())
    return WorstCase(
        process,
        robust,
        nominal,
        reward_cost,
        dynamics_cost,
        None if reward_budget is None else alpha,
        dynamics_multiplier,
        bound,
        relaxed,
    )


def _mean(per_action: Tensor, table: Tensor) -> Tensor:
    return (table * per_action).sum(-1)


def _worst_reward(mdp: TabularMDP, table: Tensor, weight: Tensor, budget: float) -> TabularMDP:
    """Returns the process with the worst stationary reward, in closed form."""
    taken = (weight[..., None] * table).sum(0)
    visited = taken.sum(-1, keepdim=True)
    average = taken / torch.where(visited > 0, visited, 1.0)
    log_odds = torch.where(average > 0, average.log() - mdp.log_action_prior, _NEVER)
    length = float(visited.sum())
    gain = mdp.temperature * (log_odds + (budget / length if length > 0 else 0.0))
    gain = torch.where(visited > 0, gain, 0.0)
    return mdp.replace(reward=mdp.reward_table - (gain if mdp.reward_table.dim() == 2 else gain[..., None]))


@torch.no_grad()
def _dynamics_bound(mdp: TabularMDP, table: Tensor, weight: Tensor, budget: float) -> float | None:
    """Returns ``Z exp(J - budget)``; None where a reward is not > 0 or an episode can end."""
    impossible = mdp.kernel.probabilities == 0
    positive = mdp.reward_table > 0 if mdp.reward_table.dim() == 2 else (mdp.reward_table > 0) | impossible
    if mdp.has_terminal or not bool(positive.all()):
        return None
    total = float(weight.sum())
    dense = mdp.kernel.dense()  # in which a successor stands once
    divergence = torch.xlogy(dense, dense).sum(-1) + (dense > 0).sum(-1).to(dense).log()
    logs = torch.where(mdp.reward_table > 0, mdp.reward_table, 1.0).log()
    log_reward = logs if logs.dim() == 2 else mdp.kernel.mean(logs)
    pessimistic = _with_reward(mdp, log_reward / total - divergence).at_temperature(1.0)
    return total * float((exact.elbo(pessimistic, table) - budget).exp())


def _with_reward(mdp: TabularMDP, reward: Tensor) -> TabularMDP:
    shaped = reward if mdp.reward_table.dim() == 2 else reward[..., None].expand_as(mdp.reward_table)
    return mdp.replace(reward=shaped)
