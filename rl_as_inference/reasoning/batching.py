"""The posterior density of an agent's unknowns at several points at once, with its gradient."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from rl_as_inference.checks import deferred
from rl_as_inference.reasoning.replay import recorded
from rl_as_inference.reasoning.unknowns import Unknowns

__all__ = ["Gradient", "batched_gradient", "row_by_row"]

Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Gives potentials ``(C,)`` in nats, infinite where there is none, and their gradients, at points ``(C, size)``."""

_TOLERANCE = 1e-8
"""Difference of a batched potential or gradient from a single one, relative to the largest, that is no rounding."""

_RECORD_LIMIT = 5_000
"""Steps of planning, some 50 operations each, up to which they are recorded; a record takes a minute at the limit."""


def row_by_row(unknowns: Unknowns) -> Gradient:
    """Returns the gradient of :class:`Unknowns`, one row after the other."""

    def gradient(u: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = zip(*(unknowns.gradient(row) for row in u), strict=True)
        return torch.tensor(values, dtype=u.dtype), torch.stack(slopes)

    return gradient


def batched_gradient(unknowns: Unknowns, examples: Tensor) -> Gradient | None:
    """Returns the gradient at up to ``C`` points in one evaluation; None where the family cannot be batched.

    The family is run under ``torch.func.vmap``, which refuses Python that depends on the unknowns' values. What it
    leaves are operations on tensors alone, which are recorded once and replayed without Pyro, constructors and
    planner. Conditions on values are noted on the way; a row that breaks one, or has no finite density, is asked
    anew by itself, so that all rows have the answers of :func:`row_by_row`.

    Args:
        unknowns: whose density it is.
        examples: points ``(2, C, size)``: what is recorded at the first is tried at the second.
    """
    single = row_by_row(unknowns)

    def density(u: Tensor) -> tuple[Tensor, Tensor]:
        with deferred() as conditions:
            value = unknowns.potential(u)
        return value, torch.stack([value.detach().isfinite(), *conditions]).all()

    def answers(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad(), pyro.validation_enabled(False):  # as in Pyro's MCMC, no checks of arguments
            at = u.detach().requires_grad_()
            values, passed = torch.func.vmap(density)(at)
            (slopes,) = torch.autograd.grad(values.sum(), at)
        return values.detach(), slopes, passed & slopes.isfinite().all(-1)

    def gradient(u: Tensor) -> tuple[Tensor, Tensor]:
        count = len(u)
        # One batch size: it is part of the record, and a row's last digits may depend on it.
        full = torch.cat([u, u[:1].expand(examples.shape[1] - count, -1)])
        try:
            values, slopes, passed = (part[:count] for part in quick(full))
        except RuntimeError:  # a factorization fails for all rows if it does for one
            return single(u)
        if not bool(passed.all()):
            values, slopes = values.clone(), slopes.clone()
            values[~passed], slopes[~passed] = single(u[~passed])
        return values, slopes

    for make in (recorded, _as_it_is)[unknowns.num_backups > _RECORD_LIMIT :]:
        try:
            quick = make(answers, examples[0])
            *found, passed = quick(examples[1])
        except Exception:  # whatever a family does that cannot be batched; by itself it ran before
            continue
        expected = single(examples[1])
        if bool(passed.any()) and all(
            _alike(ours[passed], theirs[passed]) for ours, theirs in zip(found, expected, strict=True)
        ):
            return gradient
    return None


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    return float((ours - theirs).abs().max()) <= _TOLERANCE * (1 + float(theirs.abs().max()))


def _as_it_is(function: Callable[..., Any], example: Tensor) -> Callable[..., Any]:
    return function
