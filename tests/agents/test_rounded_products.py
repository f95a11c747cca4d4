"""Products of factors rounded to bfloat16, held to float64."""

from typing import Any

import pytest
import torch

from rl_as_inference.agents.compilation import accelerate
from rl_as_inference.threads import products_in, rounds_one_by_one


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies in bfloat16 but does not round by itself; any can compute what it would."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


N, M = 512, 128


def products(written: torch.Tensor, left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor) -> None:
    """A product with a bias, as a layer has, its gradient in a factor, a batch of two, and a narrow one."""
    layer = torch.addmm(bias, left, right)
    wide, batch = left.mT @ layer, torch.bmm(torch.stack([left, left]), torch.stack([right, 2 * right]))
    narrow = layer @ right[:4].T
    written.copy_(torch.cat([each.flatten() for each in (layer, wide, batch, narrow)]))


def made(precision: Any, compile: bool, **options: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(size, generator=generator) for size in ((N, M), (M, M), (M,))]
    sizes = [N * M, M * M, 2 * N * M, N * 4]
    written = torch.zeros(sum(sizes))
    with torch.no_grad(), products_in(precision):
        accelerate(products, [written], inputs, compile=compile, **options)(written, *inputs)
    return list(written.split(sizes)), inputs


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_factors_and_products_are_rounded_and_small_ones_are_left(rounds: None, compile: bool):
    """Against float64: bfloat16's last place is 2^-8 of a number; sums in float32 lose less than 1e-4 here."""
    (layer, wide, batch, narrow), (left, right, bias) = made("bfloat16", compile)

    def product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one.bfloat16().double() @ other.bfloat16().double()).to(torch.bfloat16).double()

    def assert_near(value: torch.Tensor, wanted: torch.Tensor, share: float) -> None:
        # A sum in float32 may fall on the other side of the middle between two numbers: one unit in the last place.
        assert ((value.view_as(wanted).double() - wanted).abs() / wanted.abs().clamp(min=1.0)).max() < share

    assert_near(layer, product(left, right) + bias.double(), 2**-7)
    assert_near(wide, product(left.mT, layer.view(N, M)), 2**-7)
    assert_near(batch, torch.stack([product(left, right), product(left, 2 * right)]), 2**-7)
    assert_near(narrow, layer.view(N, M).double() @ right[:4].T.double(), 1e-4)
    assert (layer.view(N, M) - (left @ right + bias)).abs().max() > 1e-2  # it is rounded


def test_what_is_rounded_is_what_was_asked_for_and_not_what_the_process_is_set_to(rounds: None):
    wanted, _ = made("float32", False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found, (left, right, bias) = made("float32", False)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found[0].view(N, M), left @ right + bias, rtol=0, atol=1e-4)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2)
    whole, _ = made("bfloat16", False, may_round=False)
    torch.testing.assert_close(whole, wanted, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("multiplies", "tiles"), [(False, False), (True, True)])
def test_what_rounds_by_itself_or_not_at_all_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool, tiles: bool
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    with products_in("bfloat16"):
        assert not rounds_one_by_one()
    assert not rounds_one_by_one()
