"""ArviZ data: their groups, and their files."""

import math
import random
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from problems import random_mdp

import rl_as_inference as rlai
from rl_as_inference import exact
from rl_as_inference.arviz_data import PosteriorData, datasets, groups_of, posterior_data
from rl_as_inference.inference import netcdf
from rl_as_inference.inspect import from_trajectories, load_posterior, save_posterior
from rl_as_inference.models import double_integrator, hidden_goal


def cart_data(num_draws: int = 200) -> PosteriorData:
    cart = double_integrator(horizon=3)
    return from_trajectories(
        exact.sample_posterior(cart, num_draws),
        prior=cart.rollout(None, num_draws),
        statistics={"energy": torch.randn(1, num_draws), "diverging": torch.zeros(1, num_draws, dtype=torch.bool)},
        state_names=("position", "velocity"),
        action_names=["force"],
        method="exact",
        problem="cart",
    )


def some(group: str) -> PosteriorData:
    """A variable that is no trajectory."""
    return posterior_data(datasets({group: {"x": np.zeros((1, 4))}}, {}))


class TestGroups:
    def test_dims_and_coords(self) -> None:
        data = cart_data(20)
        assert set(groups_of(data)) == {
            "posterior",
            "prior",
            "sample_stats",
            "sample_stats_prior",
            "log_likelihood",
            "observed_data",
            "constant_data",
        }
        for group in (data.posterior, data.prior):
            assert group["state"].dims == ("chain", "draw", "time", "state_dim_0")
            assert group["action"].dims == ("chain", "draw", "time", "action_dim_0")
            assert group["final_state"].dims == ("chain", "draw", "state_dim_0")
            assert list(group.coords["state_dim_0"].values) == ["position", "velocity"]
            assert list(group.coords["time"].values) == [0, 1, 2]
            assert "alive" not in group
        for group in (data.sample_stats, data.sample_stats_prior):
            assert group["alive"].dims == ("chain", "draw", "time")
            assert group["alive"].dtype == bool
            assert group["return"].dims == ("chain", "draw")
        assert data.log_likelihood["optimality"].dims == ("chain", "draw", "time")
        assert data.sample_stats["diverging"].dtype == bool
        speed = data.posterior["state"].sel(state_dim_0="velocity", time=2)
        assert np.array_equal(speed, data.posterior["state"].values[:, :, 2, 1])

    def test_observed_optimality(self) -> None:
        data = rlai.posterior(random_mdp(0, horizon=4, terminal=True), method="exact", num_draws=5)
        assert data.observed_data["optimality"].dims == ("time",)
        assert data.observed_data["optimality"].values.tolist() == [1, 1, 1, 1]
        assert "units" not in data.observed_data["optimality"].attrs

    def test_observed_sites(self) -> None:
        draws = random_mdp(0, horizon=2).rollout(None, 3)
        data = from_trajectories(draws, observed={"goal": torch.tensor(2), "seen": torch.tensor([[1.0, 2.0]])})
        assert data.observed_data["goal"].values.tolist() == [2]
        assert data.observed_data["seen"].values.tolist() == [[1.0, 2.0]]

    def test_constants_are_scalars(self) -> None:
        mdp = random_mdp(1, horizon=3, discount=0.8, temperature=0.7)
        data = rlai.posterior(mdp, method="exact", num_draws=5)
        constants = data.constant_data
        assert {name: value.ndim for name, value in constants.items()} == dict.fromkeys(
            ("temperature", "discount", "problem", "library_version"), 0
        )
        assert float(constants["temperature"]) == pytest.approx(0.7)
        assert float(constants["discount"]) == pytest.approx(0.8)
        assert str(constants["problem"].values) == data.posterior.attrs["problem"]
        assert str(constants["library_version"].values) == data.posterior.attrs["library_version"]

    def test_numbers_are_those_of_the_trajectories(self) -> None:
        mdp = random_mdp(3, horizon=4, temperature=0.7, terminal=True)
        draws = [mdp.rollout(exact.plan(mdp), 6) for _ in range(2)]
        data = from_trajectories(draws, prior=draws[1])
        for chain, own in enumerate(draws):
            assert np.array_equal(data.posterior["state"].values[chain], own.states[:-1].T)
            assert np.array_equal(data.posterior["final_state"].values[chain], own.states[-1])
            assert np.array_equal(data.posterior["action"].values[chain], own.actions.T)
            assert np.array_equal(data.posterior["reward"].values[chain], own.rewards.T)
            assert np.array_equal(data.sample_stats["alive"].values[chain], own.mask.T)
            assert np.array_equal(data.sample_stats["length"].values[chain], own.mask.sum(0))
            assert np.array_equal(data.sample_stats["log_weight"].values[chain], own.log_weight())
            assert np.array_equal(data.log_likelihood["optimality"].values[chain], own.log_factors.T)
        assert np.array_equal(data.sample_stats_prior["return"].values[0], draws[1].returns())

    def test_units(self) -> None:
        data = cart_data(5)
        assert data.posterior["reward"].attrs["units"] == "reward units"
        assert data.sample_stats["log_weight"].attrs["units"] == "nats"
        assert data.log_likelihood["optimality"].attrs["units"] == "nats"
        assert data.posterior["time"].attrs["units"] == "steps"
        assert data.constant_data["temperature"].attrs["units"] == "reward units per nat"

    def test_attributes_become_plain(self) -> None:
        draws = random_mdp(0).rollout(None, 3)
        notes = {"a": torch.tensor(0.5), "b": np.int32(3), "c": (1, 2), "d": True, "e": np.array([1.5]), "f": None}
        found = from_trajectories(draws, **notes).posterior.attrs
        assert {name: found[name] for name in "abcde"} == {"a": 0.5, "b": 3, "c": [1, 2], "d": True, "e": [1.5]}
        assert "f" not in found

    def test_refusals(self) -> None:
        mdp = random_mdp(0, horizon=2)
        one, two = mdp.rollout(None, 3), mdp.rollout(None, 4)
        for call, cause in (
            (lambda: from_trajectories([one, two]), r"chains: .* same number of draws each; got \[3, 4\]"),
            (lambda: from_trajectories([]), "chains: there must be one or more"),
            (lambda: from_trajectories(one, log_weight=torch.zeros(3)), r"log_weight must have shape \(1, 3\)"),
            (
                lambda: from_trajectories(one, statistics={"energy": torch.zeros(1, 4)}),
                r"statistics\['energy'\] must have shape \(1, 3\) \(chain, draw\), got \(1, 4\)",
            ),
            (lambda: from_trajectories(one, statistics={"return": torch.zeros(1, 3)}), "'return' is worked out"),
            (lambda: from_trajectories(one, observed={"optimality": torch.ones(2)}), "observed: 'optimality' is 1"),
            (lambda: from_trajectories(one, state_names=["x"]), "state_names must name the entries"),
            (lambda: from_trajectories(one, policy=object()), "policy: an attribute must be something that JSON"),
        ):
            with pytest.raises(ValueError, match=cause):
                call()


class TestGroupsOfEveryMethod:
    @pytest.mark.parametrize("method", ["exact", "guide", "importance", "smc", "annealed"])
    @pytest.mark.parametrize("guided", [False, True])
    def test_prior(self, method: str, guided: bool) -> None:
        """300 draws, seed 0: mean return of the action prior, |z| < 4.5."""
        if guided and method in ("exact", "annealed"):
            pytest.skip("these take no policy")
        mdp = random_mdp(0, num_states=4, horizon=4, temperature=0.3)
        torch.manual_seed(0)
        data = rlai.posterior(mdp, exact.plan(mdp) if guided else None, method=method, num_draws=300)
        assert data.prior.sizes["draw"] == 300
        earned = data.sample_stats_prior["return"].values.ravel().astype(float)
        wanted = float(exact.expected_return(mdp, mdp.action_prior))
        assert abs(earned.mean() - wanted) < 4.5 * earned.std() / 300**0.5
        assert abs(data.sample_stats_prior["log_weight"].values - earned / 0.3).max() < 1e-4

    def test_conditions(self) -> None:
        mdp = random_mdp(0, num_states=4, horizon=4)
        given = {"state_1": torch.tensor(2), "action_3": torch.tensor(1)}
        for method in ("importance", "guide"):
            program = pyro.condition(rlai.given_return(mdp, 0.25), data=given)
            data = rlai.posterior(program, method=method, num_draws=30)
            found = {name: float(value.values.ravel()[0]) for name, value in data.observed_data.items()}
            assert found == {"optimality": 1.0, "state_1": 2.0, "action_3": 1.0, "return_at_least": 0.25}
            assert (data.prior["state"].sel(time=1) == 2).all()
        assert list(rlai.posterior(mdp, method="importance", num_draws=5).observed_data) == ["optimality"]

    def test_nuts(self) -> None:
        """A Gaussian posterior of four dimensions, whose energies are half a chi-square of eight: variance 4.

        400 draws of two chains, seed 0; a fifth of them independent, |z| < 4 (excess kurtosis 1.5).
        """

        def pushes() -> None:
            for t in rlai.steps(2):
                push = rlai.act(f"action_{t}", torch.zeros(1), dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample(f"seen_{t}", dist.Normal(push[..., 0], 1.0), obs=torch.tensor(0.5))
                rlai.reward(f"reward_{t}", -push.square().sum(-1))

        torch.manual_seed(0)
        data = rlai.posterior(pushes, method="nuts", num_draws=400)
        stats = data.sample_stats
        energy = stats["energy"].values.astype(float)
        assert energy.shape == (2, 200)
        assert (
            abs(energy.var() - 6) < 4 * 6 * (3 / 200) ** 0.5
        )  # the gamma distribution of shape 6 has excess kurtosis 1
        assert stats["diverging"].dtype == bool
        assert not stats["diverging"].any()
        assert (stats["n_steps"] >= 1).all()
        assert (stats["n_steps"] < 2 ** stats["tree_depth"]).all()
        assert 0 <= float(stats["acceptance_rate"].min()) <= float(stats["acceptance_rate"].max()) <= 1 + 1e-6
        assert 0.7 < float(stats["acceptance_rate"].mean()) < 0.98  # Pyro aims at 0.8
        found = az.bfmi(data)
        assert len(found if az.__version__.startswith("0.") else found["energy"]) == 2
        assert data.observed_data["seen_1"].values.tolist() == [0.5]
        assert data.prior.sizes["draw"] == 400


def assert_same(found: PosteriorData, wanted: PosteriorData) -> None:
    """Groups, variables, their order, dtypes, values and attributes are those that are wanted."""
    assert list(groups_of(found)) == list(groups_of(wanted))
    assert found.attrs == wanted.attrs
    for name, theirs in groups_of(wanted).items():
        ours = groups_of(found)[name]
        assert list(ours.data_vars) == list(theirs.data_vars)
        assert set(ours.coords) == set(theirs.coords)
        assert {k: (type(v), repr(v)) for k, v in ours.attrs.items()} == {
            k: (type(v), repr(v)) for k, v in theirs.attrs.items()
        }
        for variable in theirs.variables:
            one, other = ours[variable], theirs[variable]
            assert one.dims == other.dims
            assert one.dtype == other.dtype, variable
            assert one.values.tobytes() == other.values.tobytes()
            assert one.attrs == other.attrs


class TestFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        cart = cart_data(7)
        cart.posterior.attrs.update(truth=True, many=[1, 2], nested={"a": [None, 0.1]}, nan=math.nan, inf=-math.inf)
        cart.posterior.attrs.update(nothing="", number=3, huge=2**70, real=0.1)
        cart.posterior["state"].values[0, 0] = math.nan
        cart.attrs["run"] = 3
        mdp = random_mdp(1, horizon=4, discount=0.8, terminal=True)
        grid = rlai.posterior(mdp, exact.plan(mdp), num_draws=9)
        goal = rlai.posterior(hidden_goal(), method="importance", num_draws=9)
        chains = from_trajectories([mdp.rollout(None, 3)] * 2, proposal_log_weight=torch.full((5,), -torch.inf))
        for index, data in enumerate((cart, grid, goal, chains)):
            path = tmp_path / f"{index}.nc"
            before = data.copy()
            save_posterior(data, path)
            assert_same(data, before)
            assert_same(load_posterior(str(path)), data)

    def test_float64_stays(self, tmp_path: Path) -> None:
        data = from_trajectories(double_integrator(dtype=torch.float64).rollout(None, 3))
        assert data.posterior["state"].dtype == np.float64
        save_posterior(data, tmp_path / "a.nc")
        assert_same(load_posterior(tmp_path / "a.nc"), data)

    def test_others_can_read_it(self, tmp_path: Path) -> None:
        data = cart_data(5)
        save_posterior(data, tmp_path / "a.nc")
        theirs = az.from_netcdf(str(tmp_path / "a.nc"), engine="h5netcdf")
        assert np.array_equal(theirs.posterior["state"], data.posterior["state"])
        with xarray.open_dataset(tmp_path / "a.nc", group="sample_stats", engine="h5netcdf") as group:
            assert group["alive"].dtype == bool

    def test_reads_what_arviz_wrote(self, tmp_path: Path) -> None:
        data = cart_data(5)
        data.to_netcdf(str(tmp_path / "a.nc"), engine="h5netcdf")
        assert np.array_equal(load_posterior(tmp_path / "a.nc").posterior["state"], data.posterior["state"])

    def test_nothing_is_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "a.nc"
        path.write_text("mine")
        with pytest.raises(ValueError, match=r"a\.nc' exists already; .* overwrite=True"):
            save_posterior(cart_data(3), path)
        assert path.read_text() == "mine"
        data = cart_data(4)
        save_posterior(data, path, overwrite=True)
        assert_same(load_posterior(path), data)
        assert [each.name for each in tmp_path.iterdir()] == ["a.nc"]

    def test_a_file_that_comes_into_being_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, write = tmp_path / "a.nc", xarray.Dataset.to_netcdf

        def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
            path.write_text("theirs")
            return write(self, *args, **kwargs)

        monkeypatch.setattr(xarray.Dataset, "to_netcdf", slow)
        with pytest.raises(ValueError, match="exists already"):
            save_posterior(cart_data(3), path)
        assert path.read_text() == "theirs"

    def test_whole_or_not_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.nc"
        save_posterior(cart_data(3), path)
        before, write = path.read_bytes(), xarray.Dataset.to_netcdf

        def full(self: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("group") == "observed_data":
                raise OSError(28, "No space left on device")
            return write(self, *args, **kwargs)

        monkeypatch.setattr(xarray.Dataset, "to_netcdf", full)
        with pytest.raises(ValueError, match=r"cannot write '.*a\.nc': No space left on device"):
            save_posterior(cart_data(3), path, overwrite=True)
        assert path.read_bytes() == before
        assert [each.name for each in tmp_path.iterdir()] == ["a.nc"]

    def test_where_nothing_can_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is a folder; name a file in it"):
            save_posterior(cart_data(3), tmp_path)
        with pytest.raises(ValueError, match=r"cannot write to the folder '.*absent'"):
            save_posterior(cart_data(3), tmp_path / "absent" / "a.nc")

    def test_data_that_are_no_posterior(self, tmp_path: Path) -> None:
        data = cart_data(3)
        for wrong, cause in (
            (
                posterior_data({"prior": groups_of(data)["prior"]}),
                r"data: there is no group 'posterior' \(groups: prior\)",
            ),
            (some("posterior"), "data: the group 'posterior' has no variable 'state'"),
            (data.isel(time=0), "data: 'state' in the group 'posterior' has no dimension 'time'"),
        ):
            with pytest.raises(ValueError, match=cause):
                save_posterior(wrong, tmp_path / "a.nc")
        assert not list(tmp_path.iterdir())

    def test_foreign_files(self, tmp_path: Path) -> None:
        path = tmp_path / "a.nc"
        with pytest.raises(ValueError, match=r"there is no file '.*a\.nc'"):
            load_posterior(path)
        for content in (b"", b"no NetCDF at all", b"CDF\x01" + bytes(100)):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"a\.nc' is damaged, or no NetCDF-4 file: "):
                load_posterior(path)
        xarray.Dataset({"x": ("t", [1.0])}).to_netcdf(path, engine="h5netcdf")
        with pytest.raises(ValueError, match=r"a\.nc' is not .*: there is no group 'posterior' \(groups: none\)"):
            load_posterior(path)
        some("prior").to_netcdf(str(path), engine="h5netcdf")
        with pytest.raises(ValueError, match=r"there is no group 'posterior' \(groups: prior\)"):
            load_posterior(path)
        some("posterior").to_netcdf(str(path), engine="h5netcdf")
        with pytest.raises(ValueError, match=r"a\.nc' is not .*: the group 'posterior' has no variable 'state'"):
            load_posterior(path)

    def test_damage(self, tmp_path: Path) -> None:
        """24 single bits (seed 0), and 6 lengths: all are told."""
        mdp = random_mdp(1, horizon=4)
        data = rlai.posterior(mdp, exact.plan(mdp), num_draws=20)
        path = tmp_path / "a.nc"
        save_posterior(data, path)
        whole, place = path.read_bytes(), random.Random(0)
        for at in place.sample(range(len(whole)), 24):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << place.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"a\.nc' is damaged"):
                load_posterior(path)
        for length in range(0, len(whole), len(whole) // 5):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="damaged"):
                load_posterior(path)

    def test_what_another_program_writes_into_it_is_read(self, tmp_path: Path) -> None:
        """It is a file of theirs then, without a checksum."""
        import h5py

        path = tmp_path / "a.nc"
        save_posterior(cart_data(3), path)
        with h5py.File(path, "a") as file:
            file["constant_data/temperature"][()] = 2.0
        assert float(load_posterior(path).constant_data["temperature"]) == 2.0

    def test_what_is_damaged_is_not_parsed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """HDF5 would count a damaged number of dimensions for hours."""
        path = tmp_path / "a.nc"
        save_posterior(cart_data(3), path)
        whole = path.read_bytes()
        path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
        monkeypatch.setattr(netcdf, "_read", lambda path: pytest.fail("parsed"))
        with pytest.raises(ValueError, match=r"a\.nc' is damaged, or was changed by another program: it is not"):
            load_posterior(path)

    def test_files_go_through_arviz_and_back(self, tmp_path: Path) -> None:
        path = tmp_path / "a.nc"
        save_posterior(cart_data(3), path)
        opened = az.from_netcdf(str(path), engine="h5netcdf")
        assert opened.posterior.equals(load_posterior(path).posterior)
        opened.to_netcdf(str(tmp_path / "b.nc"), engine="h5netcdf")
        assert load_posterior(tmp_path / "b.nc").posterior.equals(opened.posterior)
