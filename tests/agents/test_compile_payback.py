"""``compile="auto"``: whether the compiler's time repays itself, measured; and a cache that cannot be written to."""

import errno
import os

import pytest
import torch
from small_agents import sac, sql

from rl_as_inference.agents import SoftActorCritic, compilation
from rl_as_inference.agents.compilation import CompileCost, accelerate, repays


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))


def test_what_compiling_costs_is_what_it_did_last():
    """20 s where nothing is known; then what it took, less where it was compiled for the first time."""
    cost, other = CompileCost("a"), CompileCost("b")
    assert (cost.seconds, other.seconds) == (20.0, 20.0)
    cost.note(30.0)
    assert cost.seconds == pytest.approx(9.0)
    cost.note(4.0)
    assert (CompileCost("a").seconds, other.seconds) == (4.0, 20.0)


def test_it_repays_itself_by_updates_and_their_time():
    cost = CompileCost("a")
    least = cost.seconds / (0.004 * compilation._GAIN)
    assert not repays(0.9 * least, 0.004, cost)
    assert repays(1.1 * least, 0.004, cost)
    cost.note(10.0)
    assert repays(0.9 * least, 0.004, cost)


def test_measuring_changes_no_number(monkeypatch):
    """An agent whose update was measured learns what one that was told not to compile does, bit for bit."""
    monkeypatch.setattr(compilation, "_COLD", 1e9)
    measured, told = sac(compile="auto"), sac(compile=False)
    assert measured.settle_compile(5000) is False
    seconds, cost = measured._update.measure()
    assert 0 < seconds < 1
    assert cost._key == measured._update.measure()[1]._key
    for agent in (measured, told):
        agent.learn(60)
    for name, tensor in measured._update.tensors.items():
        assert torch.equal(tensor, told._update.tensors[name])
    assert torch.equal(measured.replay.storage[:, :60], told.replay.storage[:, :60])


@pytest.mark.parametrize(
    ("seconds", "steps", "expected"), [(1e-9, 10**6, False), (1.0, 10_000, True), (1.0, 500, False)]
)
def test_an_agent_settles_by_the_measurement(seconds, steps, expected, monkeypatch):
    agent = sac(compile="auto")
    monkeypatch.setattr(agent._update, "measure", lambda: (seconds, CompileCost("a")))
    assert agent.settle_compile(steps) is expected
    assert agent.settle_compile(10**9) is expected  # settled for good


def test_a_cache_that_cannot_be_written_to_leaves_updates_uncompiled(tmp_path, monkeypatch):
    """One warning, and the same numbers; where it is a file, and not a folder, nobody can write into it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    x = torch.zeros(3)

    def added(x, y):
        x.copy_(x + y)

    with pytest.warns(UserWarning, match="set TORCHINDUCTOR_CACHE_DIR to a folder") as warned:
        fast = accelerate(added, [x], [torch.ones(3)], compile=True)
    assert len(warned) == 1
    fast(x, torch.ones(3))
    assert x.tolist() == [1, 1, 1]
    CompileCost("a").note(3.0)  # and what it cost is not kept
    assert CompileCost("a").seconds == 20.0


@pytest.mark.parametrize("agent", [lambda: sac(compile=True), lambda: sql(compile=True)], ids=["sac", "sql"])
def test_an_agent_learns_uncompiled_where_the_cache_cannot_be_written_to(agent, tmp_path, monkeypatch):
    """One warning in all, and what an agent learns that was told not to compile."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    compiled = agent()
    with pytest.warns(UserWarning, match="set TORCHINDUCTOR_CACHE_DIR to a folder") as warned:
        compiled.learn(26)
    assert len(warned) == 1
    compiled.learn(4)  # of which there is nothing new to say
    told = sac(compile=False) if isinstance(compiled, SoftActorCritic) else sql(compile=False)
    told.learn(30)
    for name, tensor in compiled._update.tensors.items():
        assert torch.equal(tensor, told._update.tensors[name])


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("C++ compile error: cannot write x.o: No space left on device"),
    ],
    ids=["the system's", "the compiler's"],
)
def test_a_disk_that_fills_up_on_the_way_leaves_updates_uncompiled(error, monkeypatch):
    monkeypatch.setattr(compilation, "_compiled", lambda *_: (_ for _ in ()).throw(error))
    agent, told = sac(compile=True, architecture="batch_norm"), sac(compile=False, architecture="batch_norm")
    with pytest.warns(UserWarning, match="cannot be written.*No space left") as warned:
        agent.learn(30)
    assert len(warned) == 1
    told.learn(30)
    assert torch.equal(agent._update.tensors["parameters"], told._update.tensors["parameters"])


def test_other_errors_of_the_compiler_are_told(monkeypatch):
    error = RuntimeError("the graph is wrong")
    monkeypatch.setattr(compilation, "_compiled", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(RuntimeError, match="the graph is wrong"):
        sac(compile=True).learn(30)
