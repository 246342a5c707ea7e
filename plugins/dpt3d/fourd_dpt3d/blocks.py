"""The parts of a dense prediction transformer's decoder, with the module names of the official checkpoints.

Source: Ranftl et al., Vision Transformers for Dense Prediction (arXiv 2103.13413); google-research/lila, dpt_lila.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fourd_core.rewrites import Rewrite
from fourd_dpt3d.convolution import Conv3x3x3

EARLY_PROJECTION = Rewrite(
    "projection before enlargement",
    saves="The fusion's 1x1 convolutions have 4 to 8 times fewer pixels to go over: an L4P head for maps takes 2.80 "
    "instead of 2.84 TFLOP per window, and an enlarged map is written once instead of twice.",
)

Dims = Literal[2, 3]
"""Pictures, or videos of which time is the first axis."""


def resized(
    x: Float[Tensor, "b c *old"], size: Sequence[int], whole: int = 0, count: int | None = None
) -> Float[Tensor, "b c *new"]:
    """Linear along each axis, the corner pixels' centres on the corner pixels' centres.

    Args:
        size: of the whole result.
        whole, count: of videos the first `count` frames alone of what a video of `whole` frames becomes; `x` then has
            only to have the first frames that `frames_read` tells.
    """
    mode = "trilinear" if x.ndim == 5 else "bilinear"
    if count is None or count >= size[0]:
        return F.interpolate(x, size=tuple(size), mode=mode, align_corners=True)
    if whole != size[0]:
        place = torch.arange(count, device=x.device) * (whole - 1)
        low, rest = place // (size[0] - 1), place % (size[0] - 1)
        high = (low + 1).clamp(max=x.shape[2] - 1)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        part = rest.to(exact.dtype)[:, None, None] / (size[0] - 1)
        x = torch.lerp(exact[:, :, low], exact[:, :, high], part).to(x.dtype)
    return F.interpolate(x[:, :, :count], size=(count, *size[1:]), mode=mode, align_corners=True)


def frames_read(count: int, whole: int, frames: int) -> int:
    """Which of `whole` frames, counted from the first, the first `count` of `frames` come from by `resized`."""
    return whole if count >= frames else -(-(count - 1) * (whole - 1) // (frames - 1)) + 1


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

    def forward(self, x: Float[Tensor, "b c *size"], count: int | None = None) -> Float[Tensor, "b c *less"]:
        """The refined map; of videos perhaps the first `count` frames alone, which depend on two more."""
        if count is None:
            out: Tensor = x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))
            return out
        inner = F.relu(self.conv1(F.relu(x[:, :, : count + 2]), count + 1), inplace=True)
        first: Tensor = x[:, :, :count] + self.conv2(inner, count)
        return first


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
        self,
        level: Float[Tensor, "b c *old"],
        coarser: Float[Tensor, "b c *less"] | None,
        size: Sequence[int],
        whole: int = 0,
        count: int | None = None,
    ) -> Float[Tensor, "b c *new"]:
        """The fused map at `size`; `level` alone where there is nothing coarser.

        Args:
            whole, count: as in `resized`. `coarser` then has two frames more than `frames_read` tells, and `level` two
                more than `coarser`, or all.
        """
        read = None if count is None else frames_read(count, whole, size[0])
        return self.enlarged(self.refined(level, coarser, read), size, whole, count)

    def refined(
        self, level: Float[Tensor, "b c *old"], coarser: Float[Tensor, "b c *less"] | None, count: int | None = None
    ) -> Float[Tensor, "b c *fewer"]:
        """The fused map at its own size, before its last layer; of videos perhaps the first `count` frames alone."""
        fused = level
        if coarser is not None:
            fused = coarser + self.resConfUnit1(level, None if count is None else coarser.shape[2])
        refined: Tensor = self.resConfUnit2(fused, count)
        return refined

    def enlarged(
        self, refined: Float[Tensor, "b c *old"], size: Sequence[int], whole: int = 0, count: int | None = None
    ) -> Float[Tensor, "b c *new"]:
        """The refined map at `size`, through the last layer."""
        # The reference resizes first. A 1x1 convolution commutes with weights that add up to 1, and has several times
        # fewer pixels to go over before.
        if EARLY_PROJECTION.on:
            return resized(self.out_conv(refined), size, whole, count)
        projected: Tensor = self.out_conv(resized(refined, size, whole, count))
        return projected
