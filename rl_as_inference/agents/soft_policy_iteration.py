"""Soft policy iteration on finite processes: exact evaluation and improvement by turns."""

from __future__ import annotations

import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.checks import check_count, check_positive
from rl_as_inference.critics import TableCritic
from rl_as_inference.exact import Plan
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.objectives.soft_critics import softmax_policy
from rl_as_inference.processes import TabularMDP

__all__ = ["SoftPolicyIteration"]


class SoftPolicyIteration:
    """Soft policy iteration (Haarnoja et al. 2018, arXiv:1801.01290, theorem 1) of a tabular process.

    Each iteration evaluates the policy exactly, ``Q^π = E[r + γ V^π]``, and improves it everywhere at
    once, ``π'(a|s) ∝ p(a|s) exp(Q^π/α)``. The ELBO never falls (their lemma 2), and the fixed point is
    the largest one, that of :func:`rl_as_inference.exact.plan`, which reaches it directly.

    Args:
        mdp: a :class:`TabularMDP`, with a horizon or without.

    Attributes:
        policy: a :class:`TabularPolicy`, the action prior at first.
        objectives: the ELBO of the action prior, and of the policy after each iteration, nats.

    Raises:
        ValueError: if ``mdp`` is not a finite process.

    Example:
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> learner = SoftPolicyIteration(mdp)
        >>> round(float(learner.learn().objective), 4), round(float(exact.optimal_elbo(mdp)), 4)
        (2.4805, 2.4805)
    """

    def __init__(self, mdp: TabularMDP) -> None:
        if not isinstance(mdp, TabularMDP):
            raise ValueError(
                f"mdp must be a TabularMDP for exact policy evaluation, got {type(mdp).__name__}; use SoftActorCritic"
            )
        self.mdp = mdp
        prior = mdp.log_action_prior.detach()
        self.policy = TabularPolicy(*prior.shape[-2:], horizon=mdp.horizon).to(prior)
        with torch.no_grad():
            self.policy.logits.copy_(prior)
        self.objectives: list[float] = []

    @property
    def critic(self) -> TableCritic:
        """The soft state values of the policy, in reward units."""
        return TableCritic(self._evaluate().soft_v, stationary=self.mdp.horizon is None)

    @torch.no_grad()
    def learn(self, num_iterations: int | None = None, *, tolerance: float | None = None) -> Plan:
        """Iterates to the fixed point, and returns the values of the policy reached.

        It ends where the policy stands still, or where rounding hides what is still to be gained.

        Args:
            num_iterations: stop after this many at the latest.
            tolerance: the change of any probability that counts as none; by default a hundred times
                the rounding of the process's dtype.

        Raises:
            ValueError: if an argument is out of range, or the policy's values have no fixed point.
        """
        if num_iterations is not None:
            check_count("num_iterations", num_iterations)
        if tolerance is not None:
            check_positive("tolerance", tolerance)
        logits = self.policy.logits
        enough = 100 * torch.finfo(logits.dtype).eps if tolerance is None else tolerance
        plan, done = self._evaluate(), 0
        if not self.objectives:
            self.objectives.append(float(plan.objective))
        while True:
            better: Tensor = softmax_policy(plan.soft_q, self.mdp.log_action_prior, self.mdp.temperature)
            change = float((better.exp() - logits.log_softmax(-1).exp()).abs().max())
            logits.copy_(better)
            before, plan = plan, self._evaluate()
            done += 1
            self.objectives.append(float(plan.objective))
            # In exact arithmetic no state's value falls, so that their sum rises until the end.
            rises = bool(plan.soft_v.double().sum() > before.soft_v.double().sum())
            if change <= enough or not rises or done == num_iterations:
                return plan

    @torch.no_grad()
    def _evaluate(self) -> Plan:
        plan = exact.evaluate(self.mdp, self.policy)
        assert isinstance(plan, Plan)
        return plan
