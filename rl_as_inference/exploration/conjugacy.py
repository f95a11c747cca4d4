"""Which unknowns of a family are conjugate to what is seen of its process, found by looking at its sites."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from rl_as_inference.exploration.affine import Affine, NotAffineError, affine
from rl_as_inference.processes import LinearGaussianMDP, MarkovDecisionProcess, TabularMDP
from rl_as_inference.processes.kernels import DenseKernel
from rl_as_inference.randomness import seeded

__all__ = ["Moves", "NotConjugateError", "Site", "Structure", "run_at"]

_REACH = (0, 0, 0, 1, -1)
"""Values at which the family is run: generic ones; far ones; and their opposites, so that limits on both sides are met.

The last verifies what the others suggest.
"""
_KINDS: dict[type, str] = {
    getattr(module, name): "normal" if "Normal" in name else name.lower()
    for module in (dist, torch.distributions)
    for name in ("Dirichlet", "Beta", "Normal", "MultivariateNormal")
}


class NotConjugateError(ValueError):
    """Says why a family has no conjugate posterior."""


class Site(NamedTuple):
    """A conjugate site."""

    name: str
    kind: str
    """``"dirichlet"``, ``"beta"`` or ``"normal"``."""
    shape: torch.Size
    like: Tensor
    """Empty, of the site's type and device."""
    start: int
    """Where it begins among the entries of all rows (Dirichlet, Beta), or among all Gaussian numbers."""

    @property
    def size(self) -> int:
        """How many entries it has; a Beta has two, p and 1 - p."""
        return self.shape.numel() * (2 if self.kind == "beta" else 1)

    @property
    def width(self) -> int:
        """How many entries a row of it has."""
        return 2 if self.kind == "beta" else self.shape[-1]

    def value(self, flat: Tensor) -> Tensor:
        """Returns values of the site, ``(*batch, *shape)``, from those of all entries of its kind, ``(*batch, E)``."""
        own = flat[..., self.start : self.start + self.size]
        own = own.unflatten(-1, (-1, 2))[..., 0] if self.kind == "beta" else own
        return own.reshape(flat.shape[:-1] + self.shape)


class Moves(NamedTuple):
    """A transition whose rows are Dirichlet rows, or known."""

    indices: Tensor
    """Successors, ``(S, A, K)``."""
    entries: Tensor
    """For each the entry of the Dirichlet rows that is its probability, ``(S, A, K)``; -1 where it is known."""
    probabilities: Tensor
    """Those that are known, float64 ``(S, A, K)``; 0 elsewhere."""
    dense: bool
    """Whether the ``K`` successors are all states, in their order."""

    def find(self, state: Tensor, action: Tensor, next_state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the entry of each transition, -1 where it is known or impossible; and its known probability."""
        if self.dense:
            return self.entries[state, action, next_state], self.probabilities[state, action, next_state]
        same = self.indices[state, action] == next_state[:, None]
        entry = torch.where(same, self.entries[state, action], -1).amax(-1)
        return entry, torch.where(same, self.probabilities[state, action], 0.0).sum(-1)


@dataclass(frozen=True)
class Structure:
    """A family with conjugate unknowns.

    Attributes:
        family: the program.
        process: at some value of the unknowns.
        sites: by name.
        concentration: of all entries of Dirichlet rows, ``(E,)`` float64.
        rows: which row each of them belongs to, ``(E,)``.
        moves: of a finite process, else None.
        numbers: what is affine in Gaussian numbers: rewards ``(S * A,)`` or ``(S * A * S,)`` of a finite process, and
            ``[A | B | drift]`` row by row of a linear one.
    """

    family: Callable[[], Any]
    process: MarkovDecisionProcess
    sites: dict[str, Site]
    concentration: Tensor
    rows: Tensor
    moves: Moves | None
    numbers: Affine
    untold: str | None = None
    """Another part of a finite process that depends on unknowns, of which transitions and rewards do not tell."""

    def check_told(self) -> None:
        """Raises ValueError if a plan would need an unknown of which transitions and rewards do not tell."""
        if self.untold is not None:
            raise ValueError(
                f"family: its {self.untold} depends on its unknowns, and one who explores takes it as known; fix it"
            )

    @staticmethod
    def of(family: Callable[[], Any]) -> Structure:
        """Returns the structure of a family.

        Raises:
            NotConjugateError: if it is not conjugate; says why.
        """
        # As if nobody had asked: no random numbers, handlers or gradients of the caller's are touched.
        with seeded(0), pyro.poutine.block(), torch.inference_mode(False), torch.no_grad():
            return _structure(family)


def _structure(family: Callable[[], Any]) -> Structure:
    try:
        found = _unknowns(pyro.poutine.trace(family).get_trace())
    except NotImplementedError as problem:
        raise NotConjugateError(f"the family cannot be drawn from ({problem})") from None
    sites = _sites(found)
    generator = torch.Generator().manual_seed(0)
    entries: list[Tensor] = []
    numbers, processes, densities = [], [], []
    for reach in _REACH:
        generator.manual_seed(len(entries) if reach == 0 else len(_REACH))
        values, flat, gauss = _generic(sites, found, generator, reach)
        process, trace = _traced(family, values)
        densities.append(_check_priors(trace, found))
        entries.append(flat)
        numbers.append(gauss)
        processes.append(process)
    if not all(abs(each - densities[0]) <= 1e-6 * (1 + abs(densities[0])) < math.inf for each in densities):
        raise NotConjugateError("the family observes something, or has factors, that depend on its unknowns")
    _check_alike(processes)
    first = processes[0]
    device = first.terminal.device if isinstance(first, TabularMDP) else first.A.device
    entries = [flat.to(device) for flat in entries]
    concentration, rows = (part.to(device) for part in _dirichlet_rows(sites, found))
    eps = max(torch.finfo(each.dtype).eps for each in (_numbers(first), *(site.like for site in sites.values())))
    if isinstance(first, TabularMDP):
        moves, groups = _moves(processes, entries, rows, eps), _row_of_cells(first)
    else:  # the noise ties all rows together
        moves, groups = None, torch.zeros_like(_numbers(first), dtype=torch.long)
    prior = [_gaussian(found[site.name]["fn"], site) for site in sites.values() if site.kind == "normal"]
    try:
        found_affine = affine(
            lambda flat: _numbers(_traced(family, _values(sites, entries[0], flat))[0]),
            [gauss.to(device) for gauss in numbers],
            [_numbers(process).detach().double() for process in processes],
            prior,
            groups,
            eps,
        )
    except NotAffineError as problem:
        raise NotConjugateError(f"{'reward' if moves is not None else 'A, B or drift'} {problem}") from None
    return Structure(family, first, sites, concentration, rows, moves, found_affine, _untold(processes))


def _dirichlet_rows(sites: dict[str, Site], found: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns the parameter of each entry, and the row that it belongs to."""
    parameters, rows, count = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.long)], 0
    for site in sites.values():
        if site.kind != "normal":
            parameters.append(_concentration(found[site.name]["fn"], site))
            rows.append(torch.arange(site.size) // site.width + count)
            count += site.size // site.width
    return torch.cat(parameters), torch.cat(rows)


def run_at(family: Callable[[], Any], values: dict[str, Tensor]) -> MarkovDecisionProcess:
    """Returns the process that a family builds at these values of its unknowns."""
    return _traced(family, values)[0]


def _traced(family: Callable[[], Any], values: dict[str, Tensor]) -> tuple[Any, Any]:
    with pyro.poutine.block():
        trace = pyro.poutine.trace(pyro.poutine.condition(family, data=values)).get_trace()
    process = trace.nodes["_RETURN"]["value"]
    if type(process) not in (TabularMDP, LinearGaussianMDP):  # others may not move and pay by their tables
        raise NotConjugateError(
            f"the family returns a {type(process).__name__}; a TabularMDP or a LinearGaussianMDP can be conjugate"
        )
    return process, trace


def _unknowns(trace: Any) -> dict[str, Any]:
    """Returns the sites of a run that are drawn."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and type(site["fn"]).__name__ != "_Subsample"
    }


def _bare(fn: Any) -> Any:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def _sites(found: dict[str, Any]) -> dict[str, Site]:
    if not found:
        raise NotConjugateError("the family has no unknowns: draw what is to be inferred with pyro.sample")
    sites, entries, numbers = {}, 0, 0
    for name, site in found.items():
        fn, value = _bare(site["fn"]), site["value"]
        kind = _KINDS.get(type(fn))  # a subclass may have a density of its own
        if kind is None:
            raise NotConjugateError(
                f"{name!r} is drawn from {type(fn).__name__}; Dirichlet, Beta, Normal and MultivariateNormal are "
                f"conjugate to what is seen of a process"
            )
        if site["mask"] is not None or site["scale"] != 1.0:
            raise NotConjugateError(f"the density of {name!r} is masked or scaled")
        sites[name] = Site(name, kind, value.shape, value.new_empty(0), numbers if kind == "normal" else entries)
        if kind == "normal":
            numbers += sites[name].size
        else:
            entries += sites[name].size
    return sites


def _concentration(fn: Any, site: Site) -> Tensor:
    """Returns the parameters of a Dirichlet or Beta site, one for each entry, float64 on the host."""
    bare = _bare(fn)
    if site.kind == "beta":
        both = torch.stack([bare.concentration1.expand(site.shape), bare.concentration0.expand(site.shape)], -1)
    else:
        both = bare.concentration.expand(site.shape)
    return both.detach().double().cpu().reshape(-1)


def _gaussian(fn: Any, site: Site) -> tuple[Tensor, Tensor]:
    """Returns the mean ``(n, k)`` and the Cholesky factor ``(n, k, k)`` of a site's independent vectors, float64."""
    bare = _bare(fn)
    if isinstance(bare, torch.distributions.Normal):
        mean, scale = bare.loc.expand(site.shape), bare.scale.expand(site.shape)
        return mean.detach().double().reshape(-1, 1), scale.detach().double().reshape(-1, 1, 1)
    size = site.shape[-1]
    factor = bare.scale_tril.expand(*site.shape, size)
    return bare.loc.expand(site.shape).detach().double().reshape(-1, size), factor.detach().double().reshape(
        -1, size, size
    )


def _parameters(fn: Any) -> list[Tensor]:
    bare = _bare(fn)
    names = (name for name in ("concentration", "concentration1", "concentration0", "loc", "scale", "scale_tril"))
    return [getattr(bare, name).detach() for name in names if hasattr(bare, name)]


def _check_priors(trace: Any, found: dict[str, Any]) -> float:
    """Returns the log density of what the family observes itself; raises where priors hang on other unknowns."""
    observed = 0.0
    trace.compute_log_prob(lambda name, site: name not in found)  # with masks and scales
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
            continue
        if name not in found:
            if not site["is_observed"]:
                raise NotConjugateError(f"{name!r} is drawn in some runs of the family and not in others")
            observed += float(torch.as_tensor(site["log_prob_sum"]).detach())
            continue
        for ours, theirs in zip(_parameters(site["fn"]), _parameters(found[name]["fn"]), strict=True):
            if ours.shape != theirs.shape or not torch.equal(ours, theirs):
                raise NotConjugateError(f"the prior of {name!r} depends on other unknowns")
    return observed


def _generic(
    sites: dict[str, Site], found: dict[str, Any], generator: torch.Generator, reach: int
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Returns values of the sites that nothing has in common by chance, and the same as entries and as numbers.

    Args:
        reach: 1 for values far on one side (of Gaussian numbers 15 to 45 standard deviations, of shares by factors of
            e⁸), so that limits (a clamp) are met; -1 for the other side, 0 for neither.
    """
    entries, numbers = [], []
    for site in sites.values():
        if site.kind == "normal":
            mean, factor = (x.cpu() for x in _gaussian(found[site.name]["fn"], site))
            noise = torch.randn(mean.shape, dtype=torch.float64, generator=generator)
            if reach:
                far = 15.0 + 30.0 * torch.rand(mean.shape, dtype=torch.float64, generator=generator)
                noise = reach * far * torch.where(noise < 0, -1.0, 1.0)
            numbers.append((mean + (factor @ noise[..., None]).squeeze(-1)).reshape(-1).to(site.like.dtype).double())
        else:
            uniform = torch.rand(site.size // site.width, site.width, dtype=torch.float64, generator=generator)
            ranks = uniform.argsort(-1).argsort(-1) / max(site.width - 1, 1)
            shares = (-8 * reach * ranks - uniform).exp() if reach else 0.5 + uniform
            shares = (shares / shares.sum(-1, keepdim=True)).to(site.like.dtype)
            if site.kind == "beta":
                shares = torch.stack([shares[:, 0], 1 - shares[:, 0]], -1)
            entries.append(shares.double().reshape(-1))
    empty = torch.zeros(0, dtype=torch.float64)
    flat, gauss = torch.cat([*entries, empty]), torch.cat([*numbers, empty])
    return _values(sites, flat, gauss), flat, gauss


def _values(sites: dict[str, Site], entries: Tensor, numbers: Tensor) -> dict[str, Tensor]:
    """Returns the sites' values, of their own types and on their own devices."""
    return {
        name: site.value(numbers if site.kind == "normal" else entries).to(site.like) for name, site in sites.items()
    }


def _check_alike(processes: list[Any]) -> None:
    first = processes[0]
    for other in processes[1:]:
        if type(other) is not type(first):
            raise NotConjugateError("the family returns processes of several kinds")
        if other.horizon != first.horizon:
            raise NotConjugateError("the horizon depends on the unknowns")
        if isinstance(first, TabularMDP):
            if other.terminal.shape != first.terminal.shape or not torch.equal(other.terminal, first.terminal):
                raise NotConjugateError("which states there are, or are terminal, depends on the unknowns")
            if other.num_actions != first.num_actions or other.reward_table.shape != first.reward_table.shape:
                raise NotConjugateError("the actions or the shape of the reward depend on the unknowns")
        else:
            for name in ("noise_cov", "state_cost", "action_cost"):
                ours, theirs = getattr(other, name), getattr(first, name)
                if ours.shape != theirs.shape or not torch.equal(ours, theirs):
                    raise NotConjugateError(f"{name} depends on the unknowns; A, B and drift may")


def _untold(processes: list[Any]) -> str | None:
    """Returns a part of finite processes that differs between them beside what is learned of; None if none does."""
    first = processes[0]
    parts = (
        ("initial_probabilities", "discount", "temperature", "action_prior") if isinstance(first, TabularMDP) else ()
    )
    for part in parts:
        ours = torch.as_tensor(getattr(first, part)).detach()
        if not all(torch.equal(ours, torch.as_tensor(getattr(other, part)).detach()) for other in processes[1:]):
            return part.replace("_probabilities", "_distribution").replace("_", " ")
    return None


def _numbers(process: Any) -> Tensor:
    """Returns what may be affine in Gaussian numbers, as one vector."""
    if isinstance(process, TabularMDP):
        table = process.reward_table
        if process.has_terminal:  # nothing is earned there, whatever the table says
            table = torch.where(process.terminal.reshape(-1, *[1] * (table.dim() - 1)), 0.0, table)
        return table.reshape(-1)
    return torch.cat([process.A, process.B, process.drift[:, None]], 1).reshape(-1)


def _row_of_cells(process: TabularMDP) -> Tensor | None:
    """Returns the state-action pair of each number of the reward, where successors have rewards of their own."""
    shape = process.reward_table.shape
    if len(shape) == 2:
        return None
    return torch.arange(shape[:2].numel(), device=process.terminal.device).repeat_interleave(shape[-1])


def _moves(processes: list[Any], entries: list[Tensor], rows: Tensor, eps: float) -> Moves:
    """Returns which entry each probability is; the last of the draws verifies what the others suggest."""
    indices, table = processes[0].kernel.rows()
    dense = isinstance(processes[0].kernel, DenseKernel)
    tables = []
    for process in processes:
        slots, probabilities = process.kernel.rows()
        if slots.shape != indices.shape or not torch.equal(slots, indices):
            raise NotConjugateError("which successors a state has depends on the unknowns")
        tables.append(probabilities.detach().double())
    tolerance = 8 * eps * max(1.0, table.shape[-1] ** 0.5)
    stacked = torch.stack(tables)
    varies = ((stacked[1:] - stacked[:1]).abs() > tolerance * stacked[:1].abs()).any(0)
    found = torch.full(table.shape, -1, dtype=torch.long, device=table.device)
    if not bool(varies.any()):
        return Moves(indices, found, _normalised(tables[0], torch.zeros_like(varies)), dense)
    open_rows = varies.any(-1)
    slots = open_rows[..., None] & (stacked != 0).any(0)
    where = slots.nonzero()
    wanted = stacked[:, slots]
    drawn = torch.stack(entries)
    match = _matches(wanted[:-1], drawn[:-1], tolerance)
    wrong = match < 0
    if not bool(wrong.any()):
        wrong = (drawn[-1, match] - wanted[-1]).abs() > tolerance * wanted[-1]
    if bool(wrong.any()):
        raise NotConjugateError(_not_a_row(indices, where[int(wrong.nonzero()[0])]))
    found[slots] = match
    used = torch.where(slots, rows[found.clamp(min=0)], -1)
    row = used.amax(-1)
    sizes = torch.bincount(rows)
    whole = ((used == row[..., None]) | ~slots).all(-1) & (slots.sum(-1) == sizes[row.clamp(min=0)])
    sort = torch.where(slots, found, -1).sort(-1).values
    whole &= ~((sort[..., 1:] == sort[..., :-1]) & (sort[..., 1:] >= 0)).any(-1)
    key = torch.where(slots, indices, -1).sort(-1).values
    whole &= ~((key[..., 1:] == key[..., :-1]) & (key[..., 1:] >= 0)).any(-1)
    bad = open_rows & ~whole
    if bool(bad.any()):
        raise NotConjugateError(_not_a_row(indices, bad.nonzero()[0]))
    return Moves(indices, found, _normalised(tables[0], open_rows[..., None].expand_as(slots)), dense)


def _not_a_row(indices: Tensor, where: Tensor) -> str:
    state, action = int(where[0]), int(where[1])
    return (
        f"the probabilities of what follows state {state} and action {action} are neither known nor those of one "
        f"Dirichlet (or Beta) draw, each once"
    )


def _normalised(table: Tensor, unknown: Tensor) -> Tensor:
    known = torch.where(unknown, 0.0, table)
    total = known.sum(-1, keepdim=True)
    return known / torch.where(total > 0, total, 1.0)


def _matches(wanted: Tensor, entries: Tensor, tolerance: float) -> Tensor:
    """Returns the entry that each number equals at all draws, ``(M,)``; -1 where there is none.

    Args:
        wanted: ``(D, M)``.
        entries: ``(D, E)``.
    """
    found = torch.full(wanted.shape[1:], -1, dtype=torch.long, device=wanted.device)
    if entries.shape[1] == 0:
        return found
    order = entries[0].argsort()
    ordered = entries[:, order]
    start = torch.searchsorted(ordered[0].contiguous(), (wanted[0] * (1 - tolerance)).contiguous())
    for step in range(min(32, entries.shape[1])):  # several may be equal by chance at the first draw
        at = (start + step).clamp(max=entries.shape[1] - 1)
        same = ((ordered[:, at] - wanted).abs() <= tolerance * wanted).all(0)
        found = torch.where((found < 0) & same, order[at], found)
        if bool((found >= 0).all()):
            break
    return found
