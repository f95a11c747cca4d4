"""Exploration: what it returns, what it says of bad input, and that its regret is what enumeration says."""

import gymnasium
import pyro
import pyro.distributions as dist
import pytest
import torch
from problems import random_mdp

import rl_as_inference as rlai
from rl_as_inference import exact, models
from rl_as_inference.exploration.explore import _Known
from rl_as_inference.exploration.layers import Layers, TablePolicy, greedy, soft
from rl_as_inference.models import families

F64 = torch.float64


def dense_table(policy, run, num_states):
    """A run's policy as a table ``(T, S, A)``, uniform where it is not asked."""
    rows = []
    for t, logs in enumerate(policy.tables):
        table = torch.full((num_states, logs.shape[-1]), 1 / logs.shape[-1], dtype=F64)
        table[policy.layers.states[t]] = logs[run].exp()
        rows.append(table)
    return torch.stack(rows)


# Messages of many runs.


@pytest.mark.parametrize("options", [{}, {"terminal": True}, {"discount": 0.7, "reward_on_successor": True}])
def test_batched_messages_are_those_of_exact_plans(options):
    processes = [random_mdp(seed, num_states=4, horizon=3, **options) for seed in (1, 2, 3)]
    first = processes[0]
    transition = torch.stack([mdp.kernel.dense() for mdp in processes])
    reward = torch.stack([mdp.expected_reward() for mdp in processes])
    layers = Layers(
        torch.arange(4).expand(4, first.num_actions, 4),
        transition.amax(0) > 0,
        torch.ones(4, dtype=F64) / 4,
        first.terminal,
        3,
        first.discount,
        first.log_action_prior,
    )

    def backup(value, t):
        return layers.at(reward, t) + layers.expect(layers.discount * value, layers.at(transition, t), t)

    temperature = torch.tensor([float(mdp.temperature) for mdp in processes], dtype=F64)
    value, policy = layers.backward(backup, soft(temperature), 3)
    # Each process has an action prior of its own; one for all is asked of the layers.
    for run, mdp in enumerate(processes):
        plan = exact.plan(mdp.replace(action_prior=first.action_prior))
        torch.testing.assert_close(value[run], plan.soft_v[0], rtol=0, atol=1e-9)
        table = dense_table(policy, run, 4)
        live = ~first.terminal
        torch.testing.assert_close(table[:, live], plan.policy[:, live], rtol=0, atol=1e-9)
        earned = layers.evaluate(policy, transition, reward)[run]
        paid = torch.where(first.terminal[:, None], 0.0, mdp.expected_reward())
        start, discount = layers.initial, mdp.discount
        flat = rlai.TabularMDP(mdp.kernel.dense(), paid, start, horizon=3, discount=discount, terminal=mdp.terminal)
        torch.testing.assert_close(earned, exact.expected_return(flat, table), rtol=0, atol=1e-9)


def test_layers_hold_what_can_be_reached_and_no_more():
    sea = families.deep_sea(5, dtype=F64)
    from rl_as_inference.exploration.table_beliefs import TableBeliefs

    layers = TableBeliefs(rlai.ConjugatePosterior.exactly(sea), 1).layers
    assert [len(states) for states in layers.states[:3]] == [1, 3, 4]
    assert all(bool((states // 5 == t % 5).all()) for t, states in enumerate(layers.states))


# Regret.


def brute_best(mdp, state, t):
    """The best expected return from a state on, by trying everything."""
    if t == mdp.horizon or bool(mdp.terminal[state]):
        return 0.0
    rows, reward = mdp.kernel.dense()[state], mdp.expected_reward()[state]
    worth = []
    for action in range(mdp.num_actions):
        onward = sum(float(p) * brute_best(mdp, s, t + 1) for s, p in enumerate(rows[action]) if p > 0)
        worth.append(float(reward[action]) + float(mdp.discount) * onward)
    return max(worth)


@pytest.mark.parametrize("strategy", ["posterior_sampling", "k_learning", "soft_q"])
def test_regret_is_what_enumeration_says(strategy):
    """Before anything is seen, and of a policy that is asked for again after three episodes of the same seed."""
    truth = models.river_swim(4, horizon=4, dtype=F64)
    found = rlai.explore(families.river_swim(4, 4, dtype=F64), truth, strategy=strategy, num_episodes=3, num_seeds=2)
    best = brute_best(truth, 0, 0)
    assert found.best == pytest.approx(best, abs=1e-12)
    assert found.regret.shape == found.returns.shape == (2, 3)
    assert bool((found.regret >= -1e-12).all())
    assert found.prior == pytest.approx(float(exact.expected_return(truth, None)), abs=1e-12)
    if strategy == "soft_q":  # knows nothing at first, and does anything
        torch.testing.assert_close(found.regret[:, 0], torch.full((2,), found.best - found.prior, dtype=F64))


def test_the_value_of_a_policy_is_its_expected_return_in_the_world_as_it_is():
    truth = random_mdp(4, num_states=4, horizon=3, terminal=True, discount=0.8, reward_on_successor=True)
    known = _Known(truth)
    generator = torch.Generator().manual_seed(0)
    tables = [
        torch.randn(2, len(s), truth.num_actions, generator=generator, dtype=F64).log_softmax(-1)
        for s in known.layers.states[:-1]
    ]
    policy = TablePolicy(known.layers, tables)
    for run, value in enumerate(known.value(policy)):
        expected = exact.expected_return(truth, dense_table(policy, run, 4))
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-9)
    start = sum(float(p) * brute_best(truth, s, 0) for s, p in enumerate(truth.initial_probabilities))
    assert known.best == pytest.approx(start, abs=1e-12)
    assert greedy(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[0.0, -torch.inf]]))[0].item() == 1.0


def test_regret_is_what_returns_lack_on_average():
    """River swim's returns of 400 runs, 3 episodes each, against V* less regret: z-scores."""
    truth = models.river_swim(4, horizon=6, dtype=F64)
    found = rlai.explore(families.river_swim(4, 6, dtype=F64), truth, num_episodes=3, num_seeds=400)
    off = found.returns - (found.best - found.regret)
    z = off.mean(0) / (off.std(0) / 20)
    assert float(z.abs().max()) < 4


# What comes back.


def test_a_single_run_has_no_axis_of_runs_and_is_the_seeds_own():
    family, truth = families.deep_sea(4, dtype=F64), models.deep_sea(4, mapping_seed=0, dtype=F64)
    before = torch.random.get_rng_state()
    one, same, other = (rlai.explore(family, truth, num_episodes=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.returns.shape == one.regret.shape == (20,)
    assert torch.equal(one.returns, same.returns)
    assert not torch.equal(one.returns, other.returns)
    assert isinstance(one.solved_after, int)
    assert [belief.episode for belief in one.beliefs] == [0, 1, 2, 4, 8, 16, 20]
    assert one.beliefs[-1].counts.shape == (16, 2)
    assert float(one.beliefs[-1].counts.sum()) == 80
    assert one.strategy == "posterior_sampling"
    known = one.beliefs[-1].counts > 0
    assert bool((one.beliefs[-1].reward_variance[known] == 0).all())
    assert bool((one.beliefs[-1].reward_variance[~known] == 1).all())
    torch.testing.assert_close(one.beliefs[-1].reward_mean[known], truth.reward_table[known])


def test_it_stops_when_all_runs_are_solved():
    family, truth = families.deep_sea(4, dtype=F64), models.deep_sea(4, dtype=F64)
    found = rlai.explore(family, truth, num_episodes=500, num_seeds=3, stop_when_solved=True)
    assert found.returns.shape[1] == max(found.solved_after) == found.beliefs[-1].episode


def test_solved_is_by_average_regret():
    regret = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=F64)
    found = rlai.Exploration(torch.zeros(2, 4), regret, 1.0, 0.0, [])
    assert found.solved_after == [3, None]
    assert found.alone().solved_after == 3
    with pytest.raises(ValueError, match="regret"):
        _ = rlai.Exploration(torch.zeros(2, 4), None, None, None, []).solved_after


def test_posterior_sampling_and_k_learning_solve_what_soft_q_learning_does_not():
    """Ten seeds of a sea of size 9; medians."""
    medians = {}
    for strategy in ("posterior_sampling", "k_learning", "soft_q"):
        found = rlai.explore(
            families.deep_sea(9, dtype=F64),
            models.deep_sea(9, mapping_seed=3, dtype=F64),
            strategy=strategy,
            num_episodes=60,
            num_seeds=10,
            stop_when_solved=True,
        )
        medians[strategy] = sorted(n if n is not None else 10**6 for n in found.solved_after)[5]
    assert medians["posterior_sampling"] <= 60
    assert medians["k_learning"] <= 60
    assert medians["soft_q"] > 60


def test_noise_is_seen_and_not_earned():
    """A machine whose two arms pay 0 and 1: with noise 2 the first episodes' variance is what Bayes' rule says."""
    truth = rlai.TabularMDP(
        torch.ones(1, 2, 1, dtype=F64), torch.tensor([[0.0, 1.0]], dtype=F64), torch.ones(1), horizon=1
    )

    def family():
        worth = pyro.sample("worth", dist.Normal(torch.zeros(1, 2, dtype=F64), 1.0).to_event(2))
        return rlai.TabularMDP(torch.ones(1, 2, 1, dtype=F64), worth, torch.ones(1), horizon=1)

    found = rlai.explore(family, truth, num_episodes=30, reward_noise=2.0)
    assert set(found.returns.tolist()) <= {0.0, 1.0}
    last = found.beliefs[-1]
    torch.testing.assert_close(last.reward_variance, 1 / (1 + last.counts / 4))


# Worlds of other kinds.


def test_a_black_box_can_be_acted_in_and_not_judged():
    box = rlai.GymnasiumProcess("FrozenLake-v1", horizon=12, seed=0)

    def family():
        rows = pyro.sample("rows", dist.Dirichlet(torch.full((16, 4, 16), 0.1)).to_event(2))
        worth = pyro.sample("worth", dist.Normal(torch.zeros(16, 4), 1.0).to_event(2))
        return rlai.TabularMDP(rows, worth, torch.eye(16)[0], horizon=12)

    found = rlai.explore(family, box, num_episodes=3, reward_noise=0.5)
    assert found.returns.shape == (3,)
    assert found.regret is None
    assert found.best is None
    assert float(found.beliefs[-1].counts.sum()) > 3
    with pytest.raises(ValueError, match=r"num_seeds: .* one agent at a time"):
        rlai.explore(family, box, num_episodes=3, num_seeds=2)


def linear(A, B):
    eye = torch.eye(2, dtype=F64)
    return rlai.LinearGaussianMDP(
        A, B, 0.01 * eye, eye, 0.1 * eye[:1, :1], eye[0], 0.01 * eye, eye[:1, :1], horizon=8
    )  # fmt: skip


def linear_family():
    A = pyro.sample("A", dist.Normal(torch.zeros(2, 2, dtype=F64), 1.0).to_event(2))
    B = pyro.sample("B", dist.Normal(torch.zeros(2, 1, dtype=F64), 1.0).to_event(2))
    return linear(A, B)


def test_posterior_sampling_learns_a_linear_world():
    truth = linear(torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=F64), torch.tensor([[0.0], [0.5]], dtype=F64))
    found = rlai.explore(linear_family, truth, num_episodes=8, num_seeds=2)
    assert bool((found.regret > -1e-9).all())
    assert float(found.regret[:, -1].max()) < 0.1 < float(found.regret[:, 0].min())
    mean, variance = found.beliefs[-1].sites["A"]
    assert mean.shape == variance.shape == (2, 2, 2)
    z = (mean - truth.A) / variance.sqrt()
    assert float(z.abs().max()) < 4
    with pytest.raises(ValueError, match="'k_learning' needs a finite family"):
        rlai.explore(linear_family, truth, strategy="k_learning", num_episodes=1)


# Bad input.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "thompson"}, "strategy must be one of 'posterior_sampling'"),
        ({"num_episodes": 0}, "num_episodes"),
        ({"num_seeds": 0}, "num_seeds"),
        ({"reward_noise": -1.0}, "reward_noise"),
        ({"temperature": 1.0}, "temperature: strategy 'posterior_sampling' has none"),
        ({"temperature": 0.0, "strategy": "soft_q"}, "temperature must be"),
        ({"transition_term": "full", "strategy": "k_learning"}, "transition_term must be 'mean' or 'dirichlet'"),
        ({"reward_range": 1.0}, "reward_range belongs to"),
        ({"strategy": "exact"}, "needs known rewards"),
    ],
)
def test_bad_arguments_are_named(options, words):
    sea = models.deep_sea(3, dtype=F64)
    with pytest.raises(ValueError, match=words):
        rlai.explore(families.deep_sea(3, dtype=F64), sea, **{"num_episodes": 2, **options})


def test_a_truth_of_another_shape_is_told_which():
    family = families.deep_sea(3, dtype=F64)
    with pytest.raises(ValueError, match=r"truth: its state_space is Discrete\(16\), .* is Discrete\(9\)"):
        rlai.explore(family, models.deep_sea(4), num_episodes=1)
    with pytest.raises(ValueError, match=r"truth: its horizon is 2, .* is 3"):
        rlai.explore(family, models.deep_sea(3, horizon=2), num_episodes=1)
    with pytest.raises(ValueError, match=r"truth: its discount is 0.5, .* is 1"):
        rlai.explore(family, models.deep_sea(3, discount=0.5), num_episodes=1)
    wide = rlai.TabularMDP(torch.eye(9)[:, None].expand(9, 3, 9), torch.zeros(9, 3), torch.eye(9)[0], horizon=3)
    with pytest.raises(ValueError, match="truth: its action_space is Discrete"):
        rlai.explore(family, wide, num_episodes=1)
    with pytest.raises(ValueError, match="truth must be a process, got 'deep_sea'"):
        rlai.explore(family, "deep_sea", num_episodes=1)
    with pytest.raises(ValueError, match="no unknowns"):
        rlai.explore(lambda: models.deep_sea(3), models.deep_sea(3), num_episodes=1)


def test_what_the_family_holds_impossible_is_named():
    def stays():
        rows = pyro.sample("rows", dist.Dirichlet(torch.ones(2, 1, 2)).to_event(2))
        known = torch.eye(3)[:, None].clone()
        known[:2, :, :2] = rows
        return rlai.TabularMDP(known, torch.zeros(3, 1), torch.tensor([1.0, 0.0, 0.0]), horizon=2)

    leaves = torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]], [[0.0, 0.0, 1.0]]])
    truth = rlai.TabularMDP(leaves, torch.zeros(3, 1), torch.tensor([1.0, 0.0, 0.0]), horizon=2)
    with pytest.raises(ValueError, match="action 0 in state 1 leads to state 2"):
        rlai.explore(stays, truth, num_episodes=1)
    elsewhere = rlai.TabularMDP(leaves, torch.zeros(3, 1), torch.tensor([0.0, 1.0, 0.0]), horizon=2)
    with pytest.raises(ValueError, match="may begin in state 1"):
        rlai.explore(stays, elsewhere, num_episodes=1)

    class Parts(rlai.MarkovDecisionProcess):
        """The same, without tables: it is found out on the way."""

        def __init__(self):
            super().__init__(horizon=2)
            self.state_space, self.action_space = truth.state_space, truth.action_space
            self.initial, self.transition, self.reward = truth.initial, truth.transition, truth.reward

    with pytest.raises(ValueError, match="action 0 in state 1 leads to state 2"):
        rlai.explore(stays, Parts(), num_episodes=1)


def test_a_known_reward_that_is_another_is_told():
    pays = models.bandit(dtype=F64)
    twice = pays.replace(reward=2 * pays.reward_table)
    with pytest.raises(ValueError, match="paid 2, and the family says 1"):
        rlai.explore(families.bandit(dtype=F64), twice, num_episodes=40)


def test_rewards_that_vary_need_noise():
    class Varies(rlai.MarkovDecisionProcess):
        def __init__(self):
            super().__init__(horizon=2)
            self.state_space, self.action_space = gymnasium.spaces.Discrete(1), gymnasium.spaces.Discrete(1)

        def initial(self):
            return dist.Categorical(torch.ones(1))

        def transition(self, state, action):
            return dist.Categorical(torch.ones(*state.shape, 1))

        def reward(self, state, action, next_state):
            return torch.randn(state.shape)

    def family():
        worth = pyro.sample("worth", dist.Normal(torch.zeros(1, 1), 1.0).to_event(2))
        return rlai.TabularMDP(torch.ones(1, 1, 1), worth, torch.ones(1), horizon=2)

    with pytest.raises(ValueError, match="give reward_noise > 0 where they vary"):
        rlai.explore(family, Varies(), num_episodes=2)
    assert rlai.explore(family, Varies(), num_episodes=2, reward_noise=1.0).returns.shape == (2,)


@pytest.mark.parametrize("part", ["initial distribution", "discount", "temperature", "action prior"])
@pytest.mark.parametrize("strategy", ["posterior_sampling", "exact"])
def test_what_transitions_do_not_tell_must_be_known(part, strategy):
    def family():
        chance = pyro.sample("chance", dist.Beta(torch.ones((), dtype=F64), 1.0))
        both = torch.stack([chance, 1 - chance])
        options = {"discount": float(chance)} if part == "discount" else {}
        options |= {"temperature": float(chance)} if part == "temperature" else {}
        options |= {"action_prior": both} if part == "action prior" else {}
        start = both if part == "initial distribution" else torch.tensor([1.0, 0.0], dtype=F64)
        return rlai.TabularMDP(both.expand(2, 2, 2), torch.zeros(2, 2, dtype=F64), start, horizon=2, **options)

    fixed = rlai.TabularMDP(
        torch.full((2, 2, 2), 0.5, dtype=F64), torch.zeros(2, 2), torch.tensor([1.0, 0.0]), horizon=2
    )
    with pytest.raises(ValueError, match=f"family: its {part} depends on its unknowns"):
        rlai.explore(family, fixed, strategy=strategy, num_episodes=1)


def test_regret_of_a_life_is_over_all_states_that_an_episode_may_begin_in():
    """One start pays 1 for an unknown coin, the other 5 for nothing; by hand, in both orders of starts."""
    stay, coin, end = (torch.eye(3, dtype=F64)[i] for i in (1, 0, 2))
    reward = torch.tensor([[0.0, 0.0], [5.0, 5.0], [1.0, 1.0]], dtype=F64)
    start = torch.tensor([0.5, 0.5, 0.0], dtype=F64)

    def world(chances):
        flips = torch.stack([p * end + (1 - p) * coin for p in chances])
        rows = torch.stack([flips, stay.expand(2, 3), end.expand(2, 3)])
        return rlai.TabularMDP(rows, reward, start, horizon=2)

    def family():
        return world(pyro.sample("p", dist.Beta(torch.ones(2, dtype=F64), 1.0).to_event(1)))

    found = rlai.explore(family, world(torch.tensor([0.5, 0.9], dtype=F64)), strategy="exact", num_episodes=2,
                         num_seeds=20)  # fmt: skip
    assert found.best == pytest.approx(0.5 * 10 + 0.5 * 0.9, abs=1e-12)
    # The first episode holds both coins alike: it loses half of (0.9 - 0.5) in half of its starts.
    torch.testing.assert_close(found.regret[:, 0], torch.full((20,), 0.1, dtype=F64), rtol=0, atol=1e-9)
    # The second is sure of a coin, or as unsure as before.
    assert all(min(abs(x - y) for y in (0.0, 0.1, 0.2)) < 1e-9 for x in found.regret[:, 1].tolist())
    assert len(found.regret[:, 1].round(decimals=6).unique()) >= 2


def test_rewards_that_vary_within_one_episode_need_noise():
    """Of a pair that pays by where it leads, in the first episode, before anything is known."""
    rows = torch.full((2, 1, 2), 0.5, dtype=F64)

    def family():
        worth = pyro.sample("worth", dist.Normal(torch.zeros(2, 1, dtype=F64), 1.0).to_event(2))
        return rlai.TabularMDP(rows, worth, torch.tensor([1.0, 0.0], dtype=F64), horizon=8)

    paid = torch.tensor([0.0, 1.0], dtype=F64).expand(2, 1, 2).clone()
    truth = rlai.TabularMDP(rows, paid, torch.tensor([1.0, 0.0], dtype=F64), horizon=8)
    with pytest.raises(ValueError, match="contradicts what was paid at another step"):
        rlai.explore(family, truth, num_episodes=1, num_seeds=4)


def test_a_life_counts_what_was_tried_and_takes_rows_that_name_a_state_twice():
    """One Beta draw for two rows, beside known rows, one of which leads to state 1 by two successors."""
    reward = torch.tensor([[0.0, 0.3], [1.0, -0.2]], dtype=F64)

    def world(chance):
        indices = torch.tensor([[[0, 1], [1, 1]], [[0, 1], [0, 1]]])
        both, half = torch.stack([chance, 1 - chance]), torch.tensor([0.5, 0.5], dtype=F64)
        rows = torch.stack([torch.stack([both, half]), torch.stack([both, half])])
        return rlai.TabularMDP.from_successors(indices, rows, reward, torch.tensor([1.0, 0.0], dtype=F64), horizon=3)

    def family():
        return world(pyro.sample("chance", dist.Beta(torch.ones((), dtype=F64), 1.0)))

    found = rlai.explore(family, world(torch.tensor(0.4, dtype=F64)), strategy="exact", num_episodes=2)
    assert [float(belief.counts.sum()) for belief in found.beliefs] == [0.0, 3.0, 6.0]
    # Always state 1 but for the start, by hand: 0.3 for the sure way there, then 1, then 1 or what action 0 leads to.
    assert found.best == pytest.approx(0.3 + 1.0 + max(0.6 * 1.0 + 0.4 * 0.3, 0.0), abs=1e-9)
    assert float(found.regret.min()) > -1e-8


def test_an_action_that_the_world_forbids_is_named():
    """Else what acts would take it, and earn more than the best."""

    def world(worth, **options):
        return rlai.TabularMDP(torch.ones(1, 2, 1, dtype=F64), worth, torch.ones(1, dtype=F64), horizon=1, **options)

    def family():
        return world(pyro.sample("worth", dist.Normal(torch.zeros(1, 2, dtype=F64), 1.0).to_event(2)))

    truth = world(torch.tensor([[0.0, 1.0]], dtype=F64), action_prior=torch.tensor([1.0, 0.0], dtype=F64))
    with pytest.raises(ValueError, match="truth: its action prior forbids action 1 in state 0"):
        rlai.explore(family, truth, num_episodes=4)


@pytest.mark.parametrize(
    ("family", "seed", "words"),
    [
        (3, 0, "family must be a Pyro program without arguments"),
        (models.deep_sea(3), 0, "family must be a Pyro program without arguments"),
        (families.deep_sea(3), "a", "seed must be an integer from 0"),
        (families.deep_sea(3), None, "seed must be an integer from 0"),
    ],
)
def test_what_is_no_family_or_seed_is_named(family, seed, words):
    with pytest.raises(ValueError, match=words):
        rlai.explore(family, models.deep_sea(3), num_episodes=1, seed=seed)
