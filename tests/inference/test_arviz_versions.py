"""Files go between ArviZ 0.x and 1.x: those beside, written with either, read as they were with the one installed.

``python tests/inference/test_arviz_versions.py`` writes those of the installed one anew.
"""

from pathlib import Path

import arviz as az
import numpy as np
import pytest
import torch

from rl_as_inference.arviz_data import PosteriorData, datasets, groups_of
from rl_as_inference.inspect import diagnose, from_trajectories, load_posterior, save_posterior
from rl_as_inference.trajectories import Trajectories

WRITTEN = Path(__file__).parent / "written"
VERSIONS = ("0.23.4", "1.3.0")


def known(steps: int = 3, draws: int = 4) -> PosteriorData:
    """Data of every kind of variable, the same everywhere."""
    grid = torch.arange(steps * draws, dtype=torch.float32).reshape(steps, draws)
    mask = grid < grid.max() - 1
    logs = torch.where(mask, -grid / 10, 0.0)
    states = torch.stack([torch.arange((steps + 1) * draws).reshape(steps + 1, draws) / 7.0] * 2, -1)
    drawn = Trajectories(
        states, (grid % 3).long(), logs, mask, logs, logs, logs, 0.5, latents={"goal": grid[0].double()}
    )
    return from_trajectories(
        [drawn, drawn],
        prior=drawn,
        proposal_log_weight=torch.linspace(-3, 0, 30),
        state_names=("position", "velocity"),
        problem="küche",
        method="importance",
        methods=["smc", "importance"],
        effective_sample_size=120.0,
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("writer", ["save_posterior", "to_netcdf"])
def test_files_of_either_version(writer: str, version: str) -> None:
    found, wanted = load_posterior(WRITTEN / f"{writer}-{version}.nc"), known()
    assert type(found) is type(wanted)
    groups = groups_of(found)
    assert groups.keys() == groups_of(wanted).keys()
    for group, held in groups_of(wanted).items():
        assert set(groups[group].variables) == set(held.variables)
        for name, values in held.variables.items():
            if name != "library_version":
                assert groups[group][name].dtype == values.dtype
                assert groups[group][name].identical(held[name]), (group, name)
    notes = found.posterior.attrs
    assert (notes["method"], notes["effective_sample_size"], notes["problem"]) == ("importance", 120.0, "küche")
    assert [str(name) for name in notes["methods"]] == ["smc", "importance"]
    assert diagnose(found) == diagnose(wanted)


@pytest.mark.parametrize("version", VERSIONS)
def test_arviz_opens_what_we_wrote_with_the_other(version: str) -> None:
    opened = az.from_netcdf(str(WRITTEN / f"save_posterior-{version}.nc"), engine="h5netcdf")
    assert np.array_equal(opened.posterior["state"], known().posterior["state"])


def test_names_are_those_of_arviz() -> None:
    """Dimensions and coordinates, against ``from_dict``."""
    groups = {
        "posterior": {"x": np.zeros((2, 5, 3)), "y": np.zeros((2, 5)), "z": np.zeros((2, 5, 3, 2, 1))},
        "observed_data": {"seen": np.zeros((4, 2))},
    }
    dims, coords = {"x": ["time"]}, {"time": [3, 4, 5]}
    first = az.__version__.startswith("0.")
    theirs = (
        az.from_dict(**groups, dims=dims, coords=coords) if first else az.from_dict(groups, dims=dims, coords=coords)
    )
    ours = datasets(groups, dims, coords)
    for group, held in groups_of(theirs).items():
        assert ours[group].equals(held)


if __name__ == "__main__":
    WRITTEN.mkdir(exist_ok=True)
    save_posterior(known(), WRITTEN / f"save_posterior-{az.__version__}.nc", overwrite=True)
    known().to_netcdf(str(WRITTEN / f"to_netcdf-{az.__version__}.nc"), engine="h5netcdf")
