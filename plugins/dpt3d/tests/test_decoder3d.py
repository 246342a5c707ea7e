"""The decoder over time by itself: sizes that are no multiples of each other."""

from __future__ import annotations

import pytest
import torch
from fourd_dpt3d.decoder3d import Decoder3D, DecoderConfig

from fourd_core.interfaces import TapSpec

FINEST = (3, 17, 13)


@pytest.mark.parametrize("up", [False, True], ids=["rounded down", "rounded up"])
@torch.no_grad()
def test_levels_of_odd_sizes_meet(up: bool) -> None:
    """A backbone's pyramid of odd sizes: the fused map covers the finest level and changes with each of them."""
    taps = [TapSpec(5, (1, 4 * 2**n, 4 * 2**n)) for n in range(4)]
    config = DecoderConfig((0, 1, 2, 3), 6, 4, (3, 4, 5, 6), reassemble=((1, 1, 1),) * 4, upsample=(1, 1, 1))
    torch.manual_seed(0)
    decoder = Decoder3D(config, taps, 2)
    t, h, w = FINEST
    sizes = [(t, -(-h // 2**n), -(-w // 2**n)) if up else (t, h // 2**n, w // 2**n) for n in range(4)]
    maps = [torch.randn(1, 5, *size) for size in sizes]
    fused = decoder.fused(maps)
    assert fused.shape == (1, 6, *FINEST)
    assert decoder(maps, (t, 30, 20)).shape == (1, 2, t, 30, 20)
    for n in range(4):
        changed = decoder.fused([x + 1 if level == n else x for level, x in enumerate(maps)])
        assert (changed - fused).abs().amax(1).min() > 0
