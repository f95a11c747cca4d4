"""What an agent that does not see everything wants and believes, against brute force over histories."""

import itertools
import math
from typing import Any

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
            [j.sum() * soft_v(pomdp, j / j.sum(), t + 1) if float(j.sum()) > 0 else 0 * q[0] for j in row]
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
            if float(joint.sum()) > 0:
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
