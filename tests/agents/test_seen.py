"""Learners that see dictionaries, images, stacked frames and normalised numbers: they act, save and resume so."""

import re

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation

from rl_as_inference import GymnasiumProcess, ModelBasedAgent, compare
from rl_as_inference.agents.encoded import Encoded
from rl_as_inference.agents.frames import FrameStack
from rl_as_inference.agents.image_encoder import ImageEncoder
from rl_as_inference.agents.replay import Replay
from rl_as_inference.guides import CategoricalPolicy
from rl_as_inference.processes import to_gymnasium
from rl_as_inference.state_layout import LaidOut, StateLayout
from tests.small_agents import F64, mpo, networks, sac, small_mdp, sql, targets

IMAGE = Box(0, 255, (6, 5, 2), np.uint8)
PARTS = Dict({"camera": IMAGE, "body": Tuple((Box(-1, 1, (2,)), Discrete(3, start=4))), "lamp": MultiBinary(2)})
PLAIN = Dict({"body": Box(-1, 1, (2,)), "floor": Discrete(3, start=1)})
SPACES = {"image": IMAGE, "parts": PARTS, "plain": PLAIN}


class Seen(gymnasium.Env):
    """Observations drawn from a space; five steps an episode, the reward is the number of the step."""

    def __init__(self, space=PLAIN, actions=2):
        self.observation_space = space
        self.action_space = Discrete(actions) if actions else Box(-2, 2, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def look(self):
        # Each draw is of the episode's seed and the step alone, so that an episode can be played again.
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def step(self, action):
        self.steps += 1
        return self.look(), float(self.steps), False, self.steps == 5, {}


def a_batch(space, count):
    space.seed(0)
    return gymnasium.vector.utils.concatenate(
        space,
        [space.sample() for _ in range(count)],
        gymnasium.vector.utils.create_empty_array(space, count),
    )


@pytest.mark.parametrize(
    ("make", "space", "actions", "options"),
    [
        (sac, "image", 2, {"seeds": 2, "dtype": F64}),
        (sac, "parts", 0, {"n_step": 2}),
        (sac, "plain", 2, {"num_envs": 2, "history": 2}),
        (sac, "parts", 2, {"frame_stack": 2, "value_network": True}),
        (sac, "plain", 0, {"normalize_observations": True, "normalize_rewards": True, "seeds": 2}),
        (sql, "parts", 2, {"double": True}),
        (sql, "plain", 0, {"seeds": 2}),
        (mpo, "parts", 0, {}),
    ],
)
def test_learning_goes_on_bit_for_bit_from_a_file(make, space, actions, options, tmp_path):
    def agent():
        return make(lambda: Seen(SPACES[space], actions), **options)

    first, second = agent(), agent()
    first.learn(24)
    first.save(tmp_path / "agent")
    first.learn(8)
    second.restore(tmp_path / "agent")
    second.learn(8)
    for name, tensor in first._update.tensors.items():
        assert torch.equal(tensor, second._update.tensors[name]), name
    assert first.num_updates == second.num_updates > 0
    returns = first.evaluate(2).returns
    assert returns.unique().tolist() == [15.0]  # the environment's own reward units, normalised or not
    assert {earned for _, _, earned, _ in first.episodes} == {15.0}
    # What users act on is the environment's own: one observation, or a batch.
    batch = a_batch(SPACES[space], 3)
    first.begin_episode()
    acted = first.act(batch, deterministic=True)
    assert acted.shape == (3, *(() if actions else (1,)))


def test_a_vector_environment_of_parts_is_learned_in():
    agent = sac(SyncVectorEnv([lambda: Seen(PARTS)] * 2), num_envs=2)
    agent.learn(24)
    assert agent.replay.state.shape == (len(agent.replay), agent.task.state_space.layout.size)


def test_the_encoder_is_trained_by_the_critics_alone():
    agent = sac(lambda: Seen(IMAGE))
    agent.learn(22)
    algorithm = agent.algorithm
    assert isinstance(algorithm, Encoded)
    replay = agent.replay
    batch = replay.batch(replay.storage[0], replay.size, replay.position, 8)
    for part, reaches in (("critic_loss", True), ("actor_loss", False)):
        now = networks(agent)
        now.tree = {
            name: {key: value.clone().requires_grad_() for key, value in parameters.items()}
            for name, parameters in now.tree.items()
        }
        _, metrics = algorithm.loss(now, targets(agent), batch)
        loss = metrics[part]
        gradients = torch.autograd.grad(loss, list(now.tree["encoder"].values()), allow_unused=True)
        assert any(each is not None and bool(each.abs().sum() > 0) for each in gradients) == reaches
    assert "encoder" not in algorithm.targeted


def test_the_policy_reads_pixels_as_shares_of_255():
    encoder = ImageEncoder(IMAGE)
    image = torch.randint(0, 256, (3, *IMAGE.shape), dtype=torch.uint8)
    expected = encoder.towers[0](image.float().movedim(-1, 1) / 255)
    assert torch.equal(encoder(image), expected)
    assert torch.equal(encoder(image.float()), expected)


def test_a_policy_of_ones_own_stands_on_the_features():
    policy = CategoricalPolicy(Box(-np.inf, np.inf, (128,)), 2)
    agent = sac(lambda: Seen(IMAGE), policy=policy)
    before = policy.network.layers[-1].weight.clone()
    agent.learn(22)
    assert not torch.equal(policy.network.layers[-1].weight, before)
    images = torch.from_numpy(a_batch(IMAGE, 3))
    features = agent.modules[0]["encoder"](images)
    assert torch.equal(agent.policy(images, 0).logits, policy(features, 0).logits)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((84, 84, 4), "channels last: 32 of 8x8 by 4, 64 of 4x4 by 2, 64 of 3x3 by 1, 128"),
        ((3, 21, 30), "channels first: 32 of 4x4 by 2, 64 of 3x3 by 2, 128"),
        ((10, 10), r"\(10, 10\): 16 of 3x3 by 1, 128"),
        ((2, 9, 1), r"\(2, 9, 1\), channels last: flat, 128"),
    ],
)
def test_convolutions_fit_the_image(shape, told):
    encoder = ImageEncoder(Box(0, 255, shape, np.uint8))
    assert encoder(torch.zeros(2, *shape)).shape == (2, 128)
    assert re.search(told, repr(encoder))


def test_masks_stay_beside_the_features():
    space = LaidOut(StateLayout(Dict({"camera": IMAGE, "action_mask": MultiBinary(3)})))
    encoder = ImageEncoder(space)
    rows = torch.from_numpy(space.layout.flatten({"camera": IMAGE.sample(), "action_mask": np.array([1, 0, 1])}))
    assert isinstance(encoder.space, LaidOut)
    mask = encoder.space.layout.mask
    assert encoder(rows[None])[0, mask.columns].tolist() == [1, 0, 1]


# Replay in bytes.


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", ["image", "parts"])
def test_pixels_come_back_from_replay_as_they_were(name, dtype):
    space = IMAGE if name == "image" else LaidOut(StateLayout(PARTS))
    replay = Replay(space, Discrete(2), capacity=7, num_envs=2, dtype=dtype)
    rng, written = np.random.default_rng(0), []
    for _ in range(5):
        states = rng.integers(0, 256, (4, *space.shape)).astype(space.dtype)
        written += [states[:2]]
        flags = np.zeros(2, bool)
        replay.add(states[:2], flags, np.ones(2), states[2:], flags, flags)
    assert torch.equal(replay.state[-2:].double().cpu(), torch.from_numpy(written[2]).double())
    assert replay.state.dtype == (torch.uint8 if name == "image" else dtype)
    batch = replay.batch(replay.storage[0], replay.size, replay.position, 9)
    assert batch.state.dtype == dtype
    assert {tuple(row) for row in batch.state.flatten(1).tolist()} <= {
        tuple(row) for row in replay.state.flatten(1).to(dtype).tolist()
    }
    mask = torch.func.vmap(
        lambda rows: replay.batch(rows, replay.size, replay.position, 3).state, randomness="different"
    )
    assert mask(replay.storage).shape == (1, 3, *space.shape)


def test_a_hundred_thousand_atari_transitions_take_less_than_six_gigabytes():
    replay = Replay(Box(0, 255, (84, 84, 4), np.uint8), Discrete(18), capacity=100_000)
    assert replay.storage.numel() * replay.storage.itemsize <= 6e9  # whose pages are taken as they are written


def test_images_that_do_not_fit_are_refused_with_what_would():
    with pytest.raises(
        ValueError, match=r"needs .* GiB for these images, and .* GiB are free on .*; lower buffer_size to "
    ):
        Replay(Box(0, 255, (84, 84, 4), np.uint8), Discrete(18), capacity=10**9)


# Frames.


@pytest.mark.parametrize(
    ("space", "channels"),
    [
        (IMAGE, -1),
        (Box(0, 255, (4, 3), np.uint8), None),
        (Box(0, 255, (2, 7, 7), np.uint8), 0),
        (Box(-1, 1, (3,)), None),
        (Discrete(4), None),
    ],
)
def test_frames_are_those_of_gymnasiums_wrapper(space, channels):
    def states(env, seeds=(1, 2)):
        for seed in seeds:
            yield env.reset(seed=seed)[0]
            for _ in range(4):
                yield env.step(0)[0]

    frames, held = FrameStack(space, 3), None
    plain, stacked = Seen(space), FrameStackObservation(Seen(space), 3)
    for step, (one, several) in enumerate(zip(states(plain), states(stacked), strict=True)):
        one = np.asarray(one)[None]
        held = frames.first(one) if step % 5 == 0 else frames.then(held, np.zeros(1), one)
        if channels is not None:
            several = np.concatenate(list(several), channels)
        elif len(space.shape) == 2:
            several = np.moveaxis(several, 0, -1)
        assert np.array_equal(held[0].ravel(), several.ravel())
        assert held[0].shape == frames.space.shape
        assert np.array_equal(frames.latest(held), one)
        assert np.array_equal(frames.latest(torch.from_numpy(held)).numpy(), one)


def test_frames_of_parts_are_stacked_part_by_part_and_the_latest_mask_counts():
    space = Dict({"camera": IMAGE, "floor": Discrete(3, start=1), "action_mask": MultiBinary(2)})
    layout = StateLayout(space)
    frames = FrameStack(LaidOut(layout), 2)
    seen = [
        {"camera": IMAGE.sample(), "floor": floor, "action_mask": np.array(mask)}
        for floor, mask in ((1, [1, 1]), (3, [0, 1]))
    ]
    rows = [layout.flatten(each)[None] for each in seen]
    state = torch.from_numpy(frames.then(frames.first(rows[0]), np.zeros(1), rows[1])[0])
    stacked = frames.space.layout
    assert stacked.part(state, "floor").tolist() == [0, 2]
    assert stacked.part(state, "action_mask").tolist() == [0, 1]
    camera = np.concatenate([each["camera"] for each in seen], -1)
    assert np.array_equal(stacked.part(state, "camera").numpy(), camera)
    assert stacked.num_inputs == camera.size + 6


# What does not go together.


@pytest.mark.parametrize(
    ("space", "options", "said"),
    [
        (IMAGE, {"history": 2}, "history does not go with images .*frame_stack=k"),
        (PARTS, {"memory": "gru"}, "memory does not go with images"),
        (PLAIN, {"history": 2, "frame_stack": 2}, "frame_stack=2 does not go with history"),
        (IMAGE, {"normalize_observations": True}, "normalize_observations: Seen observes"),
        (IMAGE, {"buffer_size": 10**12}, "for these images"),
        (Box(0.0, 255.0, (8, 8)), {}, "looks like an image.*np.uint8"),
    ],
)
def test_what_does_not_go_together_is_told(space, options, said):
    with pytest.raises(ValueError, match=said):
        sac(lambda: Seen(space), **options)


def test_what_an_agent_acts_on_is_held_to_its_parts():
    agent = sac(lambda: Seen(PLAIN))
    with pytest.raises(ValueError, match="NaN or infinite entries in part 'body'"):
        agent.act({"body": np.array([np.nan, 0]), "floor": 1})
    with pytest.raises(ValueError, match="part 'floor' that is 4, outside Discrete"):
        agent.act({"body": np.zeros(2), "floor": 4})
    agent = sac(lambda: Seen(IMAGE))
    with pytest.raises(ValueError, match=r"float64.*act on images as bytes"):
        agent.act(np.zeros(IMAGE.shape))


def test_a_model_of_the_world_and_processes_say_what_they_cannot_see():
    with pytest.raises(ValueError, match=r"observes StateLayout.*foretells numbers alone"):
        ModelBasedAgent(lambda: Seen(PLAIN, 0))
    process = small_mdp()
    with pytest.raises(ValueError, match=r"normalize_rewards needs the environments one by one.*to_gymnasium"):
        sac(process, normalize_rewards=True)
    sac(lambda: to_gymnasium(process), normalize_rewards=True).learn(2)


def test_evaluation_is_under_the_statistics_learned_under():
    agent = sac("Pendulum-v1", normalize_observations=True)
    agent.learn(21)
    state = torch.from_numpy(agent.envs.agent_state(np.array([1.0, 0.0, 2.0]))).float()
    learned = agent.envs.statistics()
    mean, var = (learned[f"0/NormalizedObservation.obs_rms.{name}"] for name in ("mean", "var"))
    np.testing.assert_allclose(state, (np.array([1.0, 0.0, 2.0]) - mean) / np.sqrt(var + 1e-8), rtol=1e-5)
    envs = agent.arena.another(2, seed=3)
    agent.arena.carry_statistics(envs)
    envs.reset()
    envs.step(np.zeros((2, 1), np.float32))
    assert np.array_equal(envs.statistics()["1/NormalizedObservation.obs_rms.mean"], mean)
    assert agent.evaluate(1).mean < -100  # Pendulum's own units


def test_a_critic_is_compared_on_what_it_learned_from():
    """On plain observations and rewards the answers would be numbers of nothing."""
    agent = sac("Pendulum-v1", normalize_observations=True, normalize_rewards=True, learning_starts=10)
    agent.learn(30)
    with pytest.raises(ValueError, match=r"critic was learned from normalised .*normalization=agent\.arena"):
        compare(GymnasiumProcess("Pendulum-v1"), agent.policy, critic=agent.critic, num_trajectories=2)
    held = {"statistics": agent.envs.statistics(), "normalization": agent.arena.normalization}
    process = GymnasiumProcess("Pendulum-v1", num_envs=2, **held)
    draws = process.rollout(agent.policy, 2)
    var = held["statistics"]["0/NormalizedReward.return_rms.var"]
    raw = (
        np.stack([draws.states[..., i].numpy() for i in range(3)], -1)
        * np.sqrt(held["statistics"]["0/NormalizedObservation.obs_rms.var"] + 1e-8)
        + held["statistics"]["0/NormalizedObservation.obs_rms.mean"]
    )
    angle, torque = np.arctan2(raw[:-1, :, 1], raw[:-1, :, 0]), 2 * draws.actions[..., 0].numpy()
    paid = -(angle**2 + 0.1 * raw[:-1, :, 2] ** 2 + 0.001 * torque**2)
    np.testing.assert_allclose(draws.rewards * np.sqrt(var + 1e-8), paid, rtol=1e-3, atol=1e-3)
    assert compare(process, agent.policy, critic=agent.critic, num_trajectories=2).elbo_critic is not None
    stacked = sac("Pendulum-v1", frame_stack=2)
    with pytest.raises(ValueError, match=r"critic values the last observations together \(history, frame_stack"):
        compare(GymnasiumProcess("Pendulum-v1"), stacked.policy, critic=stacked.critic, num_trajectories=2)


@pytest.mark.parametrize("option", [{"normalize_observations": True}, {"normalize_rewards": True}, {"frame_stack": 2}])
def test_checkpoints_are_of_agents_that_see_the_same(option, tmp_path):
    """Neither way round, and the agent stays as it was."""
    seeing, plain = sac("Pendulum-v1", learning_starts=10, **option), sac("Pendulum-v1", learning_starts=10)
    for one, other in ((seeing, plain), (plain, seeing)):
        one.learn(12)
        one.save(tmp_path / "agent.safetensors")
        before = other._update.tensors["parameters"].clone()
        with pytest.raises(ValueError, match="was written with another"):
            other.restore(tmp_path / "agent.safetensors")
        assert torch.equal(other._update.tensors["parameters"], before)
