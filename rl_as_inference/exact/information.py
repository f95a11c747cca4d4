"""The action prior that costs least: control that pays for its information."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_count, check_positive
from rl_as_inference.exact.divergence import expected_ratio
from rl_as_inference.exact.tabular import Plan, discounted_visits, plan
from rl_as_inference.host import in_turn
from rl_as_inference.processes.tabular import TabularMDP

__all__ = ["PriorPlan", "optimal_prior"]


@dataclass(frozen=True)
class PriorPlan:
    """What :func:`optimal_prior` returns.

    Attributes:
        prior: ``p(a)``, ``(A,)``.
        plan: the soft-optimal plan of the process with that prior; its objective is the largest ELBO, nats.
        information: ``E Σ_t γ^t KL(π_t(·|s_t) ‖ p)`` in nats, what actions tell of states beyond ``p``.
        expected_return: ``E Σ_t γ^t r_t``, reward units.
        optimality_gap: nats; what a change of the prior could still gain. For one step a bound of the distance
            to the largest objective, for more steps to first order.
    """

    prior: Tensor
    plan: Plan
    information: float
    expected_return: float
    optimality_gap: float


@checked
@in_turn
@torch.no_grad()
def optimal_prior(mdp: TabularMDP, *, tolerance: float = 1e-7, max_rounds: int = 2_000) -> PriorPlan:
    """Returns the action prior ``p(a)``, the same in every state, under which the largest ELBO is largest.

        max_p max_π  E_π Σ_t γ^t (r_t/α - log π(a_t|s_t)/p(a_t))

    For a given policy the best prior is its mean over the states it visits, so that the cost of acting
    becomes the mutual information between states and actions: control under a limit on information, and
    for one step the rate-distortion problem with distortion ``-r`` at slope ``1/α``. Setting prior and plan in
    turn is the algorithm of Blahut and Arimoto (1972, IEEE Transactions on Information Theory 18(4)); it takes
    10⁵ rounds where an action is about to be dropped, so quasi-Newton steps in ``log p`` go before it. For one
    step the optimum is found; over several steps a stationary point (Grau-Moya, Leibfried & Vrancx 2019,
    "Soft Q-learning with mutual-information regularization", ICLR).

    Args:
        mdp: a finite process in float64; its own action prior must be the same in all states, and says which
            actions are possible.
        tolerance: of the objective, in nats.
        max_rounds: of either kind, ≥ 1.

    Raises:
        ValueError: for another kind of process, an action prior that depends on the state, or no
            convergence within ``max_rounds``.

    Example:
        >>> reward = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]], dtype=torch.float64)
        >>> start, stay = torch.full((2,), 0.5).double(), torch.full((2, 3, 2), 0.5).double()
        >>> found = optimal_prior(TabularMDP(stay, reward, start, horizon=1, temperature=0.25))
        >>> [round(p, 4) for p in found.prior.tolist()], round(found.information, 4)
        ([0.5, 0.5, 0.0], 0.6031)
    """
    if not isinstance(mdp, TabularMDP):
        raise ValueError(f"mdp must be a TabularMDP, got {type(mdp).__name__}")
    check_positive("tolerance", tolerance)
    check_count("max_rounds", max_rounds)
    if not bool((mdp.action_prior == mdp.action_prior[0]).all()):
        raise ValueError("action_prior of mdp depends on the state, and optimal_prior looks for p(a); leave it out")
    if mdp.reward_table.dtype != torch.float64:
        raise ValueError(f"mdp must be in float64 to settle within {tolerance:g} nats; make its tables double")
    possible = mdp.action_prior[0] > 0

    def prior_of(logits: Any) -> Tensor:
        return torch.softmax(torch.where(possible, torch.as_tensor(logits).to(mdp.action_prior), -torch.inf), -1)

    def loss(logits: Any) -> tuple[float, Any]:
        prior = prior_of(logits)
        informed = mdp.replace(action_prior=prior)
        best = plan(informed)
        visits = _action_visits(informed, best)
        # By the envelope theorem the plan need not be differentiated: only log p(a) of the actions taken moves.
        return -float(best.objective), (visits.sum() * prior - visits).cpu().numpy()

    options = {"maxiter": max_rounds, "maxfun": 2 * max_rounds, "ftol": 0.0, "gtol": tolerance / 10}
    found = minimize(loss, np.zeros(mdp.num_actions), jac=True, method="L-BFGS-B", options=options)
    prior = prior_of(found.x)
    for _ in range(max_rounds):
        informed = mdp.replace(action_prior=prior)
        best = plan(informed)
        visits = _action_visits(informed, best)
        total = visits.sum()
        growth = torch.where(prior > 0, visits / total / torch.where(prior > 0, prior, 1.0), 0.0)
        # The objective of one step is concave in p, so no prior gains more than the steepest action promises.
        gap = float(total * (growth.max() - 1))
        if gap <= tolerance:
            information = _information(informed, best)
            earned = (float(best.objective) + information) * float(mdp.temperature)
            return PriorPlan(prior, best, information, earned, gap)
        prior = visits / total
    raise ValueError(
        f"optimal_prior: after {max_rounds} rounds a change of the prior may still gain {gap:.3g} nats; allow a "
        f"larger tolerance or more max_rounds"
    )


def _action_visits(mdp: TabularMDP, policy: Plan) -> Tensor:
    """Returns ``Σ_t γ^t P(a_t = a, alive)``, ``(A,)``."""
    return (discounted_visits(mdp, policy)[..., None] * policy.policy).reshape(-1, mdp.num_actions).sum(0)


def _information(mdp: TabularMDP, policy: Plan) -> float:
    per_state = expected_ratio(policy.policy, policy.log_policy, mdp.log_action_prior).sum(-1)
    return float((discounted_visits(mdp, policy) * per_state).sum())
