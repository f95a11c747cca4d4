"""The Bayes-adaptive process: what is believed is part of the state, and an exact plan knows what knowing is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.checks import check_at_least
from rl_as_inference.exploration.conjugate import ConjugatePosterior
from rl_as_inference.host import in_turn
from rl_as_inference.processes import TabularMDP

__all__ = ["BayesAdaptive", "bayes_adaptive"]


@dataclass(frozen=True)
class BayesAdaptive:
    """A life of several episodes as a finite process, whose states are hyperstates ``(step, state, counts)``.

    Attributes:
        process: the life as it is believed: its transitions are the predictive probabilities. It is a
            :class:`~rl_as_inference.TabularMDP`, to which every reading applies; its horizon is the life's.
        steps: how many steps lie behind each hyperstate, ``(N,)``.
        states: the state of the family's process in each, ``(N,)``.
        counts: how often each entry of the Dirichlet rows was seen by then, ``(N, E)``.
        episode: the number of steps of an episode.
    """

    process: TabularMDP
    steps: Tensor
    states: Tensor
    counts: Tensor
    episode: int
    _edges: _Edges

    def under(self, truth: TabularMDP) -> TabularMDP:
        """Returns the same life in a given world: the hyperstates are the same, the probabilities the world's."""
        edges = self._edges
        rows = truth.kernel.dense().double()[self.states]
        chance = rows.gather(-1, edges.after)
        first = truth.initial_probabilities.double()
        chance = chance * torch.where(edges.fresh >= 0, first[edges.fresh.clamp(min=0)], 1.0)
        return self._life(truth, chance)

    def _life(self, world: TabularMDP, chance: Tensor) -> TabularMDP:
        """Returns the life in a world with these probabilities of edges, ``(N, A, K)``."""
        chance = torch.where(self._edges.used, chance, 0.0)
        over = self.steps == int(self.steps.max())
        chance[over] = 0.0
        chance[over, :, 0] = 1.0
        state = self.states[:, None, None].expand_as(chance)
        action = torch.arange(chance.shape[1], device=state.device)[:, None].expand_as(chance)
        earned = world.reward(state, action, self._edges.after).double()
        gamma = torch.as_tensor(world.discount, dtype=torch.float64) ** (self.steps % self.episode)
        idle = (over | world.terminal[self.states])[:, None, None] | ~self._edges.used
        initial = torch.zeros(len(self.states), dtype=torch.float64, device=self.states.device)
        born = self.steps == 0
        initial[born] = world.initial_probabilities.double()[self.states[born]]
        life = TabularMDP.from_successors(
            self._edges.child,
            chance,
            torch.where(idle, 0.0, earned * gamma[:, None, None]),
            initial,
            horizon=int(self.steps.max()),
            temperature=world.temperature,
            action_prior=world.action_prior.double()[self.states],
        )
        life.name = f"{world.name}, Bayes-adaptive"
        return life


@dataclass(frozen=True)
class _Edges:
    """What may follow each hyperstate and action, ``(N, A, K)`` each."""

    child: Tensor
    after: Tensor
    """The state that the process itself comes to."""
    fresh: Tensor
    """The state in which a new episode begins then; -1 where none does."""
    used: Tensor
    """Whether there is such an edge; rows are filled up."""


@checked
@in_turn
def bayes_adaptive(
    family: Callable[[], Any] | ConjugatePosterior, *, num_episodes: int = 1, max_beliefs: int = 100_000
) -> BayesAdaptive:
    """Returns the Bayes-adaptive process of a finite family whose rewards are known.

    What is believed of Dirichlet rows is how often each outcome was seen, and it changes with every step as the state
    does; so the life of an agent that does not know its world is a process that it knows, and its exact plan is the
    best there is at finding out and using what was found. At temperature α → 0 that is dynamic programming over
    counts (Bellman 1956; Duff, "Optimal learning", PhD thesis, 2002); at α > 0 it is the soft plan of the same program.

    Args:
        family: a Pyro program that draws unknowns and returns a TabularMDP; or what is believed of it.
        num_episodes: how long the life is. Beliefs go on from one episode to the next, states begin anew.
        max_beliefs: how many hyperstates are allowed.

    Raises:
        ValueError: if beliefs cannot be enumerated: the family is not finite and conjugate, a reward is unknown, there
            is no horizon, or there are more than ``max_beliefs``.

    Example:
        >>> from rl_as_inference import exact, models
        >>> life = bayes_adaptive(models.families.bandit(2, dtype=torch.float64), num_episodes=2)
        >>> best = exact.plan(life.process.at_temperature(1e-9))
        >>> round(float(best.objective) * 1e-9, 6)  # 1/2 for the first pull, (2/3 + 1/2)/2 for the second
        1.083333
    """
    check_at_least("num_episodes", num_episodes)
    check_at_least("max_beliefs", max_beliefs)
    prior = family if isinstance(family, ConjugatePosterior) else ConjugatePosterior.exactly(family)
    process, moves = prior.structure.process, prior.structure.moves
    if not isinstance(process, TabularMDP) or moves is None:
        raise ValueError(
            "strategy 'exact' needs a finite family; beliefs of a linear-Gaussian one cannot be enumerated"
        )
    prior.structure.check_told()
    if len(prior.structure.numbers.slopes):
        raise ValueError(
            "strategy 'exact' needs known rewards: beliefs of a Normal unknown cannot be enumerated; let what is "
            "unknown be a transition, as in models.families.bandit"
        )
    graph = _Graph(prior, process.finite_horizon("strategy 'exact'"), num_episodes, max_beliefs)
    return graph.life()


class _Graph:
    """The hyperstates that can be reached, found layer by layer."""

    def __init__(self, prior: ConjugatePosterior, episode: int, num_episodes: int, limit: int) -> None:
        structure = prior.structure
        assert isinstance(structure.process, TabularMDP)
        assert structure.moves is not None
        self.process, self.episode = structure.process, episode
        self.prior, self.rows = prior.counts.tolist(), structure.rows.tolist()
        self.members: dict[int, list[int]] = {}
        for entry, row in enumerate(self.rows):
            self.members.setdefault(row, []).append(entry)
        self.moves = [table.tolist() for table in (structure.moves.indices, structure.moves.entries)]
        self.known = structure.moves.probabilities.tolist()
        self.ended = self.process.terminal.tolist()
        self.first = [(s, p) for s, p in enumerate(self.process.initial_probabilities.double().tolist()) if p > 0]
        self.nodes: list[tuple[int, int, tuple[int, ...]]] = []
        self.edges: list[list[list[tuple[int, int, int, float]]]] = []
        nothing = (0,) * len(self.prior)
        layer = {(s, nothing, -1): self._add(0, s, nothing) for s, _ in self.first}
        life = episode * num_episodes
        for step in range(life):
            following: dict[tuple[int, tuple[int, ...], int], int] = {}
            anew = (step + 1) % episode == 0 and step + 1 < life
            for (state, counts, _), node in layer.items():
                self.edges[node] = [
                    self._outcomes(state, action, counts, anew, step + 1, following)
                    for action in range(self.process.num_actions)
                ]
                if len(self.nodes) > limit:
                    raise ValueError(
                        f"strategy 'exact': there are {len(self.nodes)} hyperstates (state and counts) after "
                        f"{step + 1} of {life} steps, more than max_beliefs = {limit}; give fewer episodes or a "
                        f"shorter horizon, or raise it"
                    )
            layer = following

    def _add(self, step: int, state: int, counts: tuple[int, ...]) -> int:
        self.nodes.append((step, state, counts))
        self.edges.append([])
        return len(self.nodes) - 1

    def _outcomes(
        self,
        state: int,
        action: int,
        counts: tuple[int, ...],
        anew: bool,
        step: int,
        following: dict[tuple[int, tuple[int, ...], int], int],
    ) -> list[tuple[int, int, int, float]]:
        """Returns ``(child, own next state, new first state or -1, probability)`` of every outcome."""
        found = []
        if self.ended[state]:
            slots = [(state, -1, 1.0)]
        else:
            indices, entries = (table[state][action] for table in self.moves)
            known: dict[tuple[int, int], float] = {}
            for after, entry, chance in zip(indices, entries, self.known[state][action], strict=True):
                known[after, entry] = known.get((after, entry), 0.0) + chance  # known rows may name a state twice
            slots = [(*slot, chance) for slot, chance in known.items()]
        for after, entry, chance in slots:
            if entry >= 0:
                members = self.members[self.rows[entry]]
                total = sum(self.prior[e] + counts[e] for e in members)
                chance = (self.prior[entry] + counts[entry]) / total
            if chance == 0:
                continue
            now = counts if entry < 0 else (*counts[:entry], counts[entry] + 1, *counts[entry + 1 :])
            for fresh, weight in self.first if anew else [(-1, 1.0)]:
                # Outcomes that leave no trace in the counts stay apart, since they may pay differently.
                key = (fresh if anew else after, now, after if anew and entry < 0 else -1)
                if key not in following:
                    following[key] = self._add(step, key[0], now)
                found.append((following[key], after, fresh, chance * weight))
        return found

    def life(self) -> BayesAdaptive:
        """Returns the process on the graph."""
        actions = self.process.num_actions
        width = max(len(outcomes) for edges in self.edges for outcomes in edges)
        filled = torch.zeros(len(self.nodes), actions, width, 3, dtype=torch.long)
        filled[..., 0] = torch.arange(len(self.nodes))[:, None, None]
        filled[..., 2] = -1
        chance = torch.zeros(len(self.nodes), actions, width, dtype=torch.float64)
        for node, edges in enumerate(self.edges):
            for action, outcomes in enumerate(edges):
                filled[node, action, : len(outcomes)] = torch.tensor([o[:3] for o in outcomes])
                chance[node, action, : len(outcomes)] = torch.tensor([o[3] for o in outcomes], dtype=torch.float64)
        device = self.process.terminal.device
        child, after, fresh = filled.to(device).unbind(-1)
        graph = _Edges(child, after, fresh, (chance > 0).to(device))
        steps, states, counts = zip(*self.nodes, strict=True)
        told = torch.tensor(counts, device=device).reshape(len(counts), -1)
        parts = torch.tensor(steps, device=device), torch.tensor(states, device=device), told
        # The process is made by the same function that puts the life into a given world.
        bare = BayesAdaptive(self.process, *parts, self.episode, graph)
        return replace(bare, process=bare._life(self.process, chance.to(device)))
