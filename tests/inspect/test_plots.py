"""Pictures of posteriors: what is drawn is what was drawn from, read back from the axes."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from problems import random_mdp

import rl_as_inference as rlai
from rl_as_inference import exact, style
from rl_as_inference.inspect import diagnose, from_trajectories, plots
from rl_as_inference.models import double_integrator, gridworld


def cart_data(num_draws: int = 50, **arguments: Any) -> Any:
    cart = double_integrator(horizon=4)
    return from_trajectories(exact.sample_posterior(cart, num_draws), prior=cart.rollout(None, num_draws), **arguments)


def lines(ax: Any) -> dict[str, Any]:
    return {line.get_label(): line.get_ydata() for line in ax.get_lines()}


def labels(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


class TestEveryPicture:
    def test_takes_axes_and_returns_them(self) -> None:
        cart = cart_data()
        for draw in (
            lambda ax: plots.plot_fan(cart, 0, ax),
            lambda ax: plots.plot_paths(cart, 0, ax),
            lambda ax: plots.plot_states(cart, 0, ax),
            lambda ax: plots.plot_actions(cart, 0, ax),
            lambda ax: plots.plot_occupancy(np.full((3, 4), 0.25), ax=ax),
            lambda ax: plots.plot_returns({"a": [0.0, 1.0]}, ax),
            lambda ax: plots.plot_weights(np.zeros(9), ax),
            lambda ax: plots.plot_free_energy([1.0], [2.0], ax=ax),
        ):
            ax = Figure().subplots()
            assert draw(ax) is ax
            assert draw(None).figure is not ax.figure
            assert ax.get_xlabel()
            assert ax.get_ylabel()

    def test_every_name_is_there(self) -> None:
        for name in plots.__all__:
            assert hasattr(plots, name)

    def test_colours_are_those_of_okabe_and_ito(self) -> None:
        """https://jfly.uni-koeln.de/color, in the order of that page."""
        page = ["000000", "e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7"]
        assert sorted(to_hex(colour) for colour in style.QUALITATIVE) == sorted(f"#{colour}" for colour in page)

    def test_is_written_as_a_picture(self, tmp_path: Any) -> None:
        plots.plot_fan(cart_data()).figure.savefig(tmp_path / "fan.png", dpi=60)
        assert (tmp_path / "fan.png").read_bytes().startswith(b"\x89PNG")


class TestStates:
    def test_fan(self) -> None:
        data = cart_data(state_names=["position (m)", "velocity (m/s)"])
        ax = plots.plot_fan(data, 1)
        for group in ("prior", "posterior"):
            held = data[group]
            paths = np.column_stack([held["state"].values[0, :, :, 1], held["final_state"].values[0, :, 1]])
            assert np.allclose(lines(ax)[f"{group}, median"], np.median(paths, 0))
            for low, high, name in ((0.05, 0.95, "90%"), (0.25, 0.75, "50%")):
                (band,) = (c for c in ax.collections if c.get_label() == f"{group}, {name} of draws")
                corners = band.get_paths()[0].vertices
                for t in range(5):
                    column = corners[corners[:, 0] == t, 1]
                    assert np.allclose((column.min(), column.max()), np.quantile(paths[:, t], (low, high)))
        assert ax.get_ylabel() == "velocity (m/s)"
        assert ax.get_xlabel() == "time (steps)"

    def test_paths(self) -> None:
        data = cart_data()
        ax = plots.plot_paths(data, 0, num_paths=10)
        assert len(ax.get_lines()) == 20
        assert labels(ax) == ["10 draws of the prior", "10 draws of the posterior"]
        drawn = ax.get_lines()[19].get_ydata()
        assert np.array_equal(drawn[:4], data.posterior["state"].values[0, -1, :, 0])
        assert ax.get_ylabel() == "state, dimension 0"
        assert len(plots.plot_paths(data, num_paths=1000).get_lines()) == 100

    def test_guides_are_called_so(self) -> None:
        mdp = random_mdp(0, horizon=3)
        data = rlai.posterior(mdp, exact.plan(mdp), num_draws=10)
        assert "guide, median" in labels(plots.plot_fan(data))

    def test_chains_and_a_program_without_a_final_state(self) -> None:
        from rl_as_inference.models import hidden_goal

        mdp = random_mdp(0, horizon=3)
        chains = from_trajectories([mdp.rollout(None, 4), mdp.rollout(None, 4)])
        assert len(plots.plot_paths(chains).get_lines()) == 8
        data = rlai.posterior(hidden_goal(), method="importance", num_draws=10)
        assert len(plots.plot_fan(data).get_lines()[0].get_xdata()) == data.posterior.sizes["time"]

    def test_refusals(self) -> None:
        data = cart_data(5)
        with pytest.raises(ValueError, match="dimension must be from 0 to 1 for 'state', got 2"):
            plots.plot_fan(data, 2)
        pixels = data.copy()
        pixels.posterior = pixels.posterior.assign(state=pixels.posterior["state"].expand_dims(row=2))
        with pytest.raises(ValueError, match="'state' is not a number or vector, but has the dimensions row"):
            plots.plot_states(pixels)
        del pixels.posterior["state"]
        with pytest.raises(ValueError, match="there is no variable 'state' in a group 'posterior'"):
            plots.plot_paths(pixels)


class TestActions:
    def test_shares_of_those_alive(self) -> None:
        mdp = random_mdp(2, num_actions=3, horizon=5, discount=0.7)
        torch.manual_seed(0)
        data = rlai.posterior(mdp, method="exact", num_draws=200)
        ax = plots.plot_actions(data, names=["left", "stay", "right"])
        actions, alive = data.posterior["action"].values[0], data.sample_stats["alive"].values[0]
        floor = np.zeros(5)
        for a, bars in enumerate(ax.containers[:3]):
            share = ((actions == a) & alive).mean(0)
            assert np.allclose([bar.get_height() for bar in bars], share)
            assert np.allclose([bar.get_y() for bar in bars], floor)
            floor += share
        assert np.allclose([bar.get_height() for bar in ax.containers[3]], 1 - alive.mean(0))
        assert labels(ax) == ["ended", "right", "stay", "left"]

    def test_nobody_ends(self) -> None:
        data = rlai.posterior(random_mdp(2, horizon=3), method="exact", num_draws=20)
        assert "ended" not in labels(plots.plot_actions(data))

    def test_many_actions(self) -> None:
        data = rlai.posterior(random_mdp(2, num_actions=9, horizon=3), None, num_draws=300)
        ax = plots.plot_actions(data)
        shown = ax.images[0].get_array()
        assert shown.shape == (9, 3)
        assert np.allclose(shown.sum(0), 1)
        assert ax.get_ylabel() == "action"

    def test_continuous_ones_of_those_alive(self) -> None:
        draws = double_integrator(horizon=3).rollout(None, 40)
        draws.mask[1, :10] = False
        draws.mask[2] = False
        ax = plots.plot_actions(from_trajectories(draws, action_names=["force (N)"]))
        wanted = [draws.actions[0, :, 0].quantile(0.5), draws.actions[1, 10:, 0].quantile(0.5)]
        assert np.allclose(lines(ax)["median"], torch.stack(wanted))
        assert ax.get_ylabel() == "force (N)"

    def test_too_few_names(self) -> None:
        data = rlai.posterior(random_mdp(2, num_actions=3, horizon=3), None, num_draws=100)
        with pytest.raises(ValueError, match="names must have one for each of 3 actions, got 2"):
            plots.plot_actions(data, names=["a", "b"])


class TestOccupancy:
    def test_shares_of_draws(self) -> None:
        grid = gridworld(2, 3, horizon=4)
        torch.manual_seed(0)
        data = rlai.posterior(grid, method="exact", num_draws=100)
        states = np.column_stack([data.posterior["state"].values[0], data.posterior["final_state"].values[0]])
        table = np.stack([[(states[:, t] == s).mean() for s in range(6)] for t in range(5)])
        on_grid = plots.plot_occupancy(data, layout=grid.layout)
        assert np.allclose(on_grid.images[0].get_array(), table.mean(0).reshape(2, 3))
        assert np.allclose(plots.plot_occupancy(data).images[0].get_array(), table.T)
        assert [ax.get_ylabel() for ax in on_grid.figure.axes] == ["", "share of the time"]

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="these states are continuous"):
            plots.plot_occupancy(cart_data(5))
        with pytest.raises(ValueError, match="layout has 6 cells, and visits 4 states"):
            plots.plot_occupancy(np.full((3, 4), 0.25), layout=gridworld(2, 3).layout)


class TestReturns:
    def test_data_as_well_as_arrays(self) -> None:
        mdp = random_mdp(1, horizon=3)
        data = rlai.posterior(mdp, method="exact", num_draws=30)
        ax = plots.plot_returns({"posterior": data, "prior": [0.0, 100.0]})
        heights = ax.patches[0].get_xy()[:, 1]
        assert heights.max() <= 1
        assert labels(ax) == ["posterior", "prior"]

    def test_what_lies_far_out_is_counted(self) -> None:
        far = np.concatenate([np.linspace(0, 1, 990), np.full(10, -1000.0)])
        ax = plots.plot_returns({"far": far, "near": np.linspace(0, 1, 500)})
        assert labels(ax)[0] == "far (2.0% outside)"
        assert ax.get_xlim()[0] > -1

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="returns: name at least one"):
            plots.plot_returns({})
        with pytest.raises(ValueError, match=r"returns\['a'\] must hold one or more finite numbers"):
            plots.plot_returns({"a": [np.nan]})


class TestWeights:
    def test_sorted_shares_and_verdict(self) -> None:
        logs = np.log([1.0, 5.0, 2.0, 2.0])
        ax = plots.plot_weights(logs)
        shown = ax.get_lines()[0]
        assert np.allclose(shown.get_ydata(), [0.5, 0.2, 0.2, 0.1])
        assert shown.get_xdata().tolist() == [1, 2, 3, 4]
        assert labels(ax) == ["1 of 4 carry half the weight", "equal weights"]
        assert ax.get_lines()[1].get_ydata() == [0.25, 0.25]
        assert "Effective sample size 3 (below 100)" in " ".join(ax.get_title().split())
        assert ax.get_xscale() == ax.get_yscale() == "log"

    def test_half_the_weight(self) -> None:
        ax = plots.plot_weights(np.zeros(1000))
        assert labels(ax)[0] in ("500 of 1,000 carry half the weight", "501 of 1,000 carry half the weight")

    def test_data_with_their_verdict(self) -> None:
        mdp = random_mdp(1, horizon=3)
        data = rlai.posterior(mdp, exact.plan(mdp), num_draws=300)
        title = " ".join(plots.plot_weights(data).get_title().split())
        assert title == diagnose(data).text

    def test_weights_of_the_proposals(self) -> None:
        logs = torch.cat([torch.zeros(300), torch.full((100,), -torch.inf)])
        draws = random_mdp(1, horizon=3).rollout(None, 10)
        notes = {"method": "importance", "effective_sample_size": 300.0}
        ax = plots.plot_weights(from_trajectories(draws, proposal_log_weight=logs, **notes))
        assert len(ax.get_lines()[0].get_ydata()) == 300  # zeros have no place on a logarithmic axis
        assert labels(ax)[0].endswith("of 400 carry half the weight")
        with pytest.raises(ValueError, match="these draws were resampled, and the weights"):
            plots.plot_weights(from_trajectories(draws, **notes))

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="log_weight is -inf for all 3 draws"):
            plots.plot_weights(np.full(3, -np.inf))


class TestFreeEnergy:
    def test_estimates_and_the_exact_curve(self) -> None:
        ax = plots.plot_free_energy([2.0, 0.1, 1.0], [-2.0, -0.1, -1.0], [0.2, 0.1, 0.3], exact=[-2.1, -0.2, -1.1])
        assert lines(ax)["exact"].tolist() == [-0.2, -1.1, -2.1]
        (bars,) = ax.containers
        assert bars[0].get_xdata().tolist() == [0.1, 1.0, 2.0]
        assert bars[0].get_ydata().tolist() == [-0.1, -1.0, -2.0]
        ends = [segment[:, 1].tolist() for segment in bars[2][0].get_segments()]
        assert np.allclose(ends, [[-0.3, 0.1], [-1.6, -0.4], [-2.4, -1.6]])
        assert ax.get_xscale() == "log"
        assert ax.get_xlabel() == "temperature α (reward units per nat)"
        assert ax.get_ylabel() == "free energy F(α) (reward units)"

    def test_a_finer_exact_curve(self) -> None:
        ax = plots.plot_free_energy([1.0, 2.0], [0.0, 1.0], exact=(np.linspace(1, 2, 9), np.linspace(0, 1, 9)))
        assert len(lines(ax)["exact"]) == 9
        assert ax.get_xscale() == "linear"
        assert labels(ax) == ["exact", "estimate"]

    @pytest.mark.parametrize(
        ("arguments", "cause"),
        [
            (([], []), "temperatures must be one or more numbers"),
            (([0.0, 1.0], [1.0, 1.0]), "temperatures must be > 0, got 0"),
            (([1.0, 2.0], [1.0]), r"free_energy must be 2 numbers in one dimension, got shape \(1,\)"),
            (([1.0], [1.0], [-1.0]), "standard_error must not be negative, got -1"),
        ],
    )
    def test_refusals(self, arguments: Any, cause: str) -> None:
        with pytest.raises(ValueError, match=cause):
            plots.plot_free_energy(*arguments)


@pytest.mark.parametrize(
    "draw",
    [
        lambda data: plots.plot_returns({"nobody": data}),
        plots.plot_occupancy,
        plots.plot_fan,
        plots.plot_paths,
        plots.plot_states,
        plots.plot_actions,
        plots.plot_weights,
    ],
)
@pytest.mark.parametrize("make", [gridworld, double_integrator])
def test_no_draws(draw: Any, make: Any) -> None:
    data = rlai.posterior(make(horizon=3), method="guide", num_draws=4).isel(draw=slice(0, 0))
    with pytest.raises(ValueError, match=r"holds no draws|one or more finite numbers|state.* is continuous|continuous"):
        draw(data)
