"""The modes of the posterior of a family's unknowns, and its scale about the highest."""

import math
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from rl_as_inference.reasoning.density import Density

__all__ = ["distinct_modes", "laplace_scale", "modes"]

_HEIGHT = 7.0
"""Nats below the highest mode from which on another is passed over: a thousandth as probable."""


def modes(unknowns: Density[Any], volume: bool) -> list[Tensor]:
    """Returns the vectors to which L-BFGS climbs from some prior draws, highest first, and that one to rounding."""
    if unknowns.size == 0:
        return [torch.zeros(0, dtype=torch.float64)]
    starts = torch.zeros(1, unknowns.size, dtype=torch.float64)
    if unknowns.prior:
        u = unknowns.prior_u()
        starts = torch.cat([u.median(0).values[None], u[:20]])
    with torch.no_grad():
        heights = torch.stack([unknowns.potential(start, volume) for start in starts])
    heights = torch.where(heights.isfinite(), heights, torch.inf)
    found = []
    for index in _far_apart(starts, heights):

        def height(x: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
            value, slope = unknowns.gradient(torch.as_tensor(x), volume)
            return value, slope.numpy()

        options = {"maxiter": 500, "ftol": 0.0, "gtol": 1e-8, "maxls": 50}
        found.append(
            scipy.optimize.minimize(height, starts[index].numpy(), jac=True, method="L-BFGS-B", options=options)
        )
    best, *others = (torch.as_tensor(each.x) for each in sorted(found, key=lambda each: each.fun))
    return [_polished(unknowns, best, volume), *others]


def _far_apart(starts: Tensor, heights: Tensor) -> list[int]:
    """Returns three starts: the best, and the best of those a standard deviation from it, as far as there are any."""
    spread = starts.std(0) if len(starts) > 1 else torch.ones_like(starts[0])
    order = [index for index in heights.argsort().tolist() if index == 0 or math.isfinite(heights[index])]
    chosen: list[int] = []
    for index in order:
        if all(float(((starts[index] - starts[other]) / spread).norm()) > 1 for other in chosen):
            chosen.append(index)
    rest = [index for index in order if index not in chosen]
    return [*chosen, *rest][:3]


def distinct_modes(unknowns: Density[Any], found: list[Tensor], scale: Tensor) -> list[Tensor]:
    """Returns the first mode, and others a standard deviation away that are not far less probable, each once."""
    if unknowns.size == 0:
        return found
    with torch.no_grad():
        heights = [float(unknowns.potential(mode)) for mode in found]
    kept = found[:1]
    for mode, height in zip(found[1:], heights[1:], strict=True):
        apart = [torch.linalg.solve_triangular(scale, (mode - other)[:, None], upper=False).norm() for other in kept]
        if height - heights[0] < _HEIGHT and min(float(each) for each in apart) > 1:
            kept.append(mode)
    return kept


def _polished(unknowns: Density[Any], mode: Tensor, volume: bool) -> Tensor:
    """Returns the mode after Newton steps, which end where L-BFGS is stopped by rounding of the height."""
    for _ in range(5):
        _, slope = unknowns.gradient(mode, volume)
        if float(slope.abs().max()) < 1e-9:
            break
        curvature = _curvature(unknowns, mode, volume)
        if float(torch.linalg.eigvalsh(curvature).min()) <= 0:
            break
        after = mode - torch.linalg.solve(curvature, slope)
        _, steeper = unknowns.gradient(after, volume)
        if not float(steeper.abs().max()) < float(slope.abs().max()):
            break
        mode = after
    return mode


def _curvature(unknowns: Density[Any], u: Tensor, volume: bool = True) -> Tensor:
    """Returns the second derivatives of the potential, by differences of its gradient."""
    step = 1e-5
    rows = [
        (unknowns.gradient(u + row, volume)[1] - unknowns.gradient(u - row, volume)[1]) / (2 * step)
        for row in torch.eye(unknowns.size, dtype=u.dtype) * step
    ]
    curvature = torch.stack(rows)
    return (curvature + curvature.T) / 2


def laplace_scale(unknowns: Density[Any], mode: Tensor) -> Tensor:
    """Returns the lower triangle ``L`` with ``L L'`` the covariance of the Laplace approximation."""
    if unknowns.size == 0:
        return torch.zeros(0, 0, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(_curvature(unknowns, mode))
    values = values.abs().clamp(min=1e-4)
    return torch.linalg.cholesky((vectors / values) @ vectors.T)
