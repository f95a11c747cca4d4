"""Draws as the installed ArviZ holds them, and its statistics: the one place that asks which ArviZ it is.

ArviZ 0.x holds groups of variables in an ``InferenceData``. ArviZ 1, which needs Python 3.12, holds them in an
``xarray.DataTree``. Both have groups as attributes and items (``data.posterior["state"]``), and write the same files.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_as_inference.turns import silenced

if TYPE_CHECKING:
    from typing import TypeAlias

    import xarray
    from arviz import InferenceData

    PosteriorData: TypeAlias = InferenceData | xarray.DataTree
else:

    class _ByName(type):
        def __instancecheck__(cls, value: object) -> bool:  # neither library is imported before it is needed
            return any(base.__name__ in ("InferenceData", "DataTree") for base in type(value).__mro__)

    class PosteriorData(metaclass=_ByName):
        """Groups of variables: an ``arviz.InferenceData`` with ArviZ 0.x, an ``xarray.DataTree`` with ArviZ 1.x."""


__all__ = ["PosteriorData", "datasets", "effective_sizes", "groups_of", "pareto_shape", "posterior_data", "r_hats"]

_NOT_DRAWN = ("observed_data", "constant_data")
"""Groups whose variables do not begin with the dimensions ``chain`` and ``draw``."""


def datasets(
    groups: Mapping[str, Mapping[str, Any]],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> "dict[str, xarray.Dataset]":
    """Returns groups of arrays with dimensions and coordinates named as ArviZ's ``from_dict`` does.

    Args:
        groups: arrays by name, by group.
        dims: names of all of a variable's dimensions after ``chain`` and ``draw``; by default ``NAME_dim_0`` and so on.
        coords: of dimensions; by default numbers from 0.

    Example:
        >>> held = datasets({"posterior": {"x": np.zeros((1, 5, 3)), "y": np.zeros((1, 5, 2))}}, {"x": ["time"]})
        >>> held["posterior"]["x"].dims, held["posterior"]["y"].dims, held["posterior"]["time"].values.tolist()
        (('chain', 'draw', 'time'), ('chain', 'draw', 'y_dim_0'), [0, 1, 2])
    """
    with silenced():
        import xarray

    found = {}
    for group, variables in groups.items():
        first = () if group in _NOT_DRAWN else ("chain", "draw")
        arrays = {}
        for name, values in variables.items():
            own = list(dims.get(name, ()))
            own += [f"{name}_dim_{i}" for i in range(len(own), np.ndim(values) - len(first))]
            arrays[name] = ([*first, *own], values)
        held = xarray.Dataset(arrays)
        along = {dim: (coords or {}).get(str(dim), np.arange(size)) for dim, size in held.sizes.items()}
        found[group] = held.assign_coords(along)
    return found


def posterior_data(
    groups: "Mapping[str, xarray.Dataset]", attributes: Mapping[str, Any] | None = None
) -> PosteriorData:
    """Returns groups, with attributes of the whole, in what the installed ArviZ holds them in."""
    if _is_first():
        # More chains than draws, or a chain of its own length in the prior, are as they should be.
        with silenced(category=UserWarning, module="arviz"):
            data: PosteriorData = _arviz().InferenceData(**groups, attrs=dict(attributes or {}))
        return data
    import xarray

    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=dict(attributes or {})), **groups})


def groups_of(data: Any) -> "dict[str, xarray.Dataset]":
    """Returns the groups of an ``InferenceData`` or a ``DataTree`` by name, whichever ArviZ is installed."""
    held = getattr(data, "children", data)
    return {name: group.to_dataset() if hasattr(group, "children") else group for name, group in held.items()}


def pareto_shape(log_weight: Any) -> float:
    """Returns k̂ of log weights ``(N,)``, by ArviZ's ``psislw``; no finite number where there is no tail to fit."""
    if _is_first():
        return float(_arviz().psislw(log_weight)[1])
    with silenced():
        from arviz_stats.base import array_stats

    try:
        return float(array_stats.psislw(-log_weight)[1])  # it takes log likelihoods, which weights are inverse to
    except ValueError:  # all in the tail are alike
        return float("inf")


def effective_sizes(draws: "xarray.Dataset") -> "xarray.Dataset":
    """Returns the bulk effective sample size of every entry of variables with chains and draws."""
    found: xarray.Dataset = _arviz().ess(draws)
    return found


def r_hats(draws: "xarray.Dataset") -> "xarray.Dataset":
    """Returns R̂ (of ranks) of every entry of variables with chains and draws."""
    found: xarray.Dataset = _arviz().rhat(draws)
    return found


@cache
def _is_first() -> bool:
    return version("arviz").startswith("0.")


def _arviz() -> Any:
    """Returns the module with ArviZ's statistics, imported when first needed: it takes longer than everything else."""
    with silenced():
        if _is_first():
            import arviz
        else:  # without its plots, which take longer still
            import arviz_stats as arviz
    return arviz
