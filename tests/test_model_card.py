"""The card of a run: what it says is what the run came to, in a format that the Hugging Face Hub reads."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import rlai
from small_agents import sac

import rl_as_inference
from rl_as_inference.agents import train
from rl_as_inference.model_card import CARD, Measure, model_card
from rl_as_inference.records import RunRecord


def front(text: str) -> dict[str, Any]:
    """What stands between the first two lines of dashes."""
    before, matter, _ = text.split("---\n", 2)
    assert before == ""
    found = yaml.safe_load(matter)
    assert isinstance(found, dict)
    return found


def metrics(text: str) -> dict[str, dict[str, Any]]:
    """The first result's metrics by name, after what the Hub requires of each was looked for."""
    (model,) = front(text)["model-index"]
    (result,) = model["results"]
    assert {"type", "name"} <= result["task"].keys() & result["dataset"].keys()
    assert all({"type", "value"} <= each.keys() for each in result["metrics"])
    return {each["type"]: each for each in result["metrics"]}


@pytest.mark.parametrize("seeds", [None, 2])
def test_card_of_a_learner(tmp_path: Path, seeds: int | None) -> None:
    training = train(sac(seeds=seeds), 40, tmp_path, evaluate_every=40, evaluate_episodes=3)
    text = (tmp_path / CARD).read_text()
    assert front(text)["library_name"] == "rl-as-inference"
    assert {"reinforcement-learning", "SoftActorCritic", "Pendulum-v1"} <= set(front(text)["tags"])
    found = metrics(text)["mean_reward"]
    assert found["value"] == pytest.approx(training.evaluation.mean, rel=1e-5)
    assert training.interval is not None
    assert (found["args"]["low"], found["args"]["high"]) == pytest.approx(training.interval, rel=1e-5)
    over = "3 episodes" if seeds is None else "2 seeds, 3 episodes"
    assert found["args"]["over"].startswith(f"bootstrap over {over}")
    record = RunRecord.read(tmp_path)
    assert CARD in record.files
    assert f"| torch | {record.versions['torch']} |" in text
    assert "| num\\_steps | `40` |" in text
    assert "| seed | `0` |" in text
    loading = text.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(tmp_path))
    observation = [1.0, 0.0, 0.0]
    exec(loading, {"observation": observation})


def test_card_of_a_guide(tmp_path: Path) -> None:
    options = ("FrozenLake-v1", "--map-name", "4x4", "--horizon", "10", "--temperature", "0.05", "--steps", "3")
    code, _, _ = rlai("compare", *options, "--num-trajectories", "50", "--num-draws", "10", "--out", tmp_path / "c")
    assert code == 0
    comparison = json.loads((tmp_path / "c" / "comparison.json").read_text())
    found = metrics((tmp_path / "c" / CARD).read_text())
    assert found["elbo"]["value"] == pytest.approx(comparison["elbo_exact"], rel=1e-5)
    assert found["log_evidence"]["value"] == pytest.approx(comparison["log_evidence"], rel=1e-5)
    assert comparison["units"]["elbo"] == found["elbo"]["args"]["unit"] == "nats"
    code, _, _ = rlai("fit", *options, "--out", tmp_path / "f")
    assert code == 0
    text = (tmp_path / "f" / CARD).read_text()
    assert metrics(text)["elbo"]["value"] == pytest.approx(
        json.loads((tmp_path / "f" / "history.json").read_text())[-1]
    )
    assert '| --map-name | `"4x4"` |' in text
    assert rl_as_inference.load_run(tmp_path / "f").policy is not None


def test_what_has_no_exact_answer_has_a_standard_error() -> None:
    def program() -> None:
        walk()

    walk = rl_as_inference.models.corridor(horizon=2)
    comparison = rl_as_inference.compare(program, None, num_trajectories=50, seed=0)
    text = model_card(RunRecord("compare", "mine"), trained="guide", problem="", measures=comparison.measures())
    found = metrics(text)
    assert found["elbo"]["args"]["standard_error"] == pytest.approx(comparison.elbo_standard_error, rel=1e-5)
    assert found["mean_reward"]["args"]["over"] == "50 rollouts"


@pytest.mark.parametrize(
    "name", ['a": b\n- c', "</script> | `x` *y*", "Ωmega", "🧊\u2028\t", "yes", "1e3", "{a: b}", "---", "# no"]
)
def test_names_from_outside_stay_names(name: str) -> None:
    record = RunRecord("train", name, options={"note": f"{name} `` |"}, settings={"num_steps": 3})
    text = model_card(
        record, trained="SoftActorCritic", problem="", measures=[Measure("mean_reward", name, 1e-7, "reward")]
    )
    matter = front(text)
    assert matter["model-index"][0]["results"][0]["dataset"]["name"] == name
    assert matter["model-index"][0]["results"][0]["metrics"][0]["value"] == 1e-7
    assert text.count("\n# ") == 1
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| quantity")]
    assert all(line.replace("\\|", "").count("|") in (3, 5) for line in rows)


def test_where_a_file_lies_is_not_told(tmp_path: Path) -> None:
    record = RunRecord("train", f"{tmp_path}/lake.py:name", settings={"ray": "10.0.0.1:6379"})
    nothing = [Measure("mean_reward", "mean return", math.nan, "reward")]
    text = model_card(record, trained="SoftActorCritic", problem="", measures=nothing)
    assert "SoftActorCritic on lake.py:name" in text
    assert str(tmp_path) not in text
    assert "6379" not in text
    assert metrics(text) == {}
    assert "| mean return | nan |" in text
