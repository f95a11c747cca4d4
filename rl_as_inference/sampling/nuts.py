"""Pyro's No-U-Turn sampler on trajectory programs with continuous sites."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import NUTS
from pyro.infer.reparam import LocScaleReparam
from pyro.infer.reparam.reparam import Reparam
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from rl_as_inference.host import in_turn
from rl_as_inference.nouns import Problem
from rl_as_inference.processes.linear_gaussian import LinearGaussianMDP
from rl_as_inference.processes.mdp import MarkovDecisionProcess
from rl_as_inference.processes.programs import ProgramProcess, as_process
from rl_as_inference.processes.recorded_runs import trajectories_at
from rl_as_inference.processes.tabular import TabularMDP
from rl_as_inference.program.sites import is_reward
from rl_as_inference.progress import ProgressBar, progress_bar
from rl_as_inference.sampling.importance import check_conditions
from rl_as_inference.trajectories import Trajectories

__all__ = ["nuts", "nuts_with_statistics"]


@in_turn
def nuts(
    process: Problem,
    num_draws: int,
    *,
    num_warmup: int = 300,
    num_chains: int = 2,
    progress: bool | None = False,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> list[Trajectories]:
    """Returns posterior draws by Pyro's NUTS, one :class:`Trajectories` a chain.

    Hoffman & Gelman (2014). The chains start at draws of the program and run one after the other.

    Args:
        process: a process or program whose sites are all continuous.
        num_draws: draws in all, over the chains.
        num_warmup: warm-up steps a chain.
        num_chains: number of chains.
        progress: show a bar; None shows it on a terminal.
        seed: of what is drawn; None follows PyTorch's generator, from where it is.
        generator: instead of a seed, where random numbers come from, :func:`rl_as_inference.randomness.drawing`.

    Raises:
        ValueError: if a site is discrete (it is named), or the discount is below 1, whose survival coins are.
    """
    chains, _ = nuts_with_statistics(
        process, num_draws, num_warmup=num_warmup, num_chains=num_chains, progress=progress
    )
    return chains


@in_turn
def nuts_with_statistics(
    process: Problem, num_draws: int, *, num_warmup: int = 300, num_chains: int = 2, progress: bool | None = False
) -> tuple[list[Trajectories], dict[str, Tensor]]:
    """Returns the draws of :func:`nuts`, and what the sampler knows of each, ``(chain, draw)``, by ArviZ's names.

    ``energy`` of the Hamiltonian (nats), ``diverging``, ``acceptance_rate`` (the mean over a draw's tree),
    ``tree_depth`` and ``n_steps`` (gradients).
    """
    process = as_process(process)
    if not isinstance(process, ProgramProcess | MarkovDecisionProcess):
        raise ValueError(
            f"method='nuts' needs a program, and {type(process).__name__} is a black-box simulator; use 'importance'"
        )
    program: Callable[[], Any] = process.program if isinstance(process, ProgramProcess) else process
    if isinstance(process, ProgramProcess):
        process.check_sites()
        check_conditions(process, None, 100)
    with pyro.poutine.block():
        trace = prune_subsample_sites(pyro.poutine.trace(program).get_trace())
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and site["fn"].support.is_discrete:
            raise ValueError(f"method='nuts' needs continuous sites, and {name!r} is discrete; use {_instead(process)}")
    if float(process.discount) < 1:
        raise ValueError(f"method='nuts' cannot draw survival coins (discount < 1); use {_instead(process)}")
    per_chain = -(-num_draws // num_chains)
    white = pyro.poutine.reparam(config=_whiten)
    # Run by handlers, a gradient costs several times what its tensors do, so it is traced once; but
    # where Python branches on a draw, a trace would take the same branch ever after.
    static = isinstance(process, MarkovDecisionProcess) or process.is_vectorized()
    chains, noted = [], []
    with progress_bar("nuts", num_chains * (num_warmup + per_chain), show=progress) as bar:
        for chain in range(num_chains):
            kernel = _Noting(white(program), max_tree_depth=8, jit_compile=static, ignore_jit_warnings=True)
            kernel.bar, kernel.name = bar, f"chain {chain + 1} of {num_chains}"
            samples = _chain(kernel, num_warmup, per_chain)
            chains.append(_read_back(process, white, samples, per_chain))
            noted.append({name: torch.tensor([each[name] for each in kernel.noted]) for name in kernel.noted[0]})
    return chains, {name: torch.stack([chain[name] for chain in noted]) for name in noted[0]}


def _chain(kernel: NUTS, num_warmup: int, count: int) -> dict[str, Tensor]:
    """Returns a chain's draws by site, ``(count, ...)``, as :class:`pyro.infer.MCMC` does.

    That leaves a thread and a handler of its log in the process, and its bar writes on, wherever standard error leads.
    """
    with pyro.poutine.block(), pyro.validation_enabled(False):  # its checks would be traced too
        kernel.setup(num_warmup)
        values = kernel.initial_params
        draws = []
        for index in range(num_warmup + count):
            values = kernel.sample(values)
            if index >= num_warmup:
                draws.append(values)
        kernel.cleanup()
        found = {name: torch.stack([each[name] for each in draws]) for name in values}
        return {n: kernel.transforms[n].inv(z) if n in kernel.transforms else z for n, z in found.items()}


def _instead(process: Problem) -> str:
    """Returns methods that the process allows."""
    if isinstance(process, ProgramProcess):
        return "'importance' or 'smc'" if process.is_vectorized() else "'importance'"
    return (
        "'exact', 'smc' or 'importance'"
        if isinstance(process, TabularMDP | LinearGaussianMDP)
        else "'smc' or 'importance'"
    )


class _Noting(NUTS):
    """NUTS that keeps the statistics of each draw, of which Pyro keeps means at most, and moves a bar."""

    bar: ProgressBar
    name: str
    """What the bar says of it."""

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        self.noted: list[dict[str, Any]] = []
        super().setup(warmup_steps, *args, **kwargs)

    def sample(self, params: Any) -> Any:
        self._steps, self._depth = 0, 0
        mean, divergences = self._mean_accept_prob, len(self._divergences)
        drawn = super().sample(params)
        count = self._t - self._warmup_steps
        self.bar.advance(f"{self.name}{', warming up' if count <= 0 else ''}")
        if count > 0:
            self.noted.append(
                {
                    "energy": float(self._energy),
                    "diverging": len(self._divergences) > divergences,
                    # Pyro's number is the running mean, which starts anew after the warm-up.
                    "acceptance_rate": mean * (count > 1) + count * (self._mean_accept_prob - mean * (count > 1)),
                    "tree_depth": self._depth,
                    "n_steps": self._steps,
                }
            )
        return drawn

    def _sample_r(self, name: str) -> Any:
        momenta = super()._sample_r(name)
        # Constant along the trajectory, but for the integrator's error.
        self._energy = self._kinetic_energy(momenta[1]) + self._potential_energy_last
        return momenta

    def _build_tree(self, z: Any, r: Any, z_grads: Any, log_slice: Any, direction: int, depth: int, energy: Any) -> Any:
        self._depth = max(self._depth, depth + 1)
        self._steps += depth == 0
        return super()._build_tree(z, r, z_grads, log_slice, direction, depth, energy)


def _read_back(
    process: ProgramProcess | MarkovDecisionProcess, white: Any, samples: dict[str, Tensor], count: int
) -> Trajectories:
    """Returns the trajectories that the draws of the whitened sites stand for."""
    if isinstance(process, MarkovDecisionProcess):
        # Each draw is a run with a plate of one trajectory; together they are a plate of many.
        run: Callable[[], Any] = partial(process, count)
        values = {name: value.squeeze(1) for name, value in samples.items()}
        return trajectories_at(run, _unwhitened(white(run), values), count)
    single = [
        _unwhitened(white(process.program), {name: value[i] for name, value in samples.items()}) for i in range(count)
    ]
    found: Trajectories = process.at({name: torch.stack([s[name] for s in single]) for name in single[0]}, count)
    return found


def _unwhitened(program: Callable[[], Any], values: dict[str, Tensor]) -> dict[str, Tensor]:
    trace = pyro.poutine.trace(pyro.poutine.condition(program, data=values)).get_trace()
    return {
        name: site["value"]
        for name, site in prune_subsample_sites(trace).nodes.items()
        if site["type"] == "sample" and not name.endswith(_AUXILIARY) and not is_reward(site)
    }


_WHITE = "_white"
_AUXILIARY = (_WHITE, "_decentered")
"""Endings of the sites that whitening adds, by this module and by Pyro's own reparameterizer."""


class _Whiten(Reparam):
    """Draws a multivariate normal site as an affine map of standard normals."""

    def apply(self, msg: Any) -> Any:
        fn = msg["fn"]
        white = pyro.sample(msg["name"] + _WHITE, dist.Normal(torch.zeros_like(fn.loc), 1.0).to_event(1))
        value = fn.loc + (fn.scale_tril @ white[..., None]).squeeze(-1)
        return {"fn": dist.Delta(value, event_dim=1).mask(False), "value": value, "is_observed": True}


def _whiten(site: Any) -> Any:
    """Says how to draw a site so that the prior is a standard normal wherever it is Gaussian.

    Trajectories are chains in which each state is tight around what the one before implies; in those
    coordinates the posterior is so narrow that the sampler takes hundreds of steps a draw.
    """
    fn = site["fn"]
    if site["is_observed"] or site["name"].endswith(_AUXILIARY):
        return None
    if isinstance(fn, torch.distributions.MultivariateNormal):
        return _Whiten()
    base = fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn
    return LocScaleReparam(centered=0.0) if isinstance(base, torch.distributions.Normal) else None
