"""Posteriors as files: NetCDF, written whole, read back as they were or refused."""

import hashlib
import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rl_as_inference.arguments import checked
from rl_as_inference.arviz_data import PosteriorData, groups_of, posterior_data
from rl_as_inference.whole_files import written_whole

__all__ = ["load_posterior", "save_posterior"]

_AS_JSON = "attributes_as_json"
"""Attribute with the attributes that NetCDF has no type for: truth values, lists, dictionaries."""

_SEAL = (b"\nSHA-256 of all before this line: ", b", and here it ends\n")
_SEAL_SIZE = len(_SEAL[0]) + 64 + len(_SEAL[1])
"""What stands around a checksum, behind the end of the file as HDF5 sees it, where no reader of NetCDF looks. HDF5
notices damage in some places only, and a damaged count may have it loop for hours: what is not what was saved must not
be parsed at all."""

_NEEDED = ("state", "action", "reward")


@checked
def save_posterior(data: PosteriorData, path: str | Path, overwrite: bool = False) -> None:
    """Writes a posterior to ``path`` as NetCDF-4, a group each: the whole file, or nothing.

    ArviZ, xarray and every reader of NetCDF open it. A checksum stands behind it, so that
    :func:`load_posterior` notices damage.

    Args:
        data: what :func:`rl_as_inference.posterior` returns.
        path: of the file, usually ``*.nc``; its folder must exist.
        overwrite: replace the file if there is one.

    Raises:
        ValueError: if there is a file and ``overwrite`` is not said, the file cannot be written, or the
            data are not a trajectory posterior.

    Example:
        >>> import tempfile
        >>> import rl_as_inference as rlai
        >>> from rl_as_inference.models import gridworld
        >>> data = rlai.posterior(gridworld(), method="exact", num_draws=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_posterior(data, f"{folder}/posterior.nc")
        ...     again = load_posterior(f"{folder}/posterior.nc")
        >>> again.posterior.equals(data.posterior)
        True
    """
    import xarray

    path = Path(path)
    wrong = _why_not_a_posterior(groups_of(data))
    if wrong:
        raise ValueError(f"data: {wrong}; make it with rlai.posterior or from_trajectories")
    if path.is_dir():
        raise ValueError(f"path: {str(path)!r} is a folder; name a file in it")

    def refuse_to_replace() -> None:
        if path.exists() and not overwrite:
            raise ValueError(f"path: {str(path)!r} exists already; choose another name, or pass overwrite=True")

    refuse_to_replace()
    try:
        with written_whole(path) as temporary:
            for index, (name, held) in enumerate(groups_of(data).items()):
                group = held.copy()
                group.attrs = _to_file(group.attrs)
                for variable in group.variables:
                    group[variable].attrs = _to_file(group[variable].attrs)
                smaller = {
                    variable: {"zlib": True}
                    for variable, values in group.variables.items()
                    if values.ndim and values.dtype.kind in "biuf"
                }
                mode: Literal["w", "a"] = "a" if index else "w"
                group.to_netcdf(temporary, mode=mode, group=name, engine="h5netcdf", encoding=smaller)
            root = xarray.Dataset(attrs=_to_file(data.attrs))
            root.to_netcdf(temporary, mode="a", engine="h5netcdf")
            with temporary.open("r+b") as file:
                file.write(hashlib.file_digest(file, "sha256").hexdigest().encode().join(_SEAL))
            refuse_to_replace()  # it may have come into being meanwhile
    except OSError as error:
        raise ValueError(f"path: cannot write {str(path)!r}: {error.strerror or error}") from error


@checked
def load_posterior(path: str | Path) -> PosteriorData:
    """Returns the posterior that :func:`save_posterior` wrote to ``path``, held in memory.

    Values, dtypes, coordinates and attributes are those that were saved. Nothing in the file is run.

    Raises:
        ValueError: if there is no such file, it is damaged or no NetCDF-4 file, or holds no trajectory posterior.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path: there is no file {str(path)!r}")
    _check_seal(path)
    try:
        groups, attributes = _read(path)
    except Exception as error:  # HDF5 meets damage in every layer, each with errors of its own
        raise ValueError(f"path: {str(path)!r} is damaged, or no NetCDF-4 file: {error}") from error
    wrong = _why_not_a_posterior(groups)
    if wrong:
        raise ValueError(f"path: {str(path)!r} is not a trajectory posterior: {wrong}")
    return posterior_data(groups, attributes)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import h5py
    import xarray

    # Not by h5netcdf, whose file objects cannot be put away where opening them has failed.
    with h5py.File(path, "r") as file:
        names = [name for name, item in file.items() if isinstance(item, h5py.Group)]
    with xarray.open_dataset(path, engine="h5netcdf") as root:
        attributes = _from_file(root.attrs)
    groups = {}
    for name in names:
        with xarray.open_dataset(path, group=name, engine="h5netcdf") as group:
            group.load()
        group.attrs = _from_file(group.attrs)
        for variable in group.variables:
            group[variable].attrs = _from_file(group[variable].attrs)
        groups[name] = group
    return groups, attributes


def _check_seal(path: Path) -> None:
    """Raises ValueError if a file is not what its checksum says, or only a part of one is left.

    Files that others wrote have none, and pass.
    """
    with path.open("rb") as file:
        end = max(path.stat().st_size - _SEAL_SIZE, 0)
        file.seek(max(end - _SEAL_SIZE, 0))
        tail = file.read()
        file.seek(0)
        digest, left = hashlib.sha256(), end
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    of_a_seal = [part[at : at + 8] for part in _SEAL for at in range(0, len(part) - 7, 4)]
    if any(piece in tail for piece in of_a_seal) and tail[-_SEAL_SIZE:] != digest.hexdigest().encode().join(_SEAL):
        raise ValueError(
            f"path: {str(path)!r} is damaged, or was changed by another program: it is not what was saved; "
            f"arviz.from_netcdf reads what can be read"
        )


def _why_not_a_posterior(groups: Mapping[str, Any]) -> str:
    """Returns what is missing from groups for a trajectory posterior, or an empty string."""
    if "posterior" not in groups:
        return f"there is no group 'posterior' (groups: {', '.join(groups) or 'none'})"
    posterior = groups["posterior"]
    for variable in _NEEDED:
        if variable not in posterior:
            return f"the group 'posterior' has no variable {variable!r}"
        for dim in ("chain", "draw", "time"):
            if dim not in posterior[variable].dims:
                return f"{variable!r} in the group 'posterior' has no dimension {dim!r}"
    return ""


def _to_file(attributes: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Returns attributes that NetCDF has types for; the others as one text."""
    plain = {str(name): value.item() if isinstance(value, np.generic) else value for name, value in attributes.items()}
    kept = {name: value for name, value in plain.items() if type(value) in (str, float) or _is_int64(value)}
    others = {name: value for name, value in plain.items() if name not in kept}
    return {**kept, _AS_JSON: json.dumps(others)} if others else kept


def _from_file(attributes: Mapping[Hashable, Any]) -> dict[str, Any]:
    plain = {str(name): value.item() if isinstance(value, np.generic) else value for name, value in attributes.items()}
    others = plain.pop(_AS_JSON, "{}")
    return {**plain, **json.loads(others)}


def _is_int64(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63
