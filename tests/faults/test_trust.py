"""Run folders and problem files are programs: which are run without a word, and which only with --trust."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, rlai

from rl_as_inference import load_run
from rl_as_inference.records import RunRecord

CODE = """
import pathlib
pathlib.Path({touched!r}).touch()
from rl_as_inference.models import point_mass
problem = point_mass
"""
WORDS = ["--hidden-sizes", "4", "--batch-size", "4", "--learning-starts", "10", "--no-compile", "--no-progress"]
WORDS += ["--num-steps", "15", "--evaluate-every", "15", "--evaluate-episodes", "1", "--horizon", "3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a problem and a run on it, and what tells that the problem was run."""
    there = tmp_path_factory.mktemp("made")
    (there / "mine.py").write_text(CODE.format(touched=str(there / "touched")))
    assert rlai("train", there / "mine.py", *WORDS, "--out", there / "run")[0] == 0
    (there / "touched").unlink()
    return there


@pytest.fixture
def brought(made: Path, tmp_path: Path) -> Any:
    """Returns what makes a copy of the run elsewhere, with another record."""

    (made / "touched").unlink(missing_ok=True)

    def bring(**other: Any) -> Path:
        shutil.copy(made / "mine.py", tmp_path)
        shutil.copytree(made / "run", tmp_path / "run")
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "sha256": None, **other}))
        return tmp_path / "run"

    return bring


OPENERS = [
    ["evaluate", "--num-episodes", "1"],
    ["robustness", "--perturb", "action=0", "--num-episodes", "1"],
    ["inspect", "--num-draws", "2", "--method", "guide"],
    ["export"],
    ["train", "--resume", "--out"],
]


@pytest.mark.parametrize("words", OPENERS, ids=lambda words: words[0])
def test_code_that_came_with_a_run_is_not_run_unasked(words: list[str], brought: Any, made: Path) -> None:
    run = brought(origin="0123456789abcdef", problem_path="/home/somebody/mine.py", problem="mine.py")
    message = refused(*words, run)
    assert "comes from elsewhere, and opening it runs Python code that came with it" in message
    assert "mine.py; read that file, and say --trust if you do" in message
    assert not (made / "touched").exists()


def test_with_trust_it_is(brought: Any, made: Path) -> None:
    run = brought(origin=None, problem_path="/home/somebody/mine.py", problem="mine.py")
    with pytest.raises(ValueError, match="say --trust"):
        load_run(run)
    assert not (made / "touched").exists()
    loaded = load_run(run, trust=True)
    assert (loaded.problem_changed, loaded.process.horizon) == (False, 3)
    assert (made / "touched").exists()
    (made / "touched").unlink()
    assert rlai("evaluate", run, "--num-episodes", "1", "--trust")[0] == 0
    assert rlai("train", "--out", run, "--resume", "--num-steps", "20", "--trust")[0] == 0
    (run.parent / "mine.py").write_text("1 / 0")
    assert "has changed since the run began" in refused("train", "--out", run, "--resume", "--trust")


def test_what_a_record_has_no_hash_of_is_not_run_unasked(brought: Any, made: Path) -> None:
    run = brought(problem_sha256=None)
    for words in OPENERS[:2]:
        assert "names Python code, " in (message := refused(*words, run))
        assert "has no hash to know it by" in message
    run.joinpath("run.json").write_text(
        json.dumps({**json.loads((run / "run.json").read_text()), "problem_sha256": "0"})
    )
    assert "has changed since the run began" in refused("robustness", run)
    assert not (made / "touched").exists()


def test_ones_own_run_may_be_moved_with_its_problem(brought: Any, made: Path) -> None:
    run = brought(problem_path="/nowhere/mine.py", problem="mine.py")
    assert load_run(run).process.horizon == 3
    (made / "touched").unlink()


def test_a_module_that_gymnasium_would_import_is_code_too(brought: Any) -> None:
    run = brought(problem="evil_module:Strange-v0", origin=None, problem_sha256=None)
    assert "runs Python code that it names, the module evil_module" in refused("evaluate", run)
    assert RunRecord.read(run).changed(origin=RunRecord.of("train", None, None).origin).find_problem(run).name == (
        "evil_module:Strange-v0"
    )
