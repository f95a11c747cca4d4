"""Exact answers for finite processes whose state is hidden, by the beliefs that can be reached.

With finitely many states, actions and observations and a finite horizon there are finitely many histories, and fewer
beliefs, since histories that lead to equal beliefs go on alike. So the causal messages run over the tree of beliefs:

    Q_t(b,a) = E_{s~b}[r(s,a)/α] + γ Σ_y p(y|b,a) V_{t+1}(b'),    V_t(b) = log Σ_a p(a) e^{Q_t(b,a)}

The soft form of Smallwood & Sondik 1973, Operations Research 21(5).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.checks import holds
from rl_as_inference.exact.beliefs import BeliefTables, first_beliefs, tables_of
from rl_as_inference.histories import History
from rl_as_inference.nouns import ExactPolicy, keeps_beliefs, what_is_seen
from rl_as_inference.processes.kernels import unclamped
from rl_as_inference.processes.tabular_pomdp import TabularPOMDP
from rl_as_inference.program.readings import check_answer

__all__ = ["BeliefEvaluation", "BeliefPlan", "Level", "evaluate", "find", "merged", "plan", "tree"]

_ENTRIES = 40_000_000
"""Numbers that the beliefs of one step may hold."""

_SAME = 1e-12
"""Beliefs no further apart than this are one."""


class Level(NamedTuple):
    """The beliefs of one step, and where they lead."""

    beliefs: Tensor
    """``(n, S)``."""
    child: Tensor | None
    """The next step's belief after each action and observation, ``(n, A, O)``; -1 for what cannot be seen."""
    mass: Tensor | None
    """The probability of going on and seeing that, ``(n, A, O)``."""


@dataclass(frozen=True, eq=False)
class BeliefPlan:
    """The soft-optimal plan of a finite process whose state is hidden.

    It is a policy ``(seen, t) -> Categorical`` of what is seen: a :class:`rl_as_inference.History`, as rollouts ask
    it, or a belief ``(*batch, S)``.

    Attributes:
        objective: the largest ELBO of any policy of the history, 0-dimensional, in nats.
        num_beliefs: how many different beliefs an action is taken at.
        beliefs: those of each step, ``T`` tensors ``(n_t, S)``.
        soft_v: their values, ``T`` tensors ``(n_t,)``, in reward units.
        log_policy: ``log π_t(a|b)``, ``T`` tensors ``(n_t, A)``, in nats.
    """

    objective: Tensor
    num_beliefs: int
    beliefs: list[Tensor]
    soft_v: list[Tensor]
    log_policy: list[Tensor]
    _pomdp: TabularPOMDP = field(repr=False)
    _child: Tensor = field(repr=False)  # (num_beliefs, A, O), of beliefs numbered through all steps
    _roots: Tensor = field(repr=False)  # by the first observation
    dynamics = "causal"
    sees = "belief"
    exact = True

    @property
    def process(self) -> TabularPOMDP:
        """The process that it is the plan of."""
        return self._pomdp

    @property
    def policy(self) -> "BeliefPlan":
        """The plan as a policy on beliefs, ``(belief (*batch, S), t) -> Distribution``."""
        return self

    def __call__(self, seen: Any, t: int) -> Any:
        """Returns the distribution over actions at a belief, or at a history, of its batch shape.

        Where an episode has ended, and after what the process cannot show, it is the action prior.

        Raises:
            ValueError: if there is no such step, or beliefs are not distributions over ``S`` states.
        """
        times = torch.as_tensor(t)
        if times.numel() != 1 or not float(times).is_integer() or not 0 <= int(times) < len(self.beliefs):
            raise ValueError(f"t must be one integer in 0 … {len(self.beliefs) - 1}, got {t}")
        step = int(times)
        prior = self._pomdp.log_action_prior.detach()
        if isinstance(seen, History):
            if len(seen) != step:
                raise ValueError(f"t must be the number of actions taken, {len(seen)} in this history, got {t}")
            node = seen.recall(self, self._first_node, self._next_node)
            if not len(self.beliefs[step]):
                return dist.Categorical(logits=prior.expand(*node.shape, -1))
            rows = self.log_policy[step][(node - sum(map(len, self.beliefs[:step]))).clamp(min=0)]
            return dist.Categorical(logits=torch.where(node[..., None] >= 0, rows, prior))
        if not isinstance(seen, Tensor) or seen.shape[-1:] != (self._pomdp.num_states,):
            raise ValueError(
                f"belief must have shape (…, {self._pomdp.num_states}), got {tuple(getattr(seen, 'shape', ()))}"
            )
        flat = seen.detach().double().reshape(-1, seen.shape[-1])
        if bool((flat < -1e-9).any()) or bool(((flat.sum(-1) - 1).abs() > 1e-4).any()):
            raise ValueError("belief must hold probabilities >= 0 that sum to one over states")
        node = find(flat, self.beliefs[step].double())
        known = len(self.beliefs[step]) > 0
        logits = self.log_policy[step][node.clamp(min=0)] if known else prior.expand(len(flat), -1)
        if bool((elsewhere := node < 0).any()):  # no history leads there; what is best from there on is planned anew
            logits = logits.clone()
            logits[elsewhere] = self._planned_from(flat[elsewhere], step).to(logits)
        return dist.Categorical(logits=logits.reshape(*seen.shape[:-1], -1))

    def _planned_from(self, beliefs: Tensor, step: int) -> Tensor:
        tables = tables_of(self._pomdp).detached()
        roots, index = merged(beliefs.clamp(min=0) / beliefs.clamp(min=0).sum(-1, keepdim=True))
        levels = list(_grown(tables, roots, len(self.beliefs), first=step))
        return _backward(tables, levels)[1][0][index]

    def _first_node(self, observation: Tensor | None) -> Tensor:
        if observation is None:
            return self._roots[0]
        _check_numbers("observation", observation, len(self._roots))
        return self._roots[observation]

    def _next_node(self, node: Tensor, action: Tensor, observation: Tensor | None) -> Tensor:
        assert observation is not None
        _check_numbers("observation", observation, self._child.shape[2])
        _check_numbers("action", action, self._child.shape[1])
        return torch.where(node >= 0, self._child[node.clamp(min=0), action, observation], -1)


def plan(pomdp: TabularPOMDP) -> BeliefPlan:
    """Returns the plan of the largest ELBO that a policy of the history reaches.

    The objective is differentiable once in the process's tensors.

    Raises:
        ValueError: if the process has no horizon, or too many beliefs (how many is said).
    """
    horizon = pomdp.finite_horizon("the tree of beliefs")
    tables = tables_of(pomdp)
    numbers = tables.detached()
    levels, starts, roots = tree(numbers, horizon)
    values, log_policies = _backward(numbers, levels)
    weights = first_beliefs(numbers)[1]
    objective = (weights * values[0][roots]).where(weights > 0, 0.0).sum() if len(values[0]) else weights.sum()
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tables):
        # The policy is the best one, so that it does not move the ELBO: slopes are those of the policy held fixed.
        parts = _flow(tables, levels, starts, roots, log_policies)
        objective = _Once.apply(parts.objective)  # type: ignore[no-untyped-call]
    dtype, alpha = pomdp.observation_table.dtype, pomdp.temperature
    offsets = torch.tensor([len(level.beliefs) for level in levels], device=roots.device).cumsum(0)
    shape = (pomdp.num_actions, pomdp.num_observations)
    child = [
        torch.where(level.child < 0, -1, level.child + offset)
        if level.child is not None
        else roots.new_full((len(level.beliefs), *shape), -1)
        for level, offset in zip(levels, offsets, strict=True)
    ]
    return BeliefPlan(
        objective.to(dtype),
        int(offsets[-1]),
        [level.beliefs.to(dtype) for level in levels],
        [(alpha * value).to(dtype) for value in values],
        [log_policy.to(dtype) for log_policy in log_policies],
        pomdp,
        torch.cat(child),
        roots,
    )


@dataclass(frozen=True, eq=False)
class BeliefEvaluation:
    """What a policy of the history does, exactly.

    Attributes:
        expected_return: ``E_π Σ_t γ^t r_t/α``, 0-dimensional, in nats.
        entropy: ``-E_π Σ_t γ^t log π``, 0-dimensional, in nats.
        prior_cost: ``-E_π Σ_t γ^t log p``, 0-dimensional, in nats.
        occupancy: ``P(s_t = s, going on)``, ``(T, S)``.
    """

    expected_return: Tensor
    entropy: Tensor
    prior_cost: Tensor
    occupancy: Tensor

    @property
    def objective(self) -> Tensor:
        """The ELBO, 0-dimensional, in nats."""
        return self.expected_return + self.entropy - self.prior_cost


def evaluate(
    pomdp: TabularPOMDP, policy: ExactPolicy, *, sees: Literal["belief", "history"] | None = None
) -> BeliefEvaluation:
    """Returns the exact ELBO of a policy, with its parts.

    Slopes in the process's tensors are those under the answers that the policy gives now: a belief that the policy is
    asked with counts as a number.

    Args:
        pomdp: a finite, partially observed process with a horizon.
        policy: a callable ``(seen, t) -> Categorical``; None for the action prior.
        sees: what it is asked with: beliefs ``(n, S)``, or a :class:`rl_as_inference.History` of n trajectories, for
            which every history counts as one. None asks what the policy says of itself, or gives beliefs.

    Raises:
        ValueError: if the process has no horizon or too many beliefs, or the policy answers with something else than
            one distribution over actions for each.
    """
    horizon = pomdp.finite_horizon("the tree of beliefs")
    if policy is not None and not callable(policy):
        raise ValueError(
            f"policy must be a callable (belief, t) or (history, t) -> Distribution, got {type(policy).__name__}: the "
            f"state of {pomdp.name} is hidden"
        )
    kind = sees or what_is_seen(policy) or "belief"
    if kind not in ("belief", "history"):
        raise ValueError(f"sees must be 'belief' or 'history', got {kind!r}")
    if kind == "belief" and not keeps_beliefs(policy, pomdp):
        kind = "history"  # what it believes of a history is not what is right here
    tables = tables_of(pomdp)
    numbers = tables.detached()
    levels, starts, roots = tree(numbers, horizon, merge=kind == "belief" or policy is None)
    prior = numbers.log_prior.expand(1, -1)
    log_policies = []
    seen: Any = None
    for t, level in enumerate(levels):
        if policy is None or not len(level.beliefs):
            log_policies.append(prior.expand(len(level.beliefs), -1))
            continue
        if kind == "belief":
            seen = level.beliefs.to(pomdp.observation_table.dtype)
        elif t == 0:
            first = History(batch_shape=(1,))
            seen = first if tables.first_observation is None else first.then(None, (roots >= 0).nonzero()[:, 0])
        else:
            before = levels[t - 1].child
            assert before is not None
            parent, action, observation = (before >= 0).nonzero().unbind(-1)
            seen = seen.select(parent).then(action, observation)
        own = dist.Categorical(logits=prior.expand(len(level.beliefs), -1))
        try:
            answer = pomdp._ask(policy, seen, t) if kind == "history" else policy(seen, t)
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"policy failed on beliefs of shape {tuple(seen.shape)}: {error}; a policy of histories is evaluated "
                f"with sees='history'"
            ) from error
        answer = unclamped(check_answer(answer, own, f"at step {t}", own.batch_shape))
        if bool(answer.logits.detach().isnan().any()):
            raise ValueError(f"policy gives NaN as a log probability at step {t}; check its parameters")
        log_policies.append(answer.logits.double().log_softmax(-1))
    found = _flow(tables, levels, starts, roots, log_policies)
    dtype = pomdp.observation_table.dtype
    parts = (found.expected_return, found.entropy, found.prior_cost, found.occupancy)
    return BeliefEvaluation(*(part.to(dtype) for part in parts))


def _check_numbers(name: str, values: Tensor, count: int) -> None:
    if values.is_floating_point() or not holds((values >= 0) & (values < count)):
        raise ValueError(f"history: every {name} must be an integer from 0 to {count - 1}")


def tree(tables: BeliefTables, horizon: int, merge: bool = True) -> tuple[list[Level], Tensor, Tensor]:
    """Returns the beliefs of all steps; the first ones' probabilities; and which they are, by the first observation."""
    joint, sums = first_beliefs(tables)
    possible = sums > 0
    beliefs = joint[possible] / sums[possible][:, None]
    index = torch.arange(len(beliefs), device=beliefs.device)
    if merge:
        beliefs, index = merged(beliefs)
    roots = torch.full_like(sums, -1, dtype=torch.long)
    roots[possible] = index
    return list(_grown(tables, beliefs, horizon, merge=merge)), sums, roots


def _grown(
    tables: BeliefTables, beliefs: Tensor, horizon: int, *, first: int = 0, merge: bool = True
) -> Iterator[Level]:
    """Yields the steps from ``first`` on, of beliefs that go on from those given."""
    num_states, num_actions, _ = tables.transition.shape
    allowed = (tables.log_prior > -torch.inf)[None, :, None]
    counts = [len(beliefs)]
    for t in range(first, horizon):
        if t == horizon - 1 or not len(beliefs):
            yield Level(beliefs, None, None)
            continue
        after = (beliefs @ tables.transition.flatten(1)).unflatten(-1, (num_actions, num_states)) * tables.going
        mass = torch.einsum("nas,aso->nao", after, tables.observation)
        possible = (mass > 0) & allowed
        parent, action, observation = possible.nonzero().unbind(-1)
        if len(parent) * num_states > _ENTRIES:
            growth = len(parent) / max(len(beliefs), 1)
            total = sum(counts) + len(parent) * sum(growth**k for k in range(horizon - t - 1))
            raise ValueError(
                f"horizon: the tree of beliefs has {sum(counts):,} beliefs after {t + 1} of {horizon} steps and grows "
                f"{growth:.3g}-fold a step, so that it would take about {total:.2g}; use a shorter horizon, or "
                f"estimate: fit a guides.RecurrentPolicy or a guides.BeliefPolicy"
            )
        found = after[parent, action] * tables.observation[action, :, observation]
        found = found / found.sum(-1, keepdim=True)
        index = torch.arange(len(found), device=found.device)
        if merge:
            found, index = merged(found)
        child = torch.full_like(mass, -1, dtype=torch.long)
        child[possible] = index
        yield Level(beliefs, child, mass)
        beliefs = found
        counts.append(len(beliefs))


def _backward(tables: BeliefTables, levels: list[Level]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns values and log policies of all steps, in nats."""
    values: list[Tensor] = []
    log_policies: list[Tensor] = []
    for level in reversed(levels):
        q = level.beliefs @ tables.reward
        if level.child is not None and level.mass is not None and values:
            after = values[-1] if len(values[-1]) else values[-1].new_zeros(1)
            onward = torch.where(level.child >= 0, after[level.child.clamp(min=0)], 0.0)
            q = q + tables.discount * (level.mass * onward).sum(-1)
        logits = tables.log_prior + q
        value = torch.logsumexp(logits, -1)
        values.append(value)
        log_policies.append(logits - value[:, None])
    return values[::-1], log_policies[::-1]


def _flow(
    tables: BeliefTables, levels: list[Level], starts: Tensor, roots: Tensor, log_policies: list[Tensor]
) -> BeliefEvaluation:
    """Returns what policies of all steps' beliefs earn and cost, by the joint flow of belief and state."""
    joint, _ = first_beliefs(tables)
    size = len(levels[0].beliefs)
    flow = joint.new_zeros(size, joint.shape[1]).index_add(0, roots[roots >= 0], joint[roots >= 0])
    zero = joint.new_zeros(())
    earned, entropy, cost, occupied = zero, zero, zero, []
    scale: float | Tensor = 1.0
    for level, log_policy in zip(levels, log_policies, strict=True):
        chance = log_policy.exp()
        visits = flow.sum(-1)[:, None] * chance
        occupied.append(flow.sum(0))
        earned = earned + scale * torch.einsum("ns,na,sa->", flow, chance, tables.reward)
        taken = visits > 0
        entropy = entropy - scale * (visits * torch.where(chance > 0, log_policy, 0.0)).sum()
        cost = cost - scale * torch.where(taken, visits * torch.where(taken, tables.log_prior, 0.0), 0.0).sum()
        scale = scale * tables.discount
        if level.child is None:
            continue
        parent, action, observation = (level.child >= 0).nonzero().unbind(-1)
        moved = torch.einsum("ns,na,saz->naz", flow, chance, tables.transition) * tables.going
        arrived = moved[parent, action] * tables.observation[action, :, observation]
        child = level.child[parent, action, observation]
        size = int(child.max()) + 1 if len(child) else 0
        flow = joint.new_zeros(size, joint.shape[1]).index_add(0, child, arrived)
    return BeliefEvaluation(earned, entropy, cost, torch.stack(occupied))


def merged(beliefs: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the different ones among beliefs ``(n, S)``, and which of them each is, ``(n,)``."""
    if len(beliefs) < 2:
        return beliefs, torch.zeros(len(beliefs), dtype=torch.long, device=beliefs.device)
    order = _projected(beliefs).argsort()
    line = beliefs[order]
    new = torch.ones(len(line), dtype=torch.bool, device=line.device)
    new[1:] = (line[1:] - line[:-1]).abs().amax(-1) > _SAME
    index = torch.empty_like(order)
    index[order] = new.cumsum(0) - 1
    return line[new], index


def find(wanted: Tensor, among: Tensor) -> Tensor:
    """Returns which of the beliefs ``(n, S)`` each wanted one is, ``(m,)``; -1 for none."""
    if not len(among):
        return torch.full((len(wanted),), -1, dtype=torch.long, device=wanted.device)
    keys, order = _projected(among).sort()
    place = torch.searchsorted(keys, _projected(wanted))
    found = torch.full_like(place, -1)
    tolerance = 1e-6 if among.dtype == torch.float32 else 1e-9
    for shift in (-2, -1, 0, 1):
        candidate = order[(place + shift).clamp(0, len(keys) - 1)]
        near = (among[candidate] - wanted).abs().amax(-1) <= tolerance
        found = torch.where(near & (found < 0), candidate, found)
    return found


def _projected(beliefs: Tensor) -> Tensor:
    """Returns beliefs on a line in general position, so that equal ones stand side by side once sorted."""
    # No two sines of whole numbers, nor any means of them, are equal; square roots of squares would be.
    return beliefs @ (1.0 + torch.arange(beliefs.shape[-1], dtype=beliefs.dtype, device=beliefs.device)).sin()


class _Once(torch.autograd.Function):
    """A number with a slope, and no curvature: that of the policy is not in it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise ValueError(
                "the objective of a belief plan has first derivatives alone; leave out create_graph=True, or take "
                "differences of its slopes"
            )
        return gradient
