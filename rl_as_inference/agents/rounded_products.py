"""Matrix products of factors rounded to bfloat16, for processors that multiply so but do not round by themselves.

Asked for products in bfloat16, oneDNN rounds the factors of float32 itself where there are AMX tiles, and leaves them
as they are on other processors, AVX-512's own bfloat16 among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["rounding"]

_LEAST = 16
"""Rows, columns and terms of a product that is worth rounding for."""


def rounding() -> dict[Any, Callable[[Tensor, Tensor], Any]]:
    """Returns by what matrix products on the host are to be replaced, if the precision that is set now wants it."""
    wanted = torch.get_float32_matmul_precision() == "medium"
    if not wanted or not torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return {}
    return {product.default: _rounded_if_large for product in (torch.ops.aten.mm, torch.ops.aten.bmm)}


def _rounded_if_large(left: Tensor, right: Tensor) -> Any:
    if left.dtype != torch.float32 or min(*left.shape[-2:], right.shape[-1]) < _LEAST:
        return NotImplemented
    return _rounded(left, right)


# One operation to the compiler, which would round within the kernels before and after it, and make those slower than
# the product gets faster: 42 ms for 19 of an update with critics of 512.
@torch.library.custom_op("rl_as_inference::rounded_product", mutates_args=())
def _rounded(left: Tensor, right: Tensor) -> Tensor:
    product = torch.matmul(left.to(torch.bfloat16), right.to(torch.bfloat16))  # whose sums are of float32
    return product.to(torch.float32)


@_rounded.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(*left.shape[:-1], right.shape[-1])
