"""The posterior density of a family's unknowns at several points at once.

The family is run under ``torch.func.vmap``, which refuses Python that depends on the unknowns' values. What is left
are operations on tensors alone, which are recorded once and replayed without Pyro, constructors and planner. Conditions
on values are noted on the way; a row that breaks one is asked anew by itself, so that every row has the answer that it
has alone. Where a family cannot be batched, all are asked by themselves.
"""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from rl_as_inference.checks import all_hold, deferred
from rl_as_inference.reasoning.density import Density
from rl_as_inference.tracing import in_direct_calls, traced

__all__ = ["batched_gradient", "batched_parts", "gradient_by_row", "parts_by_row"]

Batched = Callable[[Tensor], tuple[Tensor, ...]]
"""Gives tensors of a row for each point of ``(C, size)``."""

_RECORD_LIMIT = 1_500
"""Steps of planning, some 50 operations each, up to which they are recorded: a gigabyte and half a minute at most."""


_ENTRY_LIMIT = 30_000_000
"""Numbers in a kind of table over all rows up to which they are batched: several tables of 240 megabytes each. In
larger ones it is arithmetic that takes time, which batching does not spare."""


def gradient_by_row(unknowns: Density[Any]) -> Batched:
    """Returns the potentials ``(C,)`` in nats, infinite where there is none, and their gradients ``(C, size)``."""

    def gradient(u: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = zip(*(unknowns.gradient(row) for row in u), strict=True)
        return torch.tensor(values, dtype=u.dtype), torch.stack(slopes)

    return gradient


def parts_by_row(unknowns: Density[Any]) -> Batched:
    """Returns :meth:`Density.parts` of each row, ``(C, K)`` and ``(C, K, M)``, without gradient."""

    def parts(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            prior, seen = zip(*(unknowns.parts(row) for row in u), strict=True)
        return torch.stack(prior), torch.stack(seen)

    return parts


def batched_gradient(unknowns: Density[Any], examples: Tensor) -> Batched | None:
    """Returns :func:`gradient_by_row` of up to ``C`` points in one evaluation; None where it cannot be had.

    Args:
        unknowns: whose density it is.
        examples: points ``(2, C, size)``: what is recorded at the first is tried at the second.
    """

    def potential(u: Tensor) -> tuple[Tensor, Tensor]:
        with deferred() as conditions:
            value = unknowns.potential(u)
        return value, all_hold([value.isfinite(), *conditions])

    def answers(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad(), pyro.validation_enabled(False):  # as in Pyro's MCMC, no checks of arguments
            at = u.detach().requires_grad_()
            values, passed = torch.func.vmap(potential, randomness="same")(at)
            (slopes,) = torch.autograd.grad(values.sum(), at)
        return values.detach(), slopes, passed & slopes.isfinite().all(-1)

    return _tried(unknowns, answers, gradient_by_row(unknowns), examples)


def batched_parts(unknowns: Density[Any], examples: Tensor) -> Batched | None:
    """Returns :func:`parts_by_row` of up to ``C`` points in one evaluation; None where it cannot be had.

    Args:
        unknowns, examples: as for :func:`batched_gradient`.
    """

    def parts(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with deferred() as conditions:
            prior, seen = unknowns.parts(u)
        return prior, seen, all_hold([~seen.isnan().any(), *conditions])

    def answers(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad(), pyro.validation_enabled(False):
            return torch.func.vmap(parts, randomness="same")(u)

    return _tried(unknowns, answers, parts_by_row(unknowns), examples)


def _tried(unknowns: Density[Any], answers: Batched, single: Batched, examples: Tensor) -> Batched | None:
    """Returns the answers of a batch, with those of ``single`` for rows that do not pass; None where they differ.

    Args:
        answers: gives for each row what ``single`` gives, and last whether it passes.
    """

    def filled(u: Tensor) -> tuple[Tensor, ...]:
        count = len(u)
        # One batch size: it is part of the record, and a row's last digits may depend on it.
        full = torch.cat([u, u[:1].expand(examples.shape[1] - count, -1)])
        try:
            *found, passed = (part[:count] for part in quick(full))
        except RuntimeError:  # a factorization fails for all rows if it does for one
            return single(u)
        if bool(passed.all()):
            return tuple(found)
        alone = zip(found, single(u[~passed]), strict=True)
        return tuple(part.clone().index_put_((~passed,), own) for part, own in alone)

    def alike(ours: Tensor, theirs: Tensor) -> bool:
        largest = float(torch.where(theirs.isfinite(), theirs, 0.0).abs().max())
        return torch.allclose(ours, theirs, rtol=0.0, atol=unknowns.eps**0.5 * (1 + largest))

    if unknowns.num_entries * examples.shape[1] > _ENTRY_LIMIT:
        return None
    for make in (_recorded, _as_it_is)[unknowns.num_backups > _RECORD_LIMIT :]:
        try:
            quick = make(answers, examples[0])
            *found, passed = quick(examples[1])
        except Exception:  # whatever a family does that cannot be batched; by itself it ran before
            continue
        expected = single(examples[1])
        if bool(passed.any()) and all(
            alike(ours[passed], theirs[passed]) for ours, theirs in zip(found, expected, strict=True)
        ):
            return filled
    return None


def _recorded(function: Batched, example: Tensor) -> Batched:
    with torch.no_grad():
        graph = in_direct_calls(traced(function, [example]))

    def replay(u: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            answer: tuple[Tensor, ...] = graph(u)
        return answer

    return replay


def _as_it_is(function: Batched, example: Tensor) -> Batched:
    return function
