"""The Bayes-adaptive process against dynamic programming over counts, and histories one by one."""

import math
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch

import rl_as_inference as rlai
from rl_as_inference import exact, models
from rl_as_inference.models import families

F64 = torch.float64


def by_counts(pulls, prior=(1.0, 1.0)):
    """The best value of a two-armed bandit, by dynamic programming over wins and losses."""

    @cache
    def value(a, b, c, d, left):
        if left == 0:
            return 0.0
        p, q = a / (a + b), c / (c + d)
        first = p * (1 + value(a + 1, b, c, d, left - 1)) + (1 - p) * value(a, b + 1, c, d, left - 1)
        second = q * (1 + value(a, b, c + 1, d, left - 1)) + (1 - q) * value(a, b, c, d + 1, left - 1)
        return max(first, second)

    return value(*prior, *prior, pulls)


@pytest.mark.parametrize("pulls", [1, 3, 12])
def test_at_no_temperature_it_is_dynamic_programming_over_counts(pulls):
    life = rlai.bayes_adaptive(families.bandit(2, (1.5, 1.0), dtype=F64), num_episodes=pulls)
    cold = 1e-11
    value = cold * float(exact.plan(life.process.at_temperature(cold)).objective)
    assert value == pytest.approx(by_counts(pulls, (1.5, 1.0)), abs=1e-9)


def soft_value(prior, reward, starts, horizon, episodes, temperature):
    """Soft value by enumerating histories; the chance of what follows is a ratio of marginal likelihoods.

    ``prior (S, A, S)`` has the Dirichlet parameters, ``reward`` is ``(S, A)``.
    """
    num_states, num_actions, _ = prior.shape

    def marginal(history):
        total = 0.0
        for s in range(num_states):
            for a in range(num_actions):
                seen = [sum(1 for step in history if step == (s, a, k)) for k in range(num_states)]
                alpha = prior[s, a].tolist()
                total += math.lgamma(sum(alpha)) - math.lgamma(sum(alpha) + sum(seen))
                total += sum(math.lgamma(x + n) - math.lgamma(x) for x, n in zip(alpha, seen, strict=True) if x > 0)
        return total

    def begin(history, step):
        return sum(float(p) * value(history, s, step) for s, p in enumerate(starts) if p > 0)

    def value(history, state, step):
        if step == horizon * episodes:
            return 0.0
        logits = []
        for a in range(num_actions):
            q = float(reward[state, a])
            for k in range(num_states):
                if prior[state, a, k] > 0:
                    story = (*history, (state, a, k))
                    chance = math.exp(marginal(story) - marginal(history))
                    ends = (step + 1) % horizon == 0
                    last = step + 1 == horizon * episodes
                    onward = 0.0 if last else begin(story, step + 1) if ends else value(story, k, step + 1)
                    q += chance * onward
            logits.append(q / temperature)
        top = max(logits)
        return temperature * (top + math.log(sum(math.exp(x - top) for x in logits) / num_actions))

    return begin((), 0)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_soft_values_are_those_of_enumerated_histories(temperature):
    """Two states, two actions, two episodes of two steps, starting in either state."""
    generator = torch.Generator().manual_seed(0)
    prior = torch.rand(2, 2, 2, generator=generator, dtype=F64) + 0.2
    reward = torch.randn(2, 2, generator=generator, dtype=F64)
    starts = torch.tensor([0.3, 0.7], dtype=F64)

    def family():
        rows = pyro.sample("rows", dist.Dirichlet(prior).to_event(2))
        return rlai.TabularMDP(rows, reward, starts, horizon=2, temperature=temperature)

    life = rlai.bayes_adaptive(family, num_episodes=2)
    found = temperature * float(exact.plan(life.process).objective)
    assert found == pytest.approx(soft_value(prior, reward, starts, 2, 2, temperature), abs=1e-9)
    assert float(exact.log_evidence(life.process)) > float(exact.optimal_elbo(life.process))


def test_a_life_in_a_world_earns_what_its_tree_says_and_regret_adds_up():
    """The exact plan of three pulls in a world that pays 0.3 and 0.8, by enumerating outcomes; 4,000 runs, z-score."""
    family, truth = families.bandit(2, dtype=F64), models.bandit((0.3, 0.8), dtype=F64)
    life = rlai.bayes_adaptive(family, num_episodes=3)
    plan = exact.plan(life.process.at_temperature(1e-9))
    world = life.under(truth)

    def earned(node, step):
        if step == 3:
            return 0.0
        total = 0.0
        for action, chance in enumerate(plan.policy[step, node].tolist()):
            for won in (0, 1):
                paid = (0.3, 0.8)[action] if won else 1 - (0.3, 0.8)[action]
                after, probability = world.kernel.successors(torch.tensor(node), torch.tensor(action))
                onto = [int(s) for s, p in zip(after, probability, strict=True) if abs(float(p) - paid) < 1e-12]
                total += chance * paid * (won + earned(onto[0], step + 1))
        return total

    value = earned(0, 0)
    assert float(exact.expected_return(world, plan)) == pytest.approx(value, abs=1e-12)
    found = rlai.explore(family, truth, strategy="exact", num_episodes=3, num_seeds=4000)
    total = found.returns.sum(1)
    assert abs(float(total.mean()) - value) < 4 * float(total.std()) / math.sqrt(4000)
    off = total - (3 * found.best - found.regret.sum(1))
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(4000)
    assert found.best == 0.8
    counts = found.beliefs[-1].counts[:, 0]
    assert bool((counts.sum(-1) == 3).all())
    assert [belief.episode for belief in found.beliefs] == [0, 1, 2, 3]


def test_in_worlds_drawn_from_the_prior_a_life_earns_the_bayes_value_on_average():
    """Six pulls of 200 machines: the mean of the plan's expected returns, against dynamic programming."""
    life = rlai.bayes_adaptive(families.bandit(2, dtype=F64), num_episodes=6)
    plan = exact.plan(life.process.at_temperature(1e-9))
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(200, 2, generator=generator, dtype=F64).tolist()
    values = [exact.expected_return(life.under(models.bandit(row, dtype=F64)), plan) for row in chances]
    mean, error = torch.stack(values).mean(), torch.stack(values).std() / math.sqrt(200)
    assert abs(float(mean) - by_counts(6)) < 4 * float(error)


def test_what_cannot_be_enumerated_is_refused():
    with pytest.raises(ValueError, match=r"there are \d+ hyperstates .* more than max_beliefs = 100"):
        rlai.bayes_adaptive(families.bandit(2), num_episodes=12, max_beliefs=100)
    with pytest.raises(ValueError, match="needs known rewards"):
        rlai.bayes_adaptive(families.deep_sea(3))
    with pytest.raises(ValueError, match="num_episodes"):
        rlai.bayes_adaptive(families.bandit(2), num_episodes=0)
    with pytest.raises(ValueError, match="max_beliefs = 5"):
        rlai.explore(families.bandit(2), models.bandit(), strategy="exact", num_episodes=3, max_beliefs=5)
