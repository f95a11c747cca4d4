"""What every test starts from: no parameters, a known seed, and the devices there are."""

import json
import os
import signal
from pathlib import Path

import pyro
import pytest
import torch

# Small tensors are faster on one thread, and the cores are for parallel test processes.
torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it in what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Hides GPUs unless the tests of one are asked for: all others compare with answers on the host."""
    marks = config.option.markexpr or ""
    if "cuda" not in marks or "not cuda" in marks:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


SLOW = Path(__file__).parent / "slow_tests.json"
"""The tests that ``make check`` leaves out: those that took longest when ``make slow-tests`` last measured them."""
_IN_ALL = 60.0
"""Seconds of one core that the tests of ``make check`` take together."""
_took: dict[str, float] = {}


def pytest_addoption(parser):
    parser.addoption("--measure", action="store_true", help="write down which tests are slow")


def pytest_collection_modifyitems(items):
    slow = set(json.loads(SLOW.read_text())) if SLOW.exists() else set()
    for item in items:
        if item.nodeid in slow:
            item.add_marker(pytest.mark.slow)


def pytest_runtest_logreport(report):
    _took[report.nodeid] = _took.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish(session):
    if not session.config.option.measure or hasattr(session.config, "workerinput"):
        return
    total, slow = 0.0, []
    for name, seconds in sorted(_took.items(), key=lambda took: took[1]):
        total += seconds
        if total > _IN_ALL:
            slow.append(name)
    SLOW.write_text(json.dumps(sorted(slow), indent=0, ensure_ascii=False) + "\n")


@pytest.fixture(autouse=True)
def _fresh_start():
    """Tests must not see each other's parameters, random numbers or checks of distributions.

    The first ``torch.compile`` of a process switches those checks off, where a test calls it itself.
    """
    torch.distributions.Distribution.set_default_validate_args(__debug__)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """Every device that a process may live on; the ones that this machine lacks are skipped in sight."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device; where there is one, make test-gpu runs this")
    return torch.device(request.param)


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.cuda)])
def gpu(request):
    """A GPU; the test is skipped in sight where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device; where there is one, make test-gpu runs this")
    return torch.device(request.param)
