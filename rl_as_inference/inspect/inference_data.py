"""Trajectories as ArviZ data, by ArviZ's conventions."""

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rl_as_inference.trajectories import Trajectories

if TYPE_CHECKING:
    import arviz

__all__ = ["from_trajectories", "import_arviz"]


def import_arviz() -> Any:
    """Returns the module ``arviz``, imported when first needed: it takes longer than everything else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        import arviz
    return arviz


def from_trajectories(
    chains: Trajectories | Sequence[Trajectories],
    *,
    log_weight: Tensor | None = None,
    prior: Trajectories | None = None,
    discount: float | Tensor | None = None,
    problem: str = "",
    **attributes: Any,
) -> "arviz.InferenceData":
    """Returns trajectories as ArviZ data.

    Groups: ``posterior`` with ``state``, ``action``, ``reward`` and ``alive`` (chain, draw, time, …),
    ``final_state`` after the last of them (chain, draw, …) and any latents; ``sample_stats`` with ``return`` (reward
    units), ``log_weight`` (nats) and ``length`` (steps); ``log_likelihood`` with the optimality
    factor of each step (nats); ``prior`` likewise if given; ``constant_data`` with temperature and
    discount. The other attributes go onto ``posterior``.

    Args:
        chains: one chain of draws, or several with the same number of draws.
        log_weight: weights of the draws in nats, ``(chain, draw)``; by default the draws' own.
        prior: draws from the action prior.
        discount: γ of the process, where the draws have had their coins tossed.
        problem: the problem's name.
        **attributes: what to note on the posterior group (method, evidence, …).

    Example:
        >>> from rl_as_inference.processes import TabularMDP
        >>> mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[0.0, 1.0]]), torch.ones(1), horizon=4)
        >>> data = from_trajectories(mdp.rollout(None, 10))
        >>> dict(data.posterior["action"].sizes)
        {'chain': 1, 'draw': 10, 'time': 4}
    """
    chains = [chains] if isinstance(chains, Trajectories) else list(chains)
    longest = max(each.horizon for each in (*chains, *(() if prior is None else (prior,))))
    chains = [chain.padded(longest) for chain in chains]
    prior = None if prior is None else prior.padded(longest)
    posterior = _variables(chains)
    stats = {
        "return": _stack([chain.returns() for chain in chains]),
        "length": _stack([chain.lengths() for chain in chains]),
        "log_weight": _stack([chain.log_weight() for chain in chains]) if log_weight is None else _numpy(log_weight),
    }
    likelihood = {"optimality": _over_draws([chain.log_factors for chain in chains])}
    first = chains[0]
    gamma = first.discount if discount is None else discount
    constants = {"temperature": np.asarray(float(first.temperature)), "discount": np.asarray(float(gamma))}
    groups: dict[str, Any] = {
        "posterior": posterior,
        "sample_stats": stats,
        "log_likelihood": likelihood,
        "constant_data": constants,
    }
    if prior is not None:
        groups["prior"] = _variables([prior])
        groups["sample_stats_prior"] = {"return": _stack([prior.returns()])}
    dims: dict[str, list[str]] = {name: ["time"] for name in ("state", "action", "reward", "alive", "optimality")}
    for name, tensor in (("state", first.states), ("action", first.actions)):
        dims[name] = dims[name] + [f"{name}_dim_{i}" for i in range(tensor.dim() - 2)]
    horizon = first.horizon
    dims["final_state"] = dims["state"][1:]
    coords = {"time": np.arange(horizon)}
    with warnings.catch_warnings():
        # More chains than draws, or a chain of its own length in the prior, are as they should be.
        warnings.filterwarnings("ignore", category=UserWarning, module="arviz")
        data = import_arviz().from_dict(**groups, dims=dims, coords=coords)
    for name, value in constants.items():
        data.constant_data[name] = ((), value)  # from_dict makes arrays of one of them
    data.constant_data = data.constant_data.drop_dims([f"{name}_dim_0" for name in constants])
    note = {"problem": problem, "library": "rl-as-inference", "library_version": version("rl-as-inference")}
    data.posterior.attrs.update({key: value for key, value in {**note, **attributes}.items() if value is not None})
    return data


def _variables(chains: list[Trajectories]) -> dict[str, Any]:
    variables = {
        "state": _over_draws([chain.states[: chain.horizon] for chain in chains]),
        "action": _over_draws([chain.actions for chain in chains]),
        "reward": _over_draws([chain.rewards for chain in chains]),
        "alive": _over_draws([chain.mask for chain in chains]),
    }
    if len(chains[0].states) > chains[0].horizon:
        variables["final_state"] = _stack([chain.states[-1] for chain in chains])
    for name in chains[0].latents:
        variables[name] = _stack([chain.latents[name] for chain in chains])
    return variables


def _over_draws(tables: list[Tensor]) -> Any:
    """Returns ``(chain, draw, time, …)`` from time-major ``(time, draw, …)``."""
    return _stack([table.transpose(0, 1) for table in tables])


def _stack(rows: list[Tensor]) -> Any:
    return _numpy(torch.stack(rows))


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()
