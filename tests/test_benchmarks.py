"""The benchmarks run in their quick form, and the estimators they list are unbiased."""

import contextlib
import functools
import io
import json
import math
import runpy
import sys

import pytest

from benchmarks import model_based, posteriors


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of ``python -m benchmarks.run --quick``, in this process, with less work for posteriors: they are not judged."""
    folder, printed = tmp_path_factory.mktemp("benchmarks"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["benchmarks.run", "--quick", "--out", str(folder)])
        patch.setattr(posteriors, "annealing", functools.partial(posteriors.annealing, num_moves=1, kept=0.5))
        patch.setattr(posteriors, "QUICK", posteriors.Sizes(2, 20, 2, 10, 50, 2, 4, 4))
        with pytest.raises(SystemExit) as end:
            runpy.run_module("benchmarks.run", run_name="__main__")
    assert end.value.code == 0, printed.getvalue()
    return json.loads((folder / "quick.json").read_text()), printed.getvalue()


def test_results_say_where_and_when_they_were_measured(results):
    data, _ = results
    assert data["quick"] is True
    assert data["threads"] >= 1
    assert data["cpu"]
    assert data["date"].endswith("+00:00")
    assert {"python", "torch", "pyro-ppl", "rl-as-inference"} <= set(data["versions"])
    assert [len(section["rows"]) > 0 for section in data["sections"]] == [True] * 5


def test_every_row_has_a_time_and_a_ratio(results):
    data, _ = results
    for section in data["sections"]:
        assert section["settings"]["threads"] >= 1
    for section in data["sections"][:3]:
        for row in section["rows"]:
            assert row["milliseconds"] > 0
            assert row["ratio"] > 0


def test_learners_are_measured_whole_and_alone_and_by_their_curves(results):
    data, _ = results
    rows = data["sections"][3]["rows"]
    timed = [row for row in rows if row["milliseconds"] is not None]
    assert [row["reading"] for row in timed].count("whole loop, 1 update per step") == 3
    assert "of the fp32 matrix ceiling" in next(row["note"] for row in timed if row["reading"] == "update alone")
    assert {row["what"] for row in rows if row["reading"] == "learning"} >= {"pendulum_sac", "half_cheetah_sac"}


def test_estimators_are_unbiased(results):
    """40 gradients of 32 trajectories each, over 100 coordinates: z-scores with 39 degrees of freedom."""
    data, _ = results
    judged = [row for row in data["sections"][0]["rows"] if row["largest_z"] is not None]
    assert {"Trace_ELBO", "TraceGraph_ELBO", "full return", "exact sum, soft Q"} <= {row["what"] for row in judged}
    for row in judged:
        assert row["largest_z"] < 4.5, row
        assert 0.4 < row["mean_square_z"] < 2.0, row
        assert math.isclose(row["work"], row["variance"] * row["milliseconds"] / 1e3, rel_tol=1e-9)


def test_better_estimators_have_less_variance(results):
    data, _ = results
    rows = [row for row in data["sections"][0]["rows"] if row["reading"] == "Pyro program" and row["variance"]]
    variance = {row["what"]: row["variance"] for row in rows}
    assert variance["exact sum, soft Q"] < variance["advantage, λ = 0.5"] < variance["baseline, exact soft V"]
    assert variance["baseline, exact soft V"] < variance["score, return-to-go"] < variance["full return"]


def test_short_runs_judge_bias_but_not_times(results):
    data, printed = results
    claims = [claim for section in data["sections"] for claim in section["claims"]]
    assert [claim["text"] for claim in claims if claim["judged"]] == [
        "bias of every estimator: largest of a coordinate, in standard errors"
    ]
    assert all((claim["holds"] is not None) == claim["judged"] for claim in claims)
    assert "PASS  bias of every estimator" in printed
    assert "TraceGraph_ELBO" in printed


def test_what_was_found_of_learned_dynamics_holds() -> None:
    held = model_based.claims(json.loads(model_based.RESULTS.read_text()))
    assert len(held) >= 5
    assert all(claim.holds for claim in held)
