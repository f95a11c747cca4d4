"""Systems ``x = right + J x`` of nonnegative ``J``: discounted sums along a chain, dense or sparse, to rounding."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy.sparse import csr_matrix, identity
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scipy.sparse.linalg import LinearOperator, gmres, spilu, splu
from torch import Tensor

from rl_as_inference.checks import is_deferred
from rl_as_inference.processes.kernels import gathered

__all__ = ["Jacobian", "Slots", "applied", "is_dense", "level_and_rest", "newton_step", "of_level_and_rest", "solved"]

_DENSE_LIMIT = 3000
"""Systems of up to this many states are solved densely."""


@dataclass(frozen=True)
class Slots:
    """A sparse matrix by rows: ``values (S, M)`` at columns ``indices (S, M)``, which may repeat."""

    indices: Tensor
    values: Tensor

    def dense(self) -> Tensor:
        return gathered(self.indices, self.values, len(self.values))


Jacobian = Tensor | Slots


def is_dense(num_states: int) -> bool:
    """Returns whether systems of that size are solved densely."""
    return num_states <= _DENSE_LIMIT


def applied(jacobian: Jacobian, vector: Tensor) -> Tensor:
    """Returns ``J x``."""
    if isinstance(jacobian, Slots):
        return (jacobian.values * vector[jacobian.indices]).sum(-1)
    return jacobian @ vector


def solved(jacobian: Jacobian, right: Tensor, transpose: bool = False) -> Tensor:
    """Returns ``x`` of ``x = right + J x``, with ``transpose`` of ``x = right + J^T x``; differentiable to any order.

    It is NaN or infinite where there is none.

    Raises:
        ValueError: if a sparse system could not be solved.
    """
    if isinstance(jacobian, Slots):
        return cast(Tensor, _Sparse.apply(jacobian.values, right, jacobian.indices, transpose))  # type: ignore[no-untyped-call]
    if not is_deferred():
        return cast(Tensor, _Dense.apply(jacobian, right, transpose))  # type: ignore[no-untyped-call]
    system = _identity(jacobian) - jacobian
    return torch.linalg.solve_ex(system.mT if transpose else system, right)[0]


def level_and_rest(jacobian: Jacobian, right: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``c`` and ``h`` of ``x = right + J x`` with ``x = c + h`` and ``h = 0`` in the first state.

    For ``J`` whose rows all sum to ``1 - rate``. As the rate falls the level ``c`` grows without bound, and with it the
    rounding of ``x``; the system of ``rate c`` and ``h`` is as well conditioned as the chain mixes.
    """
    found = solved(_leveled(jacobian, rate), right)
    return found[0] / rate, torch.cat([torch.zeros_like(found[:1]), found[1:]])


@torch.no_grad()
def newton_step(jacobian: Jacobian, right: Tensor, rate: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns what :func:`level_and_rest` does, the level times ``rate``; without a rate 0 and :func:`solved`.

    To rounding of the elimination alone: the next step mends it.
    """
    if isinstance(jacobian, Slots):
        found = solved(jacobian if rate is None else _leveled(jacobian, rate), right)
    else:
        system = jacobian.neg()
        system.diagonal().add_(1.0)
        if rate is not None:
            system[:, 0] = 1.0
        found = torch.linalg.solve_ex(system, right)[0]
    if rate is None:
        return torch.zeros_like(found[0]), found
    return found[0], torch.cat([torch.zeros_like(found[:1]), found[1:]])


def of_level_and_rest(jacobian: Jacobian, level: Tensor, rest: Tensor, rate: Tensor) -> Tensor:
    """Returns the adjoint of :func:`level_and_rest`, ``(S,)``, applied to ``(level, rest)``."""
    return solved(_leveled(jacobian, rate), torch.cat([level[None] / rate, rest[1:]]), transpose=True)


def _leveled(jacobian: Jacobian, rate: Tensor) -> Jacobian:
    """Returns ``J`` with another first column: that of ``I - J`` is what a level of ``1/rate`` adds, which is one."""
    values = jacobian.values if isinstance(jacobian, Slots) else jacobian
    column = values.new_full((len(values),), -1.0)
    column[0] = 0.0
    if values.requires_grad or is_deferred():  # known, but it has slopes
        sums = applied(jacobian, torch.ones_like(column))
        column = column + (sums - sums.detach()) / rate
    if isinstance(jacobian, Slots):
        values = torch.where(jacobian.indices == 0, 0.0, jacobian.values)
        indices = torch.cat([torch.zeros_like(jacobian.indices[:, :1]), jacobian.indices], 1)
        return Slots(indices, torch.cat([column[:, None], values], 1))
    return torch.cat([column[:, None], jacobian[:, 1:]], 1)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)


class _Dense(torch.autograd.Function):
    """A dense solution, refined once: of long sums elimination leaves several times the rounding of its terms."""

    @staticmethod
    def forward(ctx: Any, jacobian: Tensor, right: Tensor, transpose: bool) -> Tensor:
        system = _identity(jacobian) - jacobian
        factors, pivots, _ = torch.linalg.lu_factor_ex(system)
        solution = torch.linalg.lu_solve(factors, pivots, right[:, None], adjoint=transpose)[:, 0]
        left = right - solution + (jacobian.mT if transpose else jacobian) @ solution
        solution = solution + torch.linalg.lu_solve(factors, pivots, left[:, None], adjoint=transpose)[:, 0]
        ctx.save_for_backward(jacobian, solution)
        ctx.transpose = transpose
        return solution

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        jacobian, solution = ctx.saved_tensors
        onward = _Dense.apply(jacobian, grad, not ctx.transpose)  # type: ignore[no-untyped-call]
        slope = torch.outer(solution, onward) if ctx.transpose else torch.outer(onward, solution)
        return slope, onward, None


class _Sparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, right: Tensor, indices: Tensor, transpose: bool) -> Tensor:
        count, per_row = indices.shape
        shape = (count, count)
        matrix = csr_matrix(
            (
                values.detach().double().cpu().numpy().ravel(),
                indices.cpu().numpy().ravel(),
                np.arange(0, count * per_row + 1, per_row),
            ),
            shape,
        )
        system = identity(count, format="csr") - matrix
        found = _solve(system.T.tocsr() if transpose else system, right.detach().double().cpu().numpy())
        solution = torch.as_tensor(found).to(right)
        ctx.save_for_backward(values, indices, solution)
        ctx.transpose = transpose
        return solution

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        values, indices, solution = ctx.saved_tensors
        onward = _Sparse.apply(values, grad, indices, not ctx.transpose)  # type: ignore[no-untyped-call]
        rows, columns = (solution, onward) if ctx.transpose else (onward, solution)
        return rows[:, None] * columns[indices], onward, None, None


def _solve(system: Any, right: Any) -> Any:
    """Returns the solution, whose residual is of the size of rounding."""
    size = abs(system).sum(1).max()
    others = (_by_iteration, _by_incomplete_elimination, _by_long_iteration)
    for way in (_by_elimination, *others) if _is_narrow(system) else (*others, _by_elimination):
        try:
            approximately = way(system)
        except (RuntimeError, MemoryError):  # a pivot of 0, or too many entries
            continue
        solution, left, least = np.zeros_like(right), right, np.abs(right).max()
        for _ in range(20):
            finer = solution + approximately(left)
            left = right - system @ finer
            most = np.abs(left).max()
            if not most < least:  # also of NaN
                break
            slow = most > 0.1 * least
            solution, least = finer, most
            if slow:
                break
        if least <= 1e-14 * (np.abs(right).max() + size * np.abs(solution).max()):
            return solution
    raise ValueError(
        f"a sparse system of {len(right):,} states could not be solved; set a horizon or a smaller discount, or give "
        f"the process by fewer states"
    )


def _is_narrow(system: Any) -> bool:
    """Returns whether states lead to near ones alone, in some order of them, so that factors are sparse."""
    local = system[1:, 1:]  # the first column may stand for a level that all states share
    order = reverse_cuthill_mckee(local)
    entries = local[order][:, order].tocoo()
    return bool(np.abs(entries.row - entries.col).mean() < 0.02 * local.shape[0])


def _by_iteration(system: Any) -> Any:
    """Where states are soon forgotten, as on random graphs, whose factors would be dense."""
    return lambda right: gmres(system, right, rtol=1e-8, restart=30, maxiter=1)[0]


def _by_incomplete_elimination(system: Any) -> Any:
    """Where news travels slowly, as along a ring, and factors are sparse."""
    preconditioner = LinearOperator(system.shape, spilu(system.tocsc(), drop_tol=1e-6, fill_factor=10).solve)
    return lambda right: gmres(system, right, M=preconditioner, rtol=1e-8, restart=60, maxiter=5)[0]


def _by_long_iteration(system: Any) -> Any:
    return lambda right: gmres(system, right, rtol=1e-8, restart=400, maxiter=1)[0]


def _by_elimination(system: Any) -> Any:
    return splu(system.tocsc()).solve
