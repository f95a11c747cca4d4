"""``rlai … --distributed`` as the ranks of a job: one prints and writes, and when one is killed the other says so."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import refused
from two_processes import ended, start_rlai

from rl_as_inference.agents.logbook import CHECKPOINT
from rl_as_inference.run_folders import LOCK

LONG = os.environ.get("RLAI_SCALE") == "long"
SMALL = ["--learning-starts", "20", "--hidden-sizes", "4", "--batch-size", "4", "--no-compile", "--buffer-size", "5000"]


def test_rank_0_alone_prints_and_writes(tmp_path: Path) -> None:
    words = ["fit", "corridor", "--estimator", "score", "--steps", "6", "--num-trajectories", "16"]
    words += ["--out", str(tmp_path / "run"), "--distributed"]
    first, second = ended(start_rlai([words, words], tmp_path), tmp_path)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "nats at step 6 (score)" in first.out
    said = [line for line in second.out.splitlines() if not line.startswith("[Gloo]")]  # PyTorch 2.8's own word
    assert said == []
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["finished"]
    assert record["ranks"] == 2
    assert CHECKPOINT not in record["files"]
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())) == 6


def test_ranks_that_disagree_are_told_once(tmp_path: Path) -> None:
    words = ["compare", "corridor", "--estimator", "score", "--steps", "6", "--distributed", "--learning-rate"]
    both = ended(start_rlai([[*words, "0.1"], [*words, "0.2"]], tmp_path), tmp_path)
    assert [each.code for each in both] == [2, 2]
    (said,) = [each.err for each in both if "rlai: error" in each.err]
    assert "options: ranks must agree, and learning_rate is 0.1 on rank 0 and 0.2 on rank 1" in said


def test_a_command_of_no_job_says_what_to_type() -> None:
    said = refused("train", "CartPole-v1", "--algorithm", "sql", "--distributed")
    assert "this process is no rank of a job" in said
    assert "type: torchrun --nproc-per-node 2" in said


def test_a_rank_that_is_killed_ends_the_others_and_fewer_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["train", "CartPole-v1", "--algorithm", "sql", "--num-steps", "200000", *SMALL, "--out", str(out)]
    words += ["--evaluate-every", "100000", "--evaluate-episodes", "1", "--checkpoint-every", "60", "--distributed"]
    processes = start_rlai([words, words], tmp_path)
    _wait(lambda: (out / CHECKPOINT).exists() and (out / "checkpoint.rank1.safetensors").exists())
    killed = time.monotonic()
    os.kill(processes[1].pid or 0, signal.SIGKILL)
    first, second = ended(processes, tmp_path)
    assert time.monotonic() - killed < 30
    assert (first.code, second.code) == (1, -signal.SIGKILL)
    assert "rlai: error: rank 1 of 2 (process " in first.err
    assert "ended without a word" in first.err
    assert f"go on from {out / CHECKPOINT}, of step" in first.err
    assert f"--no-python rlai train --out {out} --resume --distributed" in first.err
    assert not (out / LOCK).exists()

    # Two again are asked to stop, and do at the same step; then one goes on alone.
    again = ["train", "--out", str(out), "--resume"]
    processes = start_rlai([[*again, "--distributed"]] * 2, tmp_path)
    before = (out / CHECKPOINT).stat().st_mtime_ns
    _wait(lambda: (out / CHECKPOINT).stat().st_mtime_ns > before)
    for process in processes:
        os.kill(process.pid or 0, signal.SIGTERM)
    both = ended(processes, tmp_path)
    assert [each.code for each in both] == [143, 143], both
    (said,) = [each.err for each in both if "terminated; at step" in each.err]
    (process,) = start_rlai([again], tmp_path)
    before = (out / CHECKPOINT).stat().st_mtime_ns
    _wait(lambda: (out / CHECKPOINT).stat().st_mtime_ns > before)
    os.kill(process.pid or 0, signal.SIGTERM)
    (alone,) = ended([process], tmp_path)
    assert "rlai: terminated; at step" in alone.err
    assert _step(alone.err) > _step(said)


@pytest.mark.skipif(not LONG, reason="starts torchrun itself; RLAI_SCALE=long")
def test_torchrun_itself(tmp_path: Path) -> None:
    rlai = str(Path(sys.executable).with_name("rlai"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["fit", "corridor", "--estimator", "score", "--steps", "5", "--out", str(tmp_path / "run"), "--distributed"]
    done = subprocess.run([*torchrun, "--no-python", rlai, *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nats at step 5") == 1
    assert (tmp_path / "run" / "policy.safetensors").exists()


def _wait(until: object, within: float = 120.0) -> None:
    end = time.monotonic() + within
    while not until():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def _step(said: str) -> int:
    return int(said.partition("at step ")[2].split(",")[0].split()[0])
