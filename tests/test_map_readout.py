"""Readouts of low-resolution maps: equal to those of the enlarged maps, which never all stand in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from live_memory import peak_bytes
from torch import Tensor

from fourd_core.kernels import map_readout
from fourd_core.kernels.map_readout import enlarged_mean, expected_position

SIZES = [
    ((4, 4), (14, 14)),
    ((3, 5), (7, 11)),
    ((6, 2), (6, 9)),
    ((8, 8), (5, 3)),
    ((1, 3), (4, 1)),
    ((28, 28), (112, 112)),
]


def noise(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def position_of_the_enlarged(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """The definition, all at once."""
    likely = F.interpolate(heat, size=size, mode="bilinear").flatten(2).softmax(-1).unflatten(-1, size)
    y, x = (torch.arange(n, dtype=heat.dtype) + 0.5 for n in size)
    return torch.stack([(likely.sum(-2) * x).sum(-1), (likely.sum(-1) * y).sum(-1)], -1)


def with_gradient(
    read: Callable[[Tensor, tuple[int, int]], Tensor], heat: Tensor, size: tuple[int, int]
) -> list[Tensor]:
    heat = heat.detach().requires_grad_()
    xy = read(heat, size)
    return [xy.detach(), *torch.autograd.grad(xy, heat, noise(*xy.shape, seed=1).to(xy.dtype))]


@pytest.mark.parametrize(("small", "size"), SIZES)
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_position_is_its_definition(small: tuple[int, int], size: tuple[int, int], scale: float) -> None:
    heat = noise(2, 3, *small, scale=scale)
    wanted = with_gradient(position_of_the_enlarged, heat, size)
    for found, right in zip(with_gradient(expected_position, heat, size), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("small", "size"), SIZES[:5])
def test_gradient_of_the_position(small: tuple[int, int], size: tuple[int, int]) -> None:
    heat = noise(2, 1, *small).requires_grad_()
    assert torch.autograd.gradcheck(lambda heat: expected_position(heat, size), heat)


def test_a_peak_far_above_every_pixel() -> None:
    heat = torch.zeros(1, 1, 64, 64)
    heat[0, 0, 20, 31] = 2000
    xy = expected_position(heat, (224, 224))
    torch.testing.assert_close(xy, torch.tensor([[[31.5, 20.5]]]) * 3.5, rtol=0, atol=0.3)
    assert (xy % 0.5 == 0).all()


def test_maps_go_through_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    heat, size = noise(3, 4, 16, 16).float(), (56, 56)
    wanted = with_gradient(expected_position, heat, size)
    whole = 4 * 12 * 56 * 56

    def once() -> Tensor:
        return with_gradient(expected_position, heat, size)[1]

    monkeypatch.setattr(map_readout, "IN_CACHE", 2 * 56 * 56)
    for found, right in zip(with_gradient(expected_position, heat, size), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
    assert peak_bytes(once) < whole, "of twelve maps, two at a time: their logits twice and once as a factor"
    monkeypatch.setattr(map_readout, "IN_CACHE", 2**30)
    assert peak_bytes(once) > 2 * whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    heat = noise(2, 3, 6, 6, scale=5).to(dtype)
    xy, gradient = with_gradient(expected_position, heat, (20, 20))
    right, right_gradient = with_gradient(expected_position, heat.float(), (20, 20))
    assert torch.equal(xy, right)
    assert torch.equal(gradient, right_gradient.to(dtype))
    assert torch.equal(enlarged_mean(heat[None], (20, 20)), enlarged_mean(heat[None].float(), (20, 20)))


def test_autocast_changes_nothing() -> None:
    heat = noise(2, 3, 6, 6, scale=5).float()
    wanted = with_gradient(expected_position, heat, (20, 20)), enlarged_mean(heat[None], (20, 20))
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradient(expected_position, heat, (20, 20)), enlarged_mean(heat[None], (20, 20))
    assert all(torch.equal(*pair) for pair in zip(found[0], wanted[0], strict=True))
    assert torch.equal(found[1], wanted[1])


def test_maps_that_lie_apart_and_no_maps() -> None:
    maps = noise(2, 3, 4, 5, 6)
    torch.testing.assert_close(expected_position(maps[:, 1], (9, 9)), expected_position(maps[:, 1].clone(), (9, 9)))
    assert expected_position(maps[:0, 0], (9, 9)).shape == (0, 4, 2)


@pytest.mark.parametrize(("small", "size"), SIZES)
def test_mean_of_the_enlarged_map(small: tuple[int, int], size: tuple[int, int]) -> None:
    maps = noise(2, 3, 2, *small)
    enlarged = F.interpolate(maps, (2, *size), mode="trilinear")
    torch.testing.assert_close(enlarged_mean(maps, size), enlarged.mean((-2, -1)), rtol=1e-12, atol=1e-12)


class Positions(torch.nn.Module):
    def forward(self, heat: Tensor) -> Tensor:
        return expected_position(heat, (9, 11))


@pytest.mark.usefixtures("unchecked")
def test_compiled_and_exported() -> None:
    heat = noise(2, 3, 4, 5)
    wanted = with_gradient(expected_position, heat, (9, 11))
    compiled = torch.compile(expected_position, backend="aot_eager", fullgraph=True)
    for found, right in zip(with_gradient(compiled, heat, (9, 11)), wanted, strict=True):
        torch.testing.assert_close(found, right)
    exported = torch.export.export(Positions(), (heat,))
    torch.testing.assert_close(exported.module()(heat), wanted[0])


@pytest.mark.parametrize("size", [(0, 9), (9, -1), (9,), (9, 9, 9), (9.0, 9.5), 9])
@pytest.mark.usefixtures("unchecked")
def test_a_size_is_two_whole_numbers_above_0(size: Any) -> None:
    for read, maps in ((expected_position, torch.ones(2, 3, 4, 5)), (enlarged_mean, torch.ones(2, 1, 3, 4, 5))):
        with pytest.raises(ValueError, match="size must be two whole numbers above 0, rows and columns, got"):
            read(maps, size)


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5), (2, 3, 1, 4, 5, 1), (2, 3, 0, 5), (2, 1, 3, 4, 0)])
@pytest.mark.usefixtures("unchecked")
def test_maps_have_their_axes_and_a_pixel(shape: tuple[int, ...]) -> None:
    for read, axes in ((expected_position, "n t y x"), (enlarged_mean, "n m t y x")):
        with pytest.raises(ValueError, match=f"maps must be '{axes}' with a pixel or more, got"):
            read(torch.ones(shape), (9, 9))
