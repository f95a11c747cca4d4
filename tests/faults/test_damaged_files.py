"""Files of every kind, damaged anywhere: refused, or as they were."""

import dataclasses
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from apart import LONG
from command_line import rlai

from rl_as_inference import load_run
from rl_as_inference.agents.curves import read_curve
from rl_as_inference.arviz_data import groups_of
from rl_as_inference.checkpoints import load_policy, load_tensors
from rl_as_inference.inference.netcdf import load_posterior
from rl_as_inference.records import RunRecord

COUNT = 1000 if LONG else 15
GUIDE = ["compare", "gridworld", "--rows", "2", "--steps", "2", "--num-draws", "10", "--num-trajectories", "20"]
TRAIN = ["train", "Pendulum-v1", "--batch-size", "4", "--learning-starts", "10", "--no-compile", "--num-steps", "20"]
TRAIN += ["--evaluate-every", "20", "--evaluate-episodes", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    for name, words in (("compare", GUIDE), ("train", TRAIN)):
        assert rlai(*words, "--hidden-sizes", "4", "--no-progress", "--out", out / name)[0] == 0
    return out


def in_record(run: Path) -> Any:
    found = dataclasses.asdict(RunRecord.read(run))
    settings = found["settings"]  # what is left of a damaged name of the checksum is none
    found["settings"] = {name: value for name, value in settings.items() if not re.search("ha?256|sha|a2", name)}
    return json.dumps(found, sort_keys=True)


def in_curve(run: Path) -> Any:
    RunRecord.read(run).check_file(run, "curve.csv")
    return repr(read_curve(run / "curve.csv", 10**9))


def in_checkpoint(run: Path) -> Any:
    tensors, record = load_tensors(run / "checkpoint.safetensors")
    if "format" not in record:  # as of another maker's file, which no reader of agents takes
        raise ValueError("no agent's")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, json.dumps(record)


def in_comparison(run: Path) -> Any:
    found = load_run(run)
    return json.dumps(found.comparison.to_dict() if found.comparison else None), {
        name: tensor.numpy().tobytes()
        for name, tensor in found.policy.state_dict().items()  # type: ignore[attr-defined]
    }


def in_draws(run: Path) -> Any:
    data = load_posterior(run / "posterior.nc")
    return {(group, name): held[name].values.tobytes() for group, held in groups_of(data).items() for name in held}


KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "run.json": ("train", in_record),
    "curve.csv": ("train", in_curve),
    "checkpoint.safetensors": ("train", in_checkpoint),
    "comparison.json": ("compare", in_comparison),
    "policy.safetensors": ("compare", in_comparison),
    "posterior.nc": ("compare", in_draws),
}


def damaged(content: bytes, drawn: random.Random) -> Iterator[bytes]:
    """Yields damaged forms: a bit, bytes, the end, two stretches in each other's place, a gap."""
    while True:
        at, size = drawn.randrange(len(content)), drawn.randint(1, 64)
        yield content[:at] + bytes([content[at] ^ (1 << drawn.randrange(8))]) + content[at + 1 :]
        yield content[:at] + drawn.randbytes(size) + content[at + size :]
        yield content[:at]
        yield content[:at] + content[at + size : at + 2 * size] + content[at : at + size] + content[at + 2 * size :]
        yield content[:at] + content[at + size :]


@pytest.mark.parametrize("name", KINDS)
def test_are_refused_or_as_they_were(name: str, runs: Path, tmp_path: Path) -> None:
    of, read = KINDS[name]
    run = tmp_path / "run"
    shutil.copytree(runs / of, run)
    whole = (run / name).read_bytes()
    before, refused = read(run), 0
    forms = (form for form in damaged(whole, random.Random(name)) if form != whole)
    for _ in range(COUNT):
        form = next(forms)
        (run / name).write_bytes(form)
        try:
            found = read(run)
        except ValueError:
            refused += 1
        else:
            assert found == before, form
    assert refused > 0.9 * COUNT


def test_policies_and_checkpoints_of_other_makers_are_refused(tmp_path: Path) -> None:
    """safetensors without our record, and with one that is of something else."""
    import safetensors.torch

    policy = torch.nn.Linear(2, 2)
    for number, metadata in enumerate([None, {"rlai": "3"}, {"rlai": "[]"}, {"rlai": '{"sha256": 1}'}, {"rlai": "{"}]):
        path = tmp_path / str(number)
        safetensors.torch.save_file(policy.state_dict(), str(path), metadata=metadata)
        with pytest.raises(ValueError, match="path: "):
            load_policy(policy, path)
