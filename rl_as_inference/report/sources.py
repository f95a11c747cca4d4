"""Where a report's trajectories come from: the action prior, the guide, and a posterior."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from rl_as_inference import exact
from rl_as_inference.arviz_data import PosteriorData
from rl_as_inference.inference.posteriors import shared_posterior
from rl_as_inference.inspect import Diagnosis, Method, diagnose, posterior
from rl_as_inference.inspect.plots import BLUE, GREEN, GREY, ORANGE
from rl_as_inference.nouns import Policy, Problem
from rl_as_inference.processes.programs import as_process

__all__ = ["Source", "draw_sources"]


@dataclass(frozen=True)
class Source:
    """Trajectories of one origin.

    Attributes:
        key: a short name for the page's own use.
        label: the name that people read.
        about: what the trajectories are, in one sentence.
        colour: as ``#rrggbb``, from colours that the colour-blind can tell apart.
        data: the draws, as :func:`rl_as_inference.posterior` returns them.
        diagnosis: whether the draws may be taken for the posterior; None for the prior, which nobody
            takes for it.
    """

    key: str
    label: str
    about: str
    colour: str
    data: PosteriorData
    diagnosis: Diagnosis | None

    @property
    def colour_on_dark(self) -> str:
        """The colour where the page is dark: a third of the way to white, as ``#rrggbb``."""
        parts = (int(self.colour[start : start + 2], 16) for start in (1, 3, 5))
        return "#" + "".join(f"{part + (255 - part) // 3:02x}" for part in parts)

    @property
    def returns(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The return ``Σ_t r_t`` of every draw, in reward units, ``(draws,)``."""
        return np.asarray(self.data.sample_stats["return"].values, dtype=float).ravel()


def draw_sources(
    process: Problem,
    policy: Policy | None,
    *,
    method: Method | None = None,
    num_draws: int = 1000,
    distributed: bool = False,
) -> tuple[Source, ...]:
    """Returns draws from the action prior, from the guide, and from the posterior.

    Args:
        process: a process, or a Pyro program without arguments.
        policy: the guide, a callable ``(state, t) -> Distribution``; the proposal of the methods that take one.
        method: of :func:`rl_as_inference.posterior`; None takes ``"exact"`` where it is available (then with the
            causal posterior beside it), else ``"importance"`` from the guide. ``"guide"`` leaves the posterior out.
        num_draws: how many of each, ≥ 1.
        distributed: the ranks of a ``torchrun`` job share the work of ``"importance"``, ``"smc"`` and ``"annealed"``.

    Raises:
        ValueError: if ``num_draws`` < 1, or the process cannot be treated by the method.

    Example:
        >>> from rl_as_inference.models import gridworld
        >>> [source.label for source in draw_sources(gridworld(), None, num_draws=5)]
        ['action prior', 'guide', 'exact posterior', 'exact causal posterior']
    """
    process = as_process(process)
    if method is None:
        method = "exact" if exact.is_available(process) else "importance"
    prior = posterior(process, None, method="guide", num_draws=num_draws)
    guide = posterior(process, policy, method="guide", num_draws=num_draws)
    sources = [
        Source("prior", "action prior", "Actions from the action prior; rewards play no part.", GREY, prior, None),
        Source("guide", "guide", "The trained policy, run in the process as it is.", BLUE, guide, _verdict(guide)),
    ]
    if method == "exact":
        for dynamics, label, colour, about in (
            ("posterior", "exact posterior", GREEN, "Trajectories given success: actions and luck are both inferred."),
            (
                "causal",
                "exact causal posterior",
                ORANGE,
                "Actions inferred, luck left as it is: the best that control can do.",
            ),
        ):
            draws = posterior(process, method="exact", num_draws=num_draws, dynamics=dynamics)  # type: ignore[arg-type]
            sources.append(Source(dynamics, label, about, colour, draws, _verdict(draws)))
    elif method != "guide":
        # The others start from the action prior, or from nothing.
        proposal = policy if method in ("importance", "smc") else None
        draws = shared_posterior(process, proposal, method=method, num_draws=num_draws, distributed=distributed)
        about = "Trajectories given success, estimated: actions and luck are both inferred."
        sources.append(Source("posterior", f"posterior ({method})", about, GREEN, draws, _verdict(draws)))
    return tuple(sources)


def _verdict(data: PosteriorData) -> Diagnosis:
    """Returns the diagnosis; weights that cannot be judged at all are a verdict too, and no reason to show nothing."""
    try:
        return diagnose(data)
    except ValueError as error:
        sizes = data.posterior.sizes
        return Diagnosis(
            f"Do not trust these weights: {error}.", False, None, None, sizes["chain"] * sizes["draw"], None
        )
