"""The HTML report: what ``rlai inspect`` writes, opened in a browser without a network."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
import pytest
import torch
from command_line import refused, rlai
from playwright import sync_api

from rl_as_inference.compare import Comparison, compare
from rl_as_inference.compare.comparison_table import number
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.models import corridor, gridworld, point_mass
from rl_as_inference.processes import TabularMDP
from rl_as_inference.processes.programs import as_process
from rl_as_inference.report import draw_sources, is_report, render_report
from rl_as_inference.report.trajectories import embed

TINY = [
    "--steps",
    "5",
    "--num-trajectories",
    "50",
    "--num-draws",
    "20",
    "--fit-num-trajectories",
    "10",
    "--no-progress",
]
LEARNING = ["--num-steps", "40", "--hidden-sizes", "8", "--batch-size", "8", "--learning-starts", "20", "--no-progress"]
LEARNING += ["--evaluate-every", "40", "--evaluate-episodes", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a small run with its report, made when first asked for. Tests only read it."""
    folder = tmp_path_factory.mktemp("runs")
    words = {
        "lake": ["compare", "FrozenLake-v1", "--horizon", "20", "--temperature", "0.1", *TINY],
        "point": ["compare", "point_mass", "--horizon", "6", *TINY],
        "corridor": ["fit", "corridor", "--steps", "5", "--no-progress"],
        "pendulum": ["train", "Pendulum-v1", "--max-episode-steps", "12", "--seeds", "2", *LEARNING],
    }

    def run(name: str) -> Path:
        out = folder / name
        if not out.exists():
            torch.manual_seed(0)
            assert rlai(*words[name], "--out", out)[0] == 0
            code, text, err = rlai("inspect", out, "--num-draws", "250" if name != "pendulum" else "12")
            assert code == 0, err
            assert "report.html" in text
        return out

    return run


def comparison_of(run: Path) -> Comparison:
    return Comparison.from_dict(json.loads((run / "comparison.json").read_text()))


def panel(page: Any, source: str) -> Any:
    return page.locator(f".panel[data-source={source}]")


def drawn(page: Any, source: str) -> Any:
    """What Plotly draws in a source's panel."""
    return page.evaluate("s => document.querySelector(`.panel[data-source=${s}] .plot`).data", source)


def kept(page: Any, source: str) -> int:
    return int(panel(page, source).locator(".count").inner_text().split()[0])


def embedded(page: Any) -> dict[str, Any]:
    return {source["key"]: source for source in page.evaluate("data.runs[0].sources")}


class TestPage:
    def test_has_everything(self, runs: Any, opened: Any) -> None:
        page = opened(runs("lake") / "report.html")
        assert page.locator("h1").inner_text() == "FrozenLake-v1: which trajectories explain success?"
        sources = ["prior", "guide", "posterior", "causal"]
        assert page.locator(".panel").evaluate_all("all => all.map(p => p.dataset.source)") == sources
        assert page.locator(".card").evaluate_all("all => all.map(p => p.dataset.source)") == sources[1:]
        assert "nothing to doubt" in page.locator(".card[data-source=posterior]").inner_text()
        assert page.locator("#returns .xtitle").text_content() == "return (reward units)"
        assert page.locator("#gaps .xtitle").text_content() == "nats"
        for source in sources:
            assert drawn(page, source)[0]["type"] == "heatmap"
        assert all(len(s["draws"]["return"]) == 200 and len(s["returns"]) == 250 for s in embedded(page).values())

    def test_numbers_are_the_runs(self, runs: Any, opened: Any) -> None:
        page, comparison = opened(runs("lake") / "report.html"), comparison_of(runs("lake"))
        table = comparison.table()
        cells = page.locator("td[data-field]")
        # Every row that the terminal prints, and no other.
        shown = [row for rows in comparison.blocks() for row in rows]
        assert [cell.get_attribute("data-field") for cell in cells.all()] == [row.field for row in shown]
        assert len(shown) == 17
        printed = [line.strip("│").split("│")[0].strip() for line in table.splitlines() if line.startswith("│")]
        assert printed[: len(shown)] == [row.label.strip() for row in shown]
        for cell in cells.all():
            field, shown = cell.get_attribute("data-field"), cell.inner_text()
            value = comparison.temperature * comparison.elbo if field == "scaled_elbo" else getattr(comparison, field)
            assert float(shown.replace(",", "")) == pytest.approx(value, abs=0.005 if abs(value) >= 10 else 5e-5)
            row = cell.locator("xpath=..").locator("th, td").all_inner_texts()
            # The command prints the same row, in the same words.
            assert any(all(word in line for word in row) for line in table.splitlines()), row
        for rule in comparison.rules:
            row = page.locator(f"tr[data-rule='{rule.name}'] td").all_inner_texts()
            expected = [rule.elbo, rule.expected_return, rule.believed_return]
            assert [float(number.replace(",", "")) for number in row] == pytest.approx(expected, rel=2e-3, abs=5e-5)

    def test_gaps_are_the_runs(self, runs: Any, opened: Any) -> None:
        page, comparison = opened(runs("lake") / "report.html"), comparison_of(runs("lake"))
        bar = page.evaluate("document.getElementById('gaps').data[0]")
        assert bar["x"] == pytest.approx(
            [comparison.elbo_exact, comparison.policy_gap, comparison.dynamics_gap, comparison.log_evidence], abs=1e-4
        )
        ends = np.add(bar["base"], bar["x"])
        assert ends[:3] == pytest.approx([*bar["base"][1:3], comparison.log_evidence], abs=1e-4)

    def test_time_changes_what_is_shown(self, runs: Any, opened: Any) -> None:
        page = opened(runs("lake") / "report.html")
        everywhere = drawn(page, "guide")[0]["z"]
        page.locator("#time").fill("0")
        assert page.locator("#time-value").inner_text() == "step 0 of 20"
        assert "Step 0: row 0, column 0" in panel(page, "guide").locator(".picked").inner_text()
        z = np.array(drawn(page, "guide")[0]["z"])
        assert z[0, 0] == 1
        assert z.sum() == 1  # all draws are at the start
        page.locator("#forward").click()
        assert page.locator("#time-value").inner_text() == "step 1 of 20"
        page.locator("#back").click()
        page.locator("#play").click()
        sync_api.expect(page.locator("#time-value")).to_have_text(re.compile("step [3-9] of 20"))
        page.locator("#play").click()
        page.locator("#time").fill("20")
        assert drawn(page, "guide")[0]["z"] == everywhere

    def test_cells_are_shares_of_draws(self, runs: Any, opened: Any) -> None:
        page = opened(runs("lake") / "report.html")
        page.locator("#cells").select_option("here")
        page.locator("#time").fill("4")
        paths = embedded(page)["causal"]["draws"]["state"]
        counts = np.bincount([path[min(4, len(path) - 1)] for path in paths], minlength=16).reshape(4, 4)
        assert np.square(drawn(page, "causal")[0]["z"]) == pytest.approx(counts / len(paths))

    def test_filter_keeps_some_draws(self, runs: Any, opened: Any) -> None:
        page = opened(runs("lake") / "report.html")
        returns = np.array(embedded(page)["guide"]["draws"]["return"])
        assert kept(page, "guide") == len(returns) == 200
        page.locator("#least").fill("500")
        assert page.locator("#least-value").inner_text() == "0.5"
        assert kept(page, "guide") == (returns >= 0.5).sum() < 200
        page.locator("#least").fill("0")
        page.locator("#most").fill("500")
        assert kept(page, "guide") == (returns <= 0.5).sum() > 0
        page.locator("#filter-by").select_option("log_weight")
        assert kept(page, "guide") == 200
        page.locator("#least").fill("900")
        weights = {key: np.array(source["draws"]["log_weight"]) for key, source in embedded(page).items()}
        lows, highs = zip(*((w.min(), w.max()) for w in weights.values()), strict=True)
        bound = min(lows) + 0.9 * (max(highs) - min(lows))
        assert kept(page, "guide") == (weights["guide"] >= bound - 1e-6).sum()
        page.locator("#most").fill("0")
        assert kept(page, "guide") == 0
        assert "widen the range" in panel(page, "guide").locator(".picked").inner_text()

    def test_picking_goes_through_the_draws_in_order(self, runs: Any, opened: Any) -> None:
        page = opened(runs("lake") / "report.html")
        draws = embedded(page)["guide"]["draws"]
        order = sorted(range(200), key=lambda i: -draws["log_weight"][i])
        page.locator("#order").select_option("weight-down")
        page.locator("#next").click()
        second = draws["state"][order[1]]
        line = drawn(page, "guide")[1]
        assert [4 * y + x for x, y in zip(line["x"], line["y"], strict=True)] == second
        caption = panel(page, "guide").locator(".picked").inner_text()
        assert caption.startswith(f"Draw 2 of 200: return {draws['return'][order[1]]:g}, ")
        page.locator("#rank").fill("9999")
        page.locator("#rank").press("Enter")
        assert page.locator("#rank").input_value() == "200"
        page.locator("#previous").click()
        assert "Draw 199 of 200" in panel(page, "guide").locator(".picked").inner_text()

    def test_toggles_hide_and_show(self, runs: Any, opened: Any) -> None:
        page = opened(runs("lake") / "report.html")
        visible = "document.getElementById('returns').data.map(trace => trace.visible)"
        page.locator(".toggles input[data-source=prior]").uncheck()
        assert not panel(page, "prior").is_visible()
        assert panel(page, "guide").is_visible()
        assert page.evaluate(visible) == ["legendonly", True, True, True]
        page.locator(".toggles input[data-source=prior]").check()
        assert panel(page, "prior").is_visible()
        assert page.evaluate(visible) == [True] * 4
        page.locator("#returns .legendtoggle").nth(1).click()
        sync_api.expect(page.locator(".toggles input[data-source=guide]")).not_to_be_checked()
        assert not panel(page, "guide").is_visible()

    def test_returns_are_shares_of_all_draws(self, runs: Any, opened: Any) -> None:
        page = opened(runs("lake") / "report.html")
        traces = page.evaluate("document.getElementById('returns').data")
        for trace, source in zip(traces, embedded(page).values(), strict=True):
            assert trace["y"] == pytest.approx([np.mean(np.array(source["returns"]) == level) for level in (0, 1)])
        assert "mean 1" in traces[2]["name"]  # the exact posterior is sure to arrive

    def test_states_in_the_plane_and_over_time(self, runs: Any, opened: Any) -> None:
        page = opened(runs("point") / "report.html")
        draws = embedded(page)["posterior"]["draws"]
        lines, dots, path, _ = drawn(page, "posterior")
        assert len(dots["x"]) == 200
        assert lines["x"][:7] == [
            draws["state"][0][max(range(200), key=lambda i: draws["return"][i])][t] for t in range(7)
        ]
        assert len(path["x"]) == 7
        page.locator("#axis-x").select_option("time")
        page.locator("#axis-y").select_option("1")
        page.locator("#time").fill("2")
        _, dots, path, _ = drawn(page, "posterior")
        assert set(dots["x"]) == {2}
        assert path["x"] == [0, 1, 2]
        assert panel(page, "posterior").locator(".plot .xtitle").text_content() == "time (steps)"
        assert panel(page, "posterior").locator(".plot .ytitle").text_content() == "state dimension 1"
        assert page.locator("#gaps").count() == 0  # no exact values

    def test_finite_states_over_time(self, runs: Any, opened: Any) -> None:
        page = opened(runs("corridor") / "report.html")
        heat = drawn(page, "guide")[0]
        assert np.square(heat["z"]).sum(0) == pytest.approx(np.ones(9))  # at every step each draw is somewhere
        assert "discount is survival" in page.locator("#trajectories .note").inner_text()
        # fit writes no comparison, so the report has made one.
        assert page.locator("td[data-field=elbo]").count() == 1

    def test_a_learners_run(self, runs: Any, opened: Any) -> None:
        page = opened(runs("pendulum") / "report.html")
        assert page.locator(".panel").count() == 2
        assert page.locator("td[data-field=elbo_critic]").count() == 1
        assert "k̂" in page.locator(".card").inner_text() or "sample size" in page.locator(".card").inner_text()

    @pytest.mark.parametrize("name", ["lake", "point", "corridor"])
    def test_fits_on_a_telephone(self, runs: Any, opened: Any, name: str) -> None:
        page = opened(runs(name) / "report.html", 360, 740)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        plot = panel(page, "guide").locator(".main-svg").first.bounding_box()
        assert plot["width"] > 300
        assert plot["x"] + plot["width"] <= 360


def test_the_page_has_every_row_of_the_terminals_table() -> None:
    """Eight of these were the terminal's alone; a table of logits has a family's gap as well."""
    grid = gridworld(2, 2, horizon=3)
    comparison = compare(grid, TabularPolicy(4, 4, horizon=3), num_trajectories=50)
    page = render_report(grid, draw_sources(grid, None, num_draws=5), comparison=comparison)
    rows = [row for block in comparison.blocks() for row in block]
    assert {"family_gap", "training_gap", "sac_exact", "prior_term_exact"} <= {row.field for row in rows}
    assert {"expected_return_exact", "entropy_exact", "action_cost", "action_cost_exact"} <= {row.field for row in rows}
    for row in rows:
        assert f'data-field="{row.field}">{number(row.value)}</td>' in page
        assert f">{markupsafe.escape(row.label.strip())}</th>" in page
        assert f'<td class="aside">{markupsafe.escape(row.note)}</td>' in page
        assert row.label in comparison.table()
    assert "identities among these rows hold" in page


class TestNames:
    def test_are_text_and_not_markup(self, opened: Any, tmp_path: Path) -> None:
        name = "</script><script>document.title = 'owned'</script><img src=x onerror=alert(1)>&<b>"
        grid = gridworld(2, 2, horizon=3)
        grid.name = name
        page_text = render_report(grid, draw_sources(grid, None, num_draws=5), facts=[(name, name)])
        path = tmp_path / "report.html"
        path.write_text(page_text, encoding="utf-8")
        page = opened(path)
        assert page.title() == f"{name}: trajectory posteriors"
        assert page.locator("h1").inner_text().startswith(name)
        assert page.locator("img").count() == 0


class TestCommand:
    def test_same_run_same_report(self, runs: Any, tmp_path: Path) -> None:
        for name in ("a.html", "b.html"):
            assert rlai("inspect", runs("lake"), "--out", tmp_path / name, "--num-draws", 30)[0] == 0
        assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
        assert (tmp_path / "a.html").stat().st_size < 8e6

    def test_nothing_is_overwritten_silently(self, runs: Any, tmp_path: Path) -> None:
        out = tmp_path / "page.html"
        assert rlai("inspect", runs("lake"), "--out", out, "--num-draws", 10)[0] == 0
        before = out.read_bytes()
        assert "exists already; choose another file with --out, or say --overwrite" in refused(
            "inspect", runs("lake"), "--out", out
        )
        assert out.read_bytes() == before
        assert rlai("inspect", runs("lake"), "--out", out, "--num-draws", 11, "--overwrite")[0] == 0
        assert out.read_bytes() != before
        assert is_report(out)

    def test_overwrite_touches_only_reports(self, runs: Any, tmp_path: Path) -> None:
        (tmp_path / "thesis.html").write_text("<p>mine</p>")
        message = refused("inspect", runs("lake"), "--out", tmp_path / "thesis.html", "--overwrite")
        assert "is not a report" in message
        assert (tmp_path / "thesis.html").read_text() == "<p>mine</p>"
        assert "is a folder" in refused("inspect", runs("lake"), "--out", tmp_path)
        assert "there is no folder" in refused("inspect", runs("lake"), "--out", tmp_path / "no" / "page.html")

    def test_a_new_run_in_its_place_takes_the_report_away(self, runs: Any, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(runs("corridor"), run)
        assert rlai("fit", "corridor", "--steps", "2", "--no-progress", "--out", run, "--overwrite")[0] == 0
        assert not (run / "report.html").exists()

    def test_method(self, runs: Any, tmp_path: Path) -> None:
        code, text, _ = rlai(
            "inspect", runs("lake"), "--out", tmp_path / "a.html", "--num-draws", 20, "--method", "importance"
        )
        assert code == 0
        assert "posterior (importance)" in text
        for method in ("annealed", "smc"):  # the first starts from the prior, and takes no guide; the second does
            words = ["--num-draws", 20, "--method", method, "--out", tmp_path / f"{method}.html"]
            code, text, said = rlai("inspect", runs("lake"), *words)
            assert code == 0, said
            assert f"posterior ({method})" in text
        assert "--method must be one of" in refused("inspect", runs("lake"), "--method", "magic", "--overwrite")
        assert "--num-draws must be >= 1" in refused("inspect", runs("lake"), "--num-draws", 0, "--overwrite")

    def test_not_a_run(self, tmp_path: Path) -> None:
        assert "does not exist" in refused("inspect", tmp_path / "nothing")
        assert "is not a run folder (it has no run.json)" in refused("inspect", tmp_path)
        (tmp_path / "file").write_text("")
        assert "is a file, not a folder" in refused("inspect", tmp_path / "file")
        assert {path.name for path in tmp_path.iterdir()} == {"file"}

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("run.json", "{", "run.json' is damaged"),
            ("run.json", "[]", "it holds a list"),
            ("run.json", '{"command": "bake"}', "its command is 'bake'"),
            ("run.json", '{"command": "compare"}', "its seed is None"),
            ("run.json", '{"command": "compare", "seed": 0}', "its problem is None"),
            ("run.json", '{"command": "train", "seed": 0}', "has no checkpoint.safetensors"),
            ("run.json", '{"finished": false, "files": []}', "did not finish; run it again"),
            ("policy.safetensors", "no tensors", "policy.safetensors' is damaged"),
            ("policy.safetensors", None, "there is no file"),
            ("comparison.json", '{"rules": [{}]}', "comparison.json' is damaged"),
            ("comparison.json", None, "comparison.json' is damaged"),
        ],
    )
    def test_damaged(self, runs: Any, tmp_path: Path, name: str, content: str | None, said: str) -> None:
        run = tmp_path / "run"
        shutil.copytree(runs("lake"), run, ignore=shutil.ignore_patterns("report.html", "*.png", "*.nc"))
        (run / name).unlink()
        if content is not None:
            (run / name).write_text(content)
        assert said in refused("inspect", run)
        assert not (run / "report.html").exists()

    def test_damaged_draws_are_told(self, runs: Any, tmp_path: Path) -> None:
        """The page draws anew, so that it is written all the same."""
        run = tmp_path / "run"
        shutil.copytree(runs("lake"), run, ignore=shutil.ignore_patterns("report.html", "*.png"))
        whole = (run / "posterior.nc").read_bytes()
        code, _, said = rlai("inspect", run, "--num-draws", 20)
        assert (code, said) == (0, "")
        (run / "posterior.nc").write_bytes(whole[: len(whole) // 2])
        code, _, said = rlai("inspect", run, "--num-draws", 20, "--overwrite")
        assert code == 0
        assert "rlai: warning:" in said
        assert "posterior.nc' is damaged" in said

    def test_a_guide_of_another_shape(self, runs: Any, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(runs("corridor"), run, ignore=shutil.ignore_patterns("report.html"))
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "hidden_sizes": [3], "sha256": None}))
        assert "does not fit" in refused("inspect", run)

    def test_a_damaged_checkpoint(self, runs: Any, tmp_path: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(runs("pendulum"), run, ignore=shutil.ignore_patterns("report.html"))
        (run / "checkpoint.safetensors").write_bytes(b"nothing")
        assert "checkpoint.safetensors' is damaged" in refused("inspect", run)
        (run / "checkpoint.safetensors").unlink()
        assert "--resume" in refused("inspect", run)


class TestEmbed:
    def test_long_trajectories_are_fewer(self) -> None:
        process = point_mass(horizon=400)
        found = embed(process, draw_sources(process, None, method="guide", num_draws=300))
        for source in found["sources"]:
            assert 10 <= len(source["draws"]["return"]) < 200
            assert len(source["returns"]) == 300
        assert len(json.dumps(found)) < 8e6

    def test_trajectories_end_where_they_end(self) -> None:
        process = as_process(corridor(discount=0.5))
        draws = embed(process, draw_sources(process, None, method="guide", num_draws=50))["sources"][0]["draws"]
        assert set(draws["length"]) > {1, 2}
        for path, actions, rewards, length in zip(
            draws["state"], draws["action"], draws["reward"], draws["length"], strict=True
        ):
            assert len(actions) == len(rewards) == length == len(path) - 1

    def test_arrows_are_where_actions_lead(self) -> None:
        grid = gridworld(4, 4, horizon=30, slip=0.3)
        assert embed(grid, draw_sources(grid, None))["view"]["arrows"] == ["←", "↓", "→", "↑"]
        lake = TabularMDP.from_gymnasium("FrozenLake-v1", horizon=40, map_name="8x8")
        assert embed(lake, draw_sources(lake, None))["view"]["arrows"] == ["←", "↓", "→", "↑"]

    def test_numbers_that_are_none(self) -> None:
        """JSON has no infinities."""
        process = point_mass(horizon=3)
        (prior, *_) = draw_sources(process, None, method="guide", num_draws=4)
        prior.data.posterior["reward"][0, 1, 2] = -np.inf
        prior.data.sample_stats["return"][0, 1] = -np.inf
        prior.data.sample_stats["log_weight"][0, 1] = -np.inf
        found = embed(process, [prior])["sources"][0]
        assert [found["returns"][1], found["draws"]["return"][1], found["draws"]["log_weight"][1]] == [None] * 3
        assert found["draws"]["reward"][1][2] is None
        json.dumps(found, allow_nan=False)

    def test_no_sources(self) -> None:
        with pytest.raises(ValueError, match="sources is empty"):
            render_report(gridworld(), [])
