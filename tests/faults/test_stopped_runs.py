"""Runs that are stopped at random moments, by SIGKILL, SIGTERM and Ctrl-C: what is lost, and what stays behind."""

import csv
import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from apart import LONG, Apart, Ended, moments
from command_line import rlai

from rl_as_inference.checkpoints import load_tensors
from rl_as_inference.records import RunRecord
from rl_as_inference.run_folders import LOCK

STEPS, EVERY = 450, 150
WORDS = ["--hidden-sizes", "8", "--batch-size", "8", "--learning-starts", "20", "--no-compile", "--no-progress"]
WORDS += ["--num-steps", str(STEPS), "--updates-per-step", "0.2", "--checkpoint-every", str(EVERY), "--g", "9.0"]
WORDS += ["--evaluate-every", str(EVERY), "--evaluate-episodes", "1"]
COUNTS = (
    {signal.SIGKILL: 100, signal.SIGTERM: 20, signal.SIGINT: 20} if LONG else {signal.SIGKILL: 1, signal.SIGTERM: 1}
)
ENDS = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert rlai("train", "Pendulum-v1", *WORDS, "--out", out)[0] == 0
    return out


def step_of(out: Path) -> int:
    path = out / "checkpoint.safetensors"
    return int(load_tensors(path)[1]["progress"]["num_steps"]) if path.exists() else 0


def left(folder: Path) -> list[str]:
    """What no run that has ended leaves."""
    return [str(path) for path in folder.rglob("*") if path.name == LOCK or path.name.startswith(".")]


def assert_same(one: Path, other: Path) -> None:
    """Every tensor, every evaluation, and every row of the history but its speeds."""
    found = [load_tensors(out / "checkpoint.safetensors") for out in (one, other)]
    assert found[0][0].keys() == found[1][0].keys()
    for name, tensor in found[0][0].items():
        assert torch.equal(tensor, found[1][0][name]), name
    curves = [list(csv.DictReader((out / "curve.csv").open())) for out in (one, other)]
    for row in (*curves[0], *curves[1]):
        del row["seconds"]
    assert curves[0] == curves[1]
    rows = [
        [
            {name: value for name, value in row.items() if "per_second" not in name}
            for row in record["progress"]["history"]
        ]
        for _, record in found
    ]
    assert json.dumps(rows[0]) == json.dumps(rows[1])


def assert_ended_well(ended: Ended, number: int, out: Path) -> None:
    """A run that was asked to stop did so in good order, said where, and left nothing."""
    if ended.code == 0:  # it was faster
        return
    if ended.code == -number or ended == (130, "", ""):  # options were being read, and nothing had begun
        return
    assert ended.code == ENDS[number], ended
    how = "terminated" if number == signal.SIGTERM else "interrupted"
    assert f"rlai: {how}" in ended.err, ended
    assert not out.exists() or left(out) == []


@pytest.mark.parametrize("number", COUNTS)
def test_train_loses_no_more_than_it_says(number: int, tmp_path: Path, whole: Path) -> None:
    """Killed and gone on with until it ends, again and again: the tensors are those of the run that was left alone."""
    out, after, stopped, once = tmp_path / "run", moments(int(number), 0.8), 0, False
    while stopped < COUNTS[number] or not once:
        goes_on = (out / "run.json").exists()
        before = step_of(out)
        words = ["--resume"] if goes_on else ["Pendulum-v1", *WORDS]
        running = Apart("train", *words, "--out", out, scratch=tmp_path)
        if stopped >= COUNTS[number]:
            ended = running.ends()
        else:  # at any moment of its life, or of what follows its first checkpoint
            begun = (lambda: step_of(out) > before) if stopped % 2 == 0 else None  # noqa: B023
            ended = running.gets(number, after(), begun)
            stopped += ended.code != 0
        if number == signal.SIGKILL:
            assert ended.code in (0, -signal.SIGKILL), ended
        else:
            assert_ended_well(ended, number, out)
            if said := re.search(r"at step (\d+), (saved|of which)", ended.err):
                assert int(said[1]) == step_of(out)
        assert step_of(out) >= before
        assert number != signal.SIGKILL or step_of(out) % EVERY == 0
        if (out / "run.json").exists():
            RunRecord.read(out)
        if ended.code == 0:
            once = True
            assert_same(whole, out)
            assert left(out) == []
            assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
            shutil.rmtree(out)


GUIDE = ["--steps", "40", "--no-progress", "--hidden-sizes", "8"]
COMPARE = ["compare", "gridworld", "--rows", "3", "--num-trajectories", "50", "--num-draws", "20", *GUIDE]
FIT = ["fit", "corridor", "--num-trajectories", "8", *GUIDE]


@pytest.mark.parametrize("number", COUNTS)
def test_a_stopped_guide_is_replaced_without_a_trace(number: int, tmp_path: Path) -> None:
    """``compare`` and ``fit`` in turn take each other's folder, however the one before ended."""
    out, after, count = tmp_path / "run", moments(int(number), 1.5), max(COUNTS[number] // 4, 1)
    for stopped in range(count):
        words = COMPARE if stopped % 2 == 0 else FIT
        told = (lambda: (out / "history.json").exists()) if stopped % 3 == 0 else None
        running = Apart(*words, "--out", out, "--overwrite", scratch=tmp_path)
        ended = running.gets(number, after() if told is None else 0.1 * after(), told)
        if number == signal.SIGKILL:
            assert ended.code in (0, -signal.SIGKILL), ended
        else:
            assert_ended_well(ended, number, out)
        if (out / "run.json").exists():
            files = set(json.loads((out / "run.json").read_text())["files"])
            there = {path.name for path in out.iterdir() if not path.name.startswith(".")} - {LOCK, "run.json"}
            assert there <= files  # what is there was told of
    code, _, err = rlai(*FIT, "--out", out, "--overwrite")
    assert code == 0, err
    written = {"policy.safetensors", "history.json", "training.png", "model_card.md", "run.json"}
    assert {path.name for path in out.iterdir()} == written


def test_a_long_time_between_checkpoints_is_cut(tmp_path: Path, whole: Path) -> None:
    """With steps enough for none, the clock makes them; what is learned is the same."""
    words = [*WORDS, "--checkpoint-every", str(STEPS)]
    out = tmp_path / "run"
    running = Apart("train", "Pendulum-v1", *words, "--checkpoint-minutes", "0.002", "--out", out, scratch=tmp_path)
    ended = running.gets(signal.SIGKILL, 0.0, lambda: step_of(out) > 50)
    assert ended.code == -signal.SIGKILL
    at = step_of(out)
    assert 50 < at < STEPS
    assert Apart("train", "--out", out, "--resume", scratch=tmp_path).ends().code == 0
    assert_same(whole, out)


def test_an_evaluation_that_is_told_to_end_does(tmp_path: Path, whole: Path) -> None:
    running = Apart("evaluate", whole, "--num-episodes", "100000", scratch=tmp_path)
    ended = running.gets(signal.SIGTERM, 2.0)
    assert (ended.code, ended.out, ended.err) == (143, "", "rlai: terminated\n")
    assert left(whole) == []
