"""Frames have the numbers of the objects that they come from, and say their units."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_agents import sac

import rl_as_inference as rlai
from rl_as_inference import models
from rl_as_inference.agents import CurveRow, perturb, train
from rl_as_inference.agents.curves import curve_frame, read_curve, write_curve
from rl_as_inference.critics import TableCritic
from rl_as_inference.data_frames import _BY_UNIT, UNITS, frame, history_frame
from rl_as_inference.guides import TabularPolicy
from rl_as_inference.inspect import diagnose
from rl_as_inference.inspect.foresight import Foresight, Outlook

MDP = models.random_mdp(4, 2, horizon=3)


def policy() -> TabularPolicy:
    torch.manual_seed(0)
    guide = TabularPolicy(4, 2, horizon=3)
    for parameter in guide.parameters():
        torch.nn.init.normal_(parameter)
    return guide


def test_none_is_nan_and_what_has_no_unit_is_not_named() -> None:
    found = frame({"elbo": torch.tensor([1.0, 2.0]), "size": [1, None]}, size="m")
    assert found["elbo"].tolist() == [1.0, 2.0]
    assert math.isnan(found["size"][1])
    assert found.attrs["units"] == {"elbo": "nats", "size": "m"}
    assert history_frame([{"step": 1.0}, {"step": 2.0, "q": 3.0}])["q"].isna().tolist() == [True, False]
    assert history_frame([]).empty


def test_a_comparison_is_a_row_and_every_estimate_has_its_error() -> None:
    guide = policy()
    critic = TableCritic(rlai.exact.evaluate(MDP, guide).soft_v)
    comparison = rlai.compare(MDP, guide, num_trajectories=500, critic=critic, seed=0)
    table = comparison.to_frame()
    assert len(table) == 1
    told = comparison.to_dict()
    for name in table:
        value = told[name]
        assert table[name][0] == value or (value is None and math.isnan(table[name][0]))
    assert table.attrs["units"]["sac_objective"] == "reward"
    assert table.attrs["units"]["dynamics_gap"] == "nats"
    assert set(table) - table.attrs["units"].keys() == {"problem", "num_trajectories", "discount"}
    estimates = ("elbo", "elbo_critic", "critic_difference", "prior_term", "expected_return", "entropy", "action_cost")
    for name in estimates:
        assert table.attrs["units"][f"{name}_standard_error"] == table.attrs["units"][name]
    both = pd.concat([table, rlai.compare(MDP, None, num_trajectories=50).to_frame()])
    assert both["elbo"].iloc[0] == comparison.elbo
    assert rlai.Comparison.from_dict({**told, "units": dict(comparison.units)}) == comparison


def test_standard_errors_of_a_comparison_are_those_of_its_rollouts() -> None:
    """Over 200 comparisons of 200 rollouts each: what they spread by, to a sixth, is what they say."""
    guide = policy()
    found = pd.concat([rlai.compare(MDP, guide, num_trajectories=200, seed=seed).to_frame() for seed in range(200)])
    for name in ("elbo", "expected_return", "entropy", "action_cost"):
        assert found[name].std() == pytest.approx(found[f"{name}_standard_error"].mean(), rel=1 / 6)
        mean, exactly = found[name].mean(), found[f"{name}_exact"].iloc[0]
        assert abs(mean - exactly) < 4 * found[name].std() / 200**0.5
    assert found["prior_term_standard_error"].max() < 1e-6  # of a uniform prior and a fixed length


def test_gradients_have_a_row_for_each_estimator() -> None:
    compared = rlai.compare_gradients(MDP, policy(), num_trajectories=2000, num_blocks=20, seed=0)
    table = compared.to_frame()
    assert table["name"].tolist() == [row.name for row in compared.rows]
    row = compared["score, return-to-go"]
    told = table.set_index("name").loc[row.name]
    assert told["variance"] == row.variance
    assert told["variance_standard_error"] == row.variance_standard_error
    assert table.attrs["units"]["variance_standard_error"] == "nats²"
    assert json.loads(json.dumps(compared.to_dict()))["elbo"] == compared.elbo
    assert compared.units["gradient_norm"] == "nats"


def test_the_error_of_a_variance_is_its_spread() -> None:
    """Over 200 measurements by 40 blocks: the variances spread as they say, to a sixth."""
    from rl_as_inference.compare.gradients.block_statistics import summarize

    torch.manual_seed(0)
    scale = torch.tensor([3.0, 1.0, 0.5])
    found = [summarize(scale * torch.randn(40, 3), torch.zeros(3), 1) for _ in range(200)]
    variances = torch.tensor([each.variance for each in found])
    said = torch.tensor([each.variance_standard_error for each in found])
    assert float(variances.mean()) == pytest.approx(float(scale.square().sum()), rel=0.05)
    assert float(variances.std()) == pytest.approx(float(said.mean()), rel=1 / 6)


def test_histories() -> None:
    fitted = rlai.fit(MDP, policy(), steps=5)
    assert fitted.to_frame()["elbo"].tolist() == fitted.elbo.tolist()
    assert fitted.to_frame()["step"].tolist() == [0, 1, 2, 3, 4]
    assert fitted.to_frame().attrs["units"] == {"step": "steps", "elbo": "nats", "temperature": "reward/nat"}
    agent = sac()
    training = train(agent, 60, evaluate_every=30, evaluate_episodes=3, report_every=20)
    table = agent.to_frame()
    assert table.to_dict("records")[-1] == pytest.approx(agent.history[-1], nan_ok=True)
    assert table.attrs["units"]["entropy"] == "nats"
    curve = training.to_frame()
    assert curve["mean_return"].tolist() == [row.mean_return for row in training.curve]
    returns = training.evaluation.returns[0]
    assert curve["standard_error"].iloc[-1] == pytest.approx(float(returns.std() / 3**0.5))
    assert curve.attrs["units"]["standard_error"] == "reward"


def test_curves_of_former_versions_are_read(tmp_path: Path) -> None:
    row = CurveRow(10, 0, 1.0, 0.5, 1.5, 0.1, 2.0, 3.0, 0.25)
    write_curve(tmp_path / "new.csv", [row])
    assert read_curve(tmp_path / "new.csv", 10) == [row]
    lines = (tmp_path / "new.csv").read_text().splitlines()
    (tmp_path / "old.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    (old,) = read_curve(tmp_path / "old.csv", 10)
    assert old[:-1] == row[:-1]
    assert math.isnan(old.standard_error)
    assert curve_frame([old])["standard_error"].isna().all()


def test_reasoning_and_exploration() -> None:
    curve = rlai.rationality_curve(MDP, [0.5, 1.0, 2.0])
    table = curve.to_frame()
    assert table["bits"].tolist() == curve.bits.tolist()
    assert table.attrs["units"]["bits"] == "bits"
    enough = rlai.satisfice(MDP, 0.1)
    assert enough.to_frame()["expected_return"][0] == enough.expected_return
    assert enough.to_frame().attrs["units"]["multiplier"] == "nats/reward"
    worst = rlai.worst_case(MDP, policy(), reward_budget=0.5)
    assert worst.to_frame()["robust_return"][0] == worst.robust_return
    assert math.isnan(worst.to_frame()["dynamics_cost"][0])
    world = models.river_swim(length=3, horizon=4)
    for seeds in (None, 2):
        explored = rlai.explore(
            models.families.river_swim(length=3, horizon=4), world, num_episodes=3, seed=0, num_seeds=seeds
        )
        table = explored.to_frame()
        assert table["return"].tolist() == explored.returns.flatten().tolist()
        assert explored.regret is not None
        assert table["regret"].tolist() == explored.regret.flatten().tolist()
        assert table["seed"].tolist() == [seed for seed in range(seeds or 1) for _ in range(3)]
        assert table["episode"].tolist() == [1, 2, 3] * (seeds or 1)


def test_inspection() -> None:
    found = diagnose(rlai.posterior(MDP, policy(), method="importance", num_draws=200, seed=0))
    row = found.to_frame().iloc[0].to_dict()
    wanted = {name: math.nan if value is None else value for name, value in asdict(found).items()}
    assert row == pytest.approx(wanted, nan_ok=True)
    agent = sac()
    (returns,) = (perturb(agent, "observation", (0.0, 0.1), num_episodes=2),)
    table = returns.to_frame()
    at = table.set_index(["size", "seed", "episode"])["return"]
    assert at[0.1, 0, 1] == float(returns.returns[1, 0, 1])


def test_foresight_is_what_is_drawn() -> None:
    torch.manual_seed(0)
    draws, expected = torch.randn(3, 20, 3, 2), torch.randn(3, 3, 2)
    states = torch.randn(3, 2)
    look = Outlook(1, torch.zeros(2, 1), True, draws, expected)
    table = Foresight(states, torch.zeros(2, 1), torch.zeros(2), [look]).to_frame().set_index(["time", "dimension"])
    assert len(table) == 6
    assert table.loc[(2, 1), "happened"] == float(states[2, 1])
    assert math.isnan(table.loc[(3, 0), "happened"])  # the episode had ended
    assert table.loc[(1, 0), "high"] == pytest.approx(float(np.quantile(draws[:, :, 0, 0], 0.95)))
    assert table.loc[(3, 1), "least_expected"] == float(expected[:, 2, 1].min())


def test_each_quantity_has_one_unit() -> None:
    assert len(UNITS) == sum(len(names) for names in _BY_UNIT.values())
