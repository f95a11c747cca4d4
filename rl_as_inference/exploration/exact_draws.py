"""Independent draws from a conjugate posterior, as ArviZ data."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.distributions import Dirichlet, biject_to

from rl_as_inference.arviz_data import PosteriorData
from rl_as_inference.exploration.conjugate import ConjugatePosterior
from rl_as_inference.exploration.transitions import Transitions
from rl_as_inference.host import levels_to_the_user
from rl_as_inference.processes import LinearGaussianMDP, TabularMDP
from rl_as_inference.reasoning.posterior_draws import to_arviz

__all__ = ["exact_inference_data", "warn_of_untouched"]

_AT_ONCE = 2_000_000
"""Log probabilities that are held together."""

_PRIOR = 5_000_000
"""Numbers up to which 200 draws are taken from the prior."""

_AS_BEFORE = 0.98
"""The share of the prior's variance from which on a number counts as unseen."""


def exact_inference_data(
    posterior: ConjugatePosterior, seen: Transitions, num_draws: int, num_chains: int
) -> PosteriorData:
    """Returns independent draws from an exact posterior, in as many chains.

    Args:
        posterior: after the transitions.
        seen: the transitions.
        num_draws: draws in all.
        num_chains: into which they are split.
    """
    per_chain = -(-num_draws // num_chains)
    entries, numbers = posterior.draw_all(num_chains * per_chain)
    shown = seen.to(entries.device)
    at_once = max(1, _AT_ONCE // len(shown.tally))
    likelihood = torch.cat(
        [
            shown.by_one(_log_probabilities(posterior, shown, *parts))
            for parts in zip(entries.split(at_once), numbers.split(at_once), strict=True)
        ]
    )
    density = _log_prior(posterior, entries, numbers) + likelihood.sum(-1)
    means, variances = posterior.mean(), posterior.variance()
    constants = {f"mean_{name}": value for name, value in means.items()}
    constants |= {f"variance_{name}": value for name, value in variances.items()}
    shape = (num_chains, per_chain)
    return to_arviz(
        {
            "posterior": {
                name: value.unflatten(0, shape) for name, value in posterior.by_site(entries, numbers).items()
            },
            "prior": posterior.before().draw(max(10, min(200, _PRIOR // (entries.shape[1] + numbers.shape[1])))),
            "sample_stats": {"lp": density.unflatten(0, shape)},
            "observed_data": seen.observed,
            "constant_data": constants,
        },
        "trajectory",
        likelihood.unflatten(0, shape),
        seen.mask,
        {"method": "exact"},
    )


def _log_probabilities(posterior: ConjugatePosterior, seen: Transitions, entries: Tensor, numbers: Tensor) -> Tensor:
    """Returns the log probability of each entry of ``seen`` at each draw, ``(D, M)`` in nats; 0 of exact rewards."""
    cells, structure = seen.cells, posterior.structure
    if isinstance(structure.process, LinearGaussianMDP):
        process = structure.process
        features = torch.cat([cells.state, cells.action, cells.state.new_ones(len(cells.state), 1)], -1).double()
        every = torch.arange(len(structure.numbers.offset), device=numbers.device)
        table = structure.numbers.at(numbers, every).reshape(len(numbers), process.state_size, -1)
        off = cells.next_state.double() - torch.einsum("dsf,mf->dms", table, features)
        lower = torch.linalg.cholesky(process.noise_cov.detach().double())
        white = torch.linalg.solve_triangular(lower.mT, off, upper=True, left=False)
        size = lower.diagonal().log().sum() + process.state_size / 2 * math.log(2 * math.pi)
        logs = -white.square().sum(-1) / 2 - size
        return logs if cells.reward is None else torch.cat([logs, logs.new_zeros(len(logs), len(cells.reward))], 1)
    assert isinstance(structure.process, TabularMDP)
    assert structure.moves is not None
    ended = structure.process.terminal[cells.state]
    entry, known = structure.moves.find(cells.state, cells.action, cells.next_state)
    logs = known.clamp(min=torch.finfo(known.dtype).tiny).log().expand(len(numbers), -1)
    if entries.shape[1]:
        logs = torch.where(entry >= 0, entries[:, entry.clamp(min=0)].log(), logs)
    logs = torch.where(ended, 0.0, logs)
    if cells.reward is None or cells.rewarded is None:
        return logs
    if posterior.reward_noise == 0:
        return torch.cat([logs, logs.new_zeros(len(logs), len(cells.reward))], 1)
    of = cells.rewarded
    paid = structure.numbers.at(numbers, posterior.paid_in(cells.state[of], cells.action[of], cells.next_state[of]))
    scaled = (cells.reward - paid) / posterior.reward_noise
    told = -scaled.square() / 2 - math.log(posterior.reward_noise * math.sqrt(2 * math.pi))
    return torch.cat([logs, torch.where(ended[of], 0.0, told)], 1)


def _log_prior(posterior: ConjugatePosterior, entries: Tensor, numbers: Tensor) -> Tensor:
    """Returns the sites' log prior density in unconstrained coordinates, ``(D,)`` in nats."""
    structure, total = posterior.structure, numbers.new_zeros(len(numbers))
    for site in structure.sites.values():
        if site.kind == "normal":
            continue
        here = slice(site.start, site.start + site.size)
        law = Dirichlet(structure.concentration[here].reshape(-1, site.width))
        value = entries[:, here].clamp(min=torch.finfo(entries.dtype).tiny).unflatten(1, (-1, site.width))
        transform = biject_to(law.support)  # of two entries that of a Beta: both are p (1 - p)
        volume = transform.log_abs_det_jacobian(transform.inv(value), value)
        total = total + (law.log_prob(value) + volume).sum(-1)
    prior = structure.numbers
    if len(prior.place):
        z = torch.linalg.solve_triangular(
            prior.factor, (prior.in_blocks(numbers) - prior.mean)[..., None], upper=False
        ).squeeze(-1)
        size = prior.factor.diagonal(dim1=-2, dim2=-1).log().sum() + len(prior.place) / 2 * math.log(2 * math.pi)
        total = total - z.square().sum((1, 2)) / 2 - size
    return total


def warn_of_untouched(posterior: ConjugatePosterior, noun: str, advice: str) -> None:
    """Warns of rows, numbers and joint directions of numbers that the posterior leaves at their prior."""
    structure, before = posterior.structure, posterior.before().variance()
    unseen, total = {}, "say nothing about {}: the posterior equals the prior there, so {}"
    for site in structure.sites.values():
        if site.kind == "normal":
            kept = posterior.variance()[site.name] >= _AS_BEFORE * before[site.name]
            unit = "number"
            unseen[site.name] = int(kept.sum())
        else:
            own = slice(site.start, site.start + site.size)
            kept = posterior.counts[own] == structure.concentration[own]
            kept = kept.reshape(-1, site.width).all(-1)
            unit = "row"
        count = int(kept.sum())
        if count:
            what = repr(site.name) if kept.numel() == 1 else f"{count} of the {kept.numel()} {unit}s of {site.name!r}"
            warnings.warn(f"the {noun} {total.format(what, advice)}", UserWarning, stacklevel=levels_to_the_user())
    if not unseen:
        return
    left = torch.linalg.svdvals(posterior.gaussian.root).square() >= _AS_BEFORE
    directions = int(left.sum()) - (left.numel() - len(structure.numbers.place))
    if (joint := directions - sum(unseen.values())) > 0:
        what = f"{joint} joint direction{'s' if joint > 1 else ''} of {', '.join(map(repr, unseen))}"
        warnings.warn(f"the {noun} {total.format(what, advice)}", UserWarning, stacklevel=levels_to_the_user())
