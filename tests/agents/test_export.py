"""Policies as files that act without this package, and the best agent of a run."""

import csv
import json
import shutil
import sys

import gymnasium
import numpy as np
import onnxruntime
import pyro.distributions as dist
import pytest
import torch
from command_line import refused, rlai
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, TransformObservation
from small_agents import F64, checkpoint, mpo, sac, same, small_mdp, sql
from torch import nn

from rl_as_inference import load_run
from rl_as_inference.agents import train
from rl_as_inference.agents.logbook import BEST, CHECKPOINT, evaluation_seed
from rl_as_inference.checkpoints import load_tensors
from rl_as_inference.models import pendulum
from rl_as_inference.planning import MPPIPlanner


class Drift(gymnasium.Env):
    """A walk far from 0, moved by two actions in boxes of their own."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(np.float32([[-1.0, 0.0]]), np.float32([[3.0, 0.5]]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = 100 + self.np_random.normal(size=2), 0
        return self.place.astype(np.float32), {}

    def step(self, action):
        self.time += 1
        self.place += 0.1 * (action[0] - 1)
        return self.place.astype(np.float32), -float(np.abs(self.place - 100).sum()), False, self.time == 12, {}


class Counted(gymnasium.Env):
    """Four places and three actions, counted from elsewhere than 0."""

    observation_space = gymnasium.spaces.Discrete(4, start=2)
    action_space = gymnasium.spaces.Discrete(3, start=-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(4))
        return 2 + self.place, {}

    def step(self, action):
        self.place = (self.place + int(action)) % 4
        return 2 + self.place, float(self.place), False, False, {}


def played(path, *inputs):
    """What the file gives, by PyTorch or by ONNX Runtime alone."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(*map(torch.as_tensor, inputs)).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {given.name: each for given, each in zip(session.get_inputs(), inputs, strict=True)})[0]


ROWS = (100 + np.random.default_rng(0).normal(size=(9, 2))).astype(np.float32)
EVERY = np.arange(4).repeat(3)
CASES = {
    "boxes of their own": (lambda: sac(Drift), (ROWS,)),
    "integers from elsewhere, soft Q-learning": (lambda: sql(Counted), (2 + np.arange(4),)),
    "masks, and times": (lambda: sac(small_mdp(horizon=3)), (EVERY, np.tile(np.arange(3), 4))),
    "double precision, a mixture": (lambda: sac(Drift, dtype=F64, policy_components=3), (ROWS,)),
    "MPO": (lambda: mpo(Drift), (ROWS,)),
}
ONNX = ("boxes of their own", "masks, and times")
"""Cases that are written as ONNX too, which takes seconds."""


@pytest.mark.filterwarnings("ignore:reward of tabular:UserWarning")
@pytest.mark.parametrize(("name", "suffix"), [(n, ".pt2") for n in CASES] + [(n, ".onnx") for n in ONNX])
def test_a_file_acts_as_the_agent_does(name, suffix, tmp_path):
    """One observation, and many; in the environment's own units."""
    make, inputs = CASES[name]
    agent = make()
    agent.learn(40)
    path = tmp_path / f"policy{suffix}"
    written = agent.export(path)
    assert (written.path, written.format) == (path, "onnx" if suffix == ".onnx" else "torch")
    assert (written.num_compared, written.difference < 1e-5) == (40, True)
    for some in (tuple(each[:1] for each in inputs), inputs):
        wanted = agent.act(some[0], deterministic=True, t=some[1] if len(some) > 1 else 0)
        found = played(path, *some)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert all(agent.envs.own_action_space.contains(each) for each in found)


def test_running_statistics_are_part_of_the_file(tmp_path):
    """An episode that the agent plays, and the file beside it, which sees what the environment itself gives."""
    agent = sac(lambda: NormalizeReward(NormalizeObservation(Drift())), seeds=2)
    agent.learn(40)
    path = tmp_path / "policy.onnx"
    agent.export(path, seed_index=1)
    env = agent.arena.another(1, seed=5)
    agent.arena.carry_statistics(env, 1)
    choose = agent.chooser(agent.policies[1], deterministic=True)
    state, own = env.reset(), env.outermost.unwrapped
    for _ in range(11):  # an episode of 12 steps, but the last, after which the next one has begun
        action = env.environment_action(choose(state, 0))
        np.testing.assert_allclose(played(path, own.place.astype(np.float32)[None]), action, atol=1e-5)
        state = env.step(choose(state, 0)).state
    path = tmp_path / "policy.pt2"
    agent.export(path, seed_index=1, normalization=False)
    np.testing.assert_allclose(played(path, state), env.environment_action(choose(state, 0)), atol=1e-5)


class Masked(Drift):
    """Two of three actions are allowed; the agent sees the place and the mask."""

    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], {"action_mask": [1, 0, 1]}

    def step(self, action):
        seen, reward, terminated, truncated, _ = super().step(np.array([action - 1.0]))
        return seen, reward, terminated, truncated, {"action_mask": [1, 0, 1]}


@pytest.mark.parametrize("make", [Drift, Masked])
def test_statistics_of_the_options_are_part_of_the_file_too(make, tmp_path):
    """On what the environment itself gives; masks are a part of it, and not normalised."""
    agent = sac(make, normalize_observations=True, normalize_rewards=True)
    agent.learn(40)
    written = agent.export(tmp_path / "policy.pt2")
    if make is Masked:
        masks = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1]] * 3)
        rows = agent.task.state_space.layout.flatten({"observation": ROWS, "action_mask": masks})
        wanted = agent.act(ROWS, deterministic=True, action_mask=masks)
    else:
        rows, wanted = ROWS, agent.act(ROWS, deterministic=True)
    np.testing.assert_allclose(played(written.path, rows.astype(np.float32)), wanted, atol=1e-5)


class Pixels(Counted):
    """The place as a lit pixel."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 4), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return (255 * np.eye(4, dtype=np.uint8))[self.place] * np.ones((4, 1), np.uint8), {}

    def step(self, action):
        _, reward, *ends = super().step(action)
        return (255 * np.eye(4, dtype=np.uint8))[self.place] * np.ones((4, 1), np.uint8), reward, *ends


def test_images_are_taken_as_numbers(tmp_path):
    agent = sac(Pixels)
    agent.learn(40)
    seen = (255 * np.eye(4, dtype=np.uint8))[:, None].repeat(4, 1)
    found = played(agent.export(tmp_path / "policy.pt2").path, seen.astype(np.float32))
    assert found.tolist() == agent.act(seen, deterministic=True).tolist()


class Noisy(nn.Module):
    """A policy whose best action is drawn anew each time."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1))

    def forward(self, state, t):
        loc = (self.loc + 0 * state[..., :1] + torch.randn_like(state[..., :1])).tanh()
        return dist.Uniform(loc.clamp(-0.9, 0.9) - 0.1, loc.clamp(-0.9, 0.9) + 0.1).to_event(1)


def clipped():
    return TransformObservation(NormalizeObservation(Drift()), np.tanh, Drift.observation_space)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: sac(history=2), {}, "export: with history or frame_stack above 1, or memory, the policy acts"),
        (lambda: sac(memory="gru", sequence_length=2, burn_in=0), {}, "deploy the agent itself"),
        (
            lambda: sql("Pendulum-v1"),
            {},
            "the best of random draws, which a file cannot repeat; learn with SoftActorCri",
        ),
        (lambda: sac(lambda: NormalizeObservation(Masked())), {}, "MaskBeside stands between"),
        (lambda: sac(lambda: NormalizeObservation(NormalizeObservation(Drift()))), {}, "#2.obs_rms.mean stands"),
        (lambda: sac(clipped), {}, r"TransformObservation stands between .* \(--no-normalization\)"),
        (lambda: sac(policy=Noisy()), {}, "the file acts otherwise than the agent on"),
        (lambda: sac(), {"format": "jit"}, "format must be 'torch' or 'onnx', got 'jit'"),
        (lambda: sac(), {"seed_index": 1}, r"seed_index must be in 0 … 0"),
    ],
)
def test_what_no_file_can_hold_is_refused_and_leaves_none(make, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make().export(tmp_path / "policy.pt2", **options)
    assert not list(tmp_path.iterdir())


def test_plans_are_refused(tmp_path, monkeypatch):
    """As of a model-based agent that has a model to plan in."""
    agent = sac()
    planner = MPPIPlanner(pendulum(), look_ahead=2, num_samples=4)
    monkeypatch.setattr(agent.algorithm, "policy_of", lambda modules: planner)
    with pytest.raises(ValueError, match=r"MPPIPlanner plans in a model, and a file holds one network; .* planner='po"):
        agent.export(tmp_path / "policy.pt2")


def test_endings_and_missing_packages(tmp_path, monkeypatch):
    agent = sac()
    with pytest.raises(ValueError, match=r"format: .* ends in none of \.pt2, \.onnx"):
        agent.export(tmp_path / "policy.zip")
    assert agent.export(tmp_path / "policy.zip", format="torch").num_compared == 64, "nothing learned, nothing stored"
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'rl-as-inference\[onnx\]'"):
        agent.export(tmp_path / "policy.onnx")


# The best agent of a run.

SEED = 0


@pytest.fixture(autouse=True, scope="module")
def _drift():
    gymnasium.register("Drift-v0", Drift)
    yield
    gymnasium.registry.pop("Drift-v0")


def trained(folder, num_steps, **options):
    agent = sac("Drift-v0", learning_rate=0.02, seed=SEED)
    training = train(
        agent, num_steps, folder, evaluate_every=30, evaluate_episodes=2, progress=False, keep_best=True, **options
    )
    return agent, training


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, *trained(folder, 150)


def best_of(training):
    return max(training.curve, key=lambda row: row.mean_return)


def test_the_best_evaluation_is_kept(whole):
    folder, _, training = whole
    best = best_of(training)
    run = load_run(folder, best=True)
    assert run.agent.num_steps == best.step
    assert 0 < best.step < 150, "neither the first nor the last, or the test would show less"
    assert float(run.agent.evaluate(2, seed=evaluation_seed(SEED)).mean) == pytest.approx(best.mean_return, rel=1e-5)
    assert load_run(folder).agent.num_steps == 150
    assert BEST in json.loads((folder / "run.json").read_text())["files"]


def test_the_file_is_small_and_learning_can_go_on_from_it(whole):
    folder, _, _ = whole
    assert load_tensors(folder / BEST)[0]["replay.rows"].shape[1] == 0
    sizes = [(folder / name).stat().st_size for name in (BEST, CHECKPOINT)]
    assert sizes[0] < sizes[1] - 150 * 4 * 8, "150 rows of two states, an action and the like are not in it"
    agent = load_run(folder, best=True).agent
    before = agent.num_updates
    agent.learn(10)
    assert (len(agent.replay), agent.num_updates) == (10, before + 10)
    assert agent._update.tensors["parameters"].isfinite().all()


@pytest.mark.parametrize("later", [False, True])
def test_a_run_that_goes_on_keeps_the_same_one_bit_for_bit(whole, later, tmp_path):
    """Also where it was killed after a better one was kept, and before the next checkpoint."""
    folder, _, training = whole
    trained(tmp_path / "run", 90)
    if later:
        shutil.copy(folder / BEST, tmp_path / "run" / BEST)
    _, resumed = trained(tmp_path / "run", 150, resume=True)
    means = [[row.mean_return for row in each.curve] for each in (resumed, training)]
    assert means[0] == pytest.approx(means[1], rel=1e-5), "a file's are rounded"
    assert same(load_tensors(tmp_path / "run" / BEST)[0], load_tensors(folder / BEST)[0])


def test_runs_of_several_seeds_are_judged_by_their_mean(tmp_path):
    agent = sac("Drift-v0", seeds=2, learning_rate=0.02)
    training = train(agent, 60, tmp_path, evaluate_every=20, evaluate_episodes=1, progress=False, keep_best=True)
    means = {}
    for row in training.curve:
        means.setdefault(row.step, []).append(row.mean_return)
    best = max(means, key=lambda step: sum(means[step]))
    assert load_run(tmp_path, best=True).agent.num_steps == best


def test_a_best_that_was_not_kept_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"keep_best=True writes best\.safetensors into a folder; name it"):
        train(sac(), 30, keep_best=True)
    train(sac("Drift-v0"), 30, tmp_path, evaluate_every=30, evaluate_episodes=1, progress=False)
    with pytest.raises(ValueError, match=r"has no best\.safetensors, which rlai train --keep-best writes"):
        load_run(tmp_path, best=True)


# On the command line.


def test_the_command_line_exports_and_evaluates_the_best(whole, tmp_path):
    folder, _, training = whole
    best = best_of(training)
    written = rlai("export", str(folder), "--best", "--format", "torch")[1]
    assert f"policy.pt2  step {best.step}; actions as the agent's in 64 states" in written
    assert "policy.pt2" in json.loads((folder / "run.json").read_text())["files"]
    table = rlai("evaluate", str(folder), "--best", "--num-episodes", "2")[1]
    assert f"{best.step} steps" in table
    other = tmp_path / "other.onnx"
    assert "step 150; actions as the agent's in 64 states" in rlai("export", str(folder), "--out", str(other))[1]
    assert played(other, ROWS).shape == (9, 1, 2)
    assert "--format must be torch or onnx, got 'jit'" in refused("export", str(folder), "--format", "jit")


def test_the_command_line_keeps_the_best_and_resumes_with_it(tmp_path):
    out = tmp_path / "run"
    words = ["--hidden-sizes", "8", "--batch-size", "8", "--learning-starts", "20", "--no-compile", "--keep-best"]
    words += ["--evaluate-every", "30", "--evaluate-episodes", "1", "--action-scale", "0.2"]
    rlai("train", "Drift-v0", "--num-steps", "30", "--out", str(out), *words)
    rlai("train", "--num-steps", "60", "--out", str(out), "--resume")
    rows = list(csv.DictReader((out / "curve.csv").open()))
    best = max(rows, key=lambda row: float(row["mean_return"]))
    assert load_run(out, best=True).agent.num_steps == int(best["step"])
    assert checkpoint(load_run(out, best=True).agent, tmp_path / "again").keys()
