"""What the report shows of what an agent believes, and of what a program draws once a trajectory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl_as_inference import exact
from rl_as_inference.models import hidden_goal, light_dark, light_dark_linear, machine_wear, t_maze, tiger
from rl_as_inference.processes import TabularPOMDP
from rl_as_inference.processes.programs import as_process
from rl_as_inference.report import draw_sources, render_report
from rl_as_inference.report.beliefs import _quantiles, beliefs_of
from rl_as_inference.report.trajectories import embed

F64 = torch.float64


def observed(data: Any) -> torch.Tensor:
    name = "observation" if "observation" in data.posterior else "observation_after"
    return torch.as_tensor(data.posterior[name].values)[0].movedim(1, 0)


def taken(data: Any) -> torch.Tensor:
    return torch.as_tensor(data.posterior["action"].values)[0].movedim(1, 0)


@pytest.mark.parametrize("make", [tiger, machine_wear, t_maze])
def test_beliefs_over_states_are_the_exact_ones(make: Any) -> None:
    process = make(horizon=4, dtype=F64)
    (prior, *_) = draw_sources(process, None, method="guide", num_draws=20)
    found = beliefs_of(process, prior.data, np.arange(20))
    assert found.shape == (20, process.num_states, 4)
    seen = observed(prior.data) if process.sees_first else observed(prior.data)[:3]
    shorter = make(horizon=3, dtype=F64)
    wanted = exact.belief(shorter, seen, taken(prior.data)[:3])
    np.testing.assert_allclose(found, wanted.movedim(0, -1), atol=1e-9)


def test_beliefs_end_with_the_episode() -> None:
    """State 1 ends it; nothing is believed after, and before it the agent knows that it goes on."""
    transition = torch.tensor([[[0.5, 0.5, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 0.5, 0.5]]], dtype=F64)
    seen = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.2, 0.8]], dtype=F64)
    start = torch.tensor([0.5, 0.0, 0.5], dtype=F64)
    ends = torch.tensor([False, True, False])
    process = TabularPOMDP(transition, torch.ones(3, 1, dtype=F64), start, seen, horizon=5, terminal=ends)
    (prior, *_) = draw_sources(process, None, method="guide", num_draws=50)
    lengths = prior.data.sample_stats["length"].values[0]
    assert len(set(lengths)) > 2
    found = beliefs_of(process, prior.data, np.arange(50))
    for path, length in zip(found, lengths, strict=True):
        np.testing.assert_allclose(path[:, :length].sum(0), 1)
        assert not path[1, :length].any()
        assert np.isnan(path[:, length:]).all()


def test_fans_of_particles_are_near_kalmans() -> None:
    """500 particles and a normal belief: quantiles within a fifth of the belief's standard deviation, on average."""
    process = light_dark_linear(horizon=4, dtype=F64)
    (prior, *_) = draw_sources(process, None, method="guide", num_draws=30)
    kalman = beliefs_of(process, prior.data, np.arange(30))
    assert kalman.shape == (30, 2, 5, 4)
    assert (np.diff(kalman, axis=2) > 0).all()
    mean = exact.belief(process, observed(prior.data), taken(prior.data)).mean
    np.testing.assert_allclose(kalman[:, :, 2], mean.movedim(0, -1))
    alive = torch.ones(4, 30, dtype=torch.bool)
    seen = observed(prior.data)
    particles = _quantiles(process, seen[0], seen[1:], taken(prior.data), alive).movedim(0, -1).numpy()
    deviation = (kalman[:, :, 4] - kalman[:, :, 0]) / 3.29
    assert (np.abs(particles - kalman).mean(2) / deviation).mean() < 0.2


def test_what_is_embedded_fits() -> None:
    process = light_dark(horizon=6)
    found = embed(process, draw_sources(process, None, method="guide", num_draws=30))
    assert found["view"]["belief"] == "fan"
    belief = found["sources"][0]["draws"]["belief"]
    assert (len(belief), len(belief[0]), len(belief[0][0]), len(belief[0][0][0])) == (30, 2, 5, 6)
    (prior, *_) = draw_sources(process, None, method="guide", num_draws=5)
    prior.data.posterior = prior.data.posterior.drop_vars("observation")
    assert embed(process, [prior])["sources"][0]["draws"]["belief"] is None
    seen = embed(as_process(hidden_goal()), draw_sources(hidden_goal(), None, method="guide", num_draws=5))
    assert seen["view"]["belief"] is None
    assert seen["sources"][0]["draws"]["belief"] is None


class TestPage:
    """Pages as a browser draws them."""

    def opened_page(self, opened: Any, folder: Path, process: Any, policy: Any = None, width: int = 1280) -> Any:
        torch.manual_seed(0)
        path = folder / "report.html"
        path.write_text(render_report(process, draw_sources(process, policy, num_draws=40)), encoding="utf-8")
        return opened(path, width)

    def belief(self, page: Any, source: str) -> Any:
        return page.evaluate("s => document.querySelector(`.panel[data-source=${s}] .belief`).data", source)

    def test_shares_of_states(self, opened: Any, tmp_path: Path) -> None:
        process = tiger(horizon=4)
        page = self.opened_page(opened, tmp_path, process, exact.plan(process))
        bars = self.belief(page, "causal")
        assert [trace["type"] for trace in bars] == ["bar", "bar", "scatter"]
        assert np.add(bars[0]["y"], bars[1]["y"]) == pytest.approx(np.ones(4))
        page.locator("#time").fill("1")
        assert len(self.belief(page, "causal")[2]["y"]) == 2  # where the state is, so far
        assert "believed with probability" in page.locator(".panel[data-source=causal] .picked").inner_text()
        page.locator("#next").click()
        assert "what the agent of the picked draw believes" in page.locator("#trajectories .note").inner_text()

    def test_a_fan(self, opened: Any, tmp_path: Path) -> None:
        page = self.opened_page(opened, tmp_path, light_dark_linear(horizon=4), width=360)
        low, high = (self.belief(page, "guide")[k]["y"] for k in (0, 1))
        assert len(low) == 4
        assert all(a < b for a, b in zip(low, high, strict=True))
        page.locator("#axis-y").select_option("0")
        assert self.belief(page, "guide")[0]["y"] != low
        assert page.evaluate("document.documentElement.scrollWidth") == 360

    def test_latents_of_a_program(self, opened: Any, tmp_path: Path) -> None:
        page = self.opened_page(opened, tmp_path, hidden_goal())
        names = page.locator(".latent").evaluate_all("all => all.map(e => e.dataset.latent)")
        assert names == ["goal", "note"]
        shown = "document.querySelector('.latent[data-latent=goal]').data"
        goals = page.evaluate("data.runs[0].sources[2].draws.latents.goal")
        assert page.evaluate(shown)[2]["y"] == pytest.approx([1 - np.mean(goals), np.mean(goals)])
        assert page.locator(".belief").count() == 0
        page.locator("#least").fill("500")  # the better half of the returns says more of the goal
        kept = page.evaluate("panels[2].kept.map(i => panels[2].draws.latents.goal[i])")
        assert 0 < len(kept) < 40
        shares = dict(zip(*(page.evaluate(shown)[2][axis] for axis in "xy"), strict=True))
        assert shares.get("1", 0.0) == pytest.approx(np.mean(kept))
