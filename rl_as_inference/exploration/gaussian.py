"""What is believed of Gaussian unknowns that are seen through numbers affine in them, with noise or exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from rl_as_inference.exploration.affine import Affine, by_block

__all__ = ["Exact", "Gaussian", "Noisy"]

_NOTHING_NEW = 1e-7
"""A number whose slopes have less than this share outside what is known says nothing new."""


@dataclass(frozen=True)
class Gaussian:
    """Blocks ``x = mean + factor z``, of ``z`` a priori standard normal and now with a mean and a factor of its own."""

    prior: Affine
    centre: Tensor
    """Of ``z``, ``(B, k)``."""
    root: Tensor
    """``R`` with ``R R'`` the covariance of ``z``, ``(B, k, k)``."""

    def means(self) -> Tensor:
        """Returns the mean of ``x``, ``(B, k)``."""
        return self.prior.mean + (self.prior.factor @ self.centre[..., None]).squeeze(-1)

    def roots(self) -> Tensor:
        """Returns ``R`` with ``R R'`` the covariance of ``x``, ``(B, k, k)``."""
        return self.prior.factor @ self.root

    def draw(self, count: int) -> Tensor:
        """Returns draws of all Gaussian numbers, ``(count, n)``."""
        noise = torch.randn(count, *self.centre.shape, dtype=torch.float64, device=self.centre.device)
        x = self.means() + torch.einsum("bij,nbj->nbi", self.roots(), noise)
        return x.flatten(1)[:, self.prior.place]


@dataclass(frozen=True)
class Noisy(Gaussian):
    """Numbers are seen with independent Gaussian noise.

    Least squares in triangular form: the mean of ``z`` solves ``upper z = target``. The precision, ``upper' upper``, is
    never formed, so that small noise costs half the digits that it would.
    """

    upper: Tensor
    """``(B, k, k)``."""
    target: Tensor
    """``(B, k)``."""

    @classmethod
    def before(cls, prior: Affine) -> Self:
        """Returns what is believed before anything is seen."""
        eye = torch.eye(prior.factor.shape[-1], dtype=torch.float64, device=prior.factor.device)
        unit = eye.expand_as(prior.factor)
        return cls(prior, torch.zeros_like(prior.mean), unit, unit, torch.zeros_like(prior.mean))

    def seeing(self, block: Tensor, slopes: Tensor, mean: Tensor, weight: Tensor) -> Self:
        """Returns what is believed after numbers ``slopes · x`` are seen.

        Args:
            block: the block of each, ``(N,)``.
            slopes: ``(N, k)``.
            mean: ``(N,)``, of what was seen of each.
            weight: ``(N,)``, the precision of that mean.
        """
        if len(block) == 0:
            return self
        left = (mean - (slopes * self.prior.mean[block]).sum(-1)) * weight.sqrt()
        own = by_block(slopes, block, self.prior.factor) * weight.sqrt()[:, None]
        upper, target = self.upper.clone(), self.target.clone()
        if own.shape[1] == 1:
            size = (upper[:, 0, 0].square().index_add(0, block, own[:, 0].square())).sqrt()
            target = ((upper[..., 0] * target).index_add(0, block, own * left[:, None])) / size[:, None]
            upper = size[:, None, None]
        else:
            for b in block.unique().tolist():
                here = block == b
                rows = torch.cat([own[here], left[here, None]], 1)
                table = torch.cat([torch.cat([upper[b], target[b, :, None]], 1), rows])
                triangle = torch.linalg.qr(table, mode="r").R
                upper[b], target[b] = triangle[: len(upper[b]), :-1], triangle[: len(upper[b]), -1]
        eye = torch.eye(upper.shape[-1], dtype=upper.dtype, device=upper.device).expand_as(upper)
        root = torch.linalg.solve_triangular(upper, eye, upper=True)
        centre = torch.linalg.solve_triangular(upper, target[..., None], upper=True).squeeze(-1)
        return replace(self, centre=centre, root=root, upper=upper, target=target)


@dataclass(frozen=True)
class Exact(Gaussian):
    """Numbers are seen as they are; what is known of ``z`` is its coordinates along orthonormal directions.

    ``root`` projects on what is left, which no rounding can make negative.
    """

    @classmethod
    def before(cls, prior: Affine) -> Self:
        """Returns what is believed before anything is seen."""
        eye = torch.eye(prior.factor.shape[-1], dtype=torch.float64, device=prior.factor.device)
        return cls(prior, torch.zeros_like(prior.mean), eye.expand_as(prior.factor))

    def seeing(self, block: Tensor, slopes: Tensor, value: Tensor) -> Self:
        """Returns what is believed after numbers ``slopes · x`` are seen to have these values.

        What those before it tell of a number already is not checked against its value.

        Args:
            block: the block of each, ``(N,)``.
            slopes: ``(N, k)``.
            value: ``(N,)``.
        """
        own = by_block(slopes, block, self.prior.factor)
        size = own.norm(dim=-1)
        ahead = by_block(own, block, self.root).norm(dim=-1) > _NOTHING_NEW * size
        own, left = own / size[:, None], (value - (slopes * self.prior.mean[block]).sum(-1)) / size
        centre, root = self.centre.clone(), self.root.clone()
        for i in ahead.nonzero().squeeze(-1).tolist():
            b = int(block[i])
            fresh = root[b] @ (root[b] @ own[i])  # twice, for orthogonality to rounding
            length = fresh.norm()
            if float(length) <= _NOTHING_NEW:
                continue
            fresh = fresh / length
            along = fresh @ own[i]
            centre[b] += fresh * ((left[i] - own[i] @ centre[b]) / along)
            root[b] -= torch.outer(fresh, fresh @ root[b])
        return replace(self, centre=centre, root=root)
