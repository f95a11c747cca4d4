"""What memory is free, what does not fit in it, and tensors that are read into their place."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium.spaces import Box, Discrete

from rl_as_inference import SoftActorCritic, checkpoints
from rl_as_inference.agents import replay as replay_module
from rl_as_inference.agents.replay import Replay
from rl_as_inference.checkpoints import StoredTensors, load_tensors, open_tensors, save_tensors
from rl_as_inference.memory import check_fits, free_memory

GIB = 2**30


def _system(root: Path, **files: str) -> Path:
    """Writes the files that tell of memory; names have ``__`` for ``/``."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_at_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {4 * 2**20} kB\n"


def test_free_is_what_the_system_would_give(tmp_path: Path) -> None:
    assert free_memory(root=_system(tmp_path, proc__meminfo=MEMINFO)) == 4 * GIB


@pytest.mark.parametrize("where", ["", "/job", "/job/step"])
def test_free_is_what_a_control_group_leaves(tmp_path: Path, where: str) -> None:
    """Of the second version: its own or one above bounds it; pages of files are given up first."""
    root = _system(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/job/step\n")
    _system(
        root / "sys/fs/cgroup" / where.lstrip("/"),
        memory_at_max=str(3 * GIB),
        memory_at_current=str(2 * GIB),
        memory_at_stat=f"anon 1\ninactive_file {GIB // 2}\n",
    )
    assert free_memory(root=root) == 3 * GIB // 2


def test_groups_of_the_first_version_and_those_without_a_bound(tmp_path: Path) -> None:
    root = _system(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="5:cpu:/x\n4:memory:/x\n0::/y\n")
    _system(
        root / "sys/fs/cgroup/memory/x",
        memory_at_limit_in_bytes=str(GIB),
        memory_at_usage_in_bytes=str(3 * GIB // 4),
        memory_at_stat="total_inactive_file 0\n",
    )
    _system(
        root / "sys/fs/cgroup/y", memory_at_max="max\n", memory_at_current="1\n", memory_at_stat="inactive_file 0\n"
    )
    assert free_memory(root=root) == GIB // 4
    (root / "sys/fs/cgroup/memory/x/memory.usage_in_bytes").write_text(str(2 * GIB))
    assert free_memory(root=root) == 0


def test_what_does_not_fit_is_told_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl_as_inference.memory.free_memory", lambda device: 10**6)
    check_fits("buffer_size", 100, 10**6, "cpu", "these images")
    words = r"buffer_size 2000 needs 0\.0 GiB for .*, and 0\.0 GiB are free on cpu; lower buffer_size to 390 or less"
    with pytest.raises(ValueError, match=rf"{words} \(495 would fill it\)"):
        check_fits("buffer_size", 2000, 4_040_000, "cpu", "these images")
    # A row of two numbers seen before and after, an action, a reward and two endings: 8 of 4 bytes.
    box = Box(-1, 1, (2,))
    assert Replay(box, Discrete(3), capacity=31_250).capacity == 31_250
    with pytest.raises(ValueError, match=r"buffer_size 40000 .* \(31250 would fill it\)"):
        Replay(box, Discrete(3), capacity=40_000)


def test_a_learner_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl_as_inference.memory.free_memory", lambda device: 10**6)
    with pytest.raises(ValueError, match=r"buffer_size 1000000 needs .* lower buffer_size to"):
        SoftActorCritic("Pendulum-v1", hidden_sizes=(4,))
    SoftActorCritic("Pendulum-v1", hidden_sizes=(4,), buffer_size=1000).close()


KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
KINDS += [torch.uint8, torch.bool]


def test_files_are_read_as_safetensors_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {f"{kind} {shape}": torch.ones(shape).cumsum(-1).to(kind) for kind in KINDS for shape in ((2, 3), (1,))}
    save_tensors(path, tensors | {"none": torch.zeros(0, 4), "one": torch.tensor(7)}, {"a": [1]})
    stored, record = open_tensors(path)
    theirs = safetensors.torch.load_file(path)
    assert record == {"a": [1]}
    assert stored.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor)
        assert stored.outline(name).shape == tensor.shape
    assert dict(stored.under("torch.int8 ")).keys() == {"(2, 3)", "(1,)"}


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_rows_are_read_into_their_place(tmp_path: Path, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same type without a copy, of another block by block."""
    monkeypatch.setattr(checkpoints, "_BLOCK", 64)
    path, rows = tmp_path / "a.safetensors", torch.randn(2, 50, 3)
    save_tensors(path, {"rows": rows, "after": torch.arange(3)}, {})
    storage = torch.full((2, 80, 3), -1.0, dtype=kind)
    open_tensors(path)[0].read_into("rows", list(storage[:, :50]))
    assert torch.equal(storage[:, :50], rows.to(kind))
    assert (storage[:, 50:] == -1).all()


def test_a_checkpoint_of_a_learner_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"hidden_sizes": (4,), "batch_size": 8, "learning_starts": 20, "compile": False, "buffer_size": 40}
    agent = SoftActorCritic("Pendulum-v1", **options)
    agent.learn(50)
    agent.save(tmp_path / "a")
    read, into, real = [], [], StoredTensors.__getitem__
    monkeypatch.setattr(StoredTensors, "__getitem__", lambda self, name: read.append(name) or real(self, name))
    copy_rows = replay_module.copy_rows
    monkeypatch.setattr(replay_module, "copy_rows", lambda *args: into.append(args[1]) or copy_rows(*args))
    again = SoftActorCritic.load(tmp_path / "a")
    assert into == ["rows"]
    assert "rows" not in read
    assert "replay.rows" not in read
    assert torch.equal(again.replay.storage, agent.replay.storage)
    # Into a larger ring the rows are turned, so that the oldest is first.
    larger = SoftActorCritic("Pendulum-v1", **{**options, "buffer_size": 60})
    larger.restore(tmp_path / "a")
    assert torch.equal(larger.replay.storage[:, :40], agent.replay.storage.roll(-agent.replay._position, 1))
    agent.learn(5)
    again.learn(5)
    assert torch.equal(agent._update.tensors["parameters"], again._update.tensors["parameters"])


def _crafted(entries: object, data: bytes, length: int | None = None) -> bytes:
    header = json.dumps(entries).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def _entry(begin: int, end: int, shape: object = (2,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


CRAFTED = {
    "empty": b"",
    "a length alone": (2).to_bytes(8, "little"),
    "a header longer than the file": _crafted({}, b"", 10**15),
    "no object": _crafted([1], b""),
    "no JSON": (4).to_bytes(8, "little") + b"{{{{",
    "deep JSON": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "an unknown type": _crafted({"a": _entry(0, 8, dtype="F31")}, bytes(8)),
    "an overlap": _crafted({"a": _entry(0, 8), "b": _entry(4, 12)}, bytes(12)),
    "a gap": _crafted({"a": _entry(0, 8), "b": _entry(12, 20)}, bytes(20)),
    "too little": _crafted({"a": _entry(0, 8)}, bytes(4)),
    "too much": _crafted({"a": _entry(0, 8)}, bytes(12)),
    "a shape that does not fit": _crafted({"a": _entry(0, 8, shape=(3,))}, bytes(8)),
    "a negative shape": _crafted({"a": _entry(0, 8, shape=(-1, -2))}, bytes(8)),
    "a shape of words": _crafted({"a": _entry(0, 8, shape=["2"])}, bytes(8)),
    "backwards": _crafted({"a": _entry(8, 0)}, bytes(8)),
    "offsets of words": _crafted({"a": {"dtype": "F32", "shape": [2], "data_offsets": ["a", "b"]}}, bytes(8)),
    "nothing of it": _crafted({"a": 3}, b""),
    "metadata of numbers": _crafted({"__metadata__": 3}, b""),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(CRAFTED[name])
    with pytest.raises(ValueError, match=r"path: .* is not a readable checkpoint"):
        load_tensors(path)


def test_measured_peaks_are_within_their_bounds() -> None:
    """``python -m benchmarks.memory`` wrote them; they are of whole processes, libraries and all."""
    found = json.loads((Path(__file__).parent.parent / "benchmarks/results/memory.json").read_text())
    assert found["smc"]["peak"] <= 3 * found["smc"]["data"]
    assert found["checkpoint"]["above_start"] <= 1.3 * found["checkpoint"]["data"]
    assert np.isfinite([number for row in found.values() for number in row.values()]).all()


_FREES = """
import os, sys, torch
from rl_as_inference.memory import keep_freed_memory

def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
before, blocks = held(), [torch.ones(2**18) for _ in range(100)]
during = held()
del blocks
print(kept, during - before, during - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc, which alone is told")
@pytest.mark.parametrize(("how", "environment"), [("keep", {}), ("leave", {}), ("keep", {"MALLOC_TOP_PAD_": "65536"})])
def test_freed_memory_is_kept_unless_the_user_has_said_how(how: str, environment: dict[str, str]) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    words = [sys.executable, "-c", _FREES, how]
    kept, taken, given_back = subprocess.run(
        words, env=own | environment, capture_output=True, text=True, check=True
    ).stdout.split()
    is_kept = how == "keep" and not environment
    assert kept == ("None" if how == "leave" else str(is_kept))
    assert float(taken) > 90  # MiB
    assert float(given_back) < 5 if is_kept else float(given_back) > 90
