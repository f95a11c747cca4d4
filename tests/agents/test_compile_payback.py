"""``compile="auto"``: whether the compiler's time repays itself, measured; and a cache that cannot be written to."""

import pytest
import torch
from small_agents import sac

from rl_as_inference.agents import compilation
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
