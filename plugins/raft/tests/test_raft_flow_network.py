"""What the networks share: upsampling, padding, both directions, and what x, y, sign and unit of a flow are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from fourd_raft.correlation import Correlation
from fourd_raft.flow_network import Estimate, FlowNetwork, FrozenBatchNorm, grid, padding
from fourd_raft.upsampling import bilinear, convex
from torch import Tensor, nn


def test_convex_upsampling_equals_explicit_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 3, 4, dtype=torch.float64, generator=generator)
    weights = torch.randn(2, 576, 3, 4, dtype=torch.float64, generator=generator) * 3
    expected = torch.zeros(2, 3, 24, 32, dtype=torch.float64)
    for y in range(24):
        for x in range(32):
            channels = torch.arange(9) * 64 + 8 * (y % 8) + x % 8
            shares = weights[:, channels, y // 8, x // 8].exp()
            shares = shares / shares.sum(1, keepdim=True)
            for k in range(9):
                row, column = y // 8 + k // 3 - 1, x // 8 + k % 3 - 1
                if 0 <= row < 3 and 0 <= column < 4:
                    expected[:, :, y, x] += shares[:, k, None] * maps[:, :, row, column]
    torch.testing.assert_close(convex(maps, weights), expected, rtol=1e-12, atol=1e-12)


def test_bilinear_upsampling_keeps_the_corners() -> None:
    maps = torch.randn(1, 2, 3, 5, generator=torch.Generator().manual_seed(1))
    large = bilinear(maps)
    assert large.shape == (1, 2, 24, 40)
    torch.testing.assert_close(large[:, :, [0, 0, -1, -1], [0, -1, 0, -1]], maps[:, :, [0, 0, -1, -1], [0, -1, 0, -1]])
    steps = large[0, 0, 0].diff()[:9] / (maps[0, 0, 0, 1] - maps[0, 0, 0, 0])
    torch.testing.assert_close(steps, torch.full((9,), 4 / 39), rtol=1e-3, atol=1e-4)


def test_padding() -> None:
    assert padding(128, 136) == (0, 0, 0, 0)
    assert padding(436, 1021) == (1, 2, 2, 2)
    assert padding(57, 64) == (0, 0, 3, 4)


class Patches(nn.Module):
    """Each 8 x 8 block of pixels as one place, centred and of unit length."""

    def forward(self, frames: Tensor) -> Tensor:
        blocks = F.pixel_unshuffle(frames, 8)
        return F.normalize(blocks - blocks.mean(1, keepdim=True), dim=1) * blocks.shape[1] ** 0.25


class BestMatch(FlowNetwork):
    """A flow network made by hand: the best match in a window around the place itself, at the finest level."""

    def __init__(self) -> None:
        super().__init__(levels=1, radius=3)
        self.fnet = Patches()

    def estimates(self, first: Tensor, second: Tensor, correlation: Correlation, iterations: int) -> Iterator[Estimate]:
        places = grid(F.pixel_unshuffle(first, 8)).expand(len(first), -1, -1, -1)
        for _ in range(iterations):
            best = correlation(places).argmax(1)
            yield Estimate(torch.stack([best // 7 - 3, best % 7 - 3], 1).to(first.dtype), places[:, :0], places)

    def upsample(self, maps: Tensor, hidden: Tensor) -> Tensor:
        return F.interpolate(maps, scale_factor=8)


@pytest.mark.parametrize(("x", "y"), [(2, -1), (-3, 0), (0, 1)])
def test_a_shift_is_found_with_its_sign_in_pixels_both_ways(x: int, y: int) -> None:
    """The second frame is the first, moved by x blocks to the right and y blocks down."""
    first = torch.rand(1, 3, 80, 96, generator=torch.Generator().manual_seed(2))
    frames = torch.stack([first, first.roll((8 * y, 8 * x), (2, 3))], 1)
    flow = BestMatch().both_ways(frames, 1)
    assert flow.shape == (1, 2, 2, 80, 96)
    inside = flow[0, :, :, 24:-24, 24:-24]
    for found, sign in zip(inside, (8, -8), strict=True):
        assert torch.equal(found, torch.tensor([sign * x, sign * y]).view(2, 1, 1).expand_as(found).float())


def test_padded_borders_are_cut_off_again() -> None:
    """Three more pixels above and four below, none beside: the blocks lie as the padding says."""
    block = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    frames = torch.stack([block, block.roll((0, 8), (2, 3))], 1)[..., 3:60, :]
    (flow,) = BestMatch().forward(frames[:, 0], frames[:, 1], 1)
    assert flow.shape == (1, 2, 57, 64)
    assert torch.equal(flow[0, :, 5:53, :-8].unique(dim=1), torch.tensor([8.0, 0.0]).view(2, 1, 1).expand(2, 1, 56))


def test_frozen_batch_norm() -> None:
    norm = FrozenBatchNorm(3).double()
    given = nn.BatchNorm2d(3).double()
    given.load_state_dict({key: torch.rand_like(value.double()) + 0.5 for key, value in given.state_dict().items()})
    norm.load_state_dict(given.state_dict())
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 3 + 1
    torch.testing.assert_close(norm.train()(x), given.eval()(x))
    norm.batch_statistics = True
    torch.testing.assert_close(norm.eval()(x), given.train()(x))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    assert not torch.equal(given.running_mean, before["running_mean"])
