"""What an agent that does not see everything wants and believes, against brute force over histories."""

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from rl_as_inference import LinearGaussianPOMDP, TabularMDP, TabularPOMDP, exact, infer_agent
from rl_as_inference.reasoning.batching import batched_gradient
from rl_as_inference.reasoning.demonstrations import read_demonstrations
from rl_as_inference.reasoning.hidden_demonstrations import as_hidden
from rl_as_inference.reasoning.unknowns import Unknowns

F64 = torch.float64
GOING = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=F64)


def tables(seed: int, sees_first: bool = True) -> dict[str, Any]:
    """Four states, of which the last ends, two actions, two observations."""
    gen = torch.Generator().manual_seed(seed)
    moves = torch.rand(4, 2, 4, dtype=F64, generator=gen) ** 2
    seen = torch.rand(*(() if sees_first else (2,)), 4, 2, dtype=F64, generator=gen) + 0.1
    return {
        "transition": moves / moves.sum(-1, keepdim=True),
        "reward": torch.randn(4, 2, dtype=F64, generator=gen) * GOING[:, None],
        "initial": torch.tensor([0.5, 0.2, 0.3, 0.0], dtype=F64),
        "observation": seen / seen.sum(-1, keepdim=True),
        "horizon": 3,
        "discount": 0.9,
        "terminal": GOING == 0,
    }


def after(pomdp: TabularPOMDP, belief: Tensor, action: int, seen: int) -> Tensor:
    """p(s', going on, y | b, a), which is not divided by its sum."""
    going = (~pomdp.fully_observed.terminal).double()
    return (
        belief @ pomdp.fully_observed.kernel.dense()[:, action] * going * pomdp.observation_by_action[action, :, seen]
    )


def log_policy(pomdp: TabularPOMDP, belief: Tensor, t: int) -> Tensor:
    """log π_t(a|b) by the messages as they are written down, history by history: no two are one."""
    q = belief @ pomdp.fully_observed.expected_reward() / pomdp.temperature
    assert pomdp.horizon is not None
    if t + 1 < pomdp.horizon:
        joint = [[after(pomdp, belief, a, y) for y in range(pomdp.num_observations)] for a in range(pomdp.num_actions)]
        values = [
            [j.sum() * soft_v(pomdp, j / j.sum(), t + 1) if float(j.detach().sum()) > 0 else 0 * q[0] for j in row]
            for row in joint
        ]
        q = q + pomdp.discount * torch.stack([torch.stack(row).sum() for row in values])
    return (pomdp.log_action_prior + q).log_softmax(0)


def soft_v(pomdp: TabularPOMDP, belief: Tensor, t: int) -> Tensor:
    q = log_policy(pomdp, belief, t)  # V = Q + log p - log π, for any action
    reward = belief @ pomdp.fully_observed.expected_reward()[:, 0] / pomdp.temperature
    assert pomdp.horizon is not None
    onward = 0 * reward
    if t + 1 < pomdp.horizon:
        for y in range(pomdp.num_observations):
            joint = after(pomdp, belief, 0, y)
            if float(joint.detach().sum()) > 0:
                onward = onward + joint.sum() * soft_v(pomdp, joint / joint.sum(), t + 1)
    return pomdp.log_action_prior[0] + reward + pomdp.discount * onward - q[0]


def by_hand(pomdp: TabularPOMDP, seen: list[int], actions: list[int]) -> Tensor:
    """log p(a_0 …) given what was seen, of which the first is unused where nothing is seen first."""
    start = pomdp.fully_observed.initial_probabilities * (~pomdp.fully_observed.terminal).double()
    belief = start * pomdp.observation_table[:, seen[0]] if pomdp.sees_first else start
    total = belief.new_zeros(())
    for t, action in enumerate(actions):
        belief = belief / belief.sum()
        total = total + log_policy(pomdp, belief, t)[action]
        if t + 1 < len(actions):
            belief = after(pomdp, belief, action, seen[t + 1])
    return total


@pytest.mark.parametrize("sees_first", [True, False])
@pytest.mark.parametrize("lost", [None, "initial", "observation", "transition"])
def test_likelihood_and_slopes_against_the_tree_of_histories(sees_first: bool, lost: str | None) -> None:
    """To 1e-9, at values where many beliefs are equal by chance (u = 0), and elsewhere; batched rows agree."""
    given = tables(1, sees_first)

    def family() -> TabularPOMDP:
        flat = dist.ImproperUniform(dist.constraints.independent(dist.constraints.real, 1), (), (5,))
        u = pyro.sample("u", flat)
        parts = dict(given)
        parts["reward"] = given["reward"] + u[:4, None] * GOING[:, None]
        parts["temperature"] = u[4].exp()
        if lost == "initial":  # uniform at u = 0
            parts["initial"] = torch.cat([u[:3].softmax(0), u.new_zeros(1)])
        elif lost == "observation":  # nothing is told at u = 0
            told = (u[:4, None] * torch.tensor([1.0, -1.0], dtype=F64)).sigmoid()
            parts["observation"] = told if sees_first else torch.stack([told, told.flip(-1)])
        elif lost == "transition":
            parts["transition"] = (given["transition"].log() + u[:4]).softmax(-1)
        return TabularPOMDP(**parts)

    shown = [([-1] * 4, [0, 1, 1], [0, 1, 1, 0]), ([-1] * 3, [1, 0], [1, 0, 0]), ([-1] * 2, [1], [0, 1])]
    unknowns = Unknowns(family, read_demonstrations(shown), "causal")
    assert bool(unknowns.data.complete.all())
    points = torch.stack([torch.zeros(5), torch.tensor([0.3, -0.2, 0.5, -0.7, 0.4])]).double()
    for u in points:
        at = u.clone().requires_grad_()
        with pyro.poutine.condition(data={"u": at}):
            pomdp = family()
        expected = -torch.stack([by_hand(pomdp, seen, actions) for _, actions, seen in shown]).sum()
        (slope,) = torch.autograd.grad(expected, at)
        value, own = unknowns.gradient(u)
        assert value == pytest.approx(float(expected.detach()), abs=1e-9)
        torch.testing.assert_close(own, slope, rtol=0, atol=1e-9)
    batched = batched_gradient(unknowns, torch.stack([points + 0.1, points]))
    assert batched is not None, "chains are asked together"
    values, slopes = batched(points)
    for row, value, slope in zip(points, values, slopes, strict=True):
        own, steep = unknowns.gradient(row)
        assert float(value) == pytest.approx(own, abs=1e-9)
        torch.testing.assert_close(slope, steep, rtol=0, atol=1e-9)


def by_completion(world: TabularPOMDP, model: TabularPOMDP, known: tuple[list[int], ...]) -> float:
    """p(what is known) by every completion of states, actions and observations; -1 is not known."""
    states, actions, seen = known
    moves, start = world.fully_observed.kernel.dense(), world.fully_observed.initial_probabilities
    steps, total, memory = len(actions), 0.0, {}

    def fits(wanted: list[int], found: tuple[int, ...]) -> bool:
        return all(x in (-1, y) for x, y in zip(wanted, found, strict=False))

    for s in itertools.product(range(4), repeat=steps + 1):
        taken = s.index(3) if 3 in s else steps  # as many actions
        acts_on = 3 not in states and any(action != -1 for action in actions[taken:])
        if not fits(states, s) or acts_on or any(state != 3 for state in s[taken + 1 :]):
            continue
        for a in itertools.product(range(2), repeat=taken):
            if not fits(actions, a):
                continue
            for y in itertools.product(range(2), repeat=taken + 1):
                if not fits(seen, y) if world.sees_first else y[0] or not fits(seen[1:], y[1:]):
                    continue
                chance = 1.0 if states[0] != -1 else float(start[s[0]])
                chance *= float(world.observation_table[s[0], y[0]]) if world.sees_first else 1.0
                for t in range(taken):
                    sight = world.observation_by_action[a[t], s[t + 1], y[t + 1]]
                    chance *= float(moves[s[t], a[t], s[t + 1]] * sight)
                if (a, y[:-1]) not in memory:
                    memory[a, y[:-1]] = float(by_hand(model, [*y], [*a]).exp()) if a else 1.0
                total += chance * memory[a, y[:-1]]
    return total


@pytest.mark.parametrize("sees_first", [True, False])
def test_what_the_onlooker_does_not_know_is_summed_over(sees_first: bool) -> None:
    """The world is not as the agent believes: to 1e-10."""
    world = TabularPOMDP(**tables(1, sees_first))
    other = {**tables(2, sees_first), "initial": torch.tensor([0.1, 0.1, 0.8, 0.0], dtype=F64)}
    model = TabularPOMDP(**other)
    shown = [
        ([0, 1, 2, 1], [0, 1, 1], [-1, -1, -1, -1]),
        ([0, -1, 2, 2], [-1, 1, 0], [0, -1, 1, -1]),
        ([-1, -1, -1, -1], [0, 1, -1], [1, -1, -1, 0]),
        ([0, 1, 3, 3], [0, 1, -1], [-1, -1, -1, -1]),
        ([0, 1, 3, 3], [0, 1, 0], [0, -1, 1, 1]),
        ([-1, 2, -1], [-1, 1], [-1, 0, -1]),
    ]
    found = as_hidden(read_demonstrations(shown), world).log_probabilities(world, model)
    for known, log in zip(shown, found, strict=True):
        assert float(log) == pytest.approx(math.log(by_completion(world, model, known)), abs=1e-10), known


def door(belief: Tensor, prize: Tensor, accuracy: float = 0.8) -> TabularPOMDP:
    """A prize behind the left or the right door: listen (0), or open the left (1) or the right one (2), which ends."""
    stay = torch.eye(3, dtype=F64)
    ended = torch.tensor([0.0, 0.0, 1.0], dtype=F64).expand(3, 3)
    moves = torch.stack([stay, ended, ended], 1)
    opened = torch.eye(2, dtype=F64) * prize - 1.0
    reward = torch.cat([torch.full((2, 1), -0.2, dtype=F64), opened], 1)
    heard = torch.tensor([[1 - accuracy, accuracy], [accuracy, 1 - accuracy], [0.5, 0.5]], dtype=F64)
    return TabularPOMDP(
        moves,
        torch.cat([reward, torch.zeros(1, 3, dtype=F64)]),
        torch.cat([belief, belief.new_zeros(1)]),
        heard.expand(3, 3, 2),
        horizon=3,
        temperature=0.4,
        terminal=torch.tensor([False, False, True]),
    )


def believer() -> TabularPOMDP:
    """What the prize is worth, and how likely it seemed to be on the left, are unknown."""
    prize = pyro.sample("prize", dist.Normal(torch.tensor(2.0, dtype=F64), 0.5))
    left = pyro.sample("left", dist.Beta(torch.tensor(2.0, dtype=F64), 2.0))
    return door(torch.stack([left, 1 - left]), prize)


# Hears twice that it is on the right (0), where it is, and opens that door.
HEARD = [([1, 1, 1, 2], [0, 0, 2], [-1, 0, 0, -1])] * 3


@pytest.mark.filterwarnings("ignore:the demonstrations say nothing")
class TestWhole:
    """infer_agent from end to end: prize and belief of one who listens twice and opens a door."""

    def moments(self) -> dict[str, tuple[float, float]]:
        """Means and standard deviations, by Gauss-Hermite times Gauss-Legendre quadrature."""
        unknowns = Unknowns(believer, read_demonstrations(HEARD), "causal")
        x, of_x = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(10))
        y, of_y = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(10))
        prize, left = (part.flatten() for part in torch.meshgrid(2 + x / 2, (y + 1) / 2, indexing="ij"))
        weight = (of_x[:, None] * of_y).flatten() * left * (1 - left)
        with torch.no_grad():
            rows = torch.stack([prize, left.logit()], -1)
            weight = weight * torch.stack([unknowns.log_likelihood(row).sum() for row in rows]).exp()
        weight = weight / weight.sum()
        means = {name: float(weight @ values) for name, values in (("prize", prize), ("left", left))}
        return {
            name: (means[name], math.sqrt(weight @ (values - means[name]) ** 2))
            for name, values in (("prize", prize), ("left", left))
        }

    def test_moments_by_quadrature(self) -> None:
        """120 draws of one chain of NUTS, seed 0: within 4 errors at an effective sample size of 40."""
        draws = infer_agent(believer, HEARD, num_draws=120, num_chains=1)
        for name, (mean, spread) in self.moments().items():
            found = draws.posterior[name].values
            assert abs(found.mean() - mean) < 4 / math.sqrt(40) * spread
            assert abs(found.std() / spread - 1) < 0.35
        assert draws.observed_data["observation"].shape == (4, 3)

    @pytest.mark.slow
    def test_a_gaussian_by_svi(self) -> None:
        """Of the belief alone, 1,000 draws, seed 0: mean and spread by quadrature, to a quarter of the spread."""
        prize = torch.tensor(1.5, dtype=F64)

        def family() -> TabularPOMDP:
            left = pyro.sample("left", dist.Beta(torch.tensor(2.0, dtype=F64), 2.0))
            return door(torch.stack([left, 1 - left]), prize)

        left = (torch.arange(100, dtype=F64) + 0.5) / 100
        _, actions, seen = HEARD[0]
        logs = torch.stack([by_hand(door(torch.stack([x, 1 - x]), prize), seen, actions) for x in left])
        weight = (3 * logs).exp() * left * (1 - left)
        mean = float((weight * left).sum() / weight.sum())
        spread = math.sqrt((weight * (left - mean) ** 2).sum() / weight.sum())
        found = infer_agent(family, HEARD, method="svi", num_draws=1_000).posterior["left"].values
        assert abs(found.mean() - mean) < spread / 4
        assert abs(found.std() / spread - 1) < 0.25

    def test_map_is_where_the_slope_is_nil(self) -> None:
        found = infer_agent(believer, HEARD, method="map").posterior
        at = [torch.tensor(found[name].item(), dtype=F64, requires_grad=True) for name in ("prize", "left")]
        _, actions, seen = HEARD[0]
        height = 3 * by_hand(door(torch.stack([at[1], 1 - at[1]]), at[0]), seen, actions)
        height = height + dist.Normal(2.0, 0.5).log_prob(at[0]) + dist.Beta(2.0, 2.0).log_prob(at[1])
        for slope in torch.autograd.grad(height, at):
            assert abs(float(slope)) < 1e-6

    def test_discrete_unknowns_are_summed_over(self) -> None:
        """Beliefs of which two are certain: one of these is refuted by what was heard, where hearing does not err."""
        certain, even = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=F64), torch.tensor([[0.5, 0.5]], dtype=F64)
        grid = torch.cat([certain, even])

        def family(accuracy: float) -> TabularPOMDP:
            which = pyro.sample("which", dist.Categorical(torch.tensor([0.2, 0.3, 0.5], dtype=F64)))
            return door(grid[which], torch.tensor(2.0, dtype=F64), accuracy)

        for accuracy in (0.8, 1.0):
            logs = torch.full((3,), -torch.inf, dtype=F64)
            for k in range(3):
                if accuracy < 1 or k != 0:  # it sounded like the right
                    _, actions, seen = HEARD[0]
                    logs[k] = by_hand(door(grid[k], torch.tensor(2.0, dtype=F64), accuracy), seen, actions)
            expected = (3 * logs + torch.tensor([0.2, 0.3, 0.5], dtype=F64).log()).softmax(0)
            found = infer_agent(partial(family, accuracy), HEARD, num_draws=10).sample_stats["probability_which"]
            torch.testing.assert_close(torch.as_tensor(found.values[0, 0]), expected, rtol=0, atol=1e-10)


class TestWaysToSayWhoPlans:
    """The agent's own model, beside the world's."""

    def log_likelihood(self, family: Any, shown: Any) -> list[float]:
        unknowns = Unknowns(family, read_demonstrations(shown), "causal", num_prior=3)
        return unknowns.log_likelihood(torch.tensor([0.4], dtype=F64))[0].tolist()

    def test_a_model_a_plan_and_a_policy_are_alike(self) -> None:
        world = TabularPOMDP(**tables(1))
        shown = [([0, 1, 2, 1], [0, 1, 1], [0, 1, 0, 0]), ([1, 1], [1], [1, -1])]

        def model() -> TabularPOMDP:
            worth = pyro.sample("worth", dist.Normal(torch.tensor(0.0, dtype=F64), 1.0))
            given = tables(2)
            return TabularPOMDP(**{**given, "reward": given["reward"] * (1 + worth)})

        def plan_asked_with_histories() -> Any:
            plan = exact.plan(model())
            return lambda history, t: plan(history, t)

        with pyro.poutine.condition(data={"worth": torch.tensor(0.4, dtype=F64)}):
            expected = [float(by_hand(model(), seen, actions)) for _, actions, seen in shown]
        assert self.log_likelihood(lambda: (world, model()), shown) == pytest.approx(expected, abs=1e-9)
        assert self.log_likelihood(lambda: (world, exact.plan(model())), shown) == pytest.approx(expected, abs=1e-9)
        with pytest.raises(ValueError, match="the gradient for 'worth' is not the density's slope"):
            infer_agent(lambda: (world, plan_asked_with_histories()), shown)

    def test_rollouts_are_demonstrations(self) -> None:
        """A policy of the history, of trajectories that end: to 1e-9 what the rollout says of itself."""
        for sees_first in (True, False):
            pomdp = TabularPOMDP(**tables(3, sees_first))
            shown = pomdp.rollout(exact.plan(pomdp), 20)
            data = as_hidden(read_demonstrations(shown), pomdp)
            assert not bool(shown.mask.all())
            found = data.log_probabilities(pomdp, pomdp) @ data.weights.T
            torch.testing.assert_close(found, shown.log_policy.sum(0), rtol=0, atol=1e-9)
            asked = data.log_probabilities(pomdp, exact.plan(pomdp).__call__) @ data.weights.T
            torch.testing.assert_close(asked, found, rtol=0, atol=1e-9)

    def test_linear_gaussian_agents(self) -> None:
        """A regulator of what it sees dimly: the likelihood by its own filter, and the cost by its posterior's mode."""
        one = torch.ones(1, 1, dtype=F64)

        def pomdp(cost: Tensor) -> LinearGaussianPOMDP:
            parts = (one, one, 0.1 * one, cost * one, one, 0 * one[0], one, 10 * one, one, 0.5 * one)
            return LinearGaussianPOMDP(*parts, horizon=6, temperature=0.3)

        def family() -> LinearGaussianPOMDP:
            return pomdp(pyro.sample("cost", dist.LogNormal(torch.tensor(0.0, dtype=F64), 1.0)))

        truth = pomdp(torch.tensor(2.0, dtype=F64))
        shown = truth.rollout(exact.plan(truth), 30)
        data = as_hidden(read_demonstrations(shown), truth)
        found = data.log_probabilities(truth, exact.plan(truth)) @ data.weights.T
        torch.testing.assert_close(found, shown.log_policy.sum(0), rtol=0, atol=1e-9)
        cost = infer_agent(family, shown, method="map").posterior["cost"].item()
        assert 1 < cost < 4


class TestErrors:
    """Each says what to mend."""

    def test_what_is_not_an_agent(self) -> None:
        world = TabularPOMDP(**tables(1))
        coin = dist.Bernoulli(torch.tensor(0.5, dtype=F64))
        shown = [([0, 1, 2, 1], [0, 1, 1], [0, 1, 0, 0])]
        seen = TabularMDP(torch.ones(1, 2, 1), torch.zeros(1, 2), torch.ones(1), horizon=3)
        longer = TabularPOMDP(**{**tables(1), "horizon": 4})
        for answer, message in (
            ((seen, world), "it returned a pair of TabularMDP and TabularPOMDP"),
            ((world, longer), r"the agent's own model must have the world's actions, observations and horizon.*4"),
            ((world, torch.ones(4, 2)), r"must be a callable \(history, t\) -> Distribution, or a TabularPOMDP"),
            (3, "family must return a TabularMDP, a LinearGaussianMDP or, where .* it returned int"),
        ):
            with pytest.raises(ValueError, match=message):
                infer_agent(lambda answer=answer: (pyro.sample("x", coin), answer)[1], shown)
        with pytest.raises(ValueError, match="dynamics='posterior' is a policy of the state, which is hidden"):
            infer_agent(lambda: (pyro.sample("x", coin), world)[1], shown, dynamics="posterior")

    @pytest.mark.parametrize(
        ("shown", "message"),
        [
            (([0, 1], [0], [0, 2]), "observation 2 at step 1 of demonstration 0 is outside 0 … 1"),
            (([0, 1], [5], [0, 1]), "action 5 at step 0 of demonstration 0 is outside 0 … 1"),
            (([0, 1, 1], [0, 0], [0]), "demonstration 0 has 1 observations and 2 actions"),
            (([0] * 6, [0] * 5, [0] * 6), "have up to 5 steps, .* horizon of 3"),
            (([0, 1], [0], [0, 1], [0]), "got 4 parts of one"),
        ],
    )
    def test_demonstrations(self, shown: Any, message: str) -> None:
        def family() -> TabularPOMDP:
            worth = pyro.sample("worth", dist.Normal(torch.tensor(0.0, dtype=F64), 1.0))
            given = tables(1)
            return TabularPOMDP(**{**given, "reward": given["reward"] * worth})

        with pytest.raises(ValueError, match=message):
            infer_agent(family, [shown])

    def test_what_cannot_have_been_seen(self) -> None:
        def family(belief: list[float], world: TabularPOMDP | None = None) -> Any:
            prize = pyro.sample("prize", dist.Normal(torch.tensor(2.0, dtype=F64), 1.0))
            model = door(torch.tensor(belief, dtype=F64), prize, accuracy=1.0)
            return model if world is None else (world, model)

        with pytest.raises(ValueError, match="at step 1 of demonstration 0, observation 0 is impossible in state 0"):
            infer_agent(lambda: family([0.5, 0.5]), [([0, 0, 0, 2], *HEARD[0][1:])])
        with pytest.raises(ValueError, match=r"observation 0 at step 1 .* probability 0 under the agent's own model"):
            infer_agent(lambda: family([1.0, 0.0]), HEARD)

    def test_what_the_agent_saw_is_not_given(self) -> None:
        world = TabularPOMDP(**tables(1))
        coin = dist.Bernoulli(torch.tensor(0.5, dtype=F64))

        def policy(history: Any, t: int) -> Any:
            return dist.Categorical(torch.ones(2, dtype=F64))

        with pytest.raises(ValueError, match="what the agent of demonstration 0 saw or did is not all known"):
            infer_agent(lambda: (pyro.sample("x", coin), (world, policy))[1], [([0, 1], [0])])
        one = torch.ones(1, 1, dtype=F64)
        dim = LinearGaussianPOMDP(one, one, one, one, one, one[0], one, one, one, one, horizon=2)
        with pytest.raises(ValueError, match="what the agent saw is not given, and it is summed over in finite"):
            infer_agent(lambda: (pyro.sample("x", coin), dim)[1], [([[0.0], [1.0]], [[0.5]])])
