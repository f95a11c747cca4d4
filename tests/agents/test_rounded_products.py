"""Products of factors rounded to bfloat16, held to float64."""

from typing import Any

import pytest
import torch

from rl_as_inference.agents.compilation import accelerate
from rl_as_inference.agents.rounded_products import rounding
from rl_as_inference.threads import products_in


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies in bfloat16 but does not round by itself; any can compute what it would."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


def products(written: torch.Tensor, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor) -> None:
    """A product with a bias, as a layer has, its gradient in a factor, a batch of two, and a narrow one."""
    layer = torch.addmm(bias, left, right)
    wide, batch = left.mT @ layer, torch.bmm(torch.stack([left, left]), torch.stack([right, 2 * right]))
    narrow = layer @ right[:4].T[: layer.shape[1]]
    written.copy_(torch.cat([each.flatten() for each in (layer, wide, batch, narrow)]))


def made(precision: Any, compile: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(size, generator=generator) for size in ((48, 32), (32, 32), (32,))]
    written = torch.zeros(48 * 32 + 32 * 32 + 2 * 48 * 32 + 48 * 4)
    with torch.no_grad(), products_in(precision):
        accelerate(products, [written], inputs, compile=compile)(written, *inputs)
    return written, inputs


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_factors_and_products_are_rounded_and_narrow_ones_are_left(rounds: None, compile: bool):
    """Against float64, in which nothing is lost: half a unit of bfloat16's last place (2^-9), for float32 sums 1e-6."""
    found, (left, right, bias) = made("bfloat16", compile)
    layer, wide, batch, narrow = found.split([48 * 32, 32 * 32, 2 * 48 * 32, 48 * 4])

    def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        exact = one.bfloat16().double() @ other.bfloat16().double()
        return exact.to(torch.bfloat16).double()

    def assert_near(value: torch.Tensor, wanted: torch.Tensor, share: float) -> None:
        # A sum in float32 may fall on the other side of the middle between two numbers: one unit in the last place.
        scale = wanted.abs().max().clamp(min=1.0)
        assert ((value.view_as(wanted).double() - wanted).abs() / scale).max() < share

    expected = product(left, right) + bias.double()
    assert_near(layer, expected, 2**-8)
    assert_near(wide, product(left.mT, layer.view(48, 32)), 2**-8)
    assert_near(batch, torch.stack([product(left, right), product(left, 2 * right)]), 2**-8)
    assert_near(narrow, layer.view(48, 32).double() @ right[:4].T.double(), 1e-6)
    whole = left.double() @ right.double() + bias.double()
    assert (layer.view(48, 32) - whole).abs().max() > 1e-4  # it is rounded


def test_in_float32_nothing_is_rounded(rounds: None):
    found, (left, right, bias) = made("float32", False)
    torch.testing.assert_close(found[: 48 * 32].view(48, 32), left @ right + bias, rtol=0, atol=1e-5)
    assert rounding() == {}


@pytest.mark.parametrize(("multiplies", "tiles"), [(False, False), (True, True)])
def test_what_rounds_by_itself_or_not_at_all_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool, tiles: bool
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    with products_in("bfloat16"):
        assert rounding() == {}
