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
        self._starts = torch.cat([ends.new_zeros(1), ends[:-1]])

    def to(self, device: torch.device) -> TextureBank:
        """The same on a device."""
        self.texels, self._starts = self.texels.to(device), self._starts.to(device)
        return self

    def colours(
        self,
        texture: Int[Tensor, "*m"],
        u: Float[Tensor, "*m"],
        v: Float[Tensor, "*m"],
        footprint: Float[Tensor, "*m"],
    ) -> Float[Tensor, "3 *m"]:
        """Colours in [0, 1] at positions (whole numbers are repeats), seen by pixels of this size in the same unit.

        Between the two levels whose texels are next in size, and on each between four texels.
        """
        start = texture % self.count * self._per_texture
        # log2 by the number's own exponent; between powers of two linear, which no eye tells from the logarithm.
        fine, exponent = torch.frexp((footprint * self.side).clamp(1, 2.0 ** (self.levels - 1) - 1e-3))
        level = exponent.long() - 1
        share = 2 * fine - 1
        near, far = self._level(start, u, v, level), self._level(start, u, v, level + 1)
        return near + (far - near) * share

    def _level(
        self, start: Int[Tensor, "*m"], u: Float[Tensor, "*m"], v: Float[Tensor, "*m"], level: Int[Tensor, "*m"]
    ) -> Float[Tensor, "3 *m"]:
        side = self.side >> level
        x, y = u * side - 0.5, v * side - 0.5
        left, top = x.floor(), y.floor()
        across, down = x - left, y - top
        mask = side - 1
        columns, rows = left.long(), top.long()
        columns, rows = (columns & mask, (columns + 1) & mask), (rows & mask, (rows + 1) & mask)
        start = start + self._starts[level]
        (a, b), (c, d) = (tuple(self._texel(start + row * side + column) for column in columns) for row in rows)
        upper, lower = a + (b - a) * across, c + (d - c) * across
        return upper + (lower - upper) * down

    def _texel(self, index: Int[Tensor, "*m"]) -> Float[Tensor, "3 *m"]:
        taken = self.texels.index_select(1, index.flatten())
        return (taken.float() * (1 / 255)).unflatten(1, index.shape)
