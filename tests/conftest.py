"""What every test starts from: no parameters, a known seed, and the devices there are."""

import os

import pyro
import pytest
import torch

# Small tensors are faster on one thread, and the cores are for parallel test processes.
torch.set_num_threads(1)


def pytest_configure(config):
    """Hides GPUs unless the tests of one are asked for: all others compare with answers on the host."""
    marks = config.option.markexpr or ""
    if "cuda" not in marks or "not cuda" in marks:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def _fresh_start():
    """Tests must not see each other's parameters or random numbers."""
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
