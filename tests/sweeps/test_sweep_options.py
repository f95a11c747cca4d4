"""What a sweep goes through, what it refuses before anything begins, and what it says at its end."""

import json
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from apart import Apart
from command_line import refused
from playwright import sync_api

import rl_as_inference as rlai
from rl_as_inference.cli.sweep_words import checked_plan, perform
from rl_as_inference.sweeps.conducting import Report
from rl_as_inference.sweeps.looking import Outcome
from rl_as_inference.sweeps.page import render_sweep
from rl_as_inference.sweeps.plan import Plan
from rl_as_inference.sweeps.ray_cluster import RayCluster
from rl_as_inference.sweeps.results import Sweep, gathered
from rl_as_inference.sweeps.space import Range, draw, grid, named, read_set

FIT = ["sweep", "corridor", "--steps", "3", "--hidden-sizes", "4", "--num-trajectories", "4"]


def test_values_are_read_as_they_are_written() -> None:
    assert read_set("--hidden-sizes=(64,64),[8, 8],16") == ("hidden_sizes", ("64,64", "8,8", 16))
    assert read_set("double=true,false") == ("double", (True, False))
    assert read_set("steps=1..10") == ("steps", Range(1, 10))
    for text in ("rate", "=1", "rate=", "rate=1,,2", "rate=(1,2", "rate=1,1", "rate=2..1", "rate=0..1:log"):
        with pytest.raises(ValueError, match="--set"):
            read_set(text)


def test_grids_and_draws() -> None:
    axes: dict[str, Any] = {"a": (1, 2), "b": ("x", "y", "z")}
    assert len(grid(axes)) == 6
    assert grid(axes)[1] == {"a": 1, "b": "y"}
    assert len({named(values) for values in draw(axes, 100)}) == 6  # and no more
    drawn = draw({"rate": Range(1e-4, 1e-2, log=True), "width": Range(4, 8)}, 400)
    assert drawn[:50] == draw({"rate": Range(1e-4, 1e-2, log=True), "width": Range(4, 8)}, 50)
    # Uniform in the logarithm: 400 draws, a mean of -3 with a standard error of 0.029.
    logs = np.log10([values["rate"] for values in drawn])
    assert abs(logs.mean() + 3) < 3 * 2 / np.sqrt(12 * 400)
    assert {values["width"] for values in drawn} == {4, 5, 6, 7, 8}
    long = named({"policy": "a/b" * 60})
    assert len(long) < 100
    assert "/" not in long
    assert long != named({"policy": "a/b" * 61})


WORDS = {
    ("--set", "learning_rate=0.1..1"): "a range is for --search random or optuna",
    ("--set", "steps=3"): "--set steps: said once for all runs, too, as --steps; leave one out",
    ("--set", "learning_rate"): "--set must be an option and its values",
    ("--search", "random"): "--search random needs --trials N",
    ("--search", "grdi"): "--search must be one of grid, random, optuna",
    ("--command", "learn"): "--command must be one of train, fit, compare",
    ("--trials", "3"): "--trials: a grid has all combinations",
    ("--jobs", "0"): "--jobs must be >= 1, got 0",
    ("--search", "random", "--trials", "3"): "--search random has nothing to choose; say --set learning_rate=",
}


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_words_that_cannot_be_are_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    assert WORDS[words] in refused(*FIT, "--seeds", "2", *words, "--out", tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_over_nothing_is_refused(tmp_path: Path) -> None:
    """It would be one run as everything is by default, which takes its time; one of seeds alone has to say so."""
    for words in ([], ["--command", "fit", "--jobs", "1"]):
        told = refused(*FIT, *words, "--out", tmp_path / "sweep")
        assert told.startswith("rlai: error: --set is missing")
        assert "--set learning_rate=1e-3,3e-4" in told
    assert not (tmp_path / "sweep").exists()
    ended = Apart(*FIT, "--seeds", "1", "--jobs", "1", "--out", tmp_path / "sweep", scratch=tmp_path).ends()
    assert (ended.code, ended.err.count("seed 0: ELBO")) == (0, 1)


VALUES: list[tuple[dict[str, Any], str]] = [
    ({"learning_rat": 1}, "did you mean --learning-rate?"),
    ({"learning_rate": "abc"}, "--set learning_rate=abc: Invalid value for '--learning-rate': "),
    ({"learning_rate": -1}, "--set learning_rate=-1: learning_rate must be a finite number > 0, got -1.0"),
    ({"estimator": "exct"}, "--set estimator=exct: estimator must be exact or one of"),
    ({"length": "x"}, "--set length=x: "),
    ({"seed": 3}, "--set seed: say --seeds K"),
]


@pytest.mark.parametrize(("wrong", "told"), VALUES, ids=str)
def test_values_are_checked_as_the_command_checks_them(wrong: dict[str, Any], told: str) -> None:
    right = {"learning_rate": 0.1, "length": 4, "estimator": "auto"}
    options = {"steps": 3, "num_trajectories": 4, "hidden_sizes": "4"}
    with pytest.raises(ValueError, match=re.escape(told)):
        checked_plan("corridor", None, options, [right, {**right, **wrong}])
    assert checked_plan("corridor", None, options, [right]) == "fit"


def test_learners_options_are_checked(tmp_path: Path) -> None:
    options = {"hidden_sizes": "4", "num_steps": 10}
    right = {"g": 9.0, "sampler": "stein"}
    assert checked_plan("Pendulum-v1", None, options, [{**right, "algorithm": "sql"}]) == "train"
    for wrong, told in {
        ("discount", 1.5): "--set discount=1.5: discount must be in [0, 1], got 1.5",
        ("compile", "maybe"): "--set compile=maybe: must be true or false",
        ("batch_size", 2.5): "--set batch_size=2.5: Invalid value for '--batch-size': ",
    }.items():
        start = {"g": 9.0, wrong[0]: {"discount": 0.9, "compile": False, "batch_size": 8}[wrong[0]]}
        with pytest.raises(ValueError, match=re.escape(told)):
            checked_plan("Pendulum-v1", None, options, [start, {**start, wrong[0]: wrong[1]}])
    with pytest.raises(ValueError, match="--sampler goes with --algorithm sql"):
        checked_plan("Pendulum-v1", None, options, [right])


def test_a_ray_address_that_does_not_answer(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'rl-as-inference[ray]')")
    begun = time.monotonic()
    with socket.socket() as silent:  # takes connections, and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for address, told in {
            "somewhere": "ray must be host:port, ray://host:port, auto or local; got 'somewhere'",
            "127.0.0.1:9": "ray: 127.0.0.1:9 does not answer as Ray does",
            f"127.0.0.1:{silent.getsockname()[1]}": "does not answer as Ray does",
        }.items():
            with pytest.raises(ValueError, match=re.escape(told)) as error:
                RayCluster(perform, address, tmp_path)
            assert "\n" not in str(error.value)
    assert time.monotonic() - begun < 30


def test_a_problems_file_must_stay_as_it_is(tmp_path: Path) -> None:
    """It is found from a run to the next, and a sweep does not go on with another state of it."""
    file, out = tmp_path / "bet.py", tmp_path / "sweep"
    text = (
        "from rl_as_inference.models import corridor\n\n\ndef problem(length=4):\n    return corridor(length=length)\n"
    )
    file.write_text(text)
    words = ["sweep", file, *FIT[2:], "--set", "length=3,5", "--out", out, "--no-progress"]
    ended = Apart(*words, scratch=tmp_path).ends()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"rlai fit {file}, 2 of 2 runs\nELBO at the last")
    frame = pandas.read_csv(out / "sweep.csv")
    assert list(frame["length"]) == [3, 5]
    assert list(frame["starts"]) == [1, 1]
    file.write_text(text.replace("problem(length", "problem( length"))
    for again in (words, ["sweep", "--out", out]):
        ended = Apart(*again, scratch=tmp_path).ends()
        assert ended.code == 2
        assert "bet.py has changed since the" in ended.err
    file.write_text(text)
    more = [*words, "--seeds", "2"]
    assert Apart(*more, scratch=tmp_path).ends().code == 0
    assert list(pandas.read_csv(out / "sweep.csv")["starts"]) == [1, 1, 1, 1]
    ended = Apart(*[word if word != "3" else "4" for word in words], scratch=tmp_path).ends()
    assert ended.code == 2
    assert "has --steps 3, and this says 4; choose another folder" in ended.err


def test_optuna_goes_on_with_its_study(tmp_path: Path) -> None:
    """More trials are added to those there are, whose runs are left alone."""
    pytest.importorskip("optuna", reason="Optuna is not installed (pip install 'rl-as-inference[optuna]')")
    out = tmp_path / "sweep"
    words = [*FIT, "--set", "learning_rate=1e-3..1e-1:log", "--search", "optuna", "--jobs", "1", "--out", out]
    assert Apart(*words, "--trials", "2", scratch=tmp_path).ends().code == 0
    first = pandas.read_csv(out / "sweep.csv")
    assert Apart(*words, "--trials", "3", scratch=tmp_path).ends().code == 0
    then = pandas.read_csv(out / "sweep.csv")
    assert len(then) == 3
    assert then["run"][:2].tolist() == first["run"].tolist()
    assert then["starts"].tolist() == [1, 1, 1]
    assert then["learning_rate"].between(1e-3, 1e-1).all()


def sweep_of(problem: str, num_seeds: int = 3) -> Sweep:
    """A sweep's results made by hand: the return is ten times the rate, plus the seed; one run has failed."""
    plan = Plan("train", problem, {"g": 9.0}, {"rate": (0.1, 0.2), "kind": ("<b>x</b>", "y")}, num_seeds)
    reports = {}
    for values in plan.configurations():
        for task in plan.tasks(values):
            reached = 10 * float(values["rate"]) + task.seed
            curve = [(0, 0.0), (50, reached / 2), (100, reached)]
            reports[task.name] = Report(Outcome({"return": reached, "seconds": 1.0}, curve), "")
    failed = plan.tasks({"rate": 0.2, "kind": "y"})[0]
    reports[failed.name] = Report(None, "</script><script>alert(1)</script>")
    return gathered(plan, Path("nowhere"), plan.configurations(), reports)


def test_means_and_intervals() -> None:
    sweep = sweep_of("Pendulum-v1")
    assert sweep.best == {"rate": 0.2, "kind": "y"}  # its least seed is the one that failed
    assert not sweep.is_finished
    rows = sweep.summary.set_index(["rate", "kind"])
    assert rows.loc[(0.2, "<b>x</b>"), "mean"] == pytest.approx(3.0)
    assert rows.loc[(0.2, "y"), "num_seeds"] == 2
    # Of seeds 0, 1, 2 the mean of three draws is 0 or 2 with a chance of 1/27 each: more than 2.5 %.
    assert tuple(rows.loc[(0.1, "y"), ["low", "high"]]) == pytest.approx((1.0, 3.0))
    assert "rlai train Pendulum-v1, 11 of 12 runs\nevaluation return" in sweep.table()
    json.dumps(sweep.to_dict(), allow_nan=False)
    alone = sweep_of("Pendulum-v1", 1)
    assert alone.summary["low"].isna().all()


def test_pages_escape_what_is_not_theirs() -> None:
    page = render_sweep(sweep_of("</title><script>alert(2)</script>"))
    own = page.replace(page[page.index("<script>/**") : page.index('<script>\n"use strict"')], "")
    assert "alert(1)" in own
    assert "<script>alert" not in own
    assert "<b>x" not in own


def test_the_page_draws_in_a_browser_without_a_network(tmp_path: Path) -> None:
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("there is no chromium on this machine (apt-get install chromium)")
    (tmp_path / "sweep.html").write_text(render_sweep(sweep_of("<b>Pendulum</b>")))
    wrong: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.goto((tmp_path / "sweep.html").as_uri())
        for figure in ("intervals", "curves", "parallel"):
            page.wait_for_selector(f"#{figure} .main-svg")
        panels = page.locator("#curves .cartesianlayer > .subplot").count()
        failures = page.locator("#failures li").all_inner_texts()
        title = page.locator("h1").inner_text()
        browser.close()
    assert wrong == []
    assert panels == 4
    assert len(failures) == 1
    assert failures[0].endswith("</script><script>alert(1)</script>")
    assert title.startswith("rlai train <b>Pendulum</b>, 11 of 12 runs")


def test_the_same_in_python(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"values: rate: values must be finite numbers, got nan"):
        rlai.sweep("corridor", {"rate": [float("nan")]}, out=tmp_path)
    with pytest.raises(ValueError, match=r"values: rate: says 1 twice"):
        rlai.sweep("corridor", {"rate": [1, "1"]}, out=tmp_path)
    with pytest.raises(ValueError, match="seeds must be"):
        rlai.sweep("corridor", seeds=0, out=tmp_path)
    with pytest.raises(ValueError, match="search must be one of grid, random, optuna"):
        rlai.sweep("corridor", search="grdi", out=tmp_path)  # type: ignore[arg-type]
