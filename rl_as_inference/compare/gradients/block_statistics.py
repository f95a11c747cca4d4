"""What block means of a gradient estimator say about its bias and its variance."""

import math
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

__all__ = ["Summary", "best_share", "summarize"]


class Summary(NamedTuple):
    """Bias in standard errors and as a share, variance and direction of an estimator."""

    z_along: float | None
    z_global: float
    relative_bias: float | None
    variance: float
    variance_standard_error: float
    cosine: float | None


def summarize(blocks: Tensor, exact: Tensor, per_block: int) -> Summary:
    """Returns what independent block means ``(B, D)`` of ``per_block`` trajectories each say against ``exact``.

    - ``z_along``: of the one number ``⟨ĝ - g*, g*⟩/‖g*‖``, a t statistic of ``B - 1`` degrees of freedom; None
      where the exact gradient is 0.
    - ``z_global``: for a bias in any direction, one number too. ``B ‖ĝ - g*‖² / tr Σ`` is, without bias, nearly
      distributed as F with ``f`` and ``f (B - 1)`` degrees of freedom, ``f = (tr Σ)² / tr Σ²`` (Satterthwaite 1946), Σ
      being the blocks' covariance, ``tr Σ²`` unbiased (Bai & Saranadasa 1996). Its tail probability is given as the
      normal deviate with the same one, so that beyond 3 is 1.3 in a thousand, whatever the number of coordinates.
    - ``relative_bias``: ``‖E ĝ - g*‖/‖g*‖``, what noise adds to the squared norm taken off; 0 where nothing is left.
    - ``variance``: the trace of the covariance of one trajectory's gradient, nats², and its standard error, from
      ``2 tr Σ² / (B - 1)``, the variance of ``tr Σ`` where the blocks' means are normal.
    - ``cosine``: between ``ĝ`` and ``g*``.

    A standard error is never taken for less than rounding, 32 units in the last place of the gradient.
    """
    number = len(blocks)
    rounding = (32 * torch.finfo(blocks.dtype).eps * float(blocks.abs().max(0).values.norm())) ** 2
    blocks, exact = blocks.double(), exact.double()
    mean = blocks.mean(0)
    centred, off = blocks - mean, mean - exact
    gram = centred @ centred.mT / (number - 1)
    trace = float(gram.diagonal().sum())
    squared = float(gram.square().sum())
    squared = (number - 1) ** 2 / ((number + 1) * (number - 2)) * (squared - trace**2 / (number - 1))
    freedom = min(max(trace**2 / squared, 1.0), float(len(mean))) if squared > 0 else 1.0
    error = trace / number + rounding
    distance = float(off.square().sum())
    excess = distance / error if error > 0 else 1.0
    size, norm = float(exact.norm()), float(mean.norm())
    along = relative = cosine = None
    if size > 0:
        direction = exact / size
        spread = float((centred @ direction).square().sum()) / (number - 1) / number + rounding
        along = float(off @ direction) / math.sqrt(spread) if spread > 0 else 0.0
        relative = math.sqrt(max(distance - error, 0.0)) / size
        cosine = float(mean @ direction) / norm if norm > 0 else 0.0
    spread = per_block * math.sqrt(2 * max(squared, 0.0) / (number - 1))
    return Summary(along, _deviate(excess, freedom, number), relative, per_block * trace, spread, cosine)


def best_share(first: Tensor, second: Tensor) -> float:
    """Returns the ``c`` in [0, 1] for which ``(1 - c) first + c second``, of blocks ``(B, D)``, varies least."""
    first = first.double() - first.double().mean(0)
    change = second.double() - second.double().mean(0) - first
    size = float(change.square().sum())
    return min(max(-float((first * change).sum()) / size, 0.0), 1.0) if size > 0 else 0.0


def _deviate(ratio: float, freedom: float, number: int) -> float:
    """Returns the normal deviate with the upper tail of this F ratio."""
    tail = float(stats.f.sf(ratio, freedom, freedom * (number - 1)))
    if tail > 1e-200:
        return float(stats.norm.isf(tail))
    # Beyond what a tail probability can hold: the cube root that is nearly normal (Wilson & Hilferty 1931).
    narrow = 2 / (9 * freedom)
    return max(30.0, (ratio ** (1 / 3) - 1 + narrow) / math.sqrt(narrow))
