"""Acting in a world that is not known: episodes, what they cost, and what was believed when."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from rl_as_inference import exact
from rl_as_inference.arguments import checked_but
from rl_as_inference.checks import check_count, check_positive, check_temperature
from rl_as_inference.exploration.bayes_adaptive import bayes_adaptive
from rl_as_inference.exploration.conjugate import ConjugatePosterior
from rl_as_inference.exploration.exploration import Belief, Exploration
from rl_as_inference.exploration.layers import Layers, TablePolicy, greedy
from rl_as_inference.exploration.linear_worlds import explore_linear
from rl_as_inference.exploration.strategies import KLearning, PosteriorSampling, SoftQ, Vapor
from rl_as_inference.exploration.table_beliefs import Drawn, TableBeliefs, impossible
from rl_as_inference.host import in_turn
from rl_as_inference.nouns import Process, is_process
from rl_as_inference.processes import LinearGaussianMDP, MarkovDecisionProcess, TabularMDP
from rl_as_inference.processes.log_sums import log_or_minus_inf
from rl_as_inference.randomness import seeded
from rl_as_inference.reasoning.posterior_draws import check_family

__all__ = ["Strategy", "explore"]

Strategy = Literal["posterior_sampling", "k_learning", "vapor", "soft_q", "exact"]

_COLD = 1e-9
"""The temperature that stands for 0 where a soft plan is asked to be greedy, in units of the rewards."""


class _Acts(Protocol):
    """A strategy on tables."""

    def policy(self, beliefs: TableBeliefs) -> TablePolicy: ...


@checked_but("family", "seed", "strategy", "transition_term")
@in_turn
def explore(
    family: Callable[[], Any],
    truth: Process,
    *,
    strategy: Strategy = "posterior_sampling",
    num_episodes: int,
    seed: int = 0,
    num_seeds: int | None = None,
    reward_noise: float = 0.0,
    temperature: float | None = None,
    transition_term: Literal["mean", "dirichlet"] = "mean",
    reward_range: float | None = None,
    stop_when_solved: bool = False,
    max_beliefs: int = 100_000,
) -> Exploration:
    """Returns what an agent earned, lost and believed who acts in ``truth`` and knows no more of it than ``family``.

    Before each episode it plans with what it believes, and after it conditions what it believes on the transitions and
    rewards it saw. What it does with its ignorance is the strategy:

    - ``"posterior_sampling"``: acts as is best in a world drawn from its posterior (Strens 2000; Osband et al. 2013).
    - ``"k_learning"``: soft messages with the rewards' cumulants (O'Donoghue 2018, arXiv:1807.09647), see
      :class:`~rl_as_inference.exploration.strategies.KLearning`.
    - ``"vapor"``: a convex program over occupancies (Tarbouriech et al. 2023, arXiv:2311.13294), see
      :class:`~rl_as_inference.exploration.strategies.Vapor`; needs the extra ``vapor``.
    - ``"soft_q"``: the soft plan of the mean world, which takes ignorance for luck: the counterexample.
    - ``"exact"``: the plan of the Bayes-adaptive process over all its episodes, where beliefs can be enumerated; see
      :func:`bayes_adaptive`.

    Finite families may use any of them (``"exact"``: with known rewards and few counts), linear-Gaussian ones
    ``"posterior_sampling"``.

    Args:
        family: a Pyro program without arguments that draws what is unknown and returns a process with conjugate
            unknowns, see :class:`ConjugatePosterior`.
        truth: the world, with the family's spaces and horizon. One without tables (a process in parts, a
            :class:`~rl_as_inference.GymnasiumProcess`) can be acted in, but its regret is not known.
        strategy: as above.
        num_episodes: ≥ 1.
        seed: of worlds drawn, actions and outcomes.
        num_seeds: how many independent runs, side by side; None for one, whose answers have no axis of runs.
        reward_noise: the standard deviation of Gaussian noise with which the agent sees rewards, in reward units. With
            0 a reward seen once is known. Returns are without it.
        temperature: in reward units per nat. Of ``"soft_q"``: α, by default the family's. Of ``"k_learning"``: a fixed
            τ; by default that which makes its bound least, anew each episode. Of ``"exact"``: α, by default 0. Others
            have none.
        transition_term: of ``"k_learning"``, what unknown transitions add to its values.
        reward_range: of ``"k_learning"`` with ``transition_term="dirichlet"``, the length of an interval in which all
            expected rewards are known to lie, in reward units.
        stop_when_solved: stop once every run is solved (see :attr:`Exploration.solved_after`), as far as
            ``num_episodes``.
        max_beliefs: of ``"exact"``, how many hyperstates are allowed.

    Raises:
        ValueError: for a bad argument; a family that is not conjugate, or cannot have the strategy; a truth with other
            spaces or another horizon (said which), or with a transition that the family holds impossible (named).
        ImportError: for ``"vapor"`` without its packages.

    Example:
        >>> from rl_as_inference import models
        >>> found = explore(models.families.deep_sea(6), models.deep_sea(6), num_episodes=60)
        >>> found.returns.shape, round(float(found.returns[-1]), 2), found.solved_after < 60
        (torch.Size([60]), 0.99, True)
    """
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy must be one of {', '.join(map(repr, get_args(Strategy)))}; got {strategy!r}")
    check_family(family, seed)
    check_count("num_episodes", num_episodes)
    check_count("max_beliefs", max_beliefs)
    if num_seeds is not None:
        check_count("num_seeds", num_seeds)
    if transition_term not in ("mean", "dirichlet"):
        raise ValueError(f"transition_term must be 'mean' or 'dirichlet', got {transition_term!r}")
    if reward_range is not None:
        if strategy != "k_learning" or transition_term != "dirichlet":
            raise ValueError(
                "reward_range belongs to strategy 'k_learning' with transition_term='dirichlet'; leave it out"
            )
        check_positive("reward_range", reward_range)
    if temperature is not None:
        check_temperature(temperature)
        if strategy in ("posterior_sampling", "vapor"):
            raise ValueError(f"temperature: strategy {strategy!r} has none; leave it out")
    prior = ConjugatePosterior.exactly(family, reward_noise=reward_noise)
    prior.structure.check_told()
    _check_alike(prior.structure.process, truth)
    runs = 1 if num_seeds is None else num_seeds
    with seeded(seed), torch.no_grad():
        if isinstance(prior.structure.process, LinearGaussianMDP):
            if strategy != "posterior_sampling":
                raise ValueError(
                    f"strategy {strategy!r} needs a finite family; a linear-Gaussian one has 'posterior_sampling'"
                )
            found = explore_linear(prior, truth, num_episodes, runs)
        elif strategy == "exact":
            found = _live(prior, truth, num_episodes, runs, temperature, max_beliefs)
        else:
            acts: _Acts
            if strategy == "posterior_sampling":
                acts = PosteriorSampling()
            elif strategy == "k_learning":
                acts = KLearning(temperature, transition_term, reward_range)
            elif strategy == "vapor":
                acts = Vapor()
            else:
                acts = SoftQ(float(prior.structure.process.temperature) if temperature is None else temperature)
            found = _act(acts, prior, truth, num_episodes, runs, stop_when_solved)
    found = replace(found, strategy=strategy)
    return found.alone() if num_seeds is None else found


def _act(
    strategy: _Acts, prior: ConjugatePosterior, truth: Process, num_episodes: int, runs: int, stop: bool
) -> Exploration:
    """Returns the episodes of a strategy on tables."""
    beliefs = TableBeliefs(prior, runs)
    known = _Known(truth) if isinstance(truth, TabularMDP) else None
    if known is not None:
        known.check_support(beliefs)
    elif runs > 1 and not isinstance(truth, MarkovDecisionProcess):
        raise ValueError(f"num_seeds: {truth.name} runs one agent at a time; call explore for each seed")
    returns, regret, held = [], [], [Belief.of(beliefs)]
    total = beliefs.counts.new_zeros(runs)
    done = total > 0
    for episode in range(1, num_episodes + 1):
        policy = strategy.policy(beliefs)
        walks = truth.rollout(policy, runs)
        returns.append(walks.returns(discounted=True).double())
        if known is not None:
            regret.append(known.best - known.value(policy))
            total += regret[-1]
            done |= total / episode < Exploration.threshold * (known.best - known.prior)
        if prior.reward_noise:
            noise = prior.reward_noise * torch.randn_like(walks.rewards)
            walks = replace(walks, rewards=walks.rewards + noise)
        beliefs.seen(walks)
        last = episode == num_episodes or (stop and bool(done.all()))
        if last or episode & (episode - 1) == 0:
            held.append(Belief.of(beliefs))
        if last:
            break
    return Exploration(
        torch.stack(returns, 1),
        torch.stack(regret, 1) if regret else None,
        None if known is None else known.best,
        None if known is None else known.prior,
        held,
    )


class _Known:
    """A world whose tables are known, if not to the agent."""

    def __init__(self, truth: TabularMDP) -> None:
        self.truth = truth
        indices, chance = truth.kernel.rows()
        most = int((chance > 0).sum(-1).max())
        if most < chance.shape[-1]:  # few of many successors: no need to look at all
            chance, slot = chance.topk(most, dim=-1)
            indices = indices.gather(-1, slot)
        self.indices, self.possible = indices, chance > 0
        self.layers = Layers(
            indices,
            self.possible,
            truth.initial_probabilities.double(),
            truth.terminal,
            truth.finite_horizon("explore"),
            truth.discount,
            log_or_minus_inf(truth.action_prior.double()),
        )
        chance = chance.double() / chance.double().sum(-1, keepdim=True)
        self.world = Drawn(chance[None], truth.expected_reward().double()[None])
        value, _ = self.layers.backward(self._backup, greedy, 1)
        self.best = float(value[0] @ self.layers.start)
        self.prior = float(exact.expected_return(truth, None))

    def _backup(self, value: Tensor, t: int) -> Tensor:
        layers, world = self.layers, self.world
        return layers.at(world.reward, t) + layers.expect(layers.discount * value, layers.at(world.transition, t), t)

    def value(self, policy: TablePolicy) -> Tensor:
        """Returns what each run's policy earns on average, ``(B,)``."""
        return self.layers.evaluate(policy, self.world.transition, self.world.reward)

    def check_support(self, beliefs: TableBeliefs) -> None:
        """Raises ValueError for what may happen here and the family holds impossible, or the other way for actions."""
        first = (self.layers.initial > 0) & ~(beliefs.layers.initial > 0)
        if bool(first.any()):
            raise ValueError(f"truth: it may begin in state {int(first.nonzero()[0])}, in which the family never does")
        if not torch.equal(self.truth.terminal, beliefs.process.terminal):
            state = int((self.truth.terminal != beliefs.process.terminal).nonzero()[0])
            raise ValueError(f"truth: state {state} is terminal there or in the family, and not in the other")
        allowed = beliefs.layers.log_prior > -torch.inf
        forbidden = allowed & (self.layers.log_prior == -torch.inf) & ~self.truth.terminal[:, None]
        if bool(forbidden.any()):
            state, action = (int(i) for i in forbidden.nonzero()[0])
            raise ValueError(
                f"truth: its action prior forbids action {action} in state {state}, and that of the family does not; "
                f"give both the same"
            )
        for t in range(self.layers.horizon):
            states = self.layers.states[t]
            states = states[~self.truth.terminal[states]]
            after, chance = self.indices[states], self.possible[states]
            held = beliefs.indices[states][..., None, :] == after[..., None]
            held = (held & beliefs.possible[states][..., None, :]).any(-1)
            if bool((bad := chance & ~held).any()):
                row, action, slot = (int(i) for i in bad.nonzero()[0])
                raise ValueError(impossible(int(states[row]), action, int(after[row, action, slot])))
            if t and states is self.layers.states[t - 1]:
                break


def _live(
    prior: ConjugatePosterior,
    truth: Process,
    num_episodes: int,
    runs: int,
    temperature: float | None,
    max_beliefs: int,
) -> Exploration:
    """Returns a life by the exact plan of the Bayes-adaptive process."""
    if not isinstance(truth, TabularMDP):
        raise ValueError(f"strategy 'exact' needs the tables of truth; {truth.name} has none")
    known = _Known(truth)
    known.check_support(TableBeliefs(prior, 1))
    life = bayes_adaptive(prior, num_episodes=num_episodes, max_beliefs=max_beliefs)
    plan = exact.plan(life.process.at_temperature(_COLD if temperature is None else temperature))
    world, episode = life.under(truth), life.episode
    walks = world.rollout(plan, runs)
    # What the rest of the episode is worth in each hyperstate, in the world as it is.
    rest = torch.zeros_like(world.initial_probabilities)
    reward, policy = world.expected_reward(), plan.policy
    for step in reversed(range(num_episodes * episode)):
        here = life.steps == step
        onward = 0.0 if (step + 1) % episode == 0 else world.kernel.expect(rest)[here]
        rest[here] = (policy[step][here] * (reward[here] + onward)).sum(-1)
    begins = walks.states[: num_episodes * episode : episode]
    # An episode's policy is one for all states that it may begin in, and is worth what it is on average over them.
    worth, first = torch.zeros_like(rest), truth.initial_probabilities.double()
    for step in range(0, num_episodes * episode, episode):
        here = (life.steps == step).nonzero().squeeze(-1)
        _, belief = life.counts[here].unique(dim=0, return_inverse=True)
        state = life.states[here]
        pair = belief * len(first) + state  # some are there more than once
        shares = first[state] * rest[here] / torch.bincount(pair)[pair]
        worth[here] = torch.zeros_like(shares).index_add(0, belief, shares)[belief]
    returns = walks.rewards.unflatten(0, (num_episodes, episode)).sum(1)
    beliefs, held = TableBeliefs(prior, runs), []
    state = life.states[walks.states[:-1]]
    done = torch.arange(runs, device=state.device).expand_as(state), state, walks.actions
    acted = (~truth.terminal[state]).double()
    for e in sorted({0, num_episodes, *(2**k for k in range(num_episodes.bit_length()))}):
        tried = torch.zeros_like(beliefs.counts).index_put_(
            tuple(each[: e * episode] for each in done), acted[: e * episode], accumulate=True
        )
        held.append(Belief.of(beliefs.at(e, life.counts[walks.states[e * episode]], tried)))
    return Exploration(returns.T, known.best - worth[begins].T, known.best, known.prior, held)


def _check_alike(own: Any, truth: Any) -> None:
    """Raises ValueError unless the world has the spaces and the horizon of the family."""
    if not is_process(truth):
        raise ValueError(f"truth must be a process, got {type(truth).__name__}")
    for name in ("state_space", "action_space", "horizon"):
        ours, theirs = getattr(own, name), getattr(truth, name)
        if ours != theirs:
            raise ValueError(f"truth: its {name} is {theirs}, and that of the family's process is {ours}")
    ours, theirs = float(own.discount), float(truth.discount)
    if not math.isclose(ours, theirs, rel_tol=1e-6):
        raise ValueError(f"truth: its discount is {theirs:g}, and that of the family's process is {ours:g}")
