"""``rlai train`` and ``rlai evaluate``: what they write, resuming, and what they say to wrong input."""

import csv
import importlib.util
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from command_line import refused, rlai

from rl_as_inference.agents import CurveRow, SoftActorCritic, train
from rl_as_inference.agents.training import Training
from rl_as_inference.checkpoints import load_tensors
from rl_as_inference.records import RunRecord

TINY = ["--hidden-sizes", "8,8", "--batch-size", "8", "--learning-starts", "20", "--no-compile"]
QUICK = [*TINY, "--num-steps", "120", "--evaluate-every", "50", "--evaluate-episodes", "2", "--checkpoint-every", "40"]
LONG = [*TINY, "--num-steps", "1500", "--updates-per-step", "0.3", "--checkpoint-every", "200"]
LONG += ["--evaluate-every", "500", "--evaluate-episodes", "1"]


class Strange(gymnasium.Env[Any, Any]):
    """A walk whose reward is NaN at one step of its life, and that can only be drawn as text."""

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, nan_at: int = -1, render_mode: str | None = None) -> None:
        self.nan_at, self.count, self.render_mode = nan_at, 0, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = np.zeros(2, np.float32)
        return self.place.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        self.place = np.clip(self.place + 0.1 * action, -1, 1).astype(np.float32)
        return self.place.copy(), float("nan") if self.count == self.nan_at else 1.0, False, False, {}


@pytest.fixture(autouse=True, scope="module")
def _strange() -> Iterator[None]:
    gymnasium.register("Strange-v0", Strange, max_episode_steps=10)
    yield
    gymnasium.registry.pop("Strange-v0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two seeds; tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "pendulum"
    code, text, _ = rlai("train", "Pendulum-v1", *QUICK, "--seeds", "2", "--out", out, "--g", "9.8")
    assert code == 0
    (out.parent / "printed.txt").write_text(text)
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert rlai("train", "Pendulum-v1", *LONG, "--out", out)[0] == 0
    return out


def curve(out: Path) -> list[dict[str, str]]:
    with (out / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def cells(table: str, row: str) -> list[str]:
    line = next(line for line in table.splitlines() if f" {row} " in line)
    return [cell.strip() for cell in line.strip("│").split("│")]


def step_of(out: Path) -> int:
    path = out / "checkpoint.safetensors"
    return int(load_tensors(path)[1]["progress"]["num_steps"]) if path.exists() else 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_learning(first: Path, second: Path) -> None:
    """Every tensor of two checkpoints is equal bit for bit, and so are the evaluations on the way."""
    (one, _), (other, _) = (load_tensors(out / "checkpoint.safetensors") for out in (first, second))
    assert one.keys() == other.keys()
    assert {name: torch.equal(tensor, other[name]) for name, tensor in one.items()} == dict.fromkeys(one, True)
    without_time = [[{**row, "seconds": ""} for row in curve(out)] for out in (first, second)]
    assert without_time[0] == without_time[1]


class TestTrain:
    def test_writes_everything(self, finished: Path) -> None:
        assert {path.name for path in finished.iterdir()} == {
            "checkpoint.safetensors",
            "curve.csv",
            "learning_curve.png",
            "model_card.md",
            "run.json",
            "tensorboard",
        }
        rows = curve(finished)
        assert tuple(rows[0]) == CurveRow._fields
        assert [(row["step"], row["seed"]) for row in rows] == [(str(s), i) for s in (0, 50, 100, 120) for i in "01"]
        assert rows[0]["entropy"] == ""
        for row in rows[2:]:
            assert float(row["least_return"]) <= float(row["mean_return"]) <= float(row["largest_return"]) < 0
            assert float(row["temperature"]) > 0
            assert np.isfinite(float(row["entropy"]))
        assert rows[-1]["entropy"] != rows[-2]["entropy"]  # of each seed its own
        assert (finished / "learning_curve.png").stat().st_size > 10_000
        record = json.loads((finished / "run.json").read_text())
        assert record["finished"] is True
        assert record["compile"] is False
        assert (record["problem"], record["options"], record["seeds"]) == ("Pendulum-v1", {"g": 9.8}, 2)
        assert record["versions"]["torch"] == torch.__version__
        assert set(record["files"]) == contents(finished).keys() - {"run.json"}

    def test_table(self, finished: Path) -> None:
        text = (finished.parent / "printed.txt").read_text()
        last = [float(row["mean_return"]) for row in curve(finished)[-2:]]
        assert "SoftActorCritic on Pendulum-v1" in text
        assert f"{np.mean(last):.4g}" in text
        assert "bootstrap over 2 seeds, 2 episodes each" in text
        for words in ("environment steps", "temperature α", "policy entropy", "steps/s", "checkpoint.safetensors"):
            assert words in text

    def test_tensorboard(self, finished: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(finished / "tensorboard"))
        events.Reload()
        tags = set(events.Tags()["scalars"])
        assert {"learning/entropy", "learning/temperature", "learning/critic_loss", "evaluation/return"} <= tags
        points = events.Scalars("evaluation/return_seed_1")
        assert [point.step for point in points] == [0, 50, 100, 120]
        assert points[-1].value == pytest.approx(float(curve(finished)[-1]["mean_return"]), rel=1e-4)

    @pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
    def test_mpo_learns_resumes_and_is_evaluated(self, env: str, tmp_path: Path) -> None:
        folder = tmp_path / "a"
        code, text, _ = rlai("train", env, "--learner", "mpo", "--kl-improvement", "0.2", *QUICK, "--out", folder)
        assert code == 0
        assert f"MPO on {env}" in text
        settings = RunRecord.read(folder).settings
        assert (settings["algorithm"], settings["kl_improvement"]) == ("mpo", 0.2)
        more = str(int(settings["num_steps"]) + 10)
        assert rlai("train", "--resume", "--out", folder, "--num-steps", more)[0] == 0
        assert rlai("evaluate", folder, "--num-episodes", "2")[0] == 0

    def test_a_model_based_run_is_inspected(self, tmp_path: Path) -> None:
        folder = tmp_path / "a"
        options = ["--planner", "policy", "--model-hidden-sizes", "8", "--model-updates", "10", "--look-ahead", "5"]
        options += ["--imagined-transitions", "50", "--evaluate-every", "60", "--evaluate-episodes", "1"]
        code, text, _ = rlai(
            "train", "Pendulum-v1", "--learner", "model-based", *TINY, *options, "--num-steps", "60", "--out", folder
        )
        assert code == 0
        assert "ModelBasedAgent on Pendulum-v1" in text
        assert re.search(r"evaluation return .* 1 episode +│", text)  # and not "1 episodes"
        settings = RunRecord.read(folder).settings
        assert (settings["algorithm"], settings["model_hidden_sizes"]) == ("model-based", [8])
        assert rlai("inspect", folder, "--num-draws", "2")[0] == 0
        page = (folder / "report.html").read_text()
        assert "What it believed, what it planned, what happened" in page
        assert 'src="data:image/png;base64,' in page

    def test_soft_q_learning_and_a_problem_in_parts(self, tmp_path: Path) -> None:
        code, text, _ = rlai("train", "CartPole-v1", "--algorithm", "sql", "--double", *QUICK, "--out", tmp_path / "a")
        assert code == 0
        assert "SoftQLearning on CartPole-v1" in text
        path = tmp_path / "mine.py"
        path.write_text("from rl_as_inference.models import point_mass\nproblem = point_mass\n")
        code, text, _ = rlai("train", path, "--horizon", "7", *QUICK, "--out", tmp_path / "b")
        assert code == 0
        assert "fixed" in text  # the process brings its temperature
        assert json.loads((tmp_path / "b" / "run.json").read_text())["problem"] == str(path)
        code, text, _ = rlai("evaluate", tmp_path / "b", "--num-episodes", "3")
        assert code == 0
        assert cells(text, "seed 0")[-1] == "7"  # the episodes' length

    def test_without_out_the_run_is_kept_under_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for count in (1, 2):  # the second run of a second gets a folder of its own, too
            code, text, said = rlai("train", "Pendulum-v1", *QUICK)
            assert code == 0
            folders = sorted((tmp_path / "runs").iterdir())
            assert len(folders) == count
            assert all(re.fullmatch(r"pendulum-v1-\d{8}-\d{6}(-2)?", folder.name) for folder in folders)
        assert said.splitlines()[0].startswith("rlai: the run is kept in runs/pendulum-v1-")
        assert "written to runs/pendulum-v1-" in text
        refused("train", "Pendulum-v1", "--target-entropy", "99")
        assert len(list((tmp_path / "runs").iterdir())) == 2

    def test_overwriting_replaces_all_of_the_earlier_run(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        rlai("train", "Pendulum-v1", *QUICK, "--out", out)
        (out / "tensorboard" / "notes.txt").write_text("mine")
        before = contents(out)
        assert "exists already" in refused("train", "Pendulum-v1", *QUICK, "--out", out)
        assert contents(out) == before
        code, _, _ = rlai("train", "Pendulum-v1", *QUICK, "--seed", "5", "--out", out, "--overwrite")
        assert code == 0
        after = contents(out)
        assert (len(before), len(after)) == (7, 7)
        assert before.keys() & after.keys() == {
            "checkpoint.safetensors",
            "curve.csv",
            "learning_curve.png",
            "model_card.md",
            "run.json",
            "tensorboard/notes.txt",
        }
        rlai("fit", "gridworld", "--steps", "1", "--out", out, "--overwrite")
        assert not (out / "checkpoint.safetensors").exists()
        assert list((out / "tensorboard").iterdir()) == [out / "tensorboard" / "notes.txt"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["Pendulm-v1"], "Pendulm"),
            (["penduluum"], "'penduluum' is neither a model ("),
            (["corridor"], "corridor is a Pyro program"),
            (["double_integrator"], "unbounded"),
            ([], "PROBLEM is missing"),
            (["--g", "3"], "PROBLEM is missing"),
            (["Pendulum-v1", "--gee", "3"], "gee"),
            (["Pendulum-v1", "--algorithm", "dqn"], "--algorithm must be one of sac, sql, mpo, model-based; got 'dqn'"),
            (["Pendulum-v1", "--double"], "--double goes with --algorithm sql"),
            (["CartPole-v1", "--algorithm", "sql", "--objective", "svg0"], "--objective goes with --algorithm sac"),
            (["CartPole-v1", "--target-entropy", "0.7"], "0.7 nats, which no policy on Discrete(2) can"),
            (["CartPole-v1", "--target-return", "nan"], "target_return must be a finite number"),
            (["CartPole-v1", "--target-return", "9", "--temperature", "1"], "target_return tunes the temperature"),
            (["Pendulum-v1", "--target-return", "9", "--objective", "ddpg"], "target_return tunes an entropy that"),
            (["Pendulum-v1", "--temperature", "warm"], "--temperature must be auto, or a number > 0; got 'warm'"),
            (["Pendulum-v1", "--temperature", "-1"], "temperature must be"),
            (["Pendulum-v1", "--discount", "1.2"], "discount must be in [0, 1]"),
            (["Pendulum-v1", "--hidden-sizes", "a,b"], "--hidden-sizes must be widths"),
            (["Pendulum-v1", "--num-steps", "0"], "--num-steps must be >= 1"),
            (["Pendulum-v1", "--seeds", "0"], "seeds must be an integer >= 1"),
            (["Pendulum-v1", "--evaluate-every", "0"], "--evaluate-every must be >= 1"),
            (["Pendulum-v1", "--seed", "-1"], "--seed must be in"),
            (["Pendulum-v1", "--device", "nvidia"], "device must be 'cpu' or 'cuda', got 'nvidia'"),
            (["Pendulum-v1", "--resume"], "--resume needs --out"),
        ],
    )
    def test_wrong_input(self, words: list[str], message: str) -> None:
        assert message in refused("train", *words)

    def test_wrong_input_leaves_no_folder(self, tmp_path: Path) -> None:
        refused("train", "Pendulm-v1", "--out", tmp_path / "run")
        refused("train", "CartPole-v1", "--target-entropy", "3", "--out", tmp_path / "run")
        assert list(tmp_path.iterdir()) == []


class TestStops:
    def test_nan_from_the_environment(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        message = refused("train", "Strange-v0", "--nan-at", "73", *QUICK, "--out", out)
        assert "Strange-v0 gave a non-finite reward at step 73: nan" in message
        assert f"(at step 72, saved in {out}/checkpoint.safetensors)" in message
        _, record = load_tensors(out / "checkpoint.safetensors")
        assert record["progress"]["num_steps"] == 72
        assert json.loads((out / "run.json").read_text())["finished"] is False

    def test_nan_in_an_evaluation(self, tmp_path: Path) -> None:
        message = refused("train", "Strange-v0", "--nan-at", "9", *QUICK, "--out", tmp_path / "run")
        assert "(in the evaluation at step 0)" in message

    def test_divergence_spares_the_last_good_checkpoint(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        message = refused("train", "Pendulum-v1", *QUICK, "--learning-rate", "1e30", "--out", out)
        assert "learning diverged by step" in message
        assert f"saved in {out}/diverged.safetensors" in message
        assert not (out / "checkpoint.safetensors").exists()

    def test_ctrl_c(self, tmp_path: Path, whole: Path) -> None:
        cut = tmp_path / "cut"
        with running("Pendulum-v1", *LONG, "--out", cut) as process:
            wait_for(lambda: (cut / "checkpoint.safetensors").exists(), process)
            process.send_signal(signal.SIGINT)
            printed, line = process.communicate(timeout=60)
        assert process.returncode == 130
        assert printed == ""
        assert line.count("\n") == 1
        assert "rlai: interrupted; at step " in line
        assert f"go on with: rlai train --out {cut} --resume" in line
        _, record = load_tensors(cut / "checkpoint.safetensors")
        assert f"at step {record['progress']['num_steps']}," in line
        assert rlai("train", "--out", cut, "--resume")[0] == 0
        assert_same_learning(whole, cut)

    def test_a_second_ctrl_c_inside_a_step_saves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        agent = SoftActorCritic("Pendulum-v1", hidden_sizes=(8,), batch_size=8, learning_starts=20, compile=False)
        step = type(agent._update).step

        def at_fifty(update: Any, index: int = 0) -> None:
            if agent.num_steps == 50:
                raise KeyboardInterrupt
            step(update, index)

        monkeypatch.setattr(type(agent._update), "step", at_fifty)
        with pytest.raises(KeyboardInterrupt) as stop:
            train(agent, 100, tmp_path, evaluate_episodes=1, checkpoint_every=40)
        assert stop.value.__notes__ == ["inside a step; the last checkpoint is of step 40"]
        with pytest.raises(ValueError, match="interrupted inside a step"):
            agent.save(tmp_path / "other")
        assert agent.restore(tmp_path / "checkpoint.safetensors")["seconds"] > 0
        agent.save(tmp_path / "other")


def running(*words: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "from rl_as_inference.cli import main; main()", "train", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    started = time.perf_counter()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.perf_counter() - started < 120
        time.sleep(0.005)


class TestResume:
    @pytest.mark.slow
    def test_killed_runs_end_as_if_never_killed(self, tmp_path: Path, whole: Path) -> None:
        """One run, SIGKILL at two random moments of it; then every tensor is that of the run that was left alone."""
        moments, killed, out = random.Random(0), [], tmp_path / "run"
        for index in range(2):
            with running(*(["--resume"] if index else ["Pendulum-v1", *LONG]), "--out", out) as process:
                # Some time after a checkpoint: a stretch of learning, an evaluation, or a write.
                before = step_of(out)
                wait_for(lambda: step_of(out) > before, process)  # noqa: B023
                time.sleep(moments.uniform(0, 0.2))
                process.kill()
                process.communicate(timeout=60)
            killed.append((process.returncode, step_of(out)))
        assert rlai("train", "--out", out, "--resume")[0] == 0
        assert_same_learning(whole, out)
        assert not list(out.glob(".*"))
        assert [code for code, _ in killed] == [-signal.SIGKILL] * 2
        steps = [0, *(step for _, step in killed)]
        assert steps == sorted(set(steps))  # each went on from where the last was killed
        assert steps[-1] < 1500

    def test_goes_on_in_the_logs(self, tmp_path: Path, finished: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        out = tmp_path / "run"
        shutil.copytree(finished, out)
        words = ["train", "Pendulum-v1", *QUICK, "--seeds", "2", "--g", "9.8"]
        words[words.index("--num-steps") + 1] = "80"
        rlai(*words, "--out", tmp_path / "part")
        part = tmp_path / "part" / "checkpoint.safetensors"
        shutil.copy(part, out)  # back to step 80
        assert rlai("train", "Pendulum-v1", *QUICK, "--seeds", "2", "--out", out, "--resume")[0] == 0
        assert_same_learning(finished, out)
        assert curve(out)[:4] == curve(finished)[:4]  # with the seconds of then
        then, now = (load_tensors(path)[1]["notes"]["seconds"] for path in (part, out / "checkpoint.safetensors"))
        assert now == pytest.approx(float(curve(out)[-1]["seconds"]), abs=0.01)
        assert now > then
        events = EventAccumulator(str(out / "tensorboard"))
        events.Reload()
        assert [point.step for point in events.Scalars("evaluation/return")] == [0, 50, 100, 120]
        steps = [point.step for point in events.Scalars("learning/temperature")]
        assert steps == list(range(1, 121))

    def test_of_a_finished_run_changes_no_learning(self, finished: Path) -> None:
        before = contents(finished)
        code, text, _ = rlai("train", "--out", finished, "--resume")
        assert code == 0
        assert "evaluation return" in text
        assert "nan" not in text
        after = contents(finished)
        for name in ("checkpoint.safetensors", "curve.csv"):
            assert after[name] == before[name]
        assert json.loads(after["run.json"])["finished"] is True

    def test_past_the_end(self, tmp_path: Path, finished: Path) -> None:
        """More steps than the run had: what is learned is what a longer run learns, bit for bit."""
        out, longer = tmp_path / "run", tmp_path / "longer"
        shutil.copytree(finished, out)
        assert rlai("train", "--out", out, "--resume", "--num-steps", "150")[0] == 0
        record = json.loads((out / "run.json").read_text())
        assert (record["num_steps"], record["finished"]) == (150, True)
        words = [*QUICK, "--seeds", "2", "--g", "9.8", "--out", longer]
        words[words.index("--num-steps") + 1] = "150"
        assert rlai("train", "Pendulum-v1", *words)[0] == 0
        (one, _), (other, _) = (load_tensors(folder / "checkpoint.safetensors") for folder in (out, longer))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
        assert [row["step"] for row in curve(out)[::2]] == ["0", "50", "100", "120", "150"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--num-steps", "50"], "has --num-steps 120, and this says 50; say more to go on past its end"),
            (["--num-critics", "3"], "has --num-critics 2, and this says 3"),
            (["--evaluate-every", "7"], "has --evaluate-every 50, and this says 7"),
            (["CartPole-v1"], "has PROBLEM Pendulum-v1, and this says CartPole-v1"),
            (["--hidden-sizes", "16"], "has --hidden-sizes [8, 8], and this says [16]"),
            (["--temperature", "0.1"], "has --temperature None, and this says 0.1"),
            (["--g", "3"], "has --options {'g': 9.8}, and this says {'g': 3}"),
            (["--overwrite"], "say one of them"),
        ],
    )
    def test_of_another_run(self, finished: Path, words: list[str], message: str) -> None:
        before = contents(finished)
        assert message in refused("train", *words, "--out", finished, "--resume")
        assert contents(finished) == before

    def test_without_a_run(self, tmp_path: Path) -> None:
        assert "does not exist" in refused("train", "--out", tmp_path / "none", "--resume")
        assert "it has no run.json" in refused("train", "--out", tmp_path, "--resume")
        rlai("fit", "gridworld", "--steps", "1", "--out", tmp_path / "fit")
        assert "is of rlai fit" in refused("train", "--out", tmp_path / "fit", "--resume")

    def test_of_a_changed_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.py"
        path.write_text("from rl_as_inference.models import point_mass\nproblem = point_mass\n")
        rlai("train", path, *QUICK, "--out", tmp_path / "run")
        path.write_text(path.read_text() + "# and more\n")
        assert "has changed since the run began" in refused("train", "--out", tmp_path / "run", "--resume")


class TestEvaluate:
    def test_repeats_the_last_evaluation(self, finished: Path) -> None:
        before = contents(finished)
        code, text, _ = rlai("evaluate", finished, "--num-episodes", "2")
        assert code == 0
        for row in curve(finished)[-2:]:
            _, episodes, mean, _, least, largest, length = cells(text, f"seed {row['seed']}")
            numbers = [f"{float(row[name]):.4g}" for name in ("mean_return", "least_return", "largest_return")]
            assert [mean, least, largest] == numbers
            assert (episodes, length) == ("2", "200")
        assert "all seeds" in text
        assert contents(finished) == before

    def test_seed_and_draws(self, finished: Path) -> None:
        tables = [rlai("evaluate", finished, *words)[1] for words in ([], ["--seed", "3"], ["--stochastic"])]
        assert len(set(tables)) == 3
        assert "actions drawn" in tables[2]
        assert rlai("evaluate", finished, "--stochastic")[1] == tables[2]

    def test_wrong_folders(self, tmp_path: Path, finished: Path) -> None:
        assert "does not exist" in refused("evaluate", tmp_path / "none")
        assert "it has no run.json" in refused("evaluate", tmp_path)
        rlai("fit", "gridworld", "--steps", "1", "--out", tmp_path / "fit")
        assert "is of rlai fit, and a run of rlai train is needed" in refused("evaluate", tmp_path / "fit")
        assert "--num-episodes must be >= 1" in refused("evaluate", finished, "--num-episodes", "0")

    def test_damaged_runs(self, tmp_path: Path, finished: Path) -> None:
        import safetensors.torch

        out = tmp_path / "run"
        out.mkdir()
        record = (finished / "run.json").read_text()
        (out / "run.json").write_text(record)
        checkpoint = out / "checkpoint.safetensors"
        assert "has no checkpoint.safetensors yet; go on with" in refused("evaluate", out)
        good = (finished / "checkpoint.safetensors").read_bytes()
        for damaged in (b"", b"nonsense", good[: len(good) // 2]):
            checkpoint.write_bytes(damaged)
            before = contents(out)
            assert "is not a readable checkpoint" in refused("evaluate", out)
            assert "is not a readable checkpoint" in refused("train", "--out", out, "--resume")
            assert {**before, "run.json": b""} == {**contents(out), "run.json": b""}
        safetensors.torch.save_file({"x": torch.ones(1)}, str(checkpoint))
        assert "no agent written by save()" in refused("evaluate", out)
        tensors, notes = load_tensors(finished / "checkpoint.safetensors")
        tensors.pop("targets")
        safetensors.torch.save_file(tensors, str(checkpoint), metadata={"rlai": json.dumps(notes)})
        assert "lacks targets" in refused("evaluate", out)
        checkpoint.write_bytes(good)
        for wrong, message in (
            ({"hidden_sizes": [4]}, "another network layout"),
            ({"problem": "CartPole-v1", "options": {}}, "another environment: it has Pendulum-v1"),
            ({"seeds": 1}, "another number of seeds: it has 2"),
            ({"algorithm": "sql"}, "another agent: it has SoftActorCritic"),
            ({"num_envs": 3}, "another number of environments"),
            ({"algorithm": "ppo"}, "run.json is not as rlai train writes it: its algorithm is 'ppo'"),
        ):
            (out / "run.json").write_text(json.dumps({**json.loads(record), "sha256": None, **wrong}))
            assert message in refused("evaluate", out)
        (out / "run.json").write_text("{")
        assert "run.json' is damaged" in refused("evaluate", out)


class TestVideo:
    def test_films_episodes(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        short = ["--max-episode-steps", "25"]
        assert rlai("train", "Pendulum-v1", *short, *QUICK, "--out", out, "--video", "2")[0] == 0
        assert {path.name for path in (out / "videos").iterdir()} == {"episode-0.mp4", "episode-1.mp4"}
        assert all(path.stat().st_size > 2000 for path in (out / "videos").iterdir())
        assert "videos/episode-1.mp4" in json.loads((out / "run.json").read_text())["files"]
        before = (out / "videos" / "episode-0.mp4").read_bytes()
        assert rlai("evaluate", out, "--video", "1", "--seed", "4", "--num-episodes", "1")[0] == 0
        assert (out / "videos" / "episode-0.mp4").read_bytes() != before
        assert json.loads((out / "run.json").read_text())["finished"] is True

    def test_what_cannot_be_filmed_is_said_before_training(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = [*QUICK, "--video", "1", "--out", tmp_path / "run"]
        assert "has no render mode rgb_array (it has ansi)" in refused("train", "Strange-v0", *words)
        assert "is PointMass" in refused("train", "point_mass", *words)
        monkeypatch.setattr("gymnasium.envs.classic_control.pendulum.PendulumEnv.render", lambda self: 1 / 0)
        assert "cannot be drawn on this machine: ZeroDivisionError" in refused("train", "Pendulum-v1", *words)
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "moviepy" else find(name))
        assert "MoviePy is not installed" in refused("train", "Pendulum-v1", *words)
        assert not (tmp_path / "run").exists()


class TestPython:
    """The function beneath the command."""

    def agent(self, **config: Any) -> SoftActorCritic:
        return SoftActorCritic("Pendulum-v1", hidden_sizes=(8,), batch_size=8, learning_starts=20, **config)

    def test_evaluations_and_checkpoints_leave_learning_alone(self, tmp_path: Path) -> None:
        for name, every in (("a", 7), ("b", 100)):
            rows: list[CurveRow] = []
            agent = self.agent()
            training = train(
                agent,
                100,
                tmp_path / name,
                evaluate_every=every,
                evaluate_episodes=1,
                checkpoint_every=every,
                report_every=every,
                on_row=rows.append,
            )
            assert rows == training.curve
            assert agent.compile is False  # settled by the 100 steps
        one, other = (load_tensors(tmp_path / name / "checkpoint.safetensors")[0] for name in "ab")
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    def test_a_checkpoint_is_never_written_over(self, tmp_path: Path) -> None:
        train(self.agent(), 30, tmp_path, evaluate_episodes=1)
        before = contents(tmp_path)
        with pytest.raises(ValueError, match="has a checkpoint of an earlier run; go on with resume=True"):
            train(self.agent(), 30, tmp_path)
        with pytest.raises(ValueError, match="resume=True goes on in a folder"):
            train(self.agent(), 30, resume=True)
        assert contents(tmp_path) == before

    def test_resume_extends(self, tmp_path: Path) -> None:
        train(self.agent(), 30, tmp_path, evaluate_every=10, evaluate_episodes=1)
        agent = self.agent()
        training = train(agent, 50, tmp_path, evaluate_every=10, evaluate_episodes=1, resume=True)
        assert [row.step for row in training.curve] == [0, 10, 20, 30, 40, 50]
        assert agent.num_steps == 50
        (tmp_path / "curve.csv").write_text("step\n1\n")
        with pytest.raises(ValueError, match=r"curve\.csv' is damaged"):
            train(self.agent(), 50, tmp_path, resume=True)

    def test_interval(self) -> None:
        """Of 20 standard normals the interval is about ± 1.96/√20; several seeds count by their means."""
        draws = torch.randn(1, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        evaluation = train(self.agent(), 1, evaluate_episodes=1).evaluation
        low, high = Training([], evaluation._replace(returns=draws), 0.0, 0.0).interval or (0.0, 0.0)
        spread = float(draws.std()) * 1.96 / 20**0.5
        assert low == pytest.approx(float(draws.mean()) - spread, abs=0.1)
        assert high == pytest.approx(float(draws.mean()) + spread, abs=0.1)
        seeds = torch.tensor([[0.0, 2.0], [1.0, 1.0], [-7.0, 9.0]])
        assert Training([], evaluation._replace(returns=seeds), 0.0, 0.0).interval == (1.0, 1.0)
        assert Training([], evaluation._replace(returns=draws[:, :1]), 0.0, 0.0).interval is None

    @pytest.mark.parametrize("name", ["num_steps", "evaluate_every", "evaluate_episodes", "checkpoint_every"])
    def test_wrong_numbers(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got 0"):
            train(self.agent(), **{"num_steps": 10, name: 0})
