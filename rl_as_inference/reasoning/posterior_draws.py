"""Draws from the posterior of a family's unknowns, and their answer as ArviZ data."""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

from rl_as_inference.arviz_data import PosteriorData, datasets, posterior_data
from rl_as_inference.checks import check_count
from rl_as_inference.distributed import ALONE, Ranks
from rl_as_inference.host import levels_to_the_user
from rl_as_inference.processes import MarkovDecisionProcess
from rl_as_inference.progress import progress_bar
from rl_as_inference.reasoning.batching import batched_gradient, batched_parts, gradient_by_row, parts_by_row
from rl_as_inference.reasoning.density import Density
from rl_as_inference.reasoning.lockstep import lockstep
from rl_as_inference.reasoning.modes import distinct_modes, laplace_scale, modes
from rl_as_inference.sampling.islands import in_step

__all__ = ["Drawn", "as_inference_data", "check_asked", "check_family", "draw_posterior", "to_arviz", "warn_of_priors"]

_AT_ONCE = 8
"""Draws whose likelihoods are computed together; so few, because each has tables of a whole plan."""


class Drawn(NamedTuple):
    """Draws of the unconstrained vector."""

    mode: Tensor
    """The most probable vector, ``(size,)``."""
    draws: Tensor
    """``(chain, draw, size)``."""
    stats: dict[str, Tensor]
    """What is known of the draws, ``(chain, draw)`` by name."""
    method: str


def check_asked(family: Any, num_draws: int, num_chains: int, num_warmup: int, seed: int) -> None:
    """Raises ValueError where the arguments that all who draw take are wrong."""
    check_family(family, seed)
    for name, value in (("num_draws", num_draws), ("num_chains", num_chains), ("num_warmup", num_warmup)):
        check_count(name, value)


def check_family(family: Any, seed: int) -> None:
    """Raises ValueError where this is no program without arguments that returns a process, or no seed."""
    if not callable(family) or isinstance(family, MarkovDecisionProcess):
        raise ValueError(
            f"family must be a Pyro program without arguments, which draws what is unknown and returns a process, got "
            f"{type(family).__name__}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    _check_takes_nothing(family)


def draw_posterior(
    unknowns: Density[Any],
    method: str,
    num_draws: int,
    num_chains: int,
    num_warmup: int,
    progress: bool,
    ranks: Ranks = ALONE,
) -> Drawn:
    """Returns draws by ``"nuts"`` or ``"svi"``, or the one that is ``"map"``; warns where there are several modes.

    Ranks share the chains of ``"nuts"``, and each returns those of all.
    """
    found = modes(unknowns, volume=method != "map")
    mode = found[0]
    if method == "map":
        return Drawn(mode, mode[None, None], {}, method)
    scale = laplace_scale(unknowns, mode)
    starts = distinct_modes(unknowns, found, scale)
    if len(starts) > 1:
        _warn_of_modes(method)
    per_chain = -(-num_draws // num_chains)
    if unknowns.size == 0:
        return Drawn(mode, mode.expand(num_chains, per_chain, 0), {}, method)
    if method == "nuts":
        return Drawn(mode, *_nuts(unknowns, starts, scale, per_chain, num_chains, num_warmup, progress, ranks), method)
    return Drawn(mode, *_svi(unknowns, mode, scale, num_draws), method)


def _check_takes_nothing(family: Callable[[], Any]) -> None:
    try:
        inspect.signature(family).bind()
    except TypeError as problem:
        raise ValueError(f"family must be a program without arguments ({problem}); bind them, lambda: …") from None
    except ValueError:  # of a callable that has no signature to look at
        return


def _warn_of_modes(method: str) -> None:
    what = (
        "chains of NUTS start at different ones and may not pass between them: more chains help, and r_hat tells"
        if method == "nuts"
        else "the Gaussian is fitted at the highest alone; method='nuts' starts chains at several"
    )
    warnings.warn(f"the posterior has more than one mode, and {what}", UserWarning, stacklevel=levels_to_the_user())


def _nuts(
    unknowns: Density[Any],
    centres: list[Tensor],
    scale: Tensor,
    per_chain: int,
    num_chains: int,
    num_warmup: int,
    progress: bool,
    ranks: Ranks,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs Pyro's NUTS in the coordinates ``x`` of ``u = centres[0] + scale x``, chains about each centre in turn.

    Where and from which seed a chain starts is drawn for all of them, so that it is the same on whichever rank it runs.
    """
    mode = centres[0]
    about = [torch.linalg.solve_triangular(scale, (each - mode)[:, None], upper=False)[:, 0] for each in centres]
    starts = [about[index % len(about)] + torch.randn(unknowns.size).double() for index in range(num_chains)]
    examples = mode + torch.randn(2, num_chains, unknowns.size, dtype=torch.float64) @ scale.T
    seeds, own = torch.randint(2**62, (num_chains,)).tolist(), slice(*ranks.bounds(num_chains))
    starts, seeds, examples = starts[own], seeds[own], examples[:, own]
    gradient = batched_gradient(unknowns, examples) or gradient_by_row(unknowns)

    def answer(points: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        values, slopes = gradient(mode + torch.stack(points) @ scale.T)
        return list(zip(values, slopes @ scale, strict=True))

    def chain(start: Tensor, ask: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        def potential(values: dict[str, Tensor]) -> Tensor:
            x = values["x"]
            value, slope = ask(x.detach())
            return value + slope @ (x - x.detach())  # which has this value, and this gradient

        # A covariance that is estimated from few draws is worse than none: it makes steps short.
        full = 10 * unknowns.size <= num_warmup
        kernel = NUTS(potential_fn=potential, max_tree_depth=8, full_mass=full)
        kernel.initial_params = values = {"x": start}
        kernel.setup(num_warmup)
        draws = []
        for index in range(num_warmup + per_chain):
            values = kernel.sample(values)
            bar.advance("warm-up" if index < num_warmup else "sampling")
            draws.append(values["x"])
        diverged = torch.zeros(per_chain, dtype=torch.bool)
        diverged[list(kernel.diagnostics()["divergences"])] = True
        return torch.stack(draws[num_warmup:]), diverged

    # As in Pyro's own MCMC: handlers around the caller see nothing, and no distribution checks its arguments.
    with (
        pyro.poutine.block(),
        pyro.validation_enabled(False),
        progress_bar("NUTS", len(starts) * (num_warmup + per_chain), show=progress) as bar,
    ):
        found = lockstep([partial(chain, start) for start in starts], answer, seeds)
    draws, diverged = (torch.cat(ranks.gather(torch.stack(each))) for each in zip(*found, strict=True))
    in_step(ranks)
    return mode + draws @ scale.T, {"diverging": diverged}


def _svi(unknowns: Density[Any], mode: Tensor, scale: Tensor, num_draws: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Fits a Gaussian that starts as the Laplace approximation, by Adam with a falling learning rate."""
    support = dist.constraints.independent(dist.constraints.real, 1)

    def program() -> None:
        u = pyro.sample("u", dist.ImproperUniform(support, (), (unknowns.size,)))
        pyro.factor("posterior", -unknowns.potential(mode + scale @ u))

    store = pyro.get_param_store()
    own = f"{AutoMultivariateNormal.__name__}."
    state = store.get_state()
    kept = {part: {n: v for n, v in values.items() if not n.startswith(own)} for part, values in state.items()}
    with store.scope(kept):  # the family's parameters are the caller's
        guide = AutoMultivariateNormal(
            program, init_loc_fn=lambda site: torch.zeros(unknowns.size, dtype=torch.float64), init_scale=1.0
        )
        steps = 200
        optim = pyro.optim.ClippedAdam({"lr": 0.03, "lrd": 0.03 ** (1 / steps)})
        svi = SVI(program, guide, optim, loss=Trace_ELBO(num_particles=4))
        for _ in range(steps):
            svi.step()
        with torch.no_grad():
            u = guide.get_posterior().sample((num_draws,))
    return (mode + u @ scale.T)[None], {}


def as_inference_data(
    unknowns: Density[Any],
    drawn: Drawn,
    one: str,
    seen: dict[str, Tensor],
    attributes: dict[str, str],
    ranks: Ranks = ALONE,
) -> PosteriorData:
    """Returns draws as ArviZ data; discrete unknowns are drawn given the rest.

    Args:
        unknowns, drawn: whose draws.
        one: what one of those is called that were seen.
        seen: what was seen, by name.
        attributes: to be noted.
        ranks: who share the work of computing the draws' densities.
    """
    draws, stats, method = drawn.draws, dict(drawn.stats), drawn.method
    chains, count = draws.shape[:2]
    flat = draws.flatten(0, 1)
    values = {
        name: value.reshape(chains, count, *value.shape[1:]) for name, value in unknowns.constrained(flat)[0].items()
    }
    own = _logs(unknowns, flat[slice(*ranks.bounds(len(flat)))])
    logs, likelihood = (torch.cat(ranks.gather(each)) for each in own)
    which = logs.argmax(-1) if method == "map" else dist.Categorical(logits=logs).sample()
    chances = logs.softmax(-1)
    for name, support in unknowns.discrete.items():
        index = torch.tensor([_position(support, each[name]) for each in unknowns.combinations])
        values[name] = support[index[which]].reshape(chains, count)
        share = chances.new_zeros(len(flat), len(support)).index_add(1, index, chances)
        stats[f"probability_{name}"] = share.reshape(chains, count, -1)
    stats["lp"] = (torch.logsumexp(logs, -1) + unknowns.constrained(flat)[1]).reshape(chains, count)
    picked = likelihood[torch.arange(len(flat)), which].reshape(chains, count, -1)
    return to_arviz(
        {"posterior": values, "prior": unknowns.prior, "sample_stats": stats, "observed_data": seen},
        one,
        picked,
        unknowns.data.mask,
        attributes,
    )


def _logs(unknowns: Density[Any], draws: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log joint densities ``(D, K)`` and log likelihoods ``(D, K, N)``, for joint values of discrete sites."""
    parts = parts_by_row(unknowns)
    if unknowns.size and len(draws) >= 10 * _AT_ONCE:  # fewer do not pay for the record
        parts = batched_parts(unknowns, draws[: 2 * _AT_ONCE].reshape(2, _AT_ONCE, -1)) or parts
    joint, likelihood = [], []
    # With nothing continuous unknown, all draws share their density.
    for u in draws.split(_AT_ONCE) if unknowns.size else draws[None, :1]:
        prior, seen = parts(u)
        joint.append(prior + seen @ unknowns.data.tally)
        likelihood.append(unknowns.data.by_one(seen))
    found = torch.cat(joint), torch.cat(likelihood)
    return found if unknowns.size else (found[0].expand(len(draws), -1), found[1].expand(len(draws), -1, -1))


def to_arviz(
    groups: dict[str, dict[str, Tensor]], one: str, likelihood: Tensor | None, mask: Tensor, attributes: dict[str, Any]
) -> PosteriorData:
    """Returns groups of variables as ArviZ data.

    Args:
        groups: by name; that of the prior without the dimension of chains, or empty.
        one: what one of those is called that were seen.
        likelihood: the log probability of each, ``(chain, draw, N)`` in nats; None where there is no density.
        mask: which steps were seen, ``(T, N)``.
        attributes: to be noted.
    """
    arrays: dict[str, Any] = {
        group: {name: value.detach().cpu().numpy() for name, value in values.items()}
        for group, values in groups.items()
        if values
    }
    if "prior" in arrays:
        arrays["prior"] = {name: value[None] for name, value in arrays["prior"].items()}
    arrays.setdefault("constant_data", {})["mask"] = mask.cpu().numpy()
    if likelihood is not None:
        arrays["log_likelihood"] = {one: likelihood.detach().cpu().numpy()}
    dims = {one: [f"which_{one}"], "mask": ["time", f"which_{one}"]}
    return posterior_data(datasets(arrays, dims), attributes)


def _position(support: Tensor, value: Tensor) -> int:
    return int((support == value).nonzero()[0])


def warn_of_priors(unknowns: Density[Any], mode: Tensor, answer: Any) -> None:
    """Warns of unknowns that what was seen leaves at their prior.

    For continuous unknowns: a direction of the unconstrained vector along which the posterior's variance, by the
    prior's covariance and the Fisher information of what was seen, is more than 98% of the prior's. For a discrete
    one: its posterior within 0.01 of its prior in total variation.
    """
    noun, advice = unknowns.data.noun, f"the posterior equals the prior there, so {unknowns.data.advice}"
    if unknowns.size and unknowns.prior:
        prior = torch.atleast_2d(torch.cov(unknowns.prior_u().T))
        root = torch.linalg.cholesky(prior + 1e-12 * prior.diagonal().mean() * torch.eye(len(prior)))
        gained, directions = torch.linalg.eigh(root.T @ unknowns.information(mode) @ root)
        labels = [
            name if values[0].numel() == 1 else f"{name}[{i}]"
            for name in unknowns.names
            for i in range(unknowns.shape(name).numel())
            for values in [unknowns.prior[name]]
        ]
        for gain, direction in zip(gained, directions.T, strict=True):
            if 1 / (1 + float(gain)) > 0.98:
                u = root @ direction / prior.diagonal().sqrt()
                u = u / u[u.abs().argmax()]
                terms = [f"{float(c):+.2f} {label}" for c, label in zip(u, labels, strict=True) if abs(c) > 0.1]
                warnings.warn(
                    f"the {noun} say nothing about the direction {' '.join(terms)} (unconstrained, in prior "
                    f"standard deviations): {advice}",
                    UserWarning,
                    stacklevel=levels_to_the_user(),
                )
    for name, support in unknowns.discrete.items():
        after = torch.as_tensor(answer.sample_stats[f"probability_{name}"].values).mean((0, 1))
        before = unknowns.discrete_prior(name)
        if len(support) > 1 and float((after - before).abs().sum()) / 2 < 0.01:
            warnings.warn(
                f"the {noun} say nothing about {name}: {advice}", UserWarning, stacklevel=levels_to_the_user()
            )
