"""Returns and entropies of policies of finite processes, and the returns that no policy passes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.exact.fixed_point import check_fixed_point, solve_linear
from rl_as_inference.exact.tabular import discounted_visits
from rl_as_inference.processes import TabularMDP

__all__ = ["Account", "account", "best", "in_own_unit"]


def in_own_unit(mdp: TabularMDP) -> tuple[TabularMDP, float]:
    """Returns the process in float64 with rewards of about 1 at most, and the unit that they are in, a power of two.

    What counts as tied, or as rounding, then does not depend on the scale of rewards.
    """
    mdp = mdp.to(torch.float64)
    largest = float(mdp.reward_table.abs().max())
    unit = 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0
    return mdp.replace(reward=mdp.reward_table / unit), unit


class Account(NamedTuple):
    """What a policy earns and what its randomness comes to, discounted, over the steps alive.

    Attributes:
        expected_return: ``E Σ_t γ^t r_t``, in reward units.
        entropy: ``E Σ_t γ^t H[π_t(.|s_t)]``, in nats.
        information: ``E Σ_t γ^t KL(π_t(.|s_t) || p(.|s_t))``, in nats: what the policy knows beyond the prior.
    """

    expected_return: float
    entropy: float
    information: float


def account(mdp: TabularMDP, policy: Tensor) -> Account:
    """Returns the account of a table of probabilities, ``(S, A)`` or ``(T, S, A)``.

    The information is inf where the policy takes an action that the prior forbids.
    """
    weight = discounted_visits(mdp, policy)
    table = policy if policy.dim() == 3 else policy[None]

    def total(per_action: Tensor) -> float:
        per_state = torch.where(table > 0, table * per_action, 0.0).sum(-1)
        return float(torch.where(weight > 0, weight * per_state, 0.0).sum())

    log = torch.where(table > 0, table, 1.0).log()
    return Account(total(mdp.expected_reward()), total(-log), total(log - mdp.log_action_prior))


class Best(NamedTuple):
    """The largest return, and among the policies that reach it the one nearest the action prior, a table."""

    value: float
    policy: Tensor


def best(mdp: TabularMDP, sign: int = 1) -> Best:
    """Returns the largest return of any policy (``sign=1``) or minus the smallest (``sign=-1``).

    Of all policies that reach it, the returned one has the least ``E Σ γ^t KL(π || p)``: it is the limit
    of the soft-optimal policy at temperature 0. Actions whose values agree to 1e-10 of their size count as tied.

    Raises:
        ValueError: if it is infinite.
    """
    reward = sign * mdp.expected_reward()
    allowed = mdp.action_prior > 0
    if mdp.horizon is None:
        return _best_without_horizon(mdp, reward, allowed, "largest" if sign > 0 else "smallest")
    value = ties = reward.new_zeros(mdp.num_states)
    policies = []
    for t in reversed(range(mdp.horizon)):
        last = t == mdp.horizon - 1
        q = reward if last else reward + mdp.kernel.expect(mdp.discount * value)
        # What is left once the return is settled: log Σ_{a best} p(a|s) e^{γ E W(s')}, the soft maximum of nothing.
        onward = torch.zeros_like(q) if last else mdp.kernel.expect(mdp.discount * ties)
        value, tied = _maximise(q, allowed)
        logits = torch.where(tied, mdp.log_action_prior + onward, -torch.inf)
        ties = torch.logsumexp(logits, -1)
        policies.append(torch.softmax(logits, -1))
        value, ties = (torch.where(mdp.terminal, 0.0, x) for x in (value, ties))
    policy = torch.where(mdp.terminal[:, None], mdp.action_prior, torch.stack(policies[::-1]))
    return Best(float(mdp.initial_probabilities @ value), policy)


def _maximise(q: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    q = torch.where(allowed, q, -torch.inf)
    value = q.amax(-1)
    return value, q >= (value - 1e-10 * (1 + value.abs()))[:, None]


def _best_without_horizon(mdp: TabularMDP, reward: Tensor, allowed: Tensor, which: str) -> Best:
    """Policy iteration from a policy that ends wherever the process must."""
    check_fixed_point(mdp)
    choice = _towards_the_end(mdp, allowed)
    policy, value = choice, reward.new_zeros(mdp.num_states)
    while True:
        policy = torch.nn.functional.one_hot(choice, mdp.num_actions).to(reward)
        if float(torch.as_tensor(mdp.discount)) == 1:
            try:
                check_fixed_point(mdp, policy)
            except ValueError:
                # A strict improvement goes round forever only where the round pays.
                raise ValueError(
                    f"mdp: its {which} return is infinite, since a policy can go round without ending and gain; set a "
                    f"horizon or a discount < 1"
                ) from None
        own = torch.where(mdp.terminal, 0.0, reward.gather(1, choice[:, None]).squeeze(1))
        value = solve_linear(mdp, policy, own)
        q = torch.where(allowed, reward + mdp.kernel.expect(mdp.discount * value), -torch.inf)
        better = (q.amax(-1) > value + 1e-11 * (1 + value.abs())) & ~mdp.terminal
        if not bool(better.any()):
            break
        choice = torch.where(better, q.argmax(-1), choice)
    tied = (q >= (value - 1e-10 * (1 + value.abs()))[:, None]) | mdp.terminal[:, None]
    weights = torch.where(tied & allowed, mdp.action_prior, 0.0)
    mass = weights.sum(-1, keepdim=True)
    narrowed = TabularMDP.from_successors(
        *mdp.kernel.rows(),
        torch.where(mdp.terminal[:, None], 0.0, mass.log()).expand_as(weights),
        mdp.initial_probabilities,
        discount=mdp.discount,
        action_prior=weights / mass,
        terminal=mdp.terminal,
    )
    return Best(float(mdp.initial_probabilities @ value), exact.tabular.plan(narrowed).policy)


def _towards_the_end(mdp: TabularMDP, allowed: Tensor) -> Tensor:
    """Returns an action for each state by which a terminal state is reached, if there is one, ``(S,)``."""
    choice = allowed.to(torch.int8).argmax(-1)
    reached = mdp.terminal
    while True:
        onward = (mdp.kernel.expect(reached.to(mdp.action_prior)) > 0) & allowed
        new = onward.any(-1) & ~reached
        if not bool(new.any()):
            return choice
        choice = torch.where(new, onward.to(torch.int8).argmax(-1), choice)
        reached = reached | new
