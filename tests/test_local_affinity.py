"""Local affinity: equal to its definition written pixel by pixel, and lean in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from live_memory import peak_bytes
from torch import Tensor

from fourd_core.kernels.local_affinity import NEIGHBOURS, local_affinity, propagate

DILATIONS = (1, 3)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def positions(y: int, x: int, h: int, w: int, dilation: int) -> list[tuple[int, int]]:
    """The 3 x 3 pixels around a pixel, row by row, the nearest border pixel beyond the border."""
    return [
        (min(max(y + dy * dilation, 0), h - 1), min(max(x + dx * dilation, 0), w - 1))
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]


def neighbours(y: int, x: int, h: int, w: int, dilations: tuple[int, ...]) -> list[tuple[int, int]]:
    return [p for d in dilations for i, p in enumerate(positions(y, x, h, w, d)) if i != 4]


def affinity_by_pixel(guide: Tensor, dilations: tuple[int, ...], sigma: float, eps: float) -> Tensor:
    """The definition for one guide `c h w`."""
    c, h, w = guide.shape
    weights = guide.new_empty(8 * len(dilations), h, w)
    for y in range(h):
        for x in range(w):
            gathered = [p for d in dilations for p in positions(y, x, h, w, d)]
            near = neighbours(y, x, h, w, dilations)
            scores = torch.zeros(len(near), dtype=guide.dtype)
            for k in range(c):
                deviation = torch.stack([guide[k, v, u] for v, u in gathered]).std()
                scores -= torch.stack([(guide[k, y, x] - guide[k, v, u]).abs() for v, u in near]) / (
                    c * (eps + sigma * deviation)
                )
            weights[:, y, x] = scores.softmax(0)
    return weights


def propagate_by_pixel(maps: Tensor, weights: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """One round for one map `c h w`."""
    _, h, w = maps.shape
    result = torch.zeros_like(maps)
    for y in range(h):
        for x in range(w):
            for weight, (v, u) in zip(weights[:, y, x], neighbours(y, x, h, w, dilations), strict=True):
                result[:, y, x] += weight * maps[:, v, u]
    return result


def propagate_unfolded(maps: Tensor, weights: Tensor, dilations: tuple[int, ...], iterations: int) -> Tensor:
    """The usual way: all neighbours of all pixels side by side."""
    b, c, h, w = maps.shape
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    for _ in range(iterations):
        patches = [F.unfold(F.pad(maps, (d,) * 4, mode="replicate"), 3, dilation=d) for d in dilations]
        columns = torch.cat([p.view(b, c, 9, h, w)[:, :, others] for p in patches], dim=2)
        maps = (columns * weights[:, None]).sum(2)
    return maps


@pytest.mark.parametrize("size", [(5, 7), (1, 6), (2, 2)])
def test_affinity_is_its_definition(size: tuple[int, int]) -> None:
    guide = noise(2, 3, *size, dtype=torch.float64)
    weights = local_affinity(guide, DILATIONS, sigma=0.05, eps=1e-5)
    expected = torch.stack([affinity_by_pixel(g, DILATIONS, 0.05, 1e-5) for g in guide])
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("size", [(5, 7), (1, 6), (2, 2)])
def test_propagation_is_its_definition(size: tuple[int, int]) -> None:
    maps = noise(2, 4, *size, seed=1, dtype=torch.float64)
    weights = local_affinity(noise(2, 3, *size, dtype=torch.float64), DILATIONS, sigma=0.05, eps=1e-5)
    expected = torch.stack([propagate_by_pixel(m, w, DILATIONS) for m, w in zip(maps, weights, strict=True)])
    expected = torch.stack([propagate_by_pixel(m, w, DILATIONS) for m, w in zip(expected, weights, strict=True)])
    torch.testing.assert_close(propagate(maps, weights, DILATIONS, 2), expected, rtol=1e-12, atol=1e-15)


def test_the_order_of_the_neighbours() -> None:
    """A map that is 1 at a pixel's n-th neighbour only has there, after a round, the n-th weight."""
    weights = local_affinity(noise(1, 3, 15, 15), DILATIONS, sigma=0.05, eps=1e-5)
    for n, (dy, dx) in enumerate(NEIGHBOURS):
        maps = torch.zeros(1, 1, 15, 15)
        maps[0, 0, 7 + 3 * dy, 7 + 3 * dx] = 1
        assert propagate(maps, weights, DILATIONS, 1)[0, 0, 7, 7] == weights[0, 8 + n, 7, 7]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4))
def test_an_average_stays_between_its_values(seed: int, h: int, w: int, iterations: int) -> None:
    maps = noise(1, 2, h, w, seed=seed)
    weights = local_affinity(noise(1, 3, h, w, seed=seed + 1), DILATIONS, sigma=0.05, eps=1e-5)
    torch.testing.assert_close(weights.sum(1), torch.ones(1, h, w))
    refined = propagate(maps, weights, DILATIONS, iterations)
    assert refined.min() >= maps.min() - 1e-6
    assert refined.max() <= maps.max() + 1e-6
    if iterations == 0:
        assert torch.equal(refined, maps)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_flat_guide_gives_equal_weights(level: float) -> None:
    weights = local_affinity(torch.full((1, 3, 6, 6), level), DILATIONS, sigma=0.1, eps=1e-8)
    assert torch.equal(weights, torch.full_like(weights, 1 / 16))


def test_a_single_different_pixel_gives_finite_weights() -> None:
    guide = torch.full((1, 3, 9, 9), 0.1)
    guide[..., 4, 4] = 0.9
    assert local_affinity(guide, (1, 3, 5), sigma=0.1, eps=1e-8).isfinite().all()


def test_no_gradient_and_untouched_inputs() -> None:
    guide, maps = noise(1, 3, 6, 6).requires_grad_(), noise(1, 2, 6, 6, seed=1).requires_grad_()
    before = guide.detach().clone(), maps.detach().clone()
    weights = local_affinity(guide, DILATIONS, sigma=0.05, eps=1e-5)
    kept = weights.clone()
    assert not weights.requires_grad
    assert not propagate(maps, weights, DILATIONS, 3).requires_grad
    assert torch.equal(guide, before[0])
    assert torch.equal(maps, before[1])
    assert torch.equal(weights, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    guide, maps = noise(2, 3, 8, 8, dtype=dtype), noise(2, 4, 8, 8, seed=1, dtype=dtype)
    weights = local_affinity(guide, DILATIONS, sigma=0.05, eps=1e-5)
    refined = propagate(maps, weights, DILATIONS, 3)
    assert weights.dtype == torch.float32
    assert refined.dtype == dtype
    assert torch.equal(weights, local_affinity(guide.float(), DILATIONS, sigma=0.05, eps=1e-5))
    assert torch.equal(refined, propagate(maps.float(), weights, DILATIONS, 3).to(dtype))


def test_the_memory_format_does_not_matter() -> None:
    maps, weights = noise(2, 4, 8, 9), local_affinity(noise(2, 3, 8, 9, seed=1), DILATIONS, sigma=0.05, eps=1e-5)
    last = propagate(maps.to(memory_format=torch.channels_last), weights, DILATIONS, 2)
    assert torch.equal(last, propagate(maps, weights, DILATIONS, 2))
    assert propagate(maps[:0], weights[:0], DILATIONS, 2).shape == (0, 4, 8, 9)


@pytest.mark.parametrize("dilations", [(), (0,), (1, -2), (1.5,), (1.0, 3)])
@pytest.mark.usefixtures("unchecked")
def test_wrong_dilations(dilations: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="dilations must be"):
        local_affinity(noise(1, 3, 4, 4), dilations, sigma=0.05, eps=1e-5)
    with pytest.raises(ValueError, match="dilations must be"):
        propagate(noise(1, 3, 4, 4), noise(1, 8, 4, 4), dilations, 1)


@pytest.mark.parametrize("shape", [(1, 16, 4, 4), (2, 8, 4, 4), (1, 8, 4, 5), (8, 4, 4)])
@pytest.mark.usefixtures("unchecked")
def test_weights_of_another_map(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit maps of shape"):
        propagate(noise(1, 3, 4, 4), noise(*shape), (1,), 1)
    with pytest.raises(ValueError, match="do not fit maps of shape"):
        propagate(noise(3, 4, 4), noise(*shape), (1,), 1)


def test_memory_beside_the_unfolded_form() -> None:
    b, c, h, w = 4, 8, 40, 40
    dilations = (1, 3, 5)
    maps, guide = noise(b, c, h, w), noise(b, 3, h, w, seed=1)
    weights = local_affinity(guide, dilations, sigma=0.05, eps=1e-5)
    torch.testing.assert_close(
        propagate(maps, weights, dilations, 3), propagate_unfolded(maps, weights, dilations, 3), rtol=1e-6, atol=1e-6
    )

    lean = peak_bytes(lambda: propagate(maps, weights, dilations, 3)) / maps.nbytes
    assert lean < 1 + (2 + 2 * 24 / c) / b + 0.1, (
        "the result; a sample before and after a round, its weights and places"
    )
    assert peak_bytes(lambda: propagate_unfolded(maps, weights, dilations, 3)) / maps.nbytes > 48

    affinity = peak_bytes(lambda: local_affinity(guide, dilations, sigma=0.05, eps=1e-5)) - weights.nbytes
    assert affinity / guide.nbytes < 6


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"guide": torch.ones(3, 4, 4)},
            r"guide must be 'b c h w' with a channel and a pixel .* got \(3, 4, 4\)",
        ),
        ({"guide": torch.ones(1, 3, 0, 4)}, r"a pixel or more, got \(1, 3, 0, 4\)"),
        ({"guide": torch.ones(1, 0, 4, 4)}, r"a channel .* got \(1, 0, 4, 4\)"),
        ({"sigma": 0.0}, "sigma and eps must be above 0, got 0.0 and 1e-05"),
        ({"sigma": torch.nan}, "sigma and eps must be above 0"),
        ({"eps": 0.0}, "sigma and eps must be above 0, got 0.05 and 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_mistakes_of_the_weights_are_named(change: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {"guide": torch.ones(1, 3, 4, 4), "dilations": (1,), "sigma": 0.05, "eps": 1e-5}
    with pytest.raises(ValueError, match=sentence):
        local_affinity(**given | change)


@pytest.mark.usefixtures("unchecked")
def test_rounds_are_counted_in_whole_numbers() -> None:
    with pytest.raises(ValueError, match=r"iterations must be a whole number from 0 on, got 1\.5"):
        propagate(noise(1, 3, 4, 4), noise(1, 8, 4, 4), (1,), 1.5)
