"""Demonstrations of agents that do not see the state: the likelihood of what they did, given what they saw.

    log p(a | y) = Σ_t log π_t(a_t | b_t),    b_t the agent's own belief, by its own model, after y_0, a_0, …, y_t

Where something was not seen by the onlooker, be it what the agent saw, the world's tables say how likely it was, and it
is summed over: the forward algorithm over pairs of the agent's belief and the world's state.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.exact.beliefs import tables_of
from rl_as_inference.histories import History
from rl_as_inference.processes import MarkovDecisionProcess, TabularPOMDP
from rl_as_inference.processes.partially_observed import PartiallyObservedMDP
from rl_as_inference.reasoning.belief_graph import BeliefGraph, Planned
from rl_as_inference.reasoning.demonstrations import Acting, Demonstrations, was_seen

__all__ = ["HiddenDemonstrations", "as_hidden"]


@dataclass(frozen=True)
class HiddenDemonstrations(Demonstrations):
    """Demonstrations whose agents act on what they have seen and done.

    Attributes:
        sees_first: whether the agent sees something before its first action.
        graph: the beliefs that the family's agents may come to.
    """

    observations: Tensor
    sees_first: bool = True
    graph: BeliefGraph = field(default_factory=BeliefGraph)

    @cached_property
    def observation_seen(self) -> Tensor:
        """``(T+1, N)`` bool; where nothing is seen first, the first row is true."""
        seen = was_seen(self.observations)
        return seen if self.sees_first else torch.cat([torch.ones_like(seen[:1]), seen[1:]])

    @cached_property
    def complete(self) -> Tensor:
        """Whether a demonstration can be scored step by step, ``(N,)``: all that led to each action was seen."""
        return ((self.observation_seen[:-1] & self.action_seen) | ~self.mask).all(0)

    @cached_property
    def weights(self) -> Tensor:
        """Which demonstration each entry of :meth:`log_probabilities` is of, ``(N, M)``."""
        _, n = (self.mask & self.complete).nonzero(as_tuple=True)
        order = torch.cat([n, (~self.complete).nonzero()[:, 0]])
        return torch.nn.functional.one_hot(order, self.num).T.double()

    def where(self, entry: int) -> tuple[int, int]:
        t = (self.mask & self.complete).nonzero()[:, 0]
        return (int(t[entry]) if entry < len(t) else 0), int(self.weights[:, entry].nonzero()[0])

    def prepare(self, process: MarkovDecisionProcess, acting: Acting) -> None:
        if isinstance(acting, TabularPOMDP):
            self.graph.add(tables_of(acting), acting.finite_horizon("the tree of beliefs"))

    def width(self, process: MarkovDecisionProcess) -> int | None:
        return self.graph.width if isinstance(process, TabularPOMDP) and self.graph.edges else None

    def _check_values(self, process: MarkovDecisionProcess) -> None:
        if isinstance(process, TabularPOMDP):
            self._check_finite(
                ("state", self.states, self.state_seen, process.num_states),
                ("action", self.actions, self.action_seen, process.num_actions),
                ("observation", self.observations, self.observations != -1, process.num_observations),
            )
            return
        assert isinstance(process, PartiallyObservedMDP)
        for name, values, space in (
            ("action", self.actions, process.action_space),
            ("observation", self.observations, process.observation_space),
        ):
            if tuple(values.shape[2:]) != tuple(space.shape or ()):
                raise ValueError(
                    f"demonstrations: {name}s must have shape (time, demonstration, *{tuple(space.shape or ())}), got "
                    f"{tuple(values.shape)}"
                )

    def refuted(self, process: MarkovDecisionProcess, acting: Acting, logs: Tensor) -> str | None:
        """Returns what the demonstrations do that the world cannot, or that the agent holds to be impossible."""
        if not isinstance(process, TabularPOMDP):
            return None
        if (moves := self._refuted_moves(process.fully_observed)) is not None:
            return moves
        known = self.state_seen & (self.observations != -1)
        t, n = known.nonzero(as_tuple=True)
        seen, state = self.observations[t, n], self.states[t, n]
        chance = process.observation_by_action[self.actions[t - 1, n].clamp(min=0), state, seen].detach()
        chance = torch.where((t > 0) & (self.actions[t - 1, n] == -1), 1.0, chance)
        if bool((chance == 0).any()):
            i = int((chance == 0).nonzero()[0])
            return (
                f"at step {int(t[i])} of demonstration {int(n[i])}, observation {int(seen[i])} is impossible in state "
                f"{int(state[i])} of the family's process; mend the demonstration or the process's observation, or "
                f"write -1 for what is not known"
            )
        if not isinstance(acting, TabularPOMDP) or not bool((logs == -torch.inf).any()):
            return None
        plan = self.graph.plan(tables_of(acting), acting.finite_horizon("the tree of beliefs"))
        possible = self._possible(plan)[1] | ~self.mask | ~self.complete
        if not bool(possible.all()):
            step, which = (int(i) for i in (~possible).nonzero()[0])
            return (
                f"observation {int(self.observations[step, which])} at step {step} of demonstration {which} has "
                f"probability 0 under the agent's own model; let its initial belief, its transitions and observations "
                f"leave what it saw possible"
            )
        return None

    def log_probabilities(self, process: MarkovDecisionProcess, policy: Acting) -> Tensor:
        """Returns the log probabilities of what was seen, in nats.

        Those of each action, given what the agent saw, of demonstrations that are complete, and then those of each
        demonstration with something unseen. What the agent's own model holds to be impossible has probability 0.

        Raises:
            ValueError: if the policy does not answer for histories of the process.
        """
        if not isinstance(policy, TabularPOMDP):
            return self._by_histories(process, policy)
        plan = self.graph.plan(tables_of(policy), policy.finite_horizon("the tree of beliefs"))
        nodes, possible = self._possible(plan)
        rows = [
            each[node.clamp(min=0), action.clamp(min=0)]
            for each, node, action in zip(plan.log_policy, nodes, self.actions, strict=False)
        ]
        here = (self.mask & self.complete).nonzero(as_tuple=True)
        logs = torch.where(possible, torch.stack(rows), -torch.inf)[here]
        if bool(self.complete.all()):
            return logs
        assert isinstance(process, TabularPOMDP)
        return torch.cat([logs, self._summed_over(process, plan)])

    def _possible(self, plan: Planned) -> tuple[Tensor, Tensor]:
        """Returns the belief before each action ``(T, N)``, and whether the agent held all until then for possible."""
        seen, taken = self.observations[:-1].clamp(min=0), self.actions.clamp(min=0)
        nodes, edges = self.graph.edges_along(seen, taken, self.sees_first)
        chances = [plan.start, *(mass if len(mass) else mass.new_zeros(1) for mass in plan.mass)]
        steps = [chance[edge.clamp(min=0)] > 0 for chance, edge in zip(chances, edges, strict=False)]
        possible = torch.stack([step & (edge >= 0) for step, edge in zip(steps, edges, strict=True)])
        return nodes, possible.long().cumprod(0).bool()

    def _by_histories(self, process: MarkovDecisionProcess, policy: Any) -> Tensor:
        if isinstance(policy, Tensor) or not callable(policy):
            raise ValueError(
                f"family: the policy beside a {type(process).__name__}, whose state is hidden, must be a callable "
                f"(history, t) -> Distribution, or a TabularPOMDP that the agent plans in; got {type(policy).__name__}"
            )
        if not bool(self.complete.all()):
            n = int((~self.complete).nonzero()[0])
            raise ValueError(
                f"demonstrations: what the agent of demonstration {n} saw or did is not all known, and it is summed "
                f"over for agents that plan exactly in a TabularPOMDP only; give observations (Trajectories with "
                f"observations, or (states, actions, observations)), or return the agent's own TabularPOMDP in the "
                f"policy's place"
            )
        wide = self.mask.reshape(self.mask.shape + (1,) * (self.actions.dim() - 2))
        actions = torch.where(wide, self.actions, torch.zeros_like(self.actions))
        known = self.observation_seen.reshape(self.mask.shape[0] + 1, -1, *(1,) * (self.observations.dim() - 2))
        seen = torch.where(known, self.observations, torch.zeros_like(self.observations))
        history, logs = History(batch_shape=(self.num,)), []
        for t, action in enumerate(actions):
            if t or self.sees_first:
                history = history.then(actions[t - 1] if t else None, seen[t])
            log = torch.as_tensor(policy(history, t).log_prob(action))
            logs.append(log.sum(-1) if log.dim() > 1 else log)
        return torch.stack(logs)[self.mask.nonzero(as_tuple=True)]

    def _summed_over(self, process: TabularPOMDP, plan: Planned) -> Tensor:
        """Returns log p(what was seen) of the demonstrations that are not complete, by the forward algorithm."""
        partial = ~self.complete
        world = tables_of(process)
        num_states, num_actions, num_seen = world.observation.shape[1], *world.observation.shape[::2]
        states, taken, mask = self.states[:, partial], self.actions[:, partial], self.mask[:, partial]
        observed, known = self.observations[:, partial], self.state_seen[:, partial]
        ends = 1 - world.going

        def only(which: Tensor, seen: Tensor, size: int) -> Tensor:
            marks = torch.nn.functional.one_hot(which.clamp(min=0), size).to(world.initial)
            return torch.where(seen[:, None], marks, 1.0)

        # A first state that was seen is taken as given; one that was not has the world's initial distribution.
        first = only(states[0], known[0], num_states)
        first = torch.where(known[0][:, None], first, world.initial)
        if world.first_observation is not None:
            views = world.first_observation.mT * only(observed[0], observed[0] != -1, num_seen)[..., None]
        else:
            views = torch.ones_like(world.initial).expand(len(first), 1, -1)
        roots = self.graph.roots >= 0
        flow = first.new_zeros(len(first), self.graph.sizes[0], num_states)
        flow = flow.index_add(1, self.graph.roots[roots], ((first * world.going)[:, None] * views)[:, roots])
        over = (first * ends * views.sum(1)).sum(-1)  # the probability of having ended
        total = first.new_zeros(len(first))
        for t, log_policy in enumerate(plan.log_policy[: len(taken)]):
            acts = log_policy.exp() * only(taken[t], taken[t] != -1, num_actions)[:, None]
            moved = torch.einsum("kns,kna,saz->knaz", flow, acts, world.transition)
            moved = moved * only(states[t + 1], known[t + 1], num_states)[:, None, None]
            views = only(observed[t + 1], observed[t + 1] != -1, num_seen)
            shown = torch.einsum("azo,ko->kaz", world.observation, views)
            # Nothing is done after the end, so that an action there was taken by one who went on.
            stays = ((taken[t] == -1) | (known[t] & (ends[states[t].clamp(min=0)] > 0))).to(over)
            stays = stays * only(states[t + 1], known[t + 1], num_states).mv(ends).clamp(max=1.0)
            last = ~mask[t + 1] if t + 1 < len(mask) else torch.ones_like(mask[t])
            arrived = torch.einsum("knaz,kaz->kz", moved, shown)
            over = over * stays + (arrived @ ends)
            whole = over + arrived @ world.going
            if t < len(self.graph.edges) and t + 1 < len(mask):
                edges = self.graph.edges[t]
                onward = moved[:, edges.parent, edges.action] * world.going
                onward = onward * world.observation.mT[edges.action, edges.observation]
                onward = onward * views[:, edges.observation, None]
                flow = onward.new_zeros(len(onward), self.graph.sizes[t + 1], num_states)
                flow = flow.index_add(1, edges.child, onward)
            size = torch.where(last, whole, over + flow.sum((1, 2)))
            safe = torch.where(size > 0, size, 1.0)
            total = total + torch.where(mask[t], torch.where(size > 0, safe.log(), -torch.inf), 0.0)
            flow, over = flow / safe[:, None, None], over / safe
        return total


def as_hidden(given: Demonstrations, process: MarkovDecisionProcess) -> Demonstrations:
    """Returns demonstrations as they are read where the process's state is hidden, and others as they are."""
    if not isinstance(process, PartiallyObservedMDP):
        return given
    seen = given.observations
    if seen is None:
        if not isinstance(process, TabularPOMDP):
            raise ValueError(
                "demonstrations: what the agent saw is not given, and it is summed over in finite processes only; give "
                "observations: Trajectories with observations, or (states, actions, observations)"
            )
        seen = torch.full_like(given.states, -1)
    first = process.sees_first if isinstance(process, TabularPOMDP) else bool(was_seen(seen)[0].any())
    ended = given.ended(process)
    return HiddenDemonstrations(given.states, given.actions, given.mask & ~ended[:-1], seen, first)
