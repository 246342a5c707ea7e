"""Surfaces' colours: a bank of square textures that repeat, each with ever smaller copies (a mip map)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

SMALLEST = 4


class TextureBank:
    """Textures by number.

    Attributes:
        texels: all levels of all textures, in planes; 8 bits, so that a bank stays in the processor's cache.
    """

    def __init__(self, textures: Float[Tensor, "k 3 s s"]) -> None:
        self.count, _, self.side, _ = textures.shape
        levels = [textures]
        while levels[-1].shape[-1] > SMALLEST:
            levels.append(F.avg_pool2d(levels[-1], 2))
        self.levels = len(levels)
        each = torch.cat([level.flatten(2) for level in levels], 2)  # k 3 texels
        self.texels = (each.transpose(0, 1).flatten(1) * 255).round().to(torch.uint8).contiguous()
        self._per_texture = each.shape[2]
        ends = torch.tensor([level.shape[-1] ** 2 for level in levels]).cumsum(0)
        self._starts = torch.cat([ends.new_zeros(1), ends[:-1]]).int()

    def to(self, device: torch.device) -> TextureBank:
        """The same on a device."""
        self.texels, self._starts = self.texels.to(device), self._starts.to(device)
        return self

    def colours(
        self,
        texture: Int[Tensor, " *m"],
        u: Float[Tensor, " *m"],
        v: Float[Tensor, " *m"],
        footprint: Float[Tensor, " *m"],
    ) -> Float[Tensor, "3 ..."]:
        """Colours in [0, 1] at positions (whole numbers are repeats), seen by pixels of this size in the same unit.

        Between four texels of the level whose texels come closest to the pixel in size.
        """
        texels = (footprint * self.side * 0.7071).clamp(0.5, 2.0 ** (self.levels - 1) - 1e-3)
        level = torch.frexp(texels).exponent  # log2 rounded: by the number's own exponent, so exactly alike everywhere
        side = self.side >> level
        x, y = u * side - 0.5, v * side - 0.5
        left, top = x.floor(), y.floor()
        across, down = x - left, y - top
        mask = side - 1
        columns, rows = left.int(), top.int()
        start = (texture % self.count * self._per_texture).int() + self._starts[level]
        west, east = columns & mask, (columns + 1) & mask
        north, south = start + (rows & mask) * side, start + ((rows + 1) & mask) * side
        a, b = self._texel(north + west), self._texel(north + east)
        c, d = self._texel(south + west), self._texel(south + east)
        upper, lower = a + (b - a) * across, c + (d - c) * across
        return (upper + (lower - upper) * down) * (1 / 255)

    def _texel(self, index: Int[Tensor, " *m"]) -> Float[Tensor, "3 ..."]:
        return self.texels.index_select(1, index.flatten()).unflatten(1, index.shape).float()
