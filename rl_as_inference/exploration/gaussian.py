"""What is believed of Gaussian unknowns that are seen through numbers affine in them, with noise or exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from rl_as_inference.exploration.affine import Affine

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
        return x.reshape(count, -1)[:, self.prior.place]


@dataclass(frozen=True)
class Noisy(Gaussian):
    """Numbers are seen with independent Gaussian noise."""

    precision: Tensor
    """Of ``z``, ``(B, k, k)``."""
    pull: Tensor
    """The precision times the mean of ``z``, ``(B, k)``."""

    @classmethod
    def before(cls, prior: Affine) -> Self:
        """Returns what is believed before anything is seen."""
        eye = torch.eye(prior.factor.shape[-1], dtype=torch.float64, device=prior.factor.device)
        unit = eye.expand_as(prior.factor)
        return cls(prior, torch.zeros_like(prior.mean), unit, unit, torch.zeros_like(prior.mean))

    def seeing(self, block: Tensor, slopes: Tensor, total: Tensor, weight: Tensor) -> Self:
        """Returns what is believed after numbers ``slopes · x`` are seen.

        Args:
            block: the block of each, ``(N,)``.
            slopes: ``(N, k)``.
            total: ``(N,)``, the sum of what was seen times the noise's precision.
            weight: ``(N,)``, the sum of that precision.
        """
        if len(block) == 0:
            return self
        own = torch.einsum("ni,nij->nj", slopes, self.prior.factor[block])
        left = total - weight * (slopes * self.prior.mean[block]).sum(-1)
        if len(self.precision) == 1:
            precision = self.precision + (own.T * weight) @ own
        else:
            products = weight[:, None, None] * own[:, :, None] * own[:, None, :]
            precision = self.precision.index_add(0, block, products)
        pull = self.pull.index_add(0, block, left[:, None] * own)
        lower = torch.linalg.cholesky(precision)
        eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower)
        root = torch.linalg.solve_triangular(lower, eye, upper=False).mT
        centre = torch.cholesky_solve(pull[..., None], lower).squeeze(-1)
        return replace(self, centre=centre, root=root, precision=precision, pull=pull)


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
        own = torch.einsum("ni,nij->nj", slopes, self.prior.factor[block])
        size = own.norm(dim=-1)
        ahead = torch.einsum("nij,nj->ni", self.root[block], own).norm(dim=-1) > _NOTHING_NEW * size
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
