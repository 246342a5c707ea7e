"""The parts of a dense prediction transformer's decoder, with the module names of the official checkpoints.

Source: Ranftl et al., Vision Transformers for Dense Prediction (arXiv 2103.13413); google-research/lila, dpt_lila.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourd_dpt3d.convolution import Conv3x3x3

Dims = Literal[2, 3]
"""Pictures, or videos of which time is the first axis."""


def resized(x: Float[Tensor, "b c *old"], size: Sequence[int]) -> Float[Tensor, "b c *new"]:
    """Linear along each axis, the corner pixels' centres on the corner pixels' centres."""
    return F.interpolate(x, size=tuple(size), mode="trilinear" if x.ndim == 5 else "bilinear", align_corners=True)


def reassembly(channels: int, factors: float | Sequence[float]) -> nn.Module:
    """The layer that resamples a tap's map: learned enlargement by whole numbers, learned halving, or nothing for 1.

    Args:
        factors: along frames, rows and columns of videos; a single number is that of both axes of pictures.
    Raises:
        ValueError: other factors.
    """
    each = tuple(factors) if isinstance(factors, Sequence) else (factors, factors)
    conv, transposed = (nn.Conv2d, nn.ConvTranspose2d) if len(each) == 2 else (nn.Conv3d, nn.ConvTranspose3d)
    if all(factor == 1 for factor in each):
        return nn.Identity()
    if all(factor >= 1 and factor == int(factor) for factor in each):
        whole: Any = tuple(map(int, each))
        return transposed(channels, channels, kernel_size=whole, stride=whole)
    if all(factor in (0.5, 1) for factor in each):
        stride: Any = tuple(round(1 / factor) for factor in each)
        return conv(channels, channels, kernel_size=3, stride=stride, padding=1)
    got = list(factors) if isinstance(factors, Sequence) else factors
    raise ValueError(f"reassemble enlarges by whole numbers, or halves by 0.5 and 1, got {got}")


class ResidualConvUnit(nn.Module):
    """Two 3x3 (3x3x3) convolutions, each after a ReLU, added to their input."""

    def __init__(self, channels: int, dims: Dims = 2) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(channels, channels, kernel_size=3, padding=1) if dims == 2 else Conv3x3x3(channels, channels)
            for _ in range(2)
        )

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
        """The refined map."""
        out: Tensor = x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))
        return out


class FeatureFusion(nn.Module):
    """The coarser levels' map joined with the next finer level's, refined and resized.

    The deepest level has nothing to be joined with. It has its `resConfUnit1` all the same, frozen and unused, because
    every official file has it.
    """

    def __init__(self, channels: int, deepest: bool = False, dims: Dims = 2) -> None:
        super().__init__()
        self.out_conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(channels, channels, kernel_size=1)
        self.resConfUnit1 = ResidualConvUnit(channels, dims).requires_grad_(not deepest)
        self.resConfUnit2 = ResidualConvUnit(channels, dims)

    def forward(
        self, level: Float[Tensor, "b c *old"], coarser: Float[Tensor, "b c *old"] | None, size: Sequence[int]
    ) -> Float[Tensor, "b c *new"]:
        """The fused map at `size`; `level` alone where there is nothing coarser."""
        fused = level if coarser is None else coarser + self.resConfUnit1(level)
        # The reference resizes first. A 1x1 convolution commutes with weights that add up to 1, and has several times
        # fewer pixels to go over before.
        return resized(self.out_conv(self.resConfUnit2(fused)), size)
