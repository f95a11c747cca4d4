"""``on_report``: what is told, when, and that the teller hears of errors."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_agents import sac

import rl_as_inference as rlai
from rl_as_inference import models
from rl_as_inference.agents import train
from rl_as_inference.agents.logbook import CHECKPOINT
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.progress import ProgressBar

MDP = models.random_mdp(4, 2, horizon=3)


def guide() -> TabularPolicy:
    return TabularPolicy(4, 2, horizon=3)


@pytest.mark.parametrize(
    ("every", "steps"), [(None, [*range(0, 230, 2), 229]), (100, [0, 100, 200, 229]), (300, [0, 229])]
)
def test_a_fit_tells_its_history(every: int | None, steps: list[int]) -> None:
    rows: list[dict[str, float]] = []
    fitted = rlai.fit(MDP, guide(), steps=230, learning_rate=0.1, on_report=rows.append, report_every=every)
    assert [row["step"] for row in rows] == steps
    assert all(type(value) is float for row in rows for value in row.values())
    assert [row["elbo"] for row in rows] == [float(fitted.elbo[step]) for step in steps]
    assert rows[0]["learning_rate"] == 0.1
    assert rows[-1]["learning_rate"] == pytest.approx(0.005, rel=0.01)  # a twentieth
    assert {row["temperature"] for row in rows} == {float(MDP.temperature)}


def test_a_run_tells_its_history(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    agent = sac()
    train(agent, 90, tmp_path, evaluate_every=45, evaluate_episodes=1, report_every=30, on_report=rows.append)
    assert [row["step"] for row in rows] == [30, 45, 60, 90]
    assert all(type(value) is float for row in rows for value in row.values())
    assert len(rows) == len(agent.history)
    for told, kept in zip(rows, agent.history, strict=True):
        assert told.keys() == kept.keys()
        assert all(
            a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(told.values(), kept.values(), strict=True)
        )
        assert told is not kept  # what a tracker does to it is its own affair


def test_reports_have_what_the_bar_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(ProgressBar, "advance", lambda self, text, by=1: shown.append(text))
    rows: list[dict[str, float]] = []
    sac().learn(40, report_every=40, on_report=rows.append)
    text = next(each for each in shown if "α" in each)
    assert f"α {rows[0]['temperature']:.3g}" in text
    assert f"entropy {rows[0]['entropy']:.2f} nats" in text
    assert f"{rows[0]['updates_per_second']:.0f} updates/s" in text


def broken(row: dict[str, float]) -> None:
    raise ConnectionError(f"no tracker at step {row['step']:.0f}")


def test_errors_of_a_tracker_come_through(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="no tracker at step 0"):
        rlai.fit(MDP, guide(), steps=3, on_report=broken)
    with pytest.raises(ConnectionError, match="no tracker at step 25"):
        train(sac(), 50, tmp_path, evaluate_every=50, evaluate_episodes=1, report_every=25, on_report=broken)
    assert (tmp_path / CHECKPOINT).exists()
    again = sac()
    train(again, 50, tmp_path, evaluate_every=50, evaluate_episodes=1, report_every=25, resume=True)
    assert again.num_steps == 50


def test_what_is_drawn_in_a_report_moves_nothing() -> None:
    def fitted(told: Any) -> list[float]:
        torch.manual_seed(0)
        return rlai.fit(MDP, guide(), steps=4, estimator="score", seed=1, on_report=told).elbo.tolist()

    assert fitted(lambda row: rlai.compare(MDP, None, num_trajectories=3)) == fitted(None)
    found = []
    for act in (False, True):
        agent = sac()
        agent.learn(60, report_every=20, on_report=lambda row, a=agent, act=act: a.act(np.zeros(3)) if act else None)
        found.append([each.tolist() for each in agent.modules[0]["policy"].parameters()])
    assert found[0] == found[1]


def test_who_cannot_be_told_is_refused_at_once(tmp_path: Path) -> None:
    agent, calls = sac(), list[Any]()
    calls.append(lambda wrong: rlai.fit(MDP, guide(), steps=3, on_report=wrong))
    calls.append(lambda wrong: train(agent, 50, tmp_path, on_report=wrong))
    calls.append(lambda wrong: agent.learn(50, on_report=wrong))
    for call in calls:
        for wrong in (True, "print"):
            with pytest.raises(ValueError, match="on_report must be a callable or None, got"):
                call(wrong)
    assert agent.num_steps == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_the_pace_is_a_count(every: Any) -> None:
    with pytest.raises(ValueError, match="report_every"):
        rlai.fit(MDP, guide(), steps=3, on_report=print, report_every=every)
