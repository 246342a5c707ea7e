"""Video tokens to the pixels of low-resolution maps, in the tokens' own layout.

A transposed convolution whose kernel is as large as its stride multiplies each token by one matrix. So the channels
stay innermost, nothing is moved, and only the few finished maps are brought into the order of pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourd_core.data import Grid
from fourd_core.precision import own_precision


class Upscaling(nn.Sequential):
    """Transposed convolution, LayerNorm of the channels, GELU, transposed convolution, GELU.

    Args:
        frames: how many frames a token stands for.
    """

    def __init__(self, dim: int, frames: int) -> None:
        self.kernels = (frames, 2, 2), (1, 2, 2)
        first, second = self.kernels
        super().__init__(
            nn.ConvTranspose3d(dim, dim // 4, first, first),
            nn.LayerNorm(dim // 4, eps=1e-6),
            nn.GELU(),
            nn.ConvTranspose3d(dim // 4, dim // 8, second, second),
            nn.GELU(),
        )

    def first(self) -> tuple[Float[Tensor, "c d"], Float[Tensor, " d"]]:
        """The first convolution as a linear layer: weight and bias."""
        return _as_linear(self[0])

    def maps(
        self, tokens: Float[Tensor, "n p d"], weights: Float[Tensor, "n e m"], grid: Grid
    ) -> Float[Tensor, "n m t y x"]:
        """Inner products of every pixel's channels with weights, in at least float32.

        Args:
            tokens: behind the first convolution.
            grid: on which they stand.
        """
        _, norm, _, conv, _ = self
        (frames, rows, columns), (_, finer_rows, finer_columns) = self.kernels
        weight, bias = _as_linear(conv)
        pixels = F.gelu(norm(tokens.unflatten(-1, (-1, conv.in_channels))))
        pixels = F.gelu(F.linear(pixels, weight.mT, bias)).reshape(len(tokens), -1, conv.out_channels)
        exact = torch.promote_types(weights.dtype, torch.float32)
        with own_precision(tokens.device):
            products = pixels.to(exact) @ weights.to(exact)
        blocks = products.unflatten(1, (*grid, frames, rows, columns, finer_rows, finer_columns))
        # n, t h w of tokens, t h w within one, h w within one of those, m
        ordered = blocks.permute(0, 9, 1, 4, 2, 5, 7, 3, 6, 8)
        height, width = grid.h * rows * finer_rows, grid.w * columns * finer_columns
        return ordered.reshape(len(tokens), -1, grid.t * frames, height, width)

    def working_bytes(self, grid: Grid, element: int) -> int:
        """What `maps` takes for each query."""
        _, _, _, conv, _ = self
        (frames, rows, columns), (_, finer_rows, finer_columns) = self.kernels
        pixels = grid.t * grid.h * grid.w * frames * rows * columns
        return pixels * element * (3 * conv.in_channels + 2 * finer_rows * finer_columns * conv.out_channels)


def _as_linear(conv: nn.Module) -> tuple[Float[Tensor, "c d"], Float[Tensor, " d"]]:
    """A transposed convolution without overlap: the kernel's places outermost among the outputs, channels innermost."""
    assert isinstance(conv, nn.ConvTranspose3d)
    assert conv.bias is not None
    weight = conv.weight.flatten(2).mT
    return weight.flatten(1), conv.bias.repeat(weight.shape[1])
