"""Replay: the ring, what it gives back, and segments against a reference that walks from row to row."""

import math

import gymnasium
import numpy as np
import pytest
import torch

from rl_as_inference.agents import Replay

BOX = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
NAMES = ("state", "action", "reward", "next_state", "terminated", "truncated")


def filled(num_steps, *, capacity, num_envs=1, num_learners=1, seed=0, ends=0.3, dtype=torch.float32):
    """A replay after ``num_steps`` steps of every environment, and what was written.

    States are numbered, so that every row can be told from all others; a third of the ends are cut-offs.
    """
    generator = np.random.default_rng(seed)
    replay = Replay(
        BOX, gymnasium.spaces.Discrete(4), capacity=capacity, num_learners=num_learners, num_envs=num_envs, dtype=dtype
    )
    replay.storage.fill_(math.nan)  # what was never written may be anything
    count, written = num_learners * num_envs, []
    for step in range(num_steps):
        number = (step * count + np.arange(count)).astype(float)
        ended = generator.random(count) < ends
        terminated = ended & (generator.random(count) < 2 / 3)
        row = {
            "state": number[:, None] + np.array([0.0, 0.25]),
            "action": generator.integers(0, 4, count),
            "reward": generator.normal(size=count).astype(np.float32),
            "next_state": number[:, None] + np.array([0.5, 0.75]),
            "terminated": terminated,
            "truncated": ended & ~terminated,
        }
        replay.add(*row.values())
        written.append({name: value.reshape(num_learners, num_envs, *value.shape[1:]) for name, value in row.items()})
    return replay, written


def rows_of(written, learner, capacity):
    """The last ``capacity`` rows of one learner, oldest first."""
    rows = [
        {"env": env, "step": step} | {name: value[learner, env] for name, value in row.items()}
        for step, row in enumerate(written)
        for env in range(row["reward"].shape[1])
    ]
    return rows[-capacity:]


def segment_from(rows, first, n):
    """The steps from row ``first`` on in its own environment, up to an end, the newest row, or ``n`` of them."""
    segment = [first]
    while len(segment) < n and not (segment[-1]["terminated"] or segment[-1]["truncated"]):
        wanted = (segment[-1]["env"], segment[-1]["step"] + 1)
        after = [row for row in rows if (row["env"], row["step"]) == wanted]
        if not after:
            break
        segment += after
    return segment


def batch_of_all(replay, monkeypatch, n_step=1, learner=0):
    """The batch that draws every row in use once, in the ring's order."""
    size = len(replay)
    draws = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *_, **__: draws)
        return replay.batch(replay.storage[learner], replay.size, replay.position, size, n_step)


# The ring.


def test_rows_come_back_as_they_were_written():
    replay, written = filled(7, capacity=10)
    assert len(replay) == 7
    for name in NAMES:
        expected = np.stack([row[name] for row in rows_of(written, 0, 10)])
        np.testing.assert_array_equal(getattr(replay, name).numpy(), expected, err_msg=name)
    assert (replay.state.dtype, replay.reward.dtype) == (torch.float32, torch.float32)
    assert (replay.action.dtype, replay.terminated.dtype, replay.truncated.dtype) == (
        torch.int64,
        torch.bool,
        torch.bool,
    )


@pytest.mark.parametrize("num_steps", [4, 5, 7, 10, 23])
@pytest.mark.parametrize("num_envs", [1, 2])
def test_the_ring_keeps_the_newest_rows(num_envs, num_steps):
    """Capacity 5 (of 1 environment) or 4 (5 rounded down to whole steps of 2)."""
    replay, written = filled(num_steps, capacity=5, num_envs=num_envs)
    rows = rows_of(written, 0, replay.capacity)
    assert replay.capacity == {1: 5, 2: 4}[num_envs]
    assert len(replay) == min(num_steps * num_envs, replay.capacity) == int(replay.size)
    assert int(replay.position) == num_steps * num_envs % replay.capacity
    order = replay.state[:, 0].argsort()
    for name in NAMES:
        np.testing.assert_array_equal(getattr(replay, name)[order].numpy(), np.stack([row[name] for row in rows]))


def test_every_learner_has_rows_of_its_own():
    replay, written = filled(3, capacity=6, num_envs=2, num_learners=3)
    assert replay.state.shape == (3, 6, 2)
    assert replay.reward.shape == (3, 6)
    for learner in range(3):
        rows = rows_of(written, learner, 6)
        for name in NAMES:
            np.testing.assert_array_equal(getattr(replay, name)[learner].numpy(), np.stack([row[name] for row in rows]))


def test_rows_that_are_not_valid_are_left_out():
    replay = Replay(BOX, BOX, capacity=8, num_envs=3)
    zero, no = np.zeros((3, 2)), np.zeros(3, bool)
    replay.add(zero, zero, np.array([1.0, 2.0, 3.0]), zero, no, no, np.array([True, False, True]))
    replay.add(zero, zero, np.array([4.0, 5.0, 6.0]), zero, no, no, np.array([False, False, False]))
    replay.add(zero, zero, np.array([7.0, 8.0, 9.0]), zero, no, no, np.array([True, True, True]))
    assert replay.reward.tolist() == [1.0, 3.0, 7.0, 8.0, 9.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_states_and_actions_of_any_shape(shape, dtype):
    replay = Replay(
        gymnasium.spaces.Box(-1, 1, shape), gymnasium.spaces.Box(-1, 1, (2,)), capacity=5, num_envs=2, dtype=dtype
    )
    generator = np.random.default_rng(0)
    state, next_state = generator.normal(size=(2, 2, *shape))
    action, flags = generator.normal(size=(2, 2)), np.array([True, False])
    replay.add(state, action, np.arange(2.0), next_state, flags, ~flags)
    np.testing.assert_array_equal(replay.state.numpy(), state.astype(replay.state.numpy().dtype))
    np.testing.assert_array_equal(replay.next_state.numpy(), next_state.astype(replay.state.numpy().dtype))
    np.testing.assert_array_equal(replay.action.numpy(), action.astype(replay.state.numpy().dtype))
    assert {x.dtype for x in (replay.state, replay.action, replay.reward)} == {dtype}
    batch = replay.batch(replay.storage[0], replay.size, replay.position, 6, 3)
    assert (batch.state.shape, batch.next_states.shape) == ((6, *shape), (3, 6, *shape))
    assert (batch.action.shape, batch.rewards.shape) == ((6, 2), (3, 6))


def test_discrete_states_are_integers():
    replay = Replay(gymnasium.spaces.Discrete(500), gymnasium.spaces.Discrete(6), capacity=4)
    no = np.zeros(1, bool)
    replay.add(np.array([499]), np.array([5]), np.zeros(1), np.array([17]), no, no)
    batch = replay.batch(replay.storage[0], replay.size, replay.position, 2)
    for state, action, next_state in (
        (replay.state, replay.action, replay.next_state),
        (batch.state[:1], batch.action[:1], batch.next_states[0, :1]),
    ):
        assert (state.tolist(), action.tolist(), next_state.tolist()) == ([499], [5], [17])
        assert state.dtype == next_state.dtype == action.dtype == torch.int64


def test_what_does_not_fit_into_memory_is_said():
    with pytest.raises(ValueError, match=r"buffer_size \d+ needs [\d.]+ GiB .* lower buffer_size"):
        Replay(gymnasium.spaces.Box(0, 1, (1000, 1000)), gymnasium.spaces.Discrete(2), capacity=10**12)


# What is drawn.


@pytest.mark.parametrize("num_steps", [9, 40])
def test_a_batch_holds_whole_rows(num_steps, monkeypatch):
    """Every row in use, of a ring that is not full and of one that is."""
    replay, _ = filled(num_steps, capacity=12)
    batch = batch_of_all(replay, monkeypatch)
    torch.testing.assert_close(batch.state, replay.state)
    torch.testing.assert_close(batch.action, replay.action)
    torch.testing.assert_close(batch.rewards, replay.reward[None])
    torch.testing.assert_close(batch.next_states, replay.next_state[None])
    torch.testing.assert_close(batch.terminated, replay.terminated[None].float())
    assert (batch.alive == 1).all()


@pytest.mark.parametrize("num_steps", [3, 9, 40])
def test_draws_are_uniform_over_the_rows_in_use(num_steps):
    """20,000 draws, seed 0: χ² of the counts within 4.5 deviations of its mean, and no other row."""
    replay, _ = filled(num_steps, capacity=12)
    used, count = len(replay), 20_000
    batch = replay.batch(replay.storage[0], replay.size, replay.position, count)
    index = (batch.state[:, None, 0] == replay.state[None, :, 0]).double()
    assert (index.sum(1) == 1).all()
    expected = count / used
    chi_square = float((index.sum(0) - expected).square().sum() / expected)
    assert abs(chi_square - (used - 1)) / math.sqrt(2 * (used - 1)) < 4.5


def test_draws_reach_both_ends_of_a_large_ring():
    """Numbers next to 0 and 1 give the first and the last of a million rows; float32 would give a row too many."""
    replay = Replay(gymnasium.spaces.Discrete(1), gymnasium.spaces.Discrete(1), capacity=1_000_003)
    replay.storage[:] = torch.arange(1_000_003.0)[:, None]
    replay.size.fill_(1_000_003)
    for number, row in ((0.0, 0), (1 - 2**-53, 1_000_002), (0.5, 500_001)):
        first = torch.tensor([number], dtype=torch.float64)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *_, first=first, **__: first)
            batch = replay.batch(replay.storage[0], replay.size, replay.position, 1)
        assert int(batch.rewards) == row


@pytest.mark.parametrize("n_step", [2, 3, 6])
@pytest.mark.parametrize(("num_envs", "num_learners"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 8, 9, 17, 25])
def test_segments_stay_within_their_episode_and_the_ring(num_steps, num_envs, num_learners, n_step, monkeypatch):
    """Every row of rings of eight steps as a first row, by a walk from row to row; ends are random."""
    for seed in range(3):
        replay, written = filled(
            num_steps, capacity=8 * num_envs, num_envs=num_envs, num_learners=num_learners, seed=seed
        )
        for learner in range(num_learners):
            rows = rows_of(written, learner, replay.capacity)
            batch = batch_of_all(replay, monkeypatch, n_step, learner)
            for i, number in enumerate(batch.state[:, 0].tolist()):
                first = next(row for row in rows if row["state"][0] == number)
                segment = segment_from(rows, first, n_step)
                length = len(segment)
                assert batch.alive[:, i].tolist() == [1.0] * length + [0.0] * (n_step - length)
                assert int(batch.action[i]) == first["action"]
                assert batch.rewards[:length, i].tolist() == [row["reward"] for row in segment]
                assert batch.next_states[:length, i].tolist() == [row["next_state"].tolist() for row in segment]
                assert batch.terminated[:length, i].tolist() == [float(row["terminated"]) for row in segment]
            assert all(part.isfinite().all() for part in batch if isinstance(part, torch.Tensor))


def test_the_reference_has_every_kind_of_end():
    """Of the segments above, some end by each reason; a test of nothing but whole segments would show little."""
    reasons = {"terminated": 0, "truncated": 0, "newest": 0, "whole": 0}
    _, written = filled(25, capacity=24, num_envs=3, seed=0)
    rows = rows_of(written, 0, 24)
    for first in rows:
        segment = segment_from(rows, first, 3)
        last = segment[-1]
        reason = (
            "terminated"
            if last["terminated"]
            else "truncated"
            if last["truncated"]
            else "whole"
            if len(segment) == 3
            else "newest"
        )
        reasons[reason] += 1
    assert min(reasons.values()) >= 2


# Checkpoints.


@pytest.mark.parametrize("num_steps", [5, 13])
def test_a_replay_comes_back_from_its_tensors_and_goes_on_alike(num_steps):
    replay, _ = filled(num_steps, capacity=8, num_envs=2, num_learners=2)
    other = Replay(BOX, gymnasium.spaces.Discrete(4), capacity=8, num_learners=2, num_envs=2)
    other.load_state_dict({name: tensor.clone() for name, tensor in replay.state_dict().items()})
    more = filled(3, capacity=8, num_envs=2, num_learners=2, seed=9)[1]
    for step in range(4):
        assert (len(other), int(other.size), int(other.position)) == (
            len(replay),
            int(replay.size),
            int(replay.position),
        )
        for name in NAMES:
            assert torch.equal(getattr(other, name), getattr(replay, name))
        if step < 3:
            for each in (replay, other):
                each.add(*(more[step][name].reshape(4, *more[step][name].shape[2:]) for name in NAMES))


@pytest.mark.parametrize("num_steps", [3, 5, 7, 12])
def test_a_checkpoint_fits_into_a_larger_ring(num_steps):
    """Rows of a ring of 5 in one of 9: no row is lost, and none that was never written comes into use."""
    replay, written = filled(num_steps, capacity=5)
    larger = Replay(BOX, gymnasium.spaces.Discrete(4), capacity=9)
    larger.storage.fill_(math.nan)
    larger.load_state_dict(replay.state_dict())
    more = filled(6, capacity=9, seed=1)[1]
    for row in more:
        larger.add(*(value.reshape(1, *value.shape[2:]) for value in row.values()))
    rows = [*rows_of(written, 0, 5), *rows_of(more, 0, 6)][-9:]
    assert len(larger) == len(rows)
    assert sorted(larger.reward.tolist()) == sorted(float(row["reward"]) for row in rows)


def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_changes():
    replay, _ = filled(5, capacity=8)
    before = {name: tensor.clone() for name, tensor in replay.state_dict().items()}
    for wrong in (
        filled(9, capacity=9)[0],
        filled(5, capacity=8, num_learners=2)[0],
        Replay(gymnasium.spaces.Discrete(3), gymnasium.spaces.Discrete(4), capacity=8),
    ):
        with pytest.raises(ValueError, match=r"replay: the checkpoint has rows of shape .* same env, buffer_size and"):
            replay.load_state_dict(wrong.state_dict())
        assert all(torch.equal(tensor, before[name]) for name, tensor in replay.state_dict().items())
        assert len(replay) == 5


def test_replay_lives_on_its_device(device):
    replay = Replay(BOX, gymnasium.spaces.Discrete(2), capacity=3, device=device)
    no = np.zeros(1, bool)
    for number in range(4):
        replay.add(np.full((1, 2), number), np.array([1]), np.full(1, number), np.ones((1, 2)), no, no)
    batch = replay.batch(replay.storage[0], replay.size, replay.position, 5, 2)
    assert {x.device.type for x in (*batch[:6], replay.size, replay.position, replay.state)} == {device.type}
    assert sorted(replay.reward.tolist()) == [1.0, 2.0, 3.0]
