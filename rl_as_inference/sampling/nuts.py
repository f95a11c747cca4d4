"""Pyro's No-U-Turn sampler on trajectory programs with continuous sites."""

from collections.abc import Callable
from typing import Any

import pyro
from pyro.infer import MCMC, NUTS
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.processes.programs import ProgramProcess, as_process, trajectories_at
from rl_as_inference.trajectories import Trajectories

__all__ = ["nuts"]


def nuts(
    process: Any, num_draws: int, *, num_warmup: int = 300, num_chains: int = 2, progress: bool = False
) -> list[Trajectories]:
    """Returns posterior draws by Pyro's NUTS, one :class:`Trajectories` a chain.

    Hoffman & Gelman (2014). The chains start at draws of the program and run one after the other.

    Args:
        process: a process or program whose sites are all continuous.
        num_draws: draws in all, over the chains.
        num_warmup: warm-up steps a chain.
        num_chains: number of chains.
        progress: show Pyro's bar.

    Raises:
        ValueError: if a site is discrete (it is named), or the discount is below 1, whose survival coins are.
    """
    process = as_process(process)
    program: Callable[[], Any] = process.program if isinstance(process, ProgramProcess) else process
    with pyro.poutine.block():
        trace = prune_subsample_sites(pyro.poutine.trace(program).get_trace())
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and site["fn"].support.is_discrete:
            raise ValueError(
                f"method='nuts' needs continuous sites, and {name!r} is discrete; use 'exact' for finite processes, "
                f"else 'importance' or 'smc'"
            )
    if float(getattr(process, "discount", 1.0)) < 1:
        raise ValueError("method='nuts' cannot draw survival coins (discount < 1); use 'importance' or 'smc'")
    per_chain = -(-num_draws // num_chains)
    chains = []
    for _ in range(num_chains):
        sampler = MCMC(
            NUTS(program, full_mass=True, max_tree_depth=8),
            num_samples=per_chain,
            warmup_steps=num_warmup,
            disable_progbar=not progress,
        )
        sampler.run()
        chains.append(_replay(process, sampler.get_samples(), per_chain))
    return chains


def _replay(process: Any, samples: dict[str, Tensor], count: int) -> Trajectories:
    """Returns the trajectories whose sites have the values drawn."""
    if isinstance(process, MarkovDecisionProcess):
        values = {name: value.squeeze(1) for name, value in samples.items()}  # the plate of one trajectory
        return trajectories_at(lambda: process(count), values, count)
    found: Trajectories = process.at(samples, count)
    return found
