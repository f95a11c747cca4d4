"""Prioritised replay and resets: draws against brute force, weights that undo them, and runs that go on bit for bit."""

from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from small_agents import F64, checkpoint, sac, same, sql

from rl_as_inference.agents import ModelBasedAgent, SoftActorCritic
from rl_as_inference.agents.functional import Networks
from rl_as_inference.agents.priorities import _WIDTH, Priorities
from rl_as_inference.critics import QEnsemble
from rl_as_inference.guides import TanhGaussianPolicy

BOX = gymnasium.spaces.Box(-8, 8, (3,))
TORQUE = gymnasium.spaces.Box(-1, 1, (1,))


def tree_of(priorities, **options):
    """A tree with these leaves of one learner."""
    made = Priorities(len(priorities), exponent=1.0, **{"importance_exponent": 1.0, **options})
    made.tree[0, : len(priorities)] = torch.as_tensor(priorities, dtype=F64)
    made._add_up(0, len(priorities))
    return made


def leaves(priorities, capacity):
    return priorities.tree[:, :capacity]


def assert_sums_hold(priorities):
    """Every level is the sum of the one below, to the last bits."""
    ends = [*priorities.starts[1:], priorities.tree.shape[1]]
    levels = [priorities.tree[:, start:end] for start, end in zip(priorities.starts, ends, strict=True)]
    for below, above in pairwise(levels):
        sums = below.unflatten(1, (-1, _WIDTH)).sum(-1)
        torch.testing.assert_close(above[:, : sums.shape[1]], sums, rtol=1e-14, atol=0)
        assert not above[:, sums.shape[1] :].any()


@pytest.mark.parametrize("capacity", [1, 31, 32, 33, 2000, 40_000])
def test_rows_are_those_of_the_cumulative_sum(capacity, monkeypatch):
    """A draw u is the first row whose cumulative priority is past u of the total, by one sum over all of them."""
    generator = np.random.default_rng(capacity)
    values = generator.gamma(0.3, size=capacity) + 1e-3
    priorities = tree_of(values)
    assert_sums_hold(priorities)
    uniform = torch.as_tensor(generator.random(2000))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: uniform)
    size = torch.tensor(capacity)
    rows, weights = priorities.draw(priorities.tree[0], priorities.num_updates[0], size, 2000)
    expected = np.searchsorted(np.cumsum(values) / values.sum(), uniform.numpy(), side="right")
    assert (rows.numpy() == expected).all()
    # With β = 1, weight times probability is the same for all, and the largest weight is 1.
    even = weights * torch.from_numpy(values[expected])
    torch.testing.assert_close(even, even[:1].expand(2000), rtol=1e-10, atol=0)
    assert float(weights.amax()) == 1


def test_rows_are_drawn_in_proportion():
    """100,000 draws of 300 rows, a tenth of them without priority: every count within 4.5 standard errors."""
    torch.manual_seed(0)
    values = torch.rand(300, dtype=F64) ** 3
    priorities = tree_of(values)
    priorities.tree[:, 30:60] = 0.0  # rows that are not in use
    priorities._add_up(0, 300)
    rows, _ = priorities.draw(priorities.tree[0], priorities.num_updates[0], torch.tensor(300), 100_000)
    share = leaves(priorities, 300)[0] / leaves(priorities, 300).sum()
    count = torch.bincount(rows, minlength=300)
    assert not count[30:60].any()
    z = (count - 1e5 * share) / (1e5 * share * (1 - share)).sqrt().clamp(min=1)
    assert float(z.abs().amax()) < 4.5


def test_the_weighted_estimate_is_unbiased():
    """With β = 1: exactly over all pairs of draws in float64, and in 20,000 batches of 8 by a z-score."""
    values = torch.tensor([0.1, 2.0, 0.5, 4.0, 0.01], dtype=F64)
    f = torch.tensor([3.0, -1.0, 2.0, 0.5, 10.0], dtype=F64)
    priorities = tree_of(values)
    rows = torch.arange(5)
    probability = priorities.probability(priorities.tree[0], rows)
    torch.testing.assert_close(probability, values / values.sum(), rtol=1e-12, atol=0)
    raw = 1 / (5 * probability)  # as draw() gives them, before the batch's largest is made 1
    estimate = 0.5 * ((raw * f)[:, None] + (raw * f)[None, :])
    torch.testing.assert_close((probability[:, None] * probability * estimate).sum(), f.mean(), rtol=1e-12, atol=0)
    torch.manual_seed(1)
    drawn, weight = priorities.draw(priorities.tree[0], priorities.num_updates[0], torch.tensor(5), 160_000)
    weight = weight * raw[drawn[weight.argmax()]]  # undoes the normalisation
    torch.testing.assert_close(weight, raw[drawn], rtol=1e-10, atol=0)
    batches = (weight * f[drawn]).reshape(20_000, 8).mean(1)
    z = (batches.mean() - f.mean()) / (batches.std() / 20_000**0.5)
    assert abs(float(z)) < 3


def test_the_importance_exponent_rises():
    priorities = tree_of([1.0, 4.0], importance_exponent=0.4, importance_annealing=10)
    ratios = []
    for done in (0, 5, 10, 50):
        priorities.num_updates.fill_(done)
        weight = priorities._weight(
            priorities.tree[0], priorities.num_updates[0], torch.tensor(2), torch.tensor([0, 1])
        )
        ratios.append(float(weight[0] / weight[1]))
    assert ratios == pytest.approx([4**0.4, 4**0.7, 4, 4], rel=1e-6)


def test_the_ring_gives_new_rows_the_largest_priority():
    """Also where it closes; what was there before is gone, and a row that is drawn twice has its larger error."""
    priorities = Priorities(300, 2, exponent=0.5, importance_exponent=1.0)
    priorities.begin(0, 300)
    assert (leaves(priorities, 300) == 1).all()
    row, error = torch.tensor([[0, 299, 299], [5, 5, 7]]), torch.tensor([[9.0, 0.25, 16.0], [0.04, 0.01, 0.0]])
    priorities.renew(*priorities.tensors, row, error)
    torch.testing.assert_close(priorities.tree[0, [0, 299]], torch.tensor([3.0, 4.0], dtype=F64), rtol=1e-5, atol=0)
    torch.testing.assert_close(priorities.tree[1, [5, 7]], torch.tensor([0.2, 0.001], dtype=F64), rtol=1e-4, atol=0)
    assert priorities.largest.flatten().tolist() == pytest.approx([4.0, 1.0], rel=1e-5)
    priorities.begin(299, 300)
    priorities.begin(0, 2)
    assert priorities.tree[:, [0, 1, 299]].tolist() == [[priorities.largest[0, 0].item()] * 3, [1.0] * 3]
    assert_sums_hold(priorities)


@pytest.mark.parametrize("n_step", [1, 3])
def test_priorities_are_the_errors_of_what_was_drawn(n_step):
    """One update of soft Q-learning, whose targets have no noise: rows that were drawn, and no others, in float64."""
    agent = sql("CartPole-v1", dtype=F64, n_step=n_step, priority_exponent=0.7, learning_starts=1000, buffer_size=60)
    agent.learn(70)
    priorities, update = agent.replay.priorities, agent._update
    with torch.random.fork_rng():
        torch.manual_seed(2)
        drawn, _ = priorities.draw(priorities.tree[0], priorities.num_updates[0], agent.replay.size, agent.batch_size)
    networks = Networks(update.template, update.layout.unflatten(update.tensors["parameters"][0]))
    targets = Networks(update.template, update.target_layout.unflatten(update.tensors["targets"][0]))
    batch = agent.replay.batch(agent.replay.storage[0], agent.replay.size, agent.replay.position, 6, n_step, drawn)
    assert torch.equal(batch.state, agent.replay.state[drawn])
    q = agent.task.taken(networks("critics", batch.state, None, 0), batch.action)[0]
    error = (q - agent.algorithm.target(networks, targets, batch)).abs().detach()
    torch.manual_seed(2)
    update.step()
    torch.testing.assert_close(leaves(priorities, 60)[0, drawn], (error + 1e-6) ** 0.7, rtol=1e-9, atol=0)
    others = torch.ones(60, dtype=torch.bool).index_fill(0, drawn, False)
    assert (leaves(priorities, 60)[0, others] == 1).all()
    assert_sums_hold(priorities)


def test_without_an_exponent_replay_is_plain_bit_for_bit(tmp_path):
    plain, told = sac(), sac(priority_exponent=0.0, importance_exponent=0.9, importance_annealing=7)
    for agent in (plain, told):
        agent.learn(50)
    assert told.replay.priorities is None
    for name, tensor in plain._update.tensors.items():
        assert torch.equal(told._update.tensors[name], tensor)


PRIORITIES = {"priority_exponent": 0.6, "importance_annealing": 30}
RESETS = {"reset_every": 25, "updates_per_step": 3.0}


@pytest.mark.parametrize(
    ("make", "options"),
    [(sac, PRIORITIES), (sac, RESETS), (sql, {**PRIORITIES, **RESETS, "n_step": 2})],
    ids=["priorities", "resets", "both"],
)
def test_runs_go_on_bit_for_bit(make, options, tmp_path):
    """From a checkpoint in mid-run, with two seeds, where the ring has closed; and the same seed is the same run."""
    options = {"num_envs": 2, "seeds": 2, "buffer_size": 40, **options}
    agents = [make("CartPole-v1", **options) for _ in range(3)]
    agents[0].learn(70)
    agents[1].learn(50)
    agents[1].save(tmp_path / "a")
    agents[2].restore(tmp_path / "a")
    end = checkpoint(agents[0], tmp_path / "end")
    for agent in agents[1:]:
        agent.learn(20)
        assert same(checkpoint(agent, tmp_path / "other"), end)
        if agent.replay.priorities is not None:
            assert torch.equal(agent.replay.priorities.tree, agents[0].replay.priorities.tree)


def test_a_checkpoint_of_prioritised_replay_fits_a_larger_ring(tmp_path):
    agent, larger = sac(buffer_size=30, **PRIORITIES), sac(buffer_size=200, **PRIORITIES)
    agent.learn(45)
    agent.save(tmp_path / "a")
    larger.restore(tmp_path / "a")
    by_row = [dict(zip(map(tuple, a.replay.state.tolist()), leaves(a.replay.priorities, 30)[0].tolist(), strict=True))
              for a in (agent, larger)]  # fmt: skip
    assert by_row[0] == by_row[1]
    assert_sums_hold(larger.replay.priorities)
    plain = sac(buffer_size=30)
    plain.restore(tmp_path / "a")  # which has all that uniform replay needs
    plain.save(tmp_path / "b")
    with pytest.raises(ValueError, match="priority_exponent"):
        agent.restore(tmp_path / "b")


def test_seeds_have_priorities_of_their_own():
    """Another second seed, and the first has the same priorities and parameters, bit for bit."""
    agents = [sac(seeds=2, **PRIORITIES) for _ in range(2)]
    agents[1]._update.tensors["parameters"][1] += 0.1
    for agent in agents:
        agent.learn(40)
    trees = [agent.replay.priorities.tree for agent in agents]
    assert torch.equal(trees[0][0], trees[1][0])
    assert not torch.equal(trees[0][1], trees[1][1])
    assert torch.equal(*(agent._update.tensors["parameters"][0] for agent in agents))


@pytest.mark.slow
def test_compiled_priorities_are_the_traced_ones():
    """20 updates with the same random numbers, to 1e-5."""
    made = []
    for compile in (False, True):
        made.append(sac(hidden_sizes=(16, 16), batch_size=16, compile=compile, seeds=2, buffer_size=1000, **PRIORITIES))
        made[-1].learn(39)
    for one, other in zip(*(agent.replay.priorities.tensors for agent in made), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert_sums_hold(made[1].replay.priorities)


def test_resets_make_all_that_is_learned_anew():
    """After 25 updates, before the 26th: other networks than at first, targets alike, Adam at its start, α as at first.

    The parameters that follow are one step of Adam's, of the learning rate, from there; replay is as it was.
    """
    agent = sac(reset_every=25, learning_starts=20, updates_per_step=1.0)
    first = agent._update.tensors["parameters"].clone()
    agent.learn(19 + 25)
    tensors, held = agent._update.tensors, agent.policy
    assert agent.num_updates == 25
    assert float(tensors["decays"][0, 0]) == pytest.approx(0.9**25, rel=1e-4)  # no run ends with what is new
    before, rows = tensors["parameters"].clone(), agent.replay.state.clone()
    agent.learn(1)
    assert float(tensors["decays"][0, 0]) == pytest.approx(0.9, rel=1e-6)
    moved = (tensors["parameters"] - before).abs()
    assert float((moved > 0.01).float().mean()) > 0.3
    assert float((tensors["parameters"] - first).abs().mean()) > 0.01  # and not those of the start either
    critics = agent._update.layout.spans["critics"]
    rate = agent.learning_rate
    assert float((tensors["targets"] - tensors["parameters"][:, critics]).abs().amax()) <= 1.01 * rate
    assert abs(agent.temperatures[0] - 1.0) <= 1.01 * rate
    assert held is agent.policy  # what users hold follows
    assert torch.equal(agent.replay.state[:-1], rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sac(priority_exponent=-0.5), "priority_exponent"),
        (lambda: sac(importance_exponent=1.5), "importance_exponent"),
        (lambda: sac(importance_annealing=0), "importance_annealing"),
        (lambda: sac(reset_every=0), "reset_every"),
        (lambda: sac(priority_exponent=0.5, memory="gru"), "priority_exponent=0.5 is of single steps"),
        (lambda: ModelBasedAgent("Pendulum-v1", priority_exponent=0.5), "priority_exponent is of transitions that"),
        (lambda: sac(reset_every=10, target_return=-100.0), "reset_every makes a tuned α anew"),
        (
            lambda: SoftActorCritic("Pendulum-v1", reset_every=10, policy=TanhGaussianPolicy(BOX, 1)),
            "reset_every makes networks anew",
        ),
        (
            lambda: SoftActorCritic("Pendulum-v1", reset_every=10, critic=QEnsemble(BOX, TORQUE)),
            "reset_every makes networks anew, and critic is one of your own",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_agent_saved_without_its_replay_begins_its_priorities_anew(tmp_path):
    agent = sac(priority_exponent=0.6)
    agent.learn(40)
    assert float(agent.replay.priorities.largest) != 1
    agent.save(tmp_path / "small", replay=False)
    loaded = SoftActorCritic.load(tmp_path / "small")
    assert len(loaded.replay) == 0
    assert float(loaded.replay.priorities.largest) == 1
    assert float(loaded.replay.priorities.tree.sum()) == 0
    loaded.learn(30)
    assert bool(loaded._update.tensors["parameters"].isfinite().all())
