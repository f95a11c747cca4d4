"""``rlai list`` and ``rlai open``."""

import webbrowser
from pathlib import Path

import pytest
from command_line import refused, rlai

from rl_as_inference import guides, models
from rl_as_inference.agents.made_again import ALGORITHMS
from rl_as_inference.cli.sweep_words import refusal
from rl_as_inference.records import RunRecord
from rl_as_inference.report import is_report


def run_in(folder: Path) -> Path:
    words = ["--steps", "2", "--num-trajectories", "10", "--horizon", "4", "--no-progress", "--out", folder]
    assert rlai("fit", "gridworld", *words)[0] == 0
    return folder


class TestList:
    def test_tells_every_problem_guide_and_learner(self) -> None:
        code, said, err = rlai("list")
        assert (code, err) == (0, "")
        lines = {line.split()[0]: line for line in said.splitlines() if line.startswith("  ")}
        assert set(models.__all__) <= set(lines)
        assert set(ALGORITHMS) <= set(lines)
        assert "RecurrentPolicy" in lines
        assert "TanhNormal" not in lines  # no policy
        assert set(lines) <= {*models.__all__, *guides.__all__, *ALGORITHMS}
        assert "two doors" in lines["hidden_goal"]
        assert all(len(line.split(maxsplit=1)) == 2 and len(line) <= 140 for line in lines.values())

    def test_tells_which_commands_take_a_problem(self) -> None:
        """Those that do not refuse it, each asked as a sweep asks them."""
        for line in rlai("list", "problems")[1].splitlines()[1:]:
            name, told = line.split(maxsplit=1)
            takes = ", ".join(each for each in ("compare", "fit", "train") if refusal(each, name, {}) is None)
            assert told.startswith(f"{takes}  "), line

    def test_one_kind(self) -> None:
        code, said, _ = rlai("list", "problems")
        assert code == 0
        assert len(said.splitlines()) == 1 + len(models.__all__)
        assert "KIND must be one of problems, guides, learners; got 'runs'" in refused("list", "runs")


class TestOpen:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What the browser is asked to open."""
        found: list[str] = []
        monkeypatch.setattr(webbrowser, "open", lambda address: found.append(address) or True)
        return found

    def test_writes_the_page_first(self, tmp_path: Path, asked: list[str]) -> None:
        run = run_in(tmp_path / "run")
        code, said, err = rlai("open", run, "--no-progress")
        assert code == 0, err
        page = run / "report.html"
        assert is_report(page)
        assert said == f"{page}: opened in the browser\n"
        assert asked == [page.as_uri()]
        before = page.stat().st_mtime_ns
        assert rlai("open", run)[0] == 0
        assert page.stat().st_mtime_ns == before  # once is enough
        page.write_text("<p>mine</p>")
        assert "is not a report; move it away" in refused("open", run)

    @pytest.mark.parametrize("none", ["says so", "raises"])
    def test_without_a_browser(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, none: str) -> None:
        def nothing(address: str) -> bool:
            if none == "raises":
                raise webbrowser.Error("could not locate runnable browser")
            return False

        monkeypatch.setattr(webbrowser, "open", nothing)
        run = run_in(tmp_path / "run")
        code, said, _ = rlai("open", run, "--no-progress")
        assert code == 0
        assert said == f"{run / 'report.html'}: there is no browser here; open it where there is\n"

    def test_of_a_sweep(self, tmp_path: Path, asked: list[str]) -> None:
        out = tmp_path / "sweep"
        out.mkdir()
        RunRecord("sweep", "corridor").write(out)
        (out / "sweep.html").write_text("")
        code, _, err = rlai("open", out)
        assert code == 0, err
        assert asked == [(out / "sweep.html").as_uri()]
        (out / "sweep.html").unlink()
        assert "has no sweep.html yet" in refused("open", out)

    def test_of_a_run_that_went_on(self, tmp_path: Path, asked: list[str]) -> None:
        run, small = (
            tmp_path / "run",
            ["--hidden-sizes", "4", "--batch-size", "4", "--learning-starts", "10", "--max-episode-steps", "5"],
        )
        small += ["--evaluate-every", "20", "--evaluate-episodes", "1", "--no-progress"]
        assert rlai("train", "Pendulum-v1", "--num-steps", 20, *small, "--out", run)[0] == 0
        (run / "mine.html").write_text("")
        assert rlai("open", run, "--no-progress")[0] == 0
        assert rlai("train", "--out", run, "--resume", "--num-steps", 40, "--no-progress")[0] == 0
        assert (run / "mine.html").exists()
        assert rlai("open", run, "--no-progress")[0] == 0
        assert "<dt>training steps</dt><dd>40</dd>" in (run / "report.html").read_text(encoding="utf-8")

    def test_what_is_no_run(self, tmp_path: Path, asked: list[str]) -> None:
        assert "does not exist" in refused("open", tmp_path / "nothing")
        assert "is not a run folder (it has no run.json)" in refused("open", tmp_path)
        (tmp_path / "file").write_text("")
        assert "is a file, not a folder" in refused("open", tmp_path / "file")
        assert asked == []
