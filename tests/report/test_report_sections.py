"""The report beside its trajectories: learning, soft values, tables, two runs, the theme, and names from outside."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import refused, rlai

from rl_as_inference import exact
from rl_as_inference.agents.curves import read_curve
from rl_as_inference.compare import Comparison, GradientComparison, compare
from rl_as_inference.compare.comparison_table import number
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.models import gridworld, pendulum, point_mass
from rl_as_inference.processes import TabularMDP
from rl_as_inference.report import ShownRun, draw_sources, render_page, render_report, value_maps
from rl_as_inference.report.pairs import paired_blocks, paired_notes
from rl_as_inference.report.pictures import dimension_names, grid_of

TINY = ["--num-trajectories", "50", "--num-draws", "20", "--fit-num-trajectories", "10", "--no-progress"]
LAKE = ["compare", "FrozenLake-v1", "--horizon", "20", "--temperature", "0.1"]
LEARNING = ["--num-steps", "40", "--hidden-sizes", "8", "--batch-size", "8", "--learning-starts", "20", "--no-progress"]
LEARNING += ["--evaluate-every", "20", "--evaluate-episodes", "2"]
EVIL = "<img src=x onerror=document.title='owned'>%{x}<b>"


def key_and_door() -> TabularMDP:
    """A walk to a goal behind a door, for which the key must be fetched: states 12 … 23 are those with the key."""
    layout = ("S..K", "##D#", "...G")
    letters = np.array([list(row) for row in layout])
    cells = np.arange(12)
    to = torch.zeros(24, 4, 1, dtype=torch.long)
    for state in range(24):
        cell, has_key = state % 12, state >= 12
        for action, (down, right) in enumerate(((0, -1), (1, 0), (0, 1), (-1, 0))):
            row, column = cell // 4 + down, cell % 4 + right
            inside = 0 <= row < 3 and 0 <= column < 4 and letters[row, column] != "#"
            if not inside or (letters[row, column] == "D" and not has_key):
                row, column = divmod(cell, 4)
            key = has_key or letters[row, column] == "K"
            to[state, action, 0] = cells[4 * row + column] + 12 * key
    ends = torch.arange(24) % 12 == 11
    start = torch.eye(24)[0]
    reward = (to == 23).float()
    mdp = TabularMDP.from_successors(
        to, torch.ones(24, 4, 1), reward, start, horizon=16, temperature=0.1, terminal=ends
    )
    mdp.name, mdp.layout = "key_and_door", letters
    mdp.copies = ("without the key", "with the key")
    return mdp


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a small run, made when first asked for. Tests only read it."""
    folder = tmp_path_factory.mktemp("runs")
    words = {
        "lake": [*LAKE, "--steps", "260", *TINY, "--gradients", "--gradients-num-trajectories", "100"],
        "other": [*LAKE, "--steps", "20", "--seed", "1", *TINY],
        "pendulum": ["train", "Pendulum-v1", "--max-episode-steps", "12", "--seeds", "2", *LEARNING],
    }

    def run(name: str) -> Path:
        out = folder / name
        if not out.exists():
            torch.manual_seed(0)
            code, _, err = rlai(*words[name], "--out", out)
            assert code == 0, err
        return out

    return run


def written(path: Path, *words: str | Path | float) -> Path:
    code, _, err = rlai("inspect", *words, "--out", path, "--no-progress")
    assert code == 0, err
    return path


def cells_of(page: Any, selector: str) -> list[list[str]]:
    """Returns the texts of a table's rows."""
    rows: list[list[str]] = page.eval_on_selector_all(
        f"{selector} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent.trim()))"
    )
    return rows


class TestLearning:
    def test_of_a_guide(self, runs: Any, opened: Any, tmp_path: Path) -> None:
        page = opened(written(tmp_path / "a.html", runs("lake"), "--num-draws", 20))
        (curve,) = page.evaluate("data.runs[0].curves")
        history = np.array(json.loads((runs("lake") / "history.json").read_text()))
        assert (curve["name"], curve["unit"]) == ("ELBO", "nats")
        assert len(curve["middle"]) == 87  # means of three steps each
        assert curve["middle"] == pytest.approx([part.mean() for part in np.split(history, range(3, 260, 3))], rel=1e-4)
        assert curve["low"] == pytest.approx([part.min() for part in np.split(history, range(3, 260, 3))], rel=1e-4)
        best = Comparison.from_dict(json.loads((runs("lake") / "comparison.json").read_text())).optimal_elbo
        assert curve["ceiling"] == ["largest ELBO", pytest.approx(best, abs=1e-6)]
        drawn = page.evaluate("document.querySelector('#curves > div').data")
        assert drawn[-1]["y"] == [pytest.approx(best, abs=1e-6)] * 2
        assert page.locator("#curves .xtitle").text_content() == "gradient steps"
        assert page.locator("#curves .ytitle").text_content() == "ELBO (nats)"
        assert "least to largest of 3 steps" in page.locator("#curves-note").inner_text()

    def test_of_a_learner(self, runs: Any, opened: Any, tmp_path: Path) -> None:
        page = opened(written(tmp_path / "a.html", runs("pendulum"), "--num-draws", 10))
        curves = {curve["name"]: curve for curve in page.evaluate("data.runs[0].curves")}
        assert list(curves) == ["evaluation return", "temperature α", "entropy"]
        rows = read_curve(runs("pendulum") / "curve.csv", 40)
        returns = np.array([row.mean_return for row in rows]).reshape(3, 2)  # steps 0, 20 and 40, two seeds
        assert curves["evaluation return"]["steps"] == [0, 20, 40]
        assert curves["evaluation return"]["middle"] == pytest.approx(returns.mean(1), rel=1e-4)
        assert np.array(curves["evaluation return"]["seeds"]) == pytest.approx(returns.T, rel=1e-4)
        low, high = (np.array(curves["evaluation return"][side]) for side in ("low", "high"))
        assert (low <= returns.mean(1) + 1e-3).all()
        assert (high >= returns.mean(1) - 1e-3).all()
        assert page.locator("#curves .ytitle").all_text_contents()[1] == "temperature α (reward units per nat)"
        # What train printed: the last evaluation is of the same episodes.
        shown = {row[0]: row[1:] for row in cells_of(page, "#learning table")}
        assert shown["environment steps"][:2] == ["40", "steps"]
        assert float(shown["evaluation return"][0]) == pytest.approx(returns[-1].mean(), rel=1e-3)
        assert "bootstrap over 2 seeds, 2 episodes each" in shown["evaluation return"][2]
        assert "speed" not in shown  # a clock's, without what compiling took: nothing here knows it
        assert float(shown["seed 1"][0]) == pytest.approx(returns[-1, 1], rel=1e-3)


def test_gradients_are_the_terminals(runs: Any, opened: Any, tmp_path: Path) -> None:
    page = opened(written(tmp_path / "a.html", runs("lake"), "--num-draws", 20))
    found = GradientComparison.from_dict(json.loads((runs("lake") / "gradients.json").read_text()))
    assert str(found.as_table()) == found.table()
    wanted = [[cell.strip() for cell in row] for row in found.as_table().rows if row is not None]
    assert cells_of(page, "#gradients table") == wanted
    assert len(wanted) > 20


class TestValues:
    def test_are_the_exact_ones(self) -> None:
        grid = gridworld(4, 4, horizon=12, slip=0.3, holes=[(1, 1)])
        found = value_maps(grid, None)
        assert found is not None
        plan, prior = exact.plan(grid), exact.evaluate(grid, None)
        causal, guide = found["maps"]
        assert found["times"] == list(range(12))
        assert found["arrows"] == ["←", "↓", "→", "↑"]
        assert [label["label"] for label in found["maps"]] == ["exact causal plan", "guide"]
        np.testing.assert_allclose(causal["v"], plan.soft_v[:-1], atol=2e-3)
        np.testing.assert_allclose(guide["v"], prior.soft_v[:-1], atol=2e-3)
        np.testing.assert_allclose(causal["p"], plan.policy, atol=1e-3)
        assert np.array(found["ends"]).nonzero()[0].tolist() == [5]

    def test_of_what_has_no_grid(self) -> None:
        assert value_maps(pendulum(horizon=3), None) is None
        assert value_maps(TabularMDP(torch.ones(1, 2, 1), torch.ones(1, 2), torch.ones(1), horizon=2), None) is None

    def test_without_horizon(self) -> None:
        found = value_maps(gridworld(3, 3, horizon=None, discount=0.9), None)
        assert found is not None
        assert found["stationary"]
        assert len(found["maps"][0]["v"]) == 1

    def test_large_grids_keep_fewer_times(self) -> None:
        found = value_maps(gridworld(20, 20, horizon=200), None)
        assert found is not None
        assert (found["times"][0], found["times"][-1]) == (0, 199)
        assert len(json.dumps(found)) < 4e6

    def test_on_the_page(self, opened: Any, tmp_path: Path) -> None:
        mdp = key_and_door()
        path = tmp_path / "a.html"
        plan = exact.plan(mdp)
        page_text = render_report(mdp, draw_sources(mdp, plan, num_draws=40), values=value_maps(mdp, plan))
        path.write_text(page_text, encoding="utf-8")
        page = opened(path)
        shown = "document.querySelector('.value-map[data-map=causal] .map').data[0].z"
        v = plan.soft_v[0].double().numpy()
        without = np.array(page.evaluate(shown), dtype=float).ravel()
        walls = np.isin(mdp.layout, "#").ravel()
        np.testing.assert_allclose(without[~walls], v[:12][~walls], atol=1e-3)
        assert np.isnan(without[walls]).all()
        page.locator("#copy").select_option("1")
        np.testing.assert_allclose(
            np.array(page.evaluate(shown), dtype=float).ravel()[~walls], v[12:][~walls], atol=1e-3
        )
        page.locator("#values-step").fill("15")  # the last action: only beside the goal is there anything to gain
        last = np.array(page.evaluate(shown), dtype=float).ravel()
        assert np.nanargmax(last) == 10
        # The key and the door are drawn, and told in the legend.
        layout = page.evaluate("document.querySelector('.panel[data-source=guide] .plot').layout.shapes")
        assert [shape["layer"] for shape in layout] == ["above", "above", "below"]
        # Walls are striped, three lines each: grey alone is nearly a colour of the scale.
        assert layout[2]["path"].count("M") == 3 * int(walls.sum())
        assert page.locator("#letters svg").count() == 2
        assert {"key", "door"} <= set(page.locator("#letters").inner_text().split())
        assert "with the key" in page.locator(".panel[data-source=posterior] .picked").inner_text()
        # Arrows, rim and line, as long as their action is likely.
        rim, arrows = page.evaluate("document.querySelector('.value-map[data-map=causal] .map').data.slice(1, 3)")
        assert rim["x"] == arrows["x"]
        assert len(arrows["x"]) % 7 == 0


class TestGrids:
    def test_states_are_cells_or_copies_of_them(self) -> None:
        grid = grid_of(key_and_door())
        assert grid is not None
        assert grid.cells.tolist() == [*range(12), *range(12)]
        assert grid.copy_of.tolist() == [0] * 12 + [1] * 12
        assert grid.copies == ("without the key", "with the key")
        assert grid.meanings == {"S": "start", "G": "goal", "#": "wall", "K": "key", "D": "door"}

    def test_cells_say_it_otherwise(self) -> None:
        mdp = key_and_door()
        mdp.cells = np.arange(24) // 2  # both of a cell beside each other
        mdp.legend = {"K": "café"}
        grid = grid_of(mdp)
        assert grid is not None
        assert grid.copy_of.tolist() == [0, 1] * 12
        assert grid.meanings["K"] == "café"
        again = grid_of(mdp.replace(horizon=3))
        assert again is not None
        assert again.cells.tolist() == grid.cells.tolist()
        assert again.meanings == grid.meanings

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("layout", [["S", "G", "F", "F", "F"]], "24 states, which is no multiple"),
            ("layout", np.array(["S", "G"]), "letters \\(rows, columns\\)"),
            ("cells", [0] * 5, "for each of the 24 states"),
            ("cells", [99] * 24, "a cell in 0 … 11"),
        ],
    )
    def test_that_do_not_fit(self, name: str, value: Any, said: str) -> None:
        mdp = key_and_door()
        setattr(mdp, name, value)
        with pytest.raises(ValueError, match=said):
            grid_of(mdp)


class TestNamesOfDimensions:
    def test_of_a_process(self) -> None:
        process = pendulum(horizon=3)
        assert dimension_names(process, "state", 3) == ["cos θ", "sin θ", "ω (rad/s)"]
        process.state_names = None
        assert dimension_names(process, "state", 3)[1] == "state dimension 1"
        process.state_names = ("angle",)
        with pytest.raises(ValueError, match="state_names must name the 3 entries of a state"):
            dimension_names(process, "state", 3)

    def test_actions_and_rewards_over_time(self, opened: Any, tmp_path: Path) -> None:
        process = pendulum(horizon=6)
        process.state_names, process.action_names = (EVIL, "sine", "speed"), ("torque",)
        path = tmp_path / "a.html"
        path.write_text(render_report(process, draw_sources(process, None, method="guide", num_draws=30)), "utf-8")
        page = opened(path)
        drawn = page.evaluate("document.querySelector('.panel[data-source=guide] .steps').data")
        draws = page.evaluate("data.runs[0].sources[1].draws")
        first = max(range(30), key=lambda i: draws["return"][i])
        assert drawn[4]["y"] == [action[0] if isinstance(action, list) else action for action in draws["action"][first]]
        assert drawn[9]["y"] == draws["reward"][first]
        said = "document.querySelector('.panel[data-source=guide] .steps').layout.annotations.map(a => a.text)"
        assert page.evaluate(said) == ["torque", "reward (reward units)"]
        page.locator("#axis-y").select_option("0")
        assert page.locator(".panel[data-source=guide] .plot .ytitle").text_content() == EVIL.replace("%{", "%\u200b{")
        page.locator(".panel[data-source=guide] .plot").hover()
        assert page.locator("img").count() == 0
        assert "owned" not in page.title()
        assert EVIL in page.locator(".panel[data-source=guide] .picked").inner_text()


def test_a_problem_files_name_is_text(opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("<img src=x onerror=document.title='owned'>.py")
    file.write_text(
        "from rl_as_inference.models import pendulum\n"
        "def problem():\n"
        "    process = pendulum(horizon=4)\n"
        f"    process.state_names = ({EVIL!r}, {EVIL!r}, {EVIL!r})\n"
        f"    process.action_names = ({EVIL!r},)\n"
        "    return process\n"
    )
    for name in ("<b>a", "<img src=x onerror=document.title='owned'>"):
        words = ["--steps", "2", "--num-trajectories", "10", "--no-progress", "--out", name]
        code, _, err = rlai("fit", file, *words)
        assert code == 0, err
    words = ["--num-draws", "10", "--method", "guide"]
    for pages in (["<b>a"], ["<b>a", "<img src=x onerror=document.title='owned'>"]):
        page = opened(written(tmp_path / "page.html", *pages, *words, "--overwrite"))
        page.locator("#theme").select_option("dark")
        page.locator(".panel .plot").first.hover()
        assert page.title() != "owned"
        assert page.locator("main img, main b img, header img").count() == 0
        assert "onerror" in page.locator("header").inner_text() or len(pages) == 1


class TestTwoRuns:
    def test_differences(self, runs: Any) -> None:
        pair = [Comparison.from_dict(json.loads((runs(n) / "comparison.json").read_text())) for n in ("lake", "other")]
        first, second = pair
        rows = {row.field: row for block in paired_blocks(first, second) for row in block}
        both = [{row.field for block in each.blocks() for row in block} for each in pair]
        assert set(rows) == both[0] | both[1]
        error = np.hypot(first.elbo_standard_error, second.elbo_standard_error)
        assert rows["elbo"].difference.endswith(f" ± {error:.2g}")
        assert float(rows["elbo"].difference.split()[0].replace(",", "")) == pytest.approx(
            second.elbo - first.elbo, abs=0.006
        )
        assert rows["elbo"].values[0] == f"{number(first.elbo)} ± {first.elbo_standard_error:.2g}"
        assert "±" not in rows["policy_gap"].difference  # exact
        assert rows["log_evidence"].difference == "0.0000"
        assert paired_notes(first, second) == ()

    def test_every_estimate_has_its_error(self) -> None:
        grid = gridworld(3, 3, horizon=5, slip=0.3)
        policy = TabularPolicy(9, 4, horizon=5)
        torch.nn.init.normal_(policy.logits, generator=torch.Generator().manual_seed(0))
        pair = [
            compare(grid, policy, num_trajectories=n, critic=lambda state, t: torch.zeros(state.shape))
            for n in (50, 80)
        ]
        rows = {row.field: row for block in paired_blocks(*pair) for row in block}
        names = {
            name.removesuffix("_standard_error")
            for name, value in vars(pair[0]).items()
            if "_standard_error" in name and value is not None
        }
        names = names - {"sac"} | {"sac_objective", "scaled_elbo"}
        assert len(names) >= 6
        names -= {"elbo_critic", "prior_term"}  # the same of every trajectory here
        assert {field for field, row in rows.items() if "±" in row.difference} == names & set(rows)
        errors = [each.expected_return_standard_error or 0.0 for each in pair]
        assert rows["expected_return"].difference.endswith(f" ± {np.hypot(*errors):.2g}")
        assert rows["expected_return"].values[1].endswith(f" ± {errors[1]:.2g}")

    def test_of_other_problems_are_told(self) -> None:
        mild, cold = (compare(gridworld(3, 3, horizon=5, temperature=t), None, num_trajectories=50) for t in (1.0, 0.1))
        (note,) = paired_notes(mild, cold)
        assert "α = 1 and 0.1" in note
        assert "say little" in paired_notes(mild, compare(pendulum(horizon=3), None, num_trajectories=50))[0]
        rows = [row for block in paired_blocks(mild, compare(pendulum(horizon=3), None)) for row in block]
        assert {row.difference for row in rows if row.field == "log_evidence"} == {""}

    @pytest.mark.parametrize("width", [1400, 390])
    def test_beside_each_other(self, runs: Any, opened: Any, tmp_path: Path, width: int) -> None:
        path = written(tmp_path / "pair.html", runs("lake"), runs("other"), "--num-draws", 30)
        page = opened(path, width)
        assert page.title() == "A: lake beside B: other"
        assert page.evaluate("document.documentElement.scrollWidth") == width
        order = page.locator(".panel").evaluate_all("all => all.map(p => p.dataset.source + p.dataset.run)")
        assert order == [key + run for key in ("prior", "guide", "posterior", "causal") for run in "01"]
        boxes = [page.locator(f".panel[data-source=guide][data-run='{run}']").bounding_box() for run in "01"]
        assert (boxes[0]["y"] == boxes[1]["y"]) == (width > 600)
        first, second = (
            Comparison.from_dict(json.loads((runs(name) / "comparison.json").read_text())) for name in ("lake", "other")
        )
        shown = {row[0]: row[1:] for row in cells_of(page, "#comparison .tables > div:first-child table")}
        gap = shown["policy gap"]
        assert gap[:2] == [number(first.policy_gap), number(second.policy_gap)]
        assert page.locator("tr[data-rule]").count() == 8
        assert len(page.evaluate("document.querySelector('#curves > div').data")) >= 3
        assert page.locator(".value-map").count() == 4
        assert page.evaluate("document.getElementById('returns').data.length") == 8
        page.locator(".toggles input[data-source=prior]").uncheck()
        assert [each.is_visible() for each in page.locator(".panel[data-source=prior]").all()] == [False, False]
        page.locator("#time").fill("3")
        assert page.locator("#time-value").inner_text() == "step 3 of 20"

    def test_two_problems_have_ranges_of_their_own(self, opened: Any, tmp_path: Path) -> None:
        problems = pendulum(horizon=4), point_mass(horizon=3)
        shown = [ShownRun(each, draw_sources(each, None, method="guide", num_draws=10), each.name) for each in problems]
        path = tmp_path / "a.html"
        path.write_text(render_page(shown), encoding="utf-8")
        page = opened(path)
        layout = "document.querySelector(`.panel[data-source=guide][data-run='${r}'] .plot`).layout"
        ranges = [page.evaluate(f"r => {layout}.yaxis.range", run) for run in (0, 1)]
        assert ranges[0] != ranges[1]
        page.locator("#axis-x").select_option("time")
        times = [page.evaluate(f"r => {layout}.xaxis.range", run) for run in (0, 1)]
        assert [pair[1] for pair in times] == pytest.approx([1.03 * 4, 1.03 * 3])

    def test_default_file_goes_with_the_first_run(self, runs: Any) -> None:
        code, said, err = rlai("inspect", runs("other"), runs("lake"), "--num-draws", 5, "--no-progress")
        assert code == 0, err
        assert (runs("other") / "beside-lake.html").is_file()
        assert "lake, guide: " in said
        assert "beside-lake.html" in json.loads((runs("other") / "run.json").read_text())["files"]

    def test_that_are_none(self, runs: Any, tmp_path: Path) -> None:
        assert "does not exist" in refused("inspect", runs("lake"), tmp_path / "none", "--out", tmp_path / "a.html")
        with pytest.raises(ValueError, match="one or two, got 3"):
            render_page([ShownRun(gridworld(), ())] * 3)


class TestTheme:
    def test_switches_and_brightness_stays(self, runs: Any, opened: Any, tmp_path: Path) -> None:
        page = opened(written(tmp_path / "a.html", runs("lake"), "--num-draws", 20))
        paper = "getComputedStyle(document.body).backgroundColor"
        scale = "document.querySelector('.panel[data-source=guide] .plot').data[0].colorscale"
        ink = "document.getElementById('returns').layout.font.color"
        light = page.evaluate(paper), page.evaluate(ink), page.evaluate(scale)
        page.locator("#theme").select_option("dark")
        dark = page.evaluate(paper), page.evaluate(ink), page.evaluate(scale)
        assert light[0] == "rgb(255, 255, 255)"
        assert dark[:2] == ("rgb(20, 23, 27)", "#e8eaed")
        assert light[1] != dark[1]
        assert light[2] == dark[2]
        page.emulate_media(color_scheme="dark")
        page.locator("#theme").select_option("light")
        assert page.evaluate(paper) == light[0]
        page.locator("#theme").select_option("")
        assert page.evaluate(paper) == dark[0]


def test_no_other_script_may_run(runs: Any, opened: Any, tmp_path: Path) -> None:
    """The page's own two are known by their hashes; a handler in markup is refused even where one came in."""
    text = written(tmp_path / "a.html", runs("other"), "--num-draws", 5).read_text(encoding="utf-8")
    policy = text.split("script-src ")[1].split(";")[0]
    assert policy.count("sha256-") == 2
    assert "unsafe" not in policy


def test_progress_is_shown(runs: Any, tmp_path: Path) -> None:
    code, _, err = rlai("inspect", runs("other"), "--num-draws", 5, "--out", tmp_path / "a.html", "--progress")
    assert code == 0
    assert "rlai inspect" in err
    assert "6/6" in err


def test_a_file_with_a_grid_of_its_own_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path("house.py")
    page = (Path(__file__).parent.parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
    source.write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    code, _, err = rlai("compare", source, "--steps", "2", *TINY, "--out", "house")
    assert code == 0, err
    assert (tmp_path / "house" / "dynamics_gap.png").is_file()
    found = written(tmp_path / "a.html", "house", "--num-draws", 10).read_text(encoding="utf-8")
    assert "with the key" in found
    assert "Soft values and policies" in found
