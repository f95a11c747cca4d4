"""Sweeps that are killed at random moments: every run finishes, none twice, and parameters are as if never killed.

The short form kills a few times; ``RLAI_SCALE=long`` is twelve runs and ten kills of each kind, and the same on two
nodes of a Ray cluster.
"""

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from apart import Apart
from ray_nodes import Nodes

from rl_as_inference.checkpoints import load_tensors
from rl_as_inference.records import RunRecord
from rl_as_inference.run_folders import LOCK, FolderLock

LONG = os.environ.get("RLAI_SCALE") == "long"
EVERY = 60
RUN = ["Pendulum-v1", "--max-episode-steps", "30", "--hidden-sizes", "8", "--batch-size", "8", "--no-compile"]
RUN += ["--learning-starts", "20", "--num-steps", str(6 * EVERY if LONG else 3 * EVERY), "--evaluate-episodes", "1"]
RUN += ["--checkpoint-every", str(EVERY), "--evaluate-every", str(EVERY), "--buffer-size", "1000"]
RATES = "1e-3,3e-3,1e-2,3e-2" if LONG else "1e-3,1e-2"
SWEEP = ["sweep", *RUN, "--set", f"learning_rate={RATES}", "--seeds", "3" if LONG else "2"]
COUNT = 12 if LONG else 4
KILLS = 10 if LONG else 1
LONGEST = 1800.0 if LONG else 240.0
"""Seconds that a sweep may take, on a busy machine too."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nobody killed."""
    out = tmp_path_factory.mktemp("whole")
    ended = Apart(*SWEEP, "--jobs", "2", "--out", out / "sweep", scratch=out).ends(LONGEST)
    assert ended.code == 0, ended
    return out / "sweep"


def children_of(pid: int) -> list[int]:
    """Returns the processes that a process has begun."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != b"Z":
                found.append(int(entry.name))
    return found


def finished(out: Path) -> dict[str, int]:
    """Returns the runs that have finished, and how often each was begun."""
    found = {}
    for folder in out.glob("runs/*"):
        if (folder / "run.json").exists() and RunRecord.read(folder).finished:
            log = out / "logs" / f"{folder.name}.log"
            found[folder.name] = sum(line.startswith("# begun ") for line in log.read_text().splitlines())
    return found


def until(holds: Callable[[], bool], seconds: float = LONGEST / 2) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def assert_as_whole(out: Path, whole: Path, before: dict[str, int]) -> None:
    """All runs have finished, those of ``before`` were not begun again, and all tensors are the same."""
    now = finished(out)
    assert len(now) == COUNT
    assert {name: now[name] for name in before} == before
    assert sorted(now) == sorted(finished(whole))
    for name in now:
        tensors, others = (load_tensors(each / "runs" / name / "checkpoint.safetensors")[0] for each in (out, whole))
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, others[key]), (name, key)
    assert [str(path) for path in out.rglob("*") if path.name == LOCK or path.name.startswith(".")] == []
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished"] * COUNT
    assert {Path(row["run"]).name: int(row["starts"]) for row in rows} == now


def kill(kind: str, running: Apart, draws: random.Random) -> None:
    """Kills the sweep alone, it and all its workers, one of these, or the process that they are forked from."""
    servers = children_of(running.pid)
    workers = [worker for server in servers for worker in children_of(server)]
    dying = {"worker": workers and [draws.choice(workers)], "server": servers, "sweep": [running.pid]}
    for pid in dying.get(kind, [running.pid, *servers, *workers]):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["worker", "sweep", "all", *(["server"] if LONG else [])])
def test_a_killed_sweep_goes_on(kind: str, tmp_path: Path, whole: Path) -> None:
    out, draws, before = tmp_path / "sweep", random.Random(kind), dict[str, int]()
    kills = 0
    running = Apart(*SWEEP, "--jobs", "2", "--out", out, scratch=tmp_path)
    while kills < KILLS:
        begun = running.begun
        assert until(begun.exists)
        assert until(lambda: bool(list(out.glob("runs/*/run.json"))) or not running.process.is_alive())  # noqa: B023
        time.sleep(draws.uniform(0.0, 2.0 if LONG else 0.7))
        if not running.process.is_alive():
            break
        kill(kind, running, draws)
        kills += 1
        before |= finished(out)
        if kind in ("sweep", "all"):
            assert running.ends().code == -signal.SIGKILL
            # At once, while those of the killed sweep may still be making their checkpoints.
            running = Apart("sweep", "--out", out, "--jobs", "2", scratch=tmp_path)
    ended = running.ends(LONGEST)
    assert ended.code == 0, ended
    assert kills >= min(KILLS, 5)
    assert_as_whole(out, whole, before)
    if kind in ("worker", "server"):
        assert "its process died, and it goes on" in ended.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT] if LONG else [signal.SIGTERM])
def test_a_sweep_that_is_told_to_stop_leaves_checkpoints(number: int, tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "sweep"
    running = Apart(*SWEEP, "--jobs", "2", "--out", out, scratch=tmp_path)
    workers: list[int] = []

    def learns() -> bool:
        for server in children_of(running.pid):
            workers.extend(pid for pid in (server, *children_of(server)) if pid not in workers)
        return any(path.read_text().count("\n") > 2 for path in out.glob("runs/*/curve.csv"))

    ended = running.gets(number, 0.2, learns)
    assert ended.code == (143 if number == signal.SIGTERM else 130), ended
    told = ended.err.splitlines()[-1]
    assert told.startswith(f"rlai: {'terminated' if number == signal.SIGTERM else 'interrupted'}; ")
    assert f"of {COUNT} runs have finished; go on with: rlai sweep --out {out}" in told
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    before = finished(out)
    stopped = [path for path in out.glob("runs/*") if (path / "curve.csv").exists() and path.name not in before]
    for folder in stopped:  # each said where it was, and that is what it left
        said = (out / "logs" / f"{folder.name}.log").read_text().splitlines()[-1]
        where = r"before the first step|at step (\d+), .*checkpoint.*"
        at = re.fullmatch(f"rlai: terminated; (?:{where}); go on with.*", said)
        assert at is not None, said
        kept = folder / "checkpoint.safetensors"
        assert int(at[1] or 0) == (load_tensors(kept)[1]["progress"]["num_steps"] if kept.exists() else 0)
    ended = Apart("sweep", "--out", out, scratch=tmp_path).ends(LONGEST)
    assert ended.code == 0, ended
    assert_as_whole(out, whole, before)


def test_two_do_not_write_to_one_folder(tmp_path: Path, whole: Path) -> None:
    """A sweep's folder is refused with its owner's name; one of its runs is waited for, and then goes on."""
    lock = FolderLock(whole, "--out")
    code, out, err = Apart("sweep", "--out", whole, scratch=tmp_path).ends()
    assert (code, out) == (2, "")
    assert f"'{whole}' is being written to by process {os.getpid()} on " in err
    lock.release()
    name = sorted(finished(whole))[0]
    lock = FolderLock(whole / "runs" / name, "--out")
    running = Apart("sweep", "--out", whole, scratch=tmp_path)
    assert until(lambda: running.files[1].exists() and "waits, as its folder" in running.files[1].read_text())
    assert f"is being written to by process {os.getpid()} on " in running.files[1].read_text()
    lock.release()
    assert running.ends().code == 0


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'rl-as-inference[ray]')")
    with Nodes(2) as found:
        yield found


class OnRay:
    """A sweep on a Ray cluster."""

    def __init__(self, nodes: Nodes, address: str, out: Path, scratch: Path) -> None:
        self.files = scratch / "out", scratch / "err"
        words = [sys.executable, "-c", "from rl_as_inference.cli import main; main()", *SWEEP, "--ray", address]
        with self.files[0].open("w") as told, self.files[1].open("w") as err:
            self.process = subprocess.Popen([*words, "--out", out], env=nodes.environment, stdout=told, stderr=err)

    @property
    def said(self) -> str:
        return self.files[1].read_text()

    def ends(self) -> int:
        return self.process.wait(LONGEST)

    def goes_on_until(self, holds: Callable[[], bool]) -> bool:
        """Waits until something holds, unless it has ended by then."""
        return until(lambda: holds() or self.process.poll() is not None) and self.process.poll() is None


def test_a_ray_cluster_loses_a_node(nodes: Nodes, tmp_path: Path, whole: Path) -> None:
    """Of two nodes one is killed: its runs go on on the other, from their checkpoints. Nine processes are, too."""
    out, draws = tmp_path / "sweep", random.Random(0)
    running = OnRay(nodes, nodes.address, out, tmp_path)
    assert running.goes_on_until(lambda: len(list(out.glob("runs/*/run.json"))) > 1), running.said
    before = finished(out)
    nodes.kill(1)
    for kills in range(1, KILLS):
        time.sleep(draws.uniform(0.0, 2.0))
        assert running.goes_on_until(lambda: bool(nodes.tasks(0))), (kills, running.said)
        os.kill(draws.choice(nodes.tasks(0)), signal.SIGKILL)
        before |= finished(out)
    assert running.ends() == 0, running.said
    assert running.said.count("its process died, and it goes on") >= KILLS // 2
    assert_as_whole(out, whole, before)


@pytest.mark.skipif(not LONG, reason="takes long; RLAI_SCALE=long")
@pytest.mark.parametrize("client", [False, True], ids=["a node", "a client"])
def test_a_sweep_on_a_ray_cluster_is_told_to_stop(nodes: Nodes, tmp_path: Path, whole: Path, client: bool) -> None:
    """Its runs make their checkpoints, from which processes of this machine go on."""
    out = tmp_path / "sweep"
    running = OnRay(nodes, nodes.client_address if client else nodes.address, out, tmp_path)
    assert running.goes_on_until(lambda: any(f.read_text().count("\n") > 1 for f in out.glob("runs/*/curve.csv")))
    before = finished(out)
    running.process.send_signal(signal.SIGTERM)
    assert running.ends() == 143, running.said
    assert f"of {COUNT} runs have finished; go on with: rlai sweep --out {out}" in running.said.splitlines()[-1]
    assert not nodes.tasks(0)
    stopped = [path for path in out.glob("runs/*") if (path / "curve.csv").exists() and path.name not in finished(out)]
    assert stopped
    for folder in stopped:
        assert "rlai: terminated; " in (out / "logs" / f"{folder.name}.log").read_text()
    assert Apart("sweep", "--out", out, scratch=tmp_path).ends(LONGEST).code == 0
    assert_as_whole(out, whole, before)
