"""``rlai fit --resume``: a fit that was stopped goes on, and ends as if it had not been."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, rlai

from rl_as_inference.cli import commands
from rl_as_inference.run_folders import RECORD

WORDS = ["fit", "corridor", "--estimator", "score", "--steps", "12", "--num-trajectories", "8", "--out"]


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fit that was stopped at step 9."""

    def stop(step: int, _: float) -> None:
        if step == 9:
            raise KeyboardInterrupt

    plain: Any = commands.fit
    with monkeypatch.context() as patch:
        patch.setattr(commands, "fit", functools.partial(plain, checkpoint_seconds=1e-9, callback=stop))
        code, _, err = rlai(*WORDS, tmp_path / "run")
    assert code == 130
    assert f"go on from {tmp_path / 'run' / 'checkpoint.safetensors'}" in err
    return tmp_path / "run"


def test_a_fit_goes_on_as_if_never_stopped(stopped: Path, tmp_path: Path) -> None:
    assert rlai(*WORDS, tmp_path / "whole")[0] == 0
    code, out, err = rlai(*WORDS, stopped, "--resume")
    assert code == 0, err
    assert "nats at step 12" in out
    ends = [(folder / "policy.safetensors").read_bytes() for folder in (stopped, tmp_path / "whole")]
    histories = [json.loads((folder / "history.json").read_text()) for folder in (stopped, tmp_path / "whole")]
    assert ends[0] == ends[1]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 12
    assert not (stopped / "checkpoint.safetensors").exists()
    assert "checkpoint.safetensors" not in json.loads((stopped / RECORD).read_text())["files"]


def test_what_does_not_go_on_is_said(stopped: Path) -> None:
    assert "learning_rate 0.02, and this says 0.5" in refused(*WORDS, stopped, "--resume", "--learning-rate", "0.5")
    assert "--resume goes on with the run in --out" in refused(*WORDS, stopped, "--resume", "--overwrite")
    assert "--resume" in refused(*WORDS[:-1], "--resume")
    assert rlai(*WORDS, stopped, "--resume")[0] == 0
    assert "the run has finished" in refused(*WORDS, stopped, "--resume")
