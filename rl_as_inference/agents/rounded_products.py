"""Matrix products of factors rounded to bfloat16, for processors that multiply so but do not round by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["rounding"]

_WORTH = 2**23
"""Multiplications of a product from which rounding repays itself: 256 rows and 128 × 128 gain nothing."""


def rounding() -> dict[Any, Callable[[Tensor, Tensor], Any]]:
    """Returns by what matrix products are to be replaced."""
    return {product.default: _rounded_if_large for product in (torch.ops.aten.mm, torch.ops.aten.bmm)}


def _rounded_if_large(left: Tensor, right: Tensor) -> Any:
    if left.dtype != torch.float32 or left.numel() * right.shape[-1] < _WORTH:
        return NotImplemented
    return torch.ops.rl_as_inference.rounded_product(left, right)


def _rounded_product(left: Tensor, right: Tensor) -> Tensor:
    product = torch.matmul(left.to(torch.bfloat16), right.to(torch.bfloat16))  # whose sums are of float32
    return product.to(torch.float32)


# One operation to the compiler, which would round within the kernels before and after it, and make those slower than
# the product gets faster: 42 ms for 19 of an update with critics of 512. Not torch.library.custom_op, whose first call
# imports the compiler.
_OPERATIONS = torch.library.Library("rl_as_inference", "FRAGMENT")
_OPERATIONS.define("rounded_product(Tensor left, Tensor right) -> Tensor")
_OPERATIONS.impl("rounded_product", _rounded_product, "CompositeExplicitAutograd")
