"""Trajectories as ArviZ data, by ArviZ's conventions."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_as_inference.arguments import checked
from rl_as_inference.arviz_data import PosteriorData, datasets, posterior_data
from rl_as_inference.trajectories import Trajectories

__all__ = ["from_trajectories"]

_UNITS = {
    "reward": "reward units",
    "return": "reward units",
    "length": "steps",
    "log_weight": "nats",
    "proposal_log_weight": "nats",
    "optimality": "nats",
    "time": "steps",
    "temperature": "reward units per nat",
}


@checked
def from_trajectories(
    chains: Trajectories | Sequence[Trajectories],
    *,
    log_weight: Tensor | None = None,
    proposal_log_weight: Tensor | None = None,
    prior: Trajectories | None = None,
    discount: float | Tensor | None = None,
    problem: str = "",
    statistics: Mapping[str, Tensor] | None = None,
    observed: Mapping[str, Tensor] | None = None,
    state_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
    **attributes: Any,
) -> PosteriorData:
    """Returns trajectories as ArviZ data: ``InferenceData`` with ArviZ 0.x, xarray's ``DataTree`` with ArviZ 1.x.

    - ``posterior``: ``state``, ``action``, ``reward`` (chain, draw, time, …), ``final_state`` after the
      last of them (chain, draw, …) and any latents. Vectors have ``state_dim_0`` and ``action_dim_0``. Where the
      state is hidden also ``observation``, what was seen before each action; or ``observation_after``, what was
      seen after it, where nothing is seen before the first.
    - ``sample_stats``: ``return`` (reward units), ``log_weight`` (nats), ``length`` (steps) and the bool
      ``alive`` (chain, draw, time). It is not among the posterior's variables, as ArviZ draws no bools.
    - ``log_likelihood``: ``optimality``, the factor of each step (nats).
    - ``observed_data``: ``optimality`` (time), all 1: that it was seen is what the posterior is given.
    - ``prior`` and ``sample_stats_prior`` likewise, if given.
    - ``constant_data``: scalars ``temperature``, ``discount``, ``problem`` and ``library_version``.

    Units are noted on the variables.

    Args:
        chains: one chain of draws, or several with the same number of draws.
        log_weight: weights of the draws in nats, ``(chain, draw)``; by default the draws' own.
        proposal_log_weight: for draws that were resampled, the weights in nats of all that they were drawn
            from, ``(proposal,)``, for ``constant_data``: diagnostics look at these.
        prior: draws from the action prior.
        discount: γ of the process, where the draws have had their coins tossed.
        problem: the problem's name.
        statistics: what else is known of the draws, ``(chain, draw)``, for ``sample_stats``; ArviZ
            knows ``energy`` (nats) and ``diverging``.
        observed: values of the sites that the program was conditioned on, for ``observed_data``.
        state_names: names for the entries of a state vector, ``(position, velocity)``.
        action_names: likewise.
        **attributes: what to note on the posterior group (method, evidence, …): what JSON can hold;
            None is left out.

    Raises:
        ValueError: if chains differ in their number of draws, something does not have the shape said
            above, a latent or a statistic takes a name from the list above, or JSON cannot hold an attribute.

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> data = from_trajectories(mdp.rollout(None, 10))
        >>> dict(data.posterior["action"].sizes)
        {'chain': 1, 'draw': 10, 'time': 4}
    """
    chains = [chains] if isinstance(chains, Trajectories) else list(chains)
    sizes = sorted({chain.num_trajectories for chain in chains})
    if len(sizes) != 1:
        raise ValueError(f"chains: there must be one or more, with the same number of draws each; got {sizes}")
    shape = (len(chains), sizes[0])
    longest = max(each.horizon for each in (*chains, *(() if prior is None else (prior,))))
    chains = [chain.padded(longest) for chain in chains]
    first = chains[0]

    stats = _statistics(chains)
    if log_weight is not None:
        stats["log_weight"] = _of_shape("log_weight", log_weight, shape)
    for name, values in (statistics or {}).items():
        if name in stats:
            raise ValueError(f"statistics: {name!r} is worked out from the draws; leave it out")
        stats[name] = _of_shape(f"statistics[{name!r}]", values, shape)
    seen = {"optimality": np.ones(longest, dtype=int)}
    for name, values in (observed or {}).items():
        if name in seen:
            raise ValueError(f"observed: {name!r} is 1 at every step; leave it out")
        seen[name] = np.atleast_1d(_numpy(values))
    groups: dict[str, Any] = {
        "posterior": _variables(chains),
        "sample_stats": stats,
        "log_likelihood": {"optimality": _over_draws([chain.log_factors for chain in chains])},
        "observed_data": seen,
    }
    if prior is not None:
        groups["prior"] = _variables([prior.padded(longest)])
        groups["sample_stats_prior"] = _statistics([prior.padded(longest)])

    dims: dict[str, list[str]] = {name: ["time"] for name in ("state", "action", "reward", "alive", "optimality")}
    coords: dict[str, Any] = {"time": np.arange(longest)}
    for name, tensor, names in (("state", first.states, state_names), ("action", first.actions, action_names)):
        own = [f"{name}_dim_{i}" for i in range(tensor.dim() - 2)]
        dims[name] = dims[name] + own
        if names is not None:
            if len(own) != 1 or len(names) != tensor.shape[-1]:
                raise ValueError(f"{name}_names must name the entries of {name} vectors, {tuple(tensor.shape[2:])}")
            coords[own[0]] = list(names)
    dims["final_state"] = dims["state"][1:]
    if first.observations is not None:
        own = [f"observation_dim_{i}" for i in range(first.observations.dim() - 2)]
        dims["observation"] = dims["observation_after"] = ["time", *own]
    notes = {"problem": problem, "library": "rl-as-inference", "library_version": version("rl-as-inference")}
    groups["constant_data"] = {
        "temperature": float(first.temperature),
        "discount": float(first.discount if discount is None else discount),
        "problem": problem,
        "library_version": notes["library_version"],
    }
    found = datasets(groups, dims, coords)
    if proposal_log_weight is not None:
        constants = found["constant_data"]
        constants["proposal_log_weight"] = ("proposal", _numpy(proposal_log_weight.reshape(-1)))
    for group, held in found.items():
        for name, variable in held.variables.items():
            if name in _UNITS and group != "observed_data":
                variable.attrs["units"] = _UNITS[str(name)]
    plain = {name: _plain(name, value) for name, value in {**notes, **attributes}.items()}
    found["posterior"].attrs = {name: value for name, value in plain.items() if value is not None}
    return posterior_data(found)


def _variables(chains: list[Trajectories]) -> dict[str, Any]:
    variables = {
        "state": _over_draws([chain.states[: chain.horizon] for chain in chains]),
        "action": _over_draws([chain.actions for chain in chains]),
        "reward": _over_draws([chain.rewards for chain in chains]),
    }
    if len(chains[0].states) > chains[0].horizon:
        variables["final_state"] = _stack([chain.states[-1] for chain in chains])
    seen = [chain.observations[: chain.horizon] for chain in chains if chain.observations is not None]
    if seen:
        variables["observation" if chains[0].observed_first else "observation_after"] = _over_draws(seen)
    for name in chains[0].latents:
        if name in variables:
            raise ValueError(f"chains: a latent is called {name!r}, which is a variable of every posterior; rename it")
        variables[name] = _stack([chain.latents[name] for chain in chains])
    return variables


def _statistics(chains: list[Trajectories]) -> dict[str, Any]:
    return {
        "return": _stack([chain.returns() for chain in chains]),
        "length": _stack([chain.lengths() for chain in chains]),
        "log_weight": _stack([chain.log_weight() for chain in chains]),
        "alive": _over_draws([chain.mask for chain in chains]),
    }


def _plain(name: str, value: Any) -> Any:
    """Returns an attribute as strings, numbers, lists and dictionaries: what a file gives back as it was."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: an attribute must be something that JSON can hold, got {type(value).__name__}"
        ) from error


def _of_shape(name: str, values: Any, shape: tuple[int, int]) -> Any:
    array = _numpy(torch.as_tensor(values))
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape} (chain, draw), got {array.shape}")
    return array


def _over_draws(tables: list[Tensor]) -> Any:
    """Returns ``(chain, draw, time, …)`` from time-major ``(time, draw, …)``."""
    if len(tables) == 1:  # nothing to copy
        return _numpy(tables[0].transpose(0, 1)[None])
    return _stack([table.transpose(0, 1) for table in tables])


def _stack(rows: list[Tensor]) -> Any:
    return _numpy(torch.stack(rows))


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()
