"""What a page shows of numbers that are unlike most: infinite, negative, or alike in their first digits."""

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch

import rl_as_inference as rlai
from rl_as_inference import models
from rl_as_inference.report import ShownRun, draw_sources, render_page, render_report, value_maps


def test_what_is_forbidden_and_what_differs_in_its_sixth_digit(opened: Any, tmp_path: Path) -> None:
    def walk() -> None:
        state = pyro.sample("state_0", dist.Delta(torch.tensor(0)))
        for t in rlai.steps(4):
            action = rlai.act(f"action_{t}", state, dist.Categorical(logits=torch.zeros(2)))
            state = state + action
            rlai.reward(f"reward_{t}", torch.where(state == 4, -torch.inf, 1e4 + (state > 2)))
            state = pyro.sample(f"state_{t + 1}", dist.Delta(state))

    path = tmp_path / "a.html"
    path.write_text(render_report(walk, draw_sources(walk, None, num_draws=200, method="guide")), encoding="utf-8")
    page = opened(path)
    bars = page.evaluate("document.getElementById('returns').data.map(({ name, x }) => [name, x])")
    assert bars[0][0] == "action prior, mean −∞"
    assert bars[0][1][0] == "−∞"
    assert set(bars[0][1][1:]) <= {"40000", "40001", "40002"}
    assert len(set(bars[0][1])) == len(bars[0][1]) > 2
    assert page.locator("#return-distributions tbody tr:first-child td").all_inner_texts()[:2] == ["-inf", ""]


def test_states_on_both_sides_of_zero_are_lines(opened: Any, tmp_path: Path) -> None:
    def walk() -> None:
        state = pyro.sample("state_0", dist.Delta(torch.tensor(0)))
        for t in rlai.steps(5):
            action = rlai.act(f"action_{t}", state, dist.Categorical(logits=torch.zeros(2)))
            state = pyro.sample(f"state_{t + 1}", dist.Delta(state + 2 * action - 1))
            rlai.reward(f"reward_{t}", state.float())

    path = tmp_path / "a.html"
    path.write_text(render_report(walk, draw_sources(walk, None, num_draws=30, method="guide")), encoding="utf-8")
    page = opened(path)  # whose errors fail the test
    lowest = page.evaluate("Math.min(...document.querySelector('.panel[data-source=prior] .plot').data[0].y)")
    assert lowest < 0


def test_two_runs_can_be_chosen_from_to_the_last_dimension(opened: Any, tmp_path: Path) -> None:
    pair = [models.point_mass(horizon=3), models.pendulum(horizon=3)]
    path = tmp_path / "a.html"
    runs = [ShownRun(each, draw_sources(each, None, num_draws=9, method="guide"), each.name) for each in pair]
    path.write_text(render_page(runs), encoding="utf-8")
    page = opened(path)
    assert page.locator("#axis-y option").all_inner_texts() == ["cos θ", "sin θ", "ω (rad/s)"]
    assert page.locator("#axis-action option").count() == 2  # of the point mass, which has more of them
    page.locator("#axis-y").select_option("2")
    titles = [page.locator(f".panel[data-source=guide][data-run='{r}'] .plot .ytitle").text_content() for r in (0, 1)]
    assert titles == ["state dimension 1", "ω (rad/s)"]


def test_long_names_fit_a_telephone(opened: Any, tmp_path: Path) -> None:
    grid = models.gridworld(3, 3, horizon=5)
    grid.name, grid.action_names = "y" * 300, ["z" * 90 + str(i) for i in range(4)]
    grid.layout, grid.legend = [["S", "Q", "F"], ["F", "F", "F"], ["F", "F", "G"]], {"Q": "x" * 200}
    path = tmp_path / "a.html"
    plan = rlai.exact.plan(grid)
    drawn = {"comparison": rlai.compare(grid, plan, num_trajectories=20), "values": value_maps(grid, plan)}
    path.write_text(render_report(grid, draw_sources(grid, plan, num_draws=9), **drawn), encoding="utf-8")
    page = opened(path, 390)
    page.locator("#time").fill("0")
    assert "z" * 90 in page.locator(".panel[data-source=guide] .picked").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
