"""What ArviZ makes of our data, checked by direct computation: of each version, the one that is installed."""

import math
from collections.abc import Iterator
from typing import Any

import arviz as az
import brute_force
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray
from problems import random_mdp
from test_inference_data import cart_data

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.models import gridworld, hidden_goal


@pytest.fixture(autouse=True)
def _no_screen() -> Iterator[None]:
    with matplotlib.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


FIRST = az.__version__.startswith("0.")


def loo(data: Any) -> Any:
    """Returns ArviZ's answer; of 1.x, which fits no tail whose values are all alike, from the weights as they are."""
    if FIRST:
        return az.loo(data, pointwise=True)
    weights = -data.log_likelihood["optimality"].astype(float)
    weights = weights - np.log(np.exp(weights).sum(("chain", "draw")))
    return az.loo(data, pointwise=True, log_weights=weights, pareto_k=xarray.zeros_like(weights[0, 0]))


def elpd(found: Any) -> float:
    return float(found.elpd_loo if FIRST else found.elpd)


class TestArviz:
    def test_summary(self) -> None:
        data = cart_data(300)
        table = az.summary(data, round_to="none")
        values = data.posterior["state"].sel(time=1, state_dim_0="velocity").values.ravel().astype(float)
        row = table.loc["state[1, velocity]"]
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-6)
        assert row["sd"] == pytest.approx(values.std(ddof=1), rel=1e-5)
        assert row["mcse_mean"] == pytest.approx(values.std(ddof=1) / 300**0.5, rel=0.35)  # the draws are independent
        assert len(table) == 3 * (2 + 1 + 1) + 2

    def test_summary_of_every_kind_of_draw(self) -> None:
        mdp = random_mdp(2, horizon=3, terminal=True)
        for data in (
            rlai.posterior(mdp, exact.plan(mdp), num_draws=50),
            rlai.posterior(hidden_goal(), method="importance", num_draws=50),
        ):
            table = az.summary(data, kind="stats", round_to="none")
            wanted = data.posterior["action"].sel(time=1).values.mean()
            assert table.loc["action[1]", "mean"] == pytest.approx(wanted)

    def test_loo_is_the_chance_of_success_given_the_others(self) -> None:
        """20,000 exact draws, seed 0: elpd_loo is the sum of log p(O_t | the other O), by writing out every path.

        Compared within 4 standard errors of its harmonic means (added up, as steps are dependent).
        """
        mdp = random_mdp(4, num_states=3, num_actions=2, horizon=3, temperature=2.0)
        alpha, table = float(mdp.temperature), mdp.reward_table
        together, without = 0.0, [0.0] * 3
        for path in brute_force.paths(mdp):
            steps = zip(path.states, path.actions, path.states[1:], strict=False)
            earned = [float(table[s, a, s2] if table.dim() == 3 else table[s, a]) / alpha for s, a, s2 in steps]
            mass = path.dynamics * path.prior
            together += mass * math.exp(sum(earned))
            for t in range(3):
                without[t] += mass * math.exp(sum(earned) - earned[t])
        assert math.log(together) == pytest.approx(brute_force.log_evidence(mdp))
        wanted = sum(math.log(together / each) for each in without)

        torch.manual_seed(0)
        data = rlai.posterior(mdp, method="exact", num_draws=20_000)
        found = loo(data)
        inverse = np.exp(-data.log_likelihood["optimality"].values[0].astype(float))
        error = (inverse.std(0) / inverse.mean(0)).sum() / 20_000**0.5
        assert found.n_data_points == 3
        assert abs(elpd(found) - wanted) < 4 * error
        assert error < 0.02
        assert np.allclose(found.loo_i if FIRST else found.elpd_i, -np.log(inverse.mean(0)), atol=4 * error)

    def test_compare(self) -> None:
        """Two worlds that differ in how much luck there is: the ranking and the differences are those of az.loo."""
        torch.manual_seed(0)
        worlds = {f"slip {slip}": gridworld(3, 3, horizon=8, slip=slip) for slip in (0.0, 0.8)}
        data = {name: rlai.posterior(world, method="exact", num_draws=2000) for name, world in worlds.items()}
        each = {name: loo(one) for name, one in data.items()}
        table = az.compare(each) if FIRST else az.compare(each, round_to="none")
        alone = {name: elpd(found) for name, found in each.items()}
        assert list(table.index) == sorted(alone, key=lambda name: -alone[name]) == ["slip 0.0", "slip 0.8"]
        for name, row in table.iterrows():
            assert row["elpd_loo" if FIRST else "elpd"] == pytest.approx(alone[name])
            assert abs(row["elpd_diff"]) == pytest.approx(alone["slip 0.0"] - alone[name])

    def test_bfmi(self) -> None:
        data = cart_data(100)
        energy = data.sample_stats["energy"].values[0].astype(float)
        bfmi = np.square(np.diff(energy)).mean() / energy.var()
        found = az.bfmi(data)
        assert float(found[0] if FIRST else found["energy"][0]) == pytest.approx(bfmi, rel=0.02)


@pytest.mark.skipif(not FIRST, reason="pictures of ArviZ 0.x")
class TestPictures:
    def test_plot_trace(self) -> None:
        data = cart_data(50)
        axes = az.plot_trace(data, var_names=["action"], compact=False)
        assert axes.shape == (3, 2)
        for t in range(3):
            drawn = axes[t, 1].get_lines()[0].get_ydata()
            assert np.array_equal(drawn, data.posterior["action"].values[0, :, t, 0])
        assert az.plot_trace(data).shape == (4, 2)

    def test_plot_forest(self) -> None:
        data = cart_data(80)
        (ax,) = az.plot_forest(data, var_names=["action"], combined=True, hdi_prob=0.9)
        values = np.sort(data.posterior["action"].values[0, :, 0, 0].astype(float))
        count = int(np.floor(0.9 * len(values)))
        widths = values[count:] - values[: len(values) - count]
        left = int(widths.argmin())
        spans = [segment[:, 0] for lines in ax.collections for segment in lines.get_segments()]
        assert any(np.allclose(span, (values[left], values[left + count])) for span in spans)
        (ax,) = az.plot_forest(data, combined=True)
        assert len(ax.get_yticklabels()) == 3 * (2 + 1 + 1) + 2

    def test_plot_posterior(self) -> None:
        data = cart_data(80)
        ax = az.plot_posterior(data, var_names=["final_state"], coords={"state_dim_0": "position"}, round_to=6)
        mean = data.posterior["final_state"].sel(state_dim_0="position").values.astype(float).mean()
        texts = [text.get_text() for text in ax.texts]
        shown = next(float(text.split("=")[1]) for text in texts if text.startswith("mean="))
        assert shown == pytest.approx(mean, rel=1e-4)
        assert az.plot_posterior(data).size >= 14

    def test_plot_energy(self) -> None:
        data = cart_data(100)
        labels = [text.get_text() for text in az.plot_energy(data).get_legend().get_texts()]
        assert any(f"{az.bfmi(data)[0]:.2f}" in label for label in labels)
        del data.sample_stats["energy"]
        with pytest.raises((KeyError, AttributeError)):
            az.plot_energy(data)


@pytest.mark.skipif(FIRST, reason="pictures of ArviZ 1.x")
class TestPicturesOfVersionOne:
    """Each picture is a tree of what is drawn, by group, variable and coordinates."""

    def test_plot_trace(self) -> None:
        data = cart_data(50)
        drawn = az.plot_trace(data, var_names=["action"]).viz["trace"]["action"]
        for t in range(3):
            (line,) = drawn.sel(time=t, action_dim_0="force").values
            assert np.array_equal(line.get_ydata(), data.posterior["action"].values[0, :, t, 0])

    def test_plot_forest(self) -> None:
        data = cart_data(80)
        drawn = az.plot_forest(data, combined=True, ci_probs=(0.5, 0.9), ci_kind="eti").viz["twig"]
        values = data.posterior["action"].values[0, :, 0, 0]
        ends = drawn["action"].sel(time=0, action_dim_0="force").item().get_xdata()
        assert np.allclose(ends, np.quantile(values, (0.05, 0.95)))
        assert sum(drawn[name].size for name in drawn.data_vars) == 3 * (2 + 1 + 1) + 2

    def test_plot_dist(self) -> None:
        data = cart_data(80)
        shown = az.plot_dist(data, var_names=["final_state"]).viz["point_estimate_text"]["final_state"]
        mean = data.posterior["final_state"].sel(state_dim_0="position").values.astype(float).mean()
        assert float(shown.sel(state_dim_0="position").item().get_text().split()[0]) == pytest.approx(mean, rel=0.05)

    def test_plot_energy(self) -> None:
        data = cart_data(100)
        (point,) = az.plot_energy(data).viz["bfmi_points"]["bfmi"].values.ravel()
        assert point.get_offsets()[0, 0] == pytest.approx(float(az.bfmi(data)["energy"][0]))
