"""The lookup of correlations against explicit loops, and its two ways of keeping them against each other."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from fourd_raft import correlation
from fourd_raft.correlation import Correlation, pyramid, volume_bytes
from torch import Tensor

STORAGES: list[correlation.Storage] = ["volume", "on_the_fly"]


def features(seed: int, b: int = 2, c: int = 5, h: int = 9, w: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """Two maps, and positions within and beyond the second, whole ones among them, in float64."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, b, c, h, w, dtype=torch.float64, generator=generator)
    positions = (torch.rand(b, 2, h, w, dtype=torch.float64, generator=generator) - 0.3) * 1.6 * max(h, w)
    positions[:, :, 0] = positions[:, :, 0].round()
    return first, second, positions


def by_loops(first: Tensor, second: Tensor, positions: Tensor, levels: int, radius: int) -> Tensor:
    """The windows as the papers describe them: a volume, its levels by averaging, bilinear reading with zeros."""
    b, c, h, w = first.shape
    volume = torch.einsum("bcij,bckl->bijkl", first, second) / math.sqrt(c)
    out = torch.zeros(b, levels, 2 * radius + 1, 2 * radius + 1, h, w, dtype=first.dtype)
    for level in range(levels):
        rows, columns = volume.shape[-2:]
        for n, i, j, dx, dy in torch.cartesian_prod(
            *(torch.arange(size) for size in (b, h, w, 2 * radius + 1, 2 * radius + 1))
        ).tolist():
            x = float(positions[n, 0, i, j]) / 2**level + dx - radius
            y = float(positions[n, 1, i, j]) / 2**level + dy - radius
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < rows and 0 <= column < columns:
                        share = (1 - abs(x - column)) * (1 - abs(y - row))
                        out[n, level, dx, dy, i, j] += share * volume[n, i, j, row, column]
        if level + 1 < levels:
            volume = F.avg_pool2d(volume.flatten(0, 2)[:, None], 2)[:, 0].unflatten(0, (b, h, w))
    return out.flatten(1, 3)


def test_equals_explicit_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correlation, "CHUNK_BYTES", 5 * 36 * 5 * 8)  # five places at a time, across the clips' border
    first, second, positions = features(0, h=6, w=9)
    expected = by_loops(first, second, positions, 2, 2)
    for storage in STORAGES:
        found = Correlation(first, second, 2, 2, storage)(positions)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("storage", STORAGES)
def test_channels_are_x_major(storage: correlation.Storage) -> None:
    """One place of the second frame matches: the channel says where it lies from the position that was asked."""
    first, second = torch.zeros(2, 1, 1, 8, 8)
    first[0, 0, 4, 4] = second[0, 0, 5, 3] = 1  # one row below, one column to the left
    positions = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="xy"))[None]
    window = Correlation(first, second, 1, 2, storage)(positions)[0, :, 4, 4]
    assert window.nonzero().flatten().tolist() == [(-1 + 2) * 5 + (1 + 2)]


def test_both_ways_of_keeping_agree_in_float32() -> None:
    first, second, positions = (tensor.float() for tensor in features(1, c=32, h=16, w=21))
    kept = Correlation(first, second, 4, 4, "volume")(positions)
    fresh = Correlation(first, second, 4, 4, "on_the_fly")(positions)
    torch.testing.assert_close(kept, fresh, rtol=1e-5, atol=1e-6)
    assert kept.abs().max() > 1


def test_a_level_is_the_bilinear_half_of_the_one_before_it() -> None:
    maps = pyramid(features(2, h=13, w=10)[0], 3)
    for finer, coarser in itertools.pairwise(maps):
        half = F.interpolate(finer, scale_factor=0.5, mode="bilinear", align_corners=False)
        torch.testing.assert_close(coarser, half, rtol=1e-12, atol=1e-12)
    assert [tuple(level.shape[2:]) for level in maps] == [(13, 10), (6, 5), (3, 2)]


def test_a_level_of_one_place_is_read_without_nan() -> None:
    first, second, positions = features(3, b=1, h=8, w=9)
    expected = by_loops(first, second, positions, 4, 1)
    for storage in STORAGES:
        found = Correlation(first, second, 4, 1, storage)(positions)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("storage", STORAGES)
def test_far_away_is_zero(storage: correlation.Storage) -> None:
    first, second, positions = features(4)
    for far in (-math.inf, -1e30, -6.0, 30.0, 1e30, math.inf):
        assert not Correlation(first, second, 2, 2, storage)(torch.full_like(positions, far)).any()


def test_automatic_choice() -> None:
    first, second, _ = features(5)
    size = volume_bytes(first, pyramid(second, 2))
    assert size == 2 * 9 * 11 * (9 * 11 + 4 * 5) * 8
    kept = Correlation(first, second, 2, 2, "auto", size).levels
    fresh = Correlation(first, second, 2, 2, "auto", size - 1).levels
    assert sum(level.volume.numel() * 8 for level in kept if level.volume is not None) == size
    assert all(level.volume is None for level in fresh)


def test_too_many_levels() -> None:
    with pytest.raises(ValueError, match="7 x 20 are too small for 4 levels"):
        pyramid(torch.zeros(1, 1, 7, 20), 4)
