"""Runs looked at again: ``load_run``, files that changed or moved since, and folders that Python wrote."""

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from command_line import refused, rlai
from problems import TAXI

from rl_as_inference import compare, exact, load_run
from rl_as_inference.agents import SoftActorCritic, SoftQLearning, record_videos, train
from rl_as_inference.agents.evaluation import play as real_play
from rl_as_inference.guides import TanhGaussianPolicy
from rl_as_inference.models import point_mass
from rl_as_inference.processes import GymnasiumProcess, TabularMDP
from rl_as_inference.records import RunRecord

TINY: dict[str, Any] = {"hidden_sizes": (8,), "batch_size": 8, "learning_starts": 20, "compile": False}
WORDS = ["--hidden-sizes", "8", "--batch-size", "8", "--learning-starts", "20", "--no-compile", "--no-progress"]
WORDS += ["--num-steps", "30", "--evaluate-every", "30", "--evaluate-episodes", "1"]
LAKE = """
import torch
import rl_as_inference as rlai

def problem(worth=1.0):
    stay = torch.eye(2)[:, None].expand(2, 2, 2)
    return rlai.TabularMDP(stay, torch.tensor([[0.0, worth], [0.0, 0.0]]), torch.tensor([1.0, 0.0]), horizon=3)
"""
CART = """
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv

def problem(seconds=10):
    return gymnasium.wrappers.TimeLimit(PendulumEnv(), seconds)

environment = problem()

def factory(seconds=5):
    return lambda: problem(seconds)

class Pendulum(PendulumEnv):
    pass
"""


def last_mean(text: str) -> float:
    """The mean return in the table of rlai evaluate."""
    line = next(line for line in text.splitlines() if " seed 0 " in line)
    return float(line.strip("│").split("│")[2])


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    path = tmp_path / "there" / "lake.py"
    path.parent.mkdir()
    path.write_text(LAKE)
    return path


@pytest.fixture
def fitted(lake: Path, tmp_path: Path) -> Path:
    out = tmp_path / "there" / "run"
    assert rlai("fit", lake, "--worth", "2", "--steps", "2", "--no-progress", "--out", out)[0] == 0
    return out


class TestLoadRun:
    def test_a_fit(self, fitted: Path) -> None:
        run = load_run(fitted)
        assert isinstance(run.process, TabularMDP)
        assert float(run.process.reward_table[0, 1]) == 2.0
        assert (run.agent, run.comparison, run.data, run.critic) == (None, None, None, None)
        assert (run.record.command, run.record.options, run.record.settings["steps"]) == ("fit", {"worth": 2}, 2)
        history = json.loads((fitted / "history.json").read_text())
        assert run.elbo is not None
        assert run.elbo.tolist() == run.to_frame()["elbo"].tolist() == history
        assert (run.curve, run.gradients) == (None, None)
        assert float(exact.elbo(run.process, run.policy).detach()) > history[-1]  # the ELBO after the last of the steps

    def test_a_comparison(self, lake: Path, tmp_path: Path) -> None:
        words = ["--steps", "2", "--num-trajectories", "50", "--num-draws", "20", "--no-progress"]
        words += ["--gradients", "--gradients-num-trajectories", "200"]
        assert rlai("compare", lake, *words, "--out", tmp_path / "run")[0] == 0
        run = load_run(tmp_path / "run")
        assert run.gradients is not None
        told = {**run.gradients.to_dict(), "units": dict(run.gradients.units)}
        assert json.loads((tmp_path / "run" / "gradients.json").read_text()) == json.loads(json.dumps(told))
        (tmp_path / "run" / "gradients.json").write_text("{}")
        with pytest.raises(ValueError, match=r"gradients.json' is damaged"):
            _ = load_run(tmp_path / "run").gradients
        assert run.comparison is not None
        assert run.comparison.elbo_exact == pytest.approx(float(exact.elbo(run.process, run.policy).detach()), abs=1e-5)
        assert run.data is not None
        assert dict(run.data.posterior["state"].sizes) == {"chain": 1, "draw": 20, "time": 3}
        (tmp_path / "run" / "posterior.nc").write_bytes(b"nothing")
        with pytest.raises(ValueError, match=r"posterior\.nc"):
            _ = load_run(tmp_path / "run").data

    def test_a_learner(self, tmp_path: Path) -> None:
        agent = SoftActorCritic("Pendulum-v1", **TINY, temperature=0.3, env_kwargs={"g": 9.0})
        train(agent, 30, tmp_path, evaluate_episodes=1)
        run = load_run(str(tmp_path))
        assert isinstance(run.agent, SoftActorCritic)
        assert isinstance(run.process, GymnasiumProcess)
        assert (run.process.temperature, run.process.discount) == (pytest.approx(0.3), 0.99)
        assert run.agent.envs._envs[0].unwrapped.g == 9.0
        state = torch.randn(5, 3)
        assert torch.equal(run.policy(state, 0).base_dist.loc, agent.policy(state, 0).base_dist.loc)
        critic = run.critic
        assert critic is not None
        assert compare(run.process, run.policy, critic=critic, num_trajectories=2).elbo_critic is not None

    def test_not_a_run(self, tmp_path: Path, fitted: Path) -> None:
        with pytest.raises(ValueError, match=r"RUN: .* is not a run folder"):
            load_run(tmp_path)
        with pytest.raises(ValueError, match="env is for runs of train"):
            load_run(fitted, env="Pendulum-v1")


class TestChangedFiles:
    """Old numbers and a new problem do not go together."""

    def test_are_refused_or_said(self, lake: Path, fitted: Path) -> None:
        lake.write_text(LAKE.replace("horizon=3", "horizon=4"))
        for read in (lambda: load_run(fitted), lambda: load_run(str(fitted))):
            with pytest.raises(ValueError, match=r"lake.py has changed since the run began .*--trust"):
                read()
        assert "has changed since the run began" in refused("inspect", fitted)
        run = load_run(fitted, trust=True)
        assert (run.problem_changed, run.process.horizon) == (True, 4)
        code, _, said = rlai("inspect", fitted, "--allow-changed", "--num-draws", "10")
        assert code == 0
        assert f"rlai: warning: {lake} has changed since the run in {fitted} began" in said
        assert "which has changed since the run" in (fitted / "report.html").read_text()
        lake.write_text(LAKE)
        assert not load_run(fitted).problem_changed

    def test_changes_within_one_second_are_seen(self, lake: Path, fitted: Path) -> None:
        """Python's cache of a file goes by its second and size; the problem must be what is written now."""
        from rl_as_inference.problems import load_problem

        assert load_problem(str(lake), {}).horizon == 3
        lake.write_text(LAKE.replace("horizon=3", "horizon=7"))
        assert load_problem(str(lake), {}).horizon == 7

    def test_of_learners(self, tmp_path: Path) -> None:
        path, out = tmp_path / "mine.py", tmp_path / "run"
        path.write_text("from rl_as_inference.models import point_mass\nproblem = point_mass\n")
        assert rlai("train", path, "--horizon", "5", *WORDS, "--out", out)[0] == 0
        path.write_text(path.read_text() + "# and more\n")
        for words in (["evaluate", out], ["robustness", out], ["inspect", out], ["train", "--out", out, "--resume"]):
            assert "mine.py has changed since the run began" in refused(*words)
        code, _, said = rlai("evaluate", out, "--allow-changed", "--num-episodes", "1")
        assert code == 0
        assert "has changed since" in said

    def test_moved_files_are_looked_for(
        self, lake: Path, fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there = shutil.move(lake.parent, tmp_path / "elsewhere")  # run and problem together
        run = load_run(Path(there) / "run")
        assert run.record.problem_path == str(lake)
        shutil.move(Path(there) / "run", tmp_path / "alone")  # and now the run alone
        lost = refused("inspect", tmp_path / "alone")
        assert "the run's problem lake.py is no longer there; put it back" in lost
        assert str(lake) in lost
        lake.parent.mkdir()
        shutil.move(Path(there) / "lake.py", lake)
        load_run(tmp_path / "alone")
        # A name that leads to another file by now is not taken for the run's.
        (tmp_path / "lake.py").write_text(LAKE.replace("horizon=3", "horizon=9"))
        monkeypatch.chdir(tmp_path)
        record = json.loads((tmp_path / "alone" / "run.json").read_text())
        (tmp_path / "alone" / "run.json").write_text(json.dumps({**record, "problem": "lake.py", "sha256": None}))
        assert load_run(tmp_path / "alone").process.horizon == 3


class TestPython:
    """``train(agent, n, folder)`` writes what ``rlai train`` writes."""

    def test_the_same_folder(self, tmp_path: Path) -> None:
        assert rlai("train", "Pendulum-v1", *WORDS, "--seed", "3", "--g", "9.0", "--out", tmp_path / "shell")[0] == 0
        agent = SoftActorCritic("Pendulum-v1", **TINY, seed=3, env_kwargs={"g": 9.0})
        train(agent, 30, tmp_path / "python", evaluate_every=30, evaluate_episodes=1)
        names = [{path.name for path in (tmp_path / by).iterdir()} for by in ("shell", "python")]
        assert names[0] == names[1]
        records = [json.loads((tmp_path / by / "run.json").read_text()) for by in ("shell", "python")]
        for record in records:
            record["files"] = [name for name in record["files"] if "tensorboard" not in name]
            assert record.pop("sums").keys() == {"curve.csv"}  # which tells seconds
            del record["seconds"], record["sha256"]
        assert records[0] == records[1]
        for words in (["evaluate"], ["evaluate", "--stochastic"]):
            tables = [rlai(*words, tmp_path / by, "--num-episodes", "2") for by in ("shell", "python")]
            assert tables[0] == tables[1]
            assert tables[0][0] == 0
        assert rlai("train", "--out", tmp_path / "python", "--resume", "--num-steps", "40")[0] == 0
        assert load_run(tmp_path / "python").record.settings["num_steps"] == 40

    def test_objects_without_a_name(self, tmp_path: Path) -> None:
        agent = SoftActorCritic(point_mass(horizon=5), **TINY)
        train(agent, 30, tmp_path, evaluate_episodes=1)
        assert "was made in Python and has no name" in refused("evaluate", tmp_path)
        run = load_run(tmp_path, env=point_mass(horizon=5))
        assert run.agent is not None
        assert run.agent.num_steps == 30
        assert run.process.horizon == 5
        with pytest.raises(ValueError, match=r"env does not fit the run in .* another horizon: it has 5") as no:
            load_run(tmp_path, env=point_mass(horizon=6))
        assert "damaged" not in str(no.value)
        with pytest.raises(ValueError, match="another environment: it has point_mass, and this"):
            load_run(tmp_path, env="MountainCarContinuous-v0")
        with pytest.raises(ValueError, match="folder must be a string or a Path, got 3"):
            load_run(3)  # type: ignore[arg-type]

    def test_the_process_of_a_masked_run_keeps_to_its_masks(self, tmp_path: Path) -> None:
        train(SoftActorCritic(TAXI, **TINY), 30, tmp_path, evaluate_episodes=1)
        run = load_run(tmp_path)
        assert run.agent is not None
        assert run.process.state_space == run.agent.task.state_space
        walks = run.process.rollout(run.policy, 2)
        allowed = run.process.state_space.layout.part(walks.states[:-1], "action_mask")
        taken = allowed.gather(-1, walks.actions.long()[..., None])[..., 0]
        assert bool((taken == 1)[walks.mask.bool()].all())

    def test_a_name_can_be_given(self, tmp_path: Path) -> None:
        agent = SoftQLearning("CartPole-v1", **TINY)
        train(agent, 30, tmp_path, evaluate_episodes=1, problem="CartPole-v1", options={"max_episode_steps": 20})
        assert load_run(tmp_path).record.options == {"max_episode_steps": 20}

    def test_a_policy_of_ones_own_is_said(self, tmp_path: Path) -> None:
        policy = TanhGaussianPolicy(gymnasium.spaces.Box(-8.0, 8.0, (3,)), 1, hidden_sizes=(8,))
        train(SoftActorCritic("Pendulum-v1", policy=policy, **TINY), 30, tmp_path, evaluate_episodes=1)
        assert "the run has a policy of its own (TanhGaussianPolicy)" in refused("evaluate", tmp_path)

    def test_a_folder_of_another_run_is_refused(self, tmp_path: Path, fitted: Path) -> None:
        with pytest.raises(ValueError, match="has files of an earlier run"):
            train(SoftActorCritic("Pendulum-v1", **TINY), 30, fitted)


class TestEnvironmentsInFiles:
    @pytest.mark.parametrize(
        ("name", "options", "length"),
        [
            ("problem", ["--seconds", "7"], 7),
            ("environment", [], 10),
            ("factory", [], 5),
        ],
    )
    def test_are_learned_in(self, tmp_path: Path, name: str, options: list[str], length: int) -> None:
        path = tmp_path / "cart.py"
        path.write_text(CART)
        assert rlai("train", f"{path}:{name}", *options, *WORDS, "--out", tmp_path / "run")[0] == 0
        code, text, _ = rlai("evaluate", tmp_path / "run", "--num-episodes", "3")
        assert code == 0
        assert f" {length} │" in next(line for line in text.splitlines() if " seed 0 " in line)
        process = load_run(tmp_path / "run").process
        assert isinstance(process, GymnasiumProcess)
        assert process.horizon == length

    def test_running_statistics_go_with_the_policy(self, tmp_path: Path) -> None:
        """A simulator, and a film, of a learner under ``NormalizeObservation`` have its statistics, and keep them."""
        path = tmp_path / "normal.py"
        path.write_text(
            "import gymnasium\ndef problem(**options):\n"
            "    env = gymnasium.make('Pendulum-v1', max_episode_steps=10, render_mode='rgb_array')\n"
            "    return gymnasium.wrappers.NormalizeObservation(env)\n"
        )
        assert rlai("train", path, *WORDS, "--seeds", "2", "--out", tmp_path / "run")[0] == 0
        run = load_run(tmp_path / "run")
        assert run.agent is not None
        name = "0/NormalizeObservation.obs_rms.mean"
        learned = run.agent.envs.statistics()[name]
        assert abs(learned).max() > 0
        run.process.rollout(run.policy, 3)
        assert isinstance(run.process, GymnasiumProcess)
        assert (run.process._envs.statistics()[name] == learned).all()
        played: list[Any] = []
        play = "rl_as_inference.agents.videos.play"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(play, lambda envs, *_: played.append(envs.statistics()) or real_play(envs, *_))
            record_videos(run.agent, tmp_path / "films")
        assert (played[0][name] == learned).all()

    def test_no_guide_is_trained_on_them(self, tmp_path: Path) -> None:
        path = tmp_path / "cart.py"
        path.write_text(CART)
        for command in ("compare", "fit"):
            message = refused(command, f"{path}:problem")
            assert "is a Gymnasium environment, which can be stepped and nothing more" in message
            assert f"rlai train {path}:problem" in message

    def test_what_they_do_not_take(self, tmp_path: Path) -> None:
        path = tmp_path / "cart.py"
        path.write_text(CART)
        assert "did you mean --seconds?" in refused("train", path, "--second", "3")
        assert "--seconds: not an option of" in refused("train", f"{path}:environment", "--seconds", "3")
        path.write_text(CART + "broken = lambda: 1 / 0\n")
        assert "ZeroDivisionError: division by zero" in refused("train", f"{path}:broken")


def test_steps_that_the_agent_has_taken_already(tmp_path: Path) -> None:
    """A folder without a checkpoint was left, and nothing was learned."""
    agent = SoftActorCritic("Pendulum-v1", **TINY)
    agent.learn(30)
    for folder in (tmp_path / "run", None):
        with pytest.raises(ValueError, match="has taken 30 already, and is 20; say 50 for 20 more"):
            train(agent, 20, folder, evaluate_episodes=1)
    assert not (tmp_path / "run").exists()


def test_records_of_the_first_runs_are_read(tmp_path: Path) -> None:
    """They called train's steps ``steps``, and had no options of later."""
    old = {"command": "train", "problem": "Pendulum-v1", "options": {}, "seed": 0, "steps": 70, "algorithm": "sac"}
    (tmp_path / "run.json").write_text(json.dumps(old))
    assert RunRecord.read(tmp_path).settings == {"num_steps": 70, "algorithm": "sac"}


def test_dataclasses_in_a_file_with_future_annotations(tmp_path: Path) -> None:
    """Dataclasses look their module up by name."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from rl_as_inference.models import gridworld\n"
        "@dataclass\nclass Size:\n    rows: int = 3\n"
        "problem = gridworld(rows=Size().rows)\n"
    )
    assert rlai("fit", path, "--steps", "1", "--no-progress")[0] == 0
