"""The expected position by Triton against its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some
from torch import Tensor

from fourd_core.kernels.choice import using
from fourd_core.kernels.map_readout import expected_position

pytestmark = pytest.mark.usefixtures("triton")


def noise(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_gradient(
    read: Callable[[Tensor, tuple[int, int]], Tensor], heat: Tensor, size: tuple[int, int]
) -> list[Tensor]:
    heat = heat.detach().requires_grad_()
    xy = read(heat, size)
    return [xy.detach(), *torch.autograd.grad(xy, heat, noise(*xy.shape, seed=1).to(xy))]


def plain(heat: Tensor, size: tuple[int, int]) -> Tensor:
    with using("plain"):
        return expected_position(heat, size)


axes = some.sampled_from([(1, 1), (1, 3), (2, 1), (3, 3), (5, 4), (5, 9), (8, 12), (2, 7)])
"""Places of the small map and of the enlarged one; few pixels in a cell, which cost the interpreter a step each."""


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    maps=some.sampled_from([(1, 1), (1, 2), (2, 1)]),
    down=axes,
    right=axes,
    scale=some.sampled_from([1.0, 60.0]),
    layout=some.sampled_from(["rows", "columns", "apart", "cut out"]),
)
@example((2, 1), (5, 9), (3, 7), 1.0, "cut out")
def test_kernel_is_the_definition(
    device: torch.device,
    maps: tuple[int, int],
    down: tuple[int, int],
    right: tuple[int, int],
    scale: float,
    layout: str,
) -> None:
    small, size = zip(down, right, strict=True)
    many = noise(maps[0], 3, maps[1], *small, scale=scale).to(device)
    one = many[:, 1]
    cut_out = F.pad(one, (2, 1, 1, 2))[..., 1:-2, 2:-1]
    heat = {"rows": one.clone(), "columns": one.mT.contiguous().mT, "apart": one, "cut out": cut_out}[layout]
    wanted = with_gradient(plain, heat, size)
    for found, right in zip(with_gradient(expected_position, heat, size), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


def test_seven_maps(device: torch.device) -> None:
    heat = noise(7, 1, 2, 3, scale=3).to(device)
    wanted = with_gradient(plain, heat, (3, 6))
    for found, right in zip(with_gradient(expected_position, heat, (3, 6)), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


def test_more_cells_than_a_program_has_lanes(device: torch.device) -> None:
    heat = noise(1, 1, 25, 31, scale=5).to(device)
    wanted = with_gradient(plain, heat, (60, 60))
    for found, right in zip(with_gradient(expected_position, heat, (60, 60)), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)
    for found, right in zip(with_gradient(expected_position, heat.float(), (60, 60)), wanted, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=0, atol=1e-5 * float(right.abs().max()))


def test_gradient(device: torch.device) -> None:
    heat = noise(1, 1, 3, 2).to(device).requires_grad_()
    assert torch.autograd.gradcheck(lambda heat: expected_position(heat, (5, 4)), heat)
    # Of a sum the incoming gradient is one number, seen at every place.
    slopes = [torch.autograd.grad(read(heat, (5, 4)).sum(), heat)[0] for read in (expected_position, plain)]
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-13)


def test_a_peak_far_above_every_pixel(device: torch.device) -> None:
    """Measured from the small map's largest value every exponential would vanish."""
    heat = torch.zeros(1, 1, 16, 16, device=device)
    heat[0, 0, 4, 7] = 2000
    torch.testing.assert_close(expected_position(heat, (56, 56)), plain(heat, (56, 56)))
    assert with_gradient(expected_position, heat, (56, 56))[1].isfinite().all()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Positions as of the same numbers in float32; gradients are rounded once."""
    heat = noise(1, 2, 6, 7, scale=5).to(device, dtype)
    xy, gradient = with_gradient(expected_position, heat, (20, 20))
    right, right_gradient = with_gradient(plain, heat.float(), (20, 20))
    assert xy.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(xy, right, rtol=0, atol=5e-5)
    torch.testing.assert_close(gradient.float(), right_gradient, rtol=error, atol=error * 1e-2)


def test_twice_the_same_bits(device: torch.device) -> None:
    heat = noise(2, 1, 9, 9).float().to(device)
    first, second = (with_gradient(expected_position, heat, (30, 30)) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_nothing_is_enlarged_and_no_maps(device: torch.device) -> None:
    heat = noise(2, 1, 4, 5).to(device)
    torch.testing.assert_close(expected_position(heat, (4, 5)), plain(heat, (4, 5)))
    assert expected_position(heat[:0], (9, 9)).shape == (0, 1, 2)
    heat[1, 0, 2, 2] = torch.nan
    assert expected_position(heat, (9, 9)).isnan().all(-1).tolist() == [[False], [True]]


class Positions(torch.nn.Module):
    def forward(self, heat: Tensor) -> Tensor:
        return expected_position(heat, (7, 8))


@pytest.mark.usefixtures("unchecked")
def test_compiled_and_exported(device: torch.device) -> None:
    heat = noise(1, 1, 3, 4).to(device)
    wanted = with_gradient(expected_position, heat, (7, 8))
    compiled = torch.compile(expected_position, backend="aot_eager", fullgraph=True)
    for found, right in zip(with_gradient(compiled, heat, (7, 8)), wanted, strict=True):
        torch.testing.assert_close(found, right)
    exported = torch.export.export(Positions(), (heat,))
    assert "fourd.expected_position" in str(exported.graph)
    torch.testing.assert_close(exported.module()(heat), wanted[0])
    torch.library.opcheck(torch.ops.fourd.expected_position.default, (heat.requires_grad_(), 7, 8))


def test_who_runs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself the kernel is chosen on a GPU only."""
    from fourd_core.kernels.triton import map_readout as kernels

    def refuse(*_: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(kernels, "expected_position", refuse)
    heat = noise(1, 1, 3, 4).to(device)
    plain(heat, (7, 8))
    with pytest.raises(AssertionError):
        expected_position(heat, (7, 8))
    with using("best"):
        expected_position(heat.cpu(), (7, 8))
