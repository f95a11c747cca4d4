"""Finite problems of a hidden state: exact answers against enumeration of all trajectories and all histories."""

import itertools
import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import rl_as_inference as rlai
from rl_as_inference import History, TabularPOMDP, exact
from rl_as_inference.exact.belief_tree import BeliefEvaluation

F = torch.float64


def random_pomdp(seed: int, dtype: torch.dtype = F) -> TabularPOMDP:
    """Returns a small problem: endings, discount, an action prior of its own, both forms of observations."""
    g = np.random.default_rng(seed)
    states, actions, seen, horizon = (int(g.integers(low, high)) for low, high in ((1, 4), (1, 3), (1, 4), (1, 4)))

    def rows(*shape: int) -> Any:
        weights = g.random(shape) * (g.random(shape) > 0.3) + 1e-3 * (g.random(shape) > 0.5)
        weights[..., 0] += weights.sum(-1) == 0
        return torch.tensor(weights / weights.sum(-1, keepdims=True), dtype=dtype)

    terminal = torch.tensor(g.random(states) < 0.25) if g.random() < 0.5 else torch.zeros(states, dtype=torch.bool)
    reward = torch.tensor(g.standard_normal((states, actions, states)[: int(g.integers(2, 4))]), dtype=dtype)
    return TabularPOMDP(
        rows(states, actions, states),
        torch.where(terminal.reshape(-1, *(1,) * (reward.dim() - 1)), 0.0, reward),
        rows(states),
        rows(states, seen) if g.random() < 0.5 else rows(actions, states, seen),
        horizon=horizon,
        discount=float(g.choice([1.0, 0.5, 0.9, 0.0], p=[0.4, 0.2, 0.3, 0.1])),
        temperature=float(g.choice([0.3, 1.0, 5.0])),
        action_prior=rows(actions) if g.random() < 0.5 else None,
        terminal=terminal,
    )


class Tables:
    """A process's tables as numpy arrays: all that the brute force knows of it."""

    def __init__(self, pomdp: TabularPOMDP) -> None:
        mdp = pomdp.fully_observed
        self.P, self.p0 = mdp.kernel.dense().numpy(), mdp.initial_probabilities.numpy()
        reward = mdp.reward_table
        self.r = (reward if reward.dim() == 3 else reward[:, :, None].expand(*self.P.shape)).numpy()
        self.O, self.first = pomdp.observation_by_action.numpy(), pomdp.observation_table.dim() == 2
        self.prior, self.alpha = mdp.action_prior[0].numpy(), float(mdp.temperature)
        self.gamma, self.T, self.terminal = float(mdp.discount), mdp.horizon or 0, mdp.terminal.numpy()

    def starts(self) -> list[tuple[float, int, tuple[int, ...]]]:
        """Returns probability, state and history of all beginnings of episodes that go on."""
        S, O = self.O.shape[1:]  # noqa: E741
        if not self.first:
            return [(self.p0[s], s, ()) for s in range(S) if self.p0[s] > 0 and not self.terminal[s]]
        pairs = itertools.product(range(S), range(O))
        return [
            (self.p0[s] * self.O[0, s, y], s, (y,))
            for s, y in pairs
            if self.p0[s] * self.O[0, s, y] > 0 and not self.terminal[s]
        ]

    def elbo(self, policy: Any) -> float:
        """Returns the ELBO of ``policy(history) -> probabilities`` as a sum over all trajectories."""
        total = 0.0
        stack = [(p, s, h, 0) for p, s, h in self.starts()]
        while stack:
            p, s, h, t = stack.pop()
            chances = policy(h)
            for a, q in enumerate(chances):
                if q == 0:
                    continue
                cost = math.log(q) - (math.log(self.prior[a]) if self.prior[a] > 0 else -math.inf)
                total -= self.gamma**t * p * q * cost
                for after in range(len(self.p0)):
                    move = p * q * self.P[s, a, after]
                    if move == 0:
                        continue
                    total += self.gamma**t * move * self.r[s, a, after] / self.alpha
                    if t + 1 < self.T and not self.terminal[after]:
                        stack += [
                            (move * self.O[a, after, y], after, (*h, a, y), t + 1)
                            for y in range(self.O.shape[-1])
                            if self.O[a, after, y] > 0
                        ]
        return total

    def best(self) -> tuple[float, dict[tuple[int, ...], Any]]:
        """Returns the largest ELBO and its policy by history, from joint weights ``p(s, h | actions)``."""
        rules: dict[tuple[int, ...], Any] = {}

        def value(weights: Any, h: tuple[int, ...], t: int) -> float:
            """Returns ``p(h) V(h)``."""
            total = weights.sum()
            q = np.full(len(self.prior), -math.inf)
            for a in np.flatnonzero(self.prior):
                q[a] = sum(weights[s] * self.P[s, a] @ self.r[s, a] for s in range(len(weights))) / self.alpha
                if t + 1 < self.T:
                    after = (weights @ self.P[:, a]) * ~self.terminal
                    for y in range(self.O.shape[-1]):
                        joint = after * self.O[a, :, y]
                        if joint.sum() > 0:
                            q[a] += self.gamma * value(joint, (*h, int(a), y), t + 1)
            scores = (
                q / total + np.log(np.where(self.prior > 0, self.prior, 1.0)) + np.where(self.prior > 0, 0, -math.inf)
            )
            top = scores.max()
            soft = top + math.log(np.exp(scores - top).sum())
            rules[h] = np.exp(scores - soft)
            return float(total * soft)

        beginnings: dict[tuple[int, ...], Any] = {}
        for p, s, h in self.starts():
            beginnings.setdefault(h, np.zeros(len(self.p0)))[s] += p
        return sum(value(weights, h, 0) for h, weights in beginnings.items()), rules


def by_history(rules: Any) -> Any:
    """Returns a policy of histories from ``rules(history) -> probabilities``."""

    def policy(history: History, t: int) -> Any:
        seen, done = history.observations, history.actions
        count = seen.shape[1] if seen.dim() > 1 else done.shape[1] if done.dim() > 1 else 1
        first = len(seen) > len(done)
        rows = []
        for n in range(count):
            h: tuple[int, ...] = (int(seen[0, n]),) if first else ()
            for k in range(len(done)):
                h = (*h, int(done[k, n]), int(seen[k + first, n]))
            rows.append(torch.as_tensor(rules(h)))
        return dist.Categorical(torch.stack(rows))

    return policy


@pytest.mark.parametrize("block", range(10))
def test_the_tree_of_beliefs_is_the_best_policy_of_the_history(block: int) -> None:
    """Two hundred and fifty problems; all in double precision, to 1e-8 of the size of the terms."""
    for seed in range(25 * block, 25 * block + 25):
        pomdp = random_pomdp(seed)
        tables = Tables(pomdp)
        best, rules = tables.best()
        plan = exact.plan(pomdp)
        scale = 1 + abs(best)
        assert abs(float(plan.objective) - best) < 1e-8 * scale, seed
        assert abs(tables.elbo(lambda h: rules[h]) - best) < 1e-8 * scale, seed  # noqa: B023
        assert abs(float(exact.elbo(pomdp, plan)) - best) < 1e-8 * scale, seed
        assert abs(float(exact.elbo(pomdp, plan, sees="history")) - best) < 1e-8 * scale, seed

        g = np.random.default_rng(seed)
        drawn: dict[tuple[int, ...], Any] = {}

        def some(h: tuple[int, ...], drawn: Any = drawn, g: Any = g, prior: Any = tables.prior) -> Any:
            if h not in drawn:
                weights = prior * (g.random(len(prior)) + 0.1)
                drawn[h] = weights / weights.sum()
            return drawn[h]

        right = tables.elbo(some)
        found = float(exact.elbo(pomdp, by_history(some), sees="history"))
        assert abs(found - right) < 1e-8 * (1 + abs(right)), seed
        assert right <= best + 1e-9 * scale
        assert best <= float(exact.optimal_elbo(pomdp.fully_observed)) + 1e-9 * scale


@pytest.mark.parametrize("seed", [3, 11, 24, 31])
def test_beliefs_are_those_of_bayes(seed: int) -> None:
    pomdp = random_pomdp(seed)
    tables = Tables(pomdp)
    torch.manual_seed(seed)
    draws = pomdp.rollout(None, 20)
    assert draws.observations is not None
    living = draws.mask[-1] & ~pomdp.fully_observed.terminal[draws.states[-1]]
    draws = draws.select(living)
    assert draws.num_trajectories
    found = exact.belief(pomdp, draws.observations, draws.actions)
    for n in range(draws.num_trajectories):
        weights = tables.p0 * ~tables.terminal
        seen = draws.observations[:, n].tolist()
        if tables.first:
            weights = weights * tables.O[0, :, seen.pop(0)]
        for a, y in zip(draws.actions[:, n].tolist(), seen, strict=True):
            weights = (weights @ tables.P[:, a]) * ~tables.terminal * tables.O[a, :, y]
        assert torch.allclose(found[-1, n], torch.tensor(weights / weights.sum()), atol=1e-12)


class TestSlopes:
    def test_against_differences(self) -> None:
        """Of the largest ELBO along a random direction of all tables, and of one policy's, five problems."""
        for seed in (2, 5, 8, 19, 40):
            pomdp = random_pomdp(seed)
            g = torch.Generator().manual_seed(seed)
            mdp = pomdp.fully_observed
            given = [mdp.kernel.dense(), mdp.reward_table, mdp.initial_probabilities, pomdp.observation_table]
            noise = [torch.randn(x.shape, generator=g, dtype=F) for x in given]
            # Within the distributions: what is impossible stays so, and rows sum to one.
            ways = [
                n if i == 1 else x * (n - (n * x).sum(-1, keepdim=True))
                for i, (x, n) in enumerate(zip(given, noise, strict=True))
            ]

            def made(step: Any, given: Any = given, ways: Any = ways, pomdp: Any = pomdp) -> TabularPOMDP:
                moved = [x + step * w for x, w in zip(given, ways, strict=True)]
                old = pomdp.fully_observed
                return TabularPOMDP(
                    *moved, horizon=old.horizon, discount=old.discount, temperature=old.temperature,
                    action_prior=old.action_prior[0], terminal=old.terminal,
                )  # fmt: skip

            lean = torch.randn(pomdp.num_states, pomdp.num_actions, generator=g, dtype=F)

            def policy(belief: Tensor, t: int, lean: Any = lean, pomdp: Any = pomdp) -> Any:
                # One that does not change with the belief, since slopes are those under the answers given now.
                return dist.Categorical(logits=(pomdp.log_action_prior + lean[t % len(lean)]).expand(len(belief), -1))

            for value in (exact.optimal_elbo, lambda p, rule=policy: exact.elbo(p, rule)):
                step = torch.zeros((), dtype=F, requires_grad=True)
                (slope,) = torch.autograd.grad(value(made(step)), step)
                near = [float(value(made(x))) for x in (-2e-5, -1e-5, 1e-5, 2e-5)]
                right = (8 * (near[2] - near[1]) - (near[3] - near[0])) / 12e-5
                assert abs(float(slope) - right) < 1e-7 * (1 + abs(right)), seed

    def test_no_curvature_is_made_up(self) -> None:
        pomdp = random_pomdp(2)
        reward = pomdp.fully_observed.reward_table.clone().requires_grad_()
        mdp = pomdp.fully_observed
        learned = TabularPOMDP(
            mdp.kernel.dense(), reward, mdp.initial_probabilities, pomdp.observation_table, horizon=mdp.horizon
        )
        with pytest.raises(ValueError, match="first derivatives alone"):
            torch.autograd.grad(exact.optimal_elbo(learned), reward, create_graph=True)

    def test_a_policy_learns_by_the_exact_slope(self) -> None:
        pomdp = tiger(4)
        policy = rlai.guides.BeliefPolicy(pomdp)
        rlai.fit(pomdp, policy, steps=300, estimator="exact", seed=0, progress=False)
        assert float((exact.optimal_elbo(pomdp) - exact.elbo(pomdp, policy)).detach()) < 0.02


def tiger(horizon: int, temperature: float = 10.0) -> TabularPOMDP:
    """Returns the tiger behind one of two doors: listen, or open one."""
    stay = torch.eye(2, dtype=F)[:, None].repeat(1, 3, 1)
    stay[:, 1:] = 0.5
    heard, nothing = torch.tensor([[0.85, 0.15], [0.15, 0.85]], dtype=F), torch.full((2, 2), 0.5, dtype=F)
    return TabularPOMDP(
        stay,
        torch.tensor([[-1.0, -100.0, 10.0], [-1.0, 10.0, -100.0]], dtype=F),
        torch.tensor([0.5, 0.5], dtype=F),
        torch.stack([heard, nothing, nothing]),
        horizon=horizon,
        temperature=temperature,
    )


def test_without_softness_it_is_the_hard_recursion() -> None:
    """α → 0: the largest return of Smallwood & Sondik's recursion over beliefs, written here for the tiger."""

    def best(left: float, steps: int) -> float:
        if steps == 0:
            return 0.0
        new = best(0.5, steps - 1)
        values = [-100 * left + 10 * (1 - left) + new, 10 * left - 100 * (1 - left) + new]
        onward = 0.0
        for heard in (0.85, 0.15):
            chance = left * heard + (1 - left) * (1 - heard)
            onward += chance * best(left * heard / chance, steps - 1)
        return max(*values, -1 + onward)

    alpha = 1e-4
    for horizon in (1, 2, 3, 5):
        plan = exact.plan(tiger(horizon, alpha))
        # Choosing for certain among three actions costs log 3 a step at most.
        assert 0 <= best(0.5, horizon) - alpha * float(plan.objective) < 1.01 * alpha * horizon * math.log(3)


class TestTree:
    def test_equal_beliefs_are_one(self) -> None:
        plan = exact.plan(tiger(10))
        # The difference of how often each side was heard, since the last door.
        assert [len(beliefs) for beliefs in plan.beliefs] == list(range(1, 20, 2))
        assert plan.num_beliefs == 100

    def test_a_tree_that_is_too_large_says_how_large(self) -> None:
        g = torch.Generator().manual_seed(0)
        tables = [torch.rand(shape, generator=g, dtype=F).softmax(-1) for shape in ((6, 4, 6), (6,), (6, 5))]
        pomdp = TabularPOMDP(tables[0], torch.rand(6, 4, generator=g, dtype=F), *tables[1:], horizon=30)
        with pytest.raises(ValueError, match=r"grows 20-fold a step, so that it would take about \d"):
            exact.plan(pomdp)

    def test_beliefs_off_the_tree_are_planned_anew(self) -> None:
        """A plan for fewer steps that begins there says the same."""
        plan = exact.plan(tiger(5))
        belief = torch.tensor([[0.3, 0.7], [0.5, 0.5]], dtype=F)
        for row in belief:
            start = tiger(3)
            there = TabularPOMDP(
                start.fully_observed.kernel.dense(), start.fully_observed.reward_table, row, start.observation_table,
                horizon=3, temperature=10.0,
            )  # fmt: skip
            assert torch.allclose(plan.policy(row, 2).probs, exact.plan(there).log_policy[0][0].exp(), atol=1e-12)
        assert plan.policy(belief[None].expand(4, -1, -1), 2).batch_shape == (4, 2)

    def test_a_rollout_acts_by_the_tree(self) -> None:
        """100,000 trajectories, seed 0: z below 4."""
        torch.manual_seed(0)
        pomdp = tiger(6)
        plan = exact.plan(pomdp)
        found = rlai.estimate_elbo(pomdp, plan, 100_000)
        assert abs(found.mean - float(plan.objective)) < 4 * found.standard_error

    def test_what_a_policy_does_in_parts(self) -> None:
        pomdp = random_pomdp(12)
        found = exact.evaluate(pomdp, None)
        assert isinstance(found, BeliefEvaluation)
        assert abs(float(found.entropy - found.prior_cost)) < 1e-12  # the action prior costs nothing
        assert torch.allclose(found.objective, exact.elbo(pomdp.fully_observed, None))  # and looks at nothing


class TestBadInput:
    def test_what_cannot_be_seen_is_named(self) -> None:
        sure = torch.eye(2, dtype=F)
        pomdp = TabularPOMDP(
            sure[:, None].repeat(1, 1, 1),
            torch.zeros(2, 1, dtype=F),
            torch.tensor([1.0, 0.0], dtype=F),
            sure,
            horizon=2,
        )
        with pytest.raises(ValueError, match="observation 1 at step 2 has probability 0"):
            exact.belief(pomdp, torch.tensor([0, 0, 1]), torch.tensor([0, 0]))

    def test_tables(self) -> None:
        good = tiger(2)
        given = (
            good.fully_observed.kernel.dense(),
            good.fully_observed.reward_table,
            torch.tensor([0.5, 0.5], dtype=F),
        )
        with pytest.raises(ValueError, match="observation must have rows that sum to one"):
            TabularPOMDP(*given, torch.tensor([[0.5, 0.4], [0.5, 0.5]], dtype=F), horizon=2)
        with pytest.raises(ValueError, match=r"observation must have shape \(2, O\) or \(3, 2, O\)"):
            TabularPOMDP(*given, torch.eye(3, dtype=F), horizon=2)
        with pytest.raises(ValueError, match="gives it away"):
            TabularPOMDP(*given, torch.eye(2, dtype=F), horizon=2, action_prior=torch.ones(2, 3) / 3)

    def test_policies(self) -> None:
        pomdp = tiger(3)
        with pytest.raises(ValueError, match="state of tabular, partially observed is hidden"):
            exact.elbo(pomdp, torch.ones(2, 3) / 3)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="which is all that it may look at"):
            pomdp.rollout(rlai.guides.TabularPolicy(2, 3), 5)
        with pytest.raises(ValueError, match="to 2 actions"):
            exact.elbo(pomdp, lambda belief, t: dist.Categorical(logits=belief))
        with pytest.raises(ValueError, match="dynamics='posterior' is a policy of the state"):
            exact.plan(pomdp, "posterior")
        with pytest.raises(ValueError, match="sees must be"):
            exact.elbo(pomdp, None, sees="state")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"belief must have shape \(…, 2\)"):
            exact.plan(pomdp).policy(torch.ones(3) / 3, 0)


class TestStationary:
    """Without horizon, by bounds; what is right is the tree of so many steps that the rest is nothing."""

    @pytest.mark.parametrize("seed", range(8))
    def test_bounds_hold(self, seed: int) -> None:
        """Eight random problems of two or three states at γ = 0.3, against the tree of seven steps."""
        g = torch.Generator().manual_seed(seed)
        states, actions, seen, steps, gamma = 2 + seed % 2, 2, 2, 7, 0.3
        rows = [
            torch.rand(shape, generator=g, dtype=F) + 0.05
            for shape in ((states, actions, states), (states,), (states, seen), (actions,))
        ]
        transition, initial, observation, prior = (x / x.sum(-1, keepdim=True) for x in rows)
        reward = torch.randn(states, actions, generator=g, dtype=F)
        terminal = torch.zeros(states, dtype=torch.bool)
        if seed % 4 > 1:
            terminal[-1], reward[-1] = True, 0.0

        def made(horizon: int | None) -> TabularPOMDP:
            return TabularPOMDP(
                transition, reward, initial, observation,
                horizon=horizon, discount=gamma, temperature=0.5, action_prior=prior, terminal=terminal,
            )  # fmt: skip

        plan, right = exact.plan(made(None)), float(exact.optimal_elbo(made(steps)))
        rest = gamma**steps / (1 - gamma) * (float(reward.abs().max()) / 0.5 + 1)
        assert float(plan.objective) <= right + rest
        assert right <= float(plan.objective + plan.error) + rest
        assert float(plan.error) < 0.02
        # The plan looks ahead from the bound below, so that it does no worse than that.
        acted = float(exact.elbo(made(steps), plan))
        assert float(plan.objective) - rest <= acted <= right + 1e-9

    def test_the_tiger(self) -> None:
        """γ = 0.9, against the tree of 150 steps, whose beliefs are few."""
        few = tiger(150)
        given = (
            few.fully_observed.kernel.dense(),
            few.fully_observed.reward_table,
            few.fully_observed.initial_probabilities,
        )
        options = {"discount": 0.9, "temperature": 10.0}
        plan = exact.plan(TabularPOMDP(*given, few.observation_table, **options))
        tree = exact.plan(TabularPOMDP(*given, few.observation_table, horizon=150, **options))
        assert float(plan.objective) - 1e-4 <= float(tree.objective) <= float(plan.objective + plan.error) + 1e-4
        assert float(plan.error) < 1e-3
        belief = torch.tensor([[0.5, 0.5], [0.97, 0.03], [0.2, 0.8]], dtype=F)
        assert torch.allclose(plan.policy(belief, 0).probs, tree.policy(belief, 0).probs, atol=2e-3)

    def test_many_states_are_refused(self) -> None:
        states = 700
        chain = torch.eye(states, dtype=F).roll(1, 1)[:, None]
        pomdp = TabularPOMDP(
            chain, torch.zeros(states, 1, dtype=F), torch.ones(states, dtype=F) / states, chain[:, 0], discount=0.9
        )
        with pytest.raises(ValueError, match="give the process a horizon"):
            exact.plan(pomdp)
