"""What a command says: in narrow encodings, and of errors that are the user's own."""

import html.parser
import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from apart import Apart
from command_line import refused, rlai

from rl_as_inference.cli.narrow import in_ascii, write_narrowly
from rl_as_inference.models import gridworld
from rl_as_inference.report import draw_sources, render_report
from rl_as_inference.stops import Terminated, asked_to_stop, stoppable

QUICK = ["--steps", "2", "--num-trajectories", "20", "--num-draws", "10", "--hidden-sizes", "4", "--no-progress"]
TRAIN = ["--hidden-sizes", "4", "--batch-size", "4", "--learning-starts", "10", "--no-compile", "--no-progress"]
TRAIN += ["--num-steps", "60", "--evaluate-every", "60", "--evaluate-episodes", "1"]
FAULTY = """
import torch
import rl_as_inference as rlai

calls = 0

class Problem(rlai.models.point_mass().__class__):
    def reward(self, state, action, next_state):
        global calls
        calls += 1
        if calls > 60:
            raise ValueError("no such state")
        return super().reward(state, action, next_state)

def problem():
    made = rlai.models.point_mass(horizon=5)
    made.__class__ = Problem
    return made
"""


class TestNarrowOutput:
    def test_files_come_first_and_the_table_in_ascii(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        words = ["compare", "gridworld", "--rows", "2", *QUICK, "--out", out]
        ended = Apart(*words, scratch=tmp_path, encoding="ascii").ends()
        assert ended.code == 0, ended.err
        assert json.loads((out / "run.json").read_text())["finished"] is True
        assert ended.out.isascii()
        assert "alpha = 0.5" in ended.out
        assert "posterior.nc" in ended.out
        rows = [line for line in ended.out.splitlines() if line.startswith("|")]
        assert len(rows) > 10

    def test_signs_that_an_encoding_has_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "latin-1", write_through=True))
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        write_narrowly()
        print("é ± │ temperature α      │ 0.2 │\n│ entropy            │ 0.1 │\n\udcff €")
        assert raw.getvalue().decode("latin-1") == (
            "é ± | temperature alpha  | 0.2 |\n| entropy            | 0.1 |\n? ?\n"
        )

    def test_tables_keep_their_columns(self) -> None:
        assert in_ascii("┏━━┓ √2 ≤ ∞ … 10² — Σ") == "+--+ ?2 <= inf ... 102 - Sigma"

    def test_output_that_breaks_loses_no_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from rl_as_inference.compare import Comparison

        def broken(_: Any) -> str:
            raise BrokenPipeError

        monkeypatch.setattr(Comparison, "table", broken)
        with pytest.raises(BrokenPipeError):
            rlai("compare", "gridworld", "--rows", "2", *QUICK, "--out", tmp_path / "run")
        assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is True


class TestErrors:
    def test_of_users_code_keep_their_traceback(self, tmp_path: Path) -> None:
        path = tmp_path / "faulty.py"
        path.write_text(FAULTY)
        ended = Apart("train", path, *TRAIN, "--out", tmp_path / "run", scratch=tmp_path).ends()
        assert ended.code == 1
        assert 'faulty.py", line 12, in reward' in ended.err
        assert "ValueError: no such state" in ended.err
        assert "at step " in ended.err  # and what was kept
        with pytest.raises(ValueError, match="no such state"):
            rlai("train", path, *TRAIN, "--out", tmp_path / "other")

    def test_ours_are_one_line_though_users_code_has_its_part(self, tmp_path: Path) -> None:
        path = tmp_path / "faulty.py"
        path.write_text(
            FAULTY.replace('raise ValueError("no such state")', "return torch.full((len(state),), torch.nan)")
        )
        message = refused("train", path, *TRAIN, "--out", tmp_path / "run")
        assert "reward is NaN at step 0; check reward() of Problem" in message


class TestSignals:
    def test_handlers_are_put_back(self) -> None:
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with stoppable(), asked_to_stop() as asked:
            signal.raise_signal(signal.SIGTERM)
            assert asked == [signal.SIGTERM]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with stoppable(), pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

    @pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
    def test_an_error_that_a_stop_turned_into_is_the_stop(self, number: int, kind: type[KeyboardInterrupt]) -> None:
        """C code that is being initialised says ImportError for whatever is raised in it."""

        @stoppable()
        def initialised() -> None:
            try:
                signal.raise_signal(number)
            except KeyboardInterrupt as stop:
                raise ImportError("initialization failed") from stop

        with pytest.raises(KeyboardInterrupt) as caught:
            initialised()
        assert type(caught.value) is kind
        with pytest.raises(ImportError, match="absent"), stoppable():
            raise ImportError("absent")

    def test_another_handler_of_sigterm_stays(self) -> None:
        seen: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
        try:
            with stoppable(), asked_to_stop() as asked:
                signal.raise_signal(signal.SIGTERM)
            assert (seen, asked) == ([signal.SIGTERM], [])
        finally:
            signal.signal(signal.SIGTERM, before)


class Elements(html.parser.HTMLParser):
    """The elements of a page, and its scripts' text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_names_on_a_page_are_text_and_not_markup() -> None:
    """The same elements as with a plain name, and the name itself in the text and in the data."""
    name = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&<b>\u2028"
    pages = []
    for called in (name, "plain"):
        grid = gridworld(2, 2, horizon=3)
        grid.name = called
        pages.append(Elements())
        pages[-1].feed(render_report(grid, draw_sources(grid, None, num_draws=5), facts=[(called, called)]))
    assert pages[0].tags == pages[1].tags
    assert sum(name in text for text in pages[0].texts) >= 4  # title, heading, fact and its name
    data = json.loads(next(text for text in pages[0].texts if text.lstrip().startswith('{"')))
    assert data
