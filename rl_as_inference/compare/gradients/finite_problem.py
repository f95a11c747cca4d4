"""What the rows of a gradient comparison are made of, on finite processes."""

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.compare.critic_values import check_plan
from rl_as_inference.compare.gradients.step_terms import Draws
from rl_as_inference.exact.tabular import log_policy_table
from rl_as_inference.nouns import ExactPolicy, SoftValue
from rl_as_inference.objectives.action_steps import over_time
from rl_as_inference.objectives.projection import improved_policy, soft_advantage
from rl_as_inference.objectives.soft_critics import exact_soft_value
from rl_as_inference.processes import TabularMDP
from rl_as_inference.trajectories import discounts

__all__ = ["FiniteProblem", "TableOfLogs", "TableValues"]


@dataclass(frozen=True)
class TableValues:
    """A critic in nats: ``q`` ``(T, S, A)`` and ``v`` ``(T, S)``; ``log_ratio`` is its policy's ``log p - log π``."""

    q: Tensor
    v: Tensor
    log_ratio: Tensor


class FiniteProblem:
    """A finite process and a policy, as the table ``log π_t(a|s)``, which the rows differentiate."""

    def __init__(self, mdp: TabularMDP, policy: ExactPolicy) -> None:
        self.mdp, self.horizon = mdp, mdp.finite_horizon("compare_gradients")
        self.alpha = float(mdp.temperature)
        table = log_policy_table(mdp, policy)
        self.outputs: tuple[Tensor, ...] = (table,)
        self.leaves: tuple[Tensor, ...] = (table.detach().requires_grad_(),)
        self.scales = discounts(mdp.discount, self.horizon, table.detach())[:, None]
        self.prior = mdp.log_action_prior.detach().expand(self.horizon, -1, -1)
        self.times = torch.arange(self.horizon, device=table.device)[:, None]

    @property
    def log_policy(self) -> Tensor:
        """``log π``, ``(T, S, A)``, with its gradient in the leaf."""
        return self.leaves[0].expand(self.horizon, -1, -1)

    def draw(self, count: int) -> Draws:
        """Returns ``count`` trajectories of the policy."""
        with torch.no_grad():
            found = self.mdp.rollout(TableOfLogs(self.log_policy.detach()), count)
        taken = self.log_policy[self.times, found.states[:-1], found.actions]
        return Draws.of(found, torch.where(found.mask, taken, 0.0))

    def states_of_prior(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns where the action prior leads, ``(T, N)``, and which of it is alive."""
        with torch.no_grad():
            found = self.mdp.rollout(None, count)
        return found.states[:-1], found.mask

    def support(self, of_prior: bool = False) -> tuple[Tensor, Tensor]:
        """Returns all states ``(T, S)`` and their living probability at each time, undiscounted."""
        with torch.no_grad():
            chances = exact.occupancy(self.mdp, None if of_prior else self.log_policy.detach().exp())[:-1]
        states = torch.arange(self.mdp.num_states, device=chances.device).expand(self.horizon, -1)
        return states, torch.where(self.mdp.terminal, 0.0, chances)

    def values(self, policy: ExactPolicy, *, entropy: bool = True) -> TableValues:
        """Returns the exact soft values of ``policy``, or without any entropy."""
        with torch.no_grad():
            table = log_policy_table(self.mdp, policy).expand(self.horizon, -1, -1)
            one: Any = exact.evaluate(self.mdp, table.exp())
            q, v = one.soft_q / self.alpha, one.soft_v[:-1] / self.alpha
            if not entropy:  # in reward units a soft value is linear in α, with the value of the return at α = 0
                two: Any = exact.evaluate(self.mdp.at_temperature(2 * self.alpha), table.exp())
                q, v = 2 * q - two.soft_q / self.alpha, 2 * v - two.soft_v[:-1] / self.alpha
            possible = (table > -torch.inf) & (self.prior > -torch.inf)
            ratio = torch.where(possible, self.prior, 0.0) - torch.where(possible, table, 0.0)
        return TableValues(q, v, ratio)

    def values_of(self, critic: SoftValue | exact.Plan | exact.LinearGaussianPlan) -> TableValues:
        """Returns a given critic's tables.

        Raises:
            ValueError: if its values are of another process: not one for each state, or each state and action.
        """
        mdp, ratio = self.mdp, self.values(self.log_policy.detach().exp()).log_ratio
        shape = (self.horizon, mdp.num_states)
        with torch.no_grad():
            if isinstance(critic, exact.Plan):
                tables = [critic.soft_q, critic.soft_v[: self.horizon] if critic.soft_v.dim() == 2 else critic.soft_v]
                if tables[0].shape not in ((*shape, mdp.num_actions), (mdp.num_states, mdp.num_actions)):
                    raise ValueError(_other_process(tuple(tables[0].shape), mdp, self.horizon))
                own: Any = exact.evaluate(mdp, critic)
                check_plan(mdp, own.soft_v, critic.soft_v)
                q = tables[0].expand(*shape, mdp.num_actions) / self.alpha
                return TableValues(q, tables[1].expand(shape) / self.alpha, ratio)
            states = torch.arange(mdp.num_states, device=self.times.device).expand(shape)
            try:
                found = over_time(critic, states, range(self.horizon)).to(self.prior) / self.alpha
            except (IndexError, RuntimeError) as error:
                raise ValueError(_other_process(str(error).splitlines()[0], mdp, self.horizon)) from error
            if found.shape == (*shape, mdp.num_actions):
                v = exact_soft_value(found, self.log_policy.detach(), self.prior, 1.0)
                return TableValues(found, torch.where(mdp.terminal, 0.0, v), ratio)
            if found.shape != shape:
                raise ValueError(_other_process(tuple(found.shape), mdp, self.horizon))
            after = torch.cat([torch.where(mdp.terminal, 0.0, found[1:]), found.new_zeros(1, mdp.num_states)])
            q = torch.stack([exact.backward_step(mdp, self.alpha * v)[1] for v in after]) / self.alpha
            return TableValues(q, found, ratio)

    def state_value(self, values: TableValues, states: Tensor) -> Tensor:
        """Returns the critic's ``V(s_t)``, ``(T, N)`` in nats."""
        return values.v[self.times, states]

    def taken(self, values: TableValues, states: Tensor, actions: Tensor) -> Tensor:
        """Returns ``Q(s_t, a_t)``, ``(T, N)`` in nats."""
        return values.q[self.times, states, actions]

    def entropy(self, states: Tensor) -> Tensor:
        """Returns ``h(s_t) = E_π[log p - log π]``, ``(T, N)`` in nats, differentiable."""
        table = self.log_policy
        return exact_soft_value(torch.zeros_like(self.prior), table, self.prior, 1.0)[self.times, states]

    def expected(self, values: TableValues, states: Tensor, *, entropy: bool = True, wrong: bool = False) -> Tensor:
        """Returns ``E_π[Q]`` with what the loss adds to it, ``(T, N)`` in nats, differentiable in the policy alone.

        Args:
            entropy: add the present entropy relative to the prior.
            wrong: the critic holds that entropy itself, as its policy's fixed ``log p - log π``.
        """
        table, q = self.log_policy, values.q + values.log_ratio if wrong else values.q
        if entropy:
            value = exact_soft_value(q, table, self.prior, 1.0)
        else:
            value = (table.exp() * torch.where(table == -torch.inf, 0.0, q)).sum(-1)
        return value[self.times, states]

    def projected(self, values: TableValues, states: Tensor, ratio: float) -> Tensor:
        """Returns ``η/α Σ_a q*(a|s) log π(a|s)`` at ``η = ratio · α``, ``(T, N)`` in nats, ``q*`` held fixed."""
        table, fixed = self.log_policy, self.log_policy.detach()
        target = improved_policy(soft_advantage(values.q, fixed, self.prior, 1.0), fixed, ratio).exp()
        return ratio * (target * torch.where(target > 0, table, 0.0)).sum(-1)[self.times, states]

    actor = expected
    """For discrete actions SAC's actor takes the expectation exactly too (Christodoulou 2019, arXiv:1910.07207)."""


class TableOfLogs:
    """A table ``log π_t(a|s)``, ``(T, S, A)``, as a policy."""

    batch_steps = True

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, state: Tensor, t: int | Tensor) -> Any:
        return dist.Categorical(logits=self.table[t, state])


def _other_process(found: Any, mdp: TabularMDP, horizon: int) -> str:
    return (
        f"critic is of another process: it must give values for {mdp.num_states} states at {horizon} steps, one a "
        f"state or one for each of {mdp.num_actions} actions; it gave {found}"
    )
