"""The decoder of a dense prediction transformer over time and space: four taps of a video backbone to one video.

It has the module names of L4P's heads (`act_postprocess`, `scratch`, `head1`, `head2`), which name the weights of each
level's first convolution twice, `scratch.layer1_rn` and `scratch.layer_rn.0`; here the former is the one.
Source: Badki et al., L4P (arXiv 2502.13078), dense heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import NamedTuple, cast

import attrs
from jaxtyping import Float
from torch import Tensor, nn

from fourd_core.interfaces import TapSpec
from fourd_core.precision import own_precision
from fourd_dpt3d.blocks import FeatureFusion, frames_read, reassembly, resized
from fourd_dpt3d.convolution import Conv3x3x3
from fourd_dpt3d.enlarged_convolution import enlarged_convolution, pays

LEVELS = 4
Factors = tuple[float, float, float]


class Size3D(NamedTuple):
    """Frames, rows and columns."""

    t: int
    h: int
    w: int


@attrs.frozen
class DecoderConfig:
    """What all heads with this decoder have in common; the defaults are L4P's for depth, flow and motion."""

    taps: tuple[int, int, int, int] = (14, 21, 28, 36)
    """The backbone's layers to read, shallow to deep; negative numbers count from the last."""
    features: int = 256
    """Channels of the fusion."""
    last: int = 128
    """Channels behind the fusion, at full size."""
    layer_dims: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    """Channels to which each tap is projected before it is reassembled."""
    reassemble: tuple[Factors, Factors, Factors, Factors] = (
        (2.0, 4.0, 4.0), (2.0, 2.0, 2.0), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5),
    )  # fmt: skip
    """How each tap's tokens are resampled along frames, rows and columns: whole numbers enlarge, 0.5 halves."""
    upsample: tuple[int, int, int] = (1, 2, 2)
    """By how much the fused map is enlarged before the last layers."""

    def __attrs_post_init__(self) -> None:
        for name in ("taps", "layer_dims", "reassemble"):
            if len(getattr(self, name)) != LEVELS:
                raise ValueError(f"{name} must have {LEVELS} entries, got {len(getattr(self, name))}")
        for name in ("features", "last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("layer_dims", "upsample"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive, got {list(getattr(self, name))}")


class Decoder3D(nn.Module):
    """Four maps over time, shallow to deep, to one of any size.

    Args:
        config: widths and resampling.
        taps: what the backbone says of the four maps.
        channels: of the answer.
    Raises:
        ValueError: resampling that makes no pyramid.
    """

    def __init__(self, config: DecoderConfig, taps: Sequence[TapSpec], channels: int) -> None:
        super().__init__()
        features, last, widths = config.features, config.last, config.layer_dims
        self.act_postprocess = nn.ModuleList(
            nn.Sequential(nn.Conv3d(tap.dim, width, 1), reassembly(width, factors))
            for tap, width, factors in zip(taps, widths, config.reassemble, strict=True)
        )
        self.reassemble, self.factors = config.reassemble, fusion_factors(config, taps)
        self.scratch = nn.ModuleDict(
            {f"layer{n}_rn": Conv3x3x3(c, features, bias=False) for n, c in enumerate(widths, 1)}
            | {f"refinenet{n}": FeatureFusion(features, n == LEVELS, dims=3) for n in range(1, LEVELS + 1)}
        )
        self.head1 = nn.Sequential(Conv3x3x3(features, last))
        self.head2 = nn.Sequential(Conv3x3x3(last, last), nn.ReLU(inplace=True), nn.Conv3d(last, channels, 1))

    @property
    def last(self) -> nn.Conv3d:
        """The last layer, from which each number comes."""
        return cast(nn.Conv3d, self.head2[2])

    def forward(
        self, maps: Sequence[Float[Tensor, "b _ _ _ _"]], size: tuple[int, int, int], wanted: int | None = None
    ) -> Float[Tensor, "b c n h w"]:
        """The decoded video at `size` (frames, rows, columns), without an activation, in the precision of the weights.

        Args:
            maps: `b c t h w`, in the order of the taps.
            wanted: its first frames alone. A layer then computes those that they depend on: each 3x3x3 convolution
                looks one frame ahead.
        """
        frames = size[0]
        count = frames if wanted is None else min(wanted, frames)
        whole = self.fused_size(self.level_sizes(maps), 1).t
        read = frames_read(count + 1, whole, frames)
        fused = self.fused(maps, min(read + 1, whole))
        decoded = resized(self.head1[0](fused, read), size, whole, count + 1)
        hidden = self.head2[1](self.head2[0](decoded, count))
        # Also under autocast: numbers such as a flow of 60 pixels have steps of a quarter pixel in bfloat16.
        with own_precision(hidden.device):
            answer: Tensor = self.last(hidden.to(self.last.weight.dtype))
        return answer[:, :, :wanted]

    def level_sizes(self, maps: Sequence[Float[Tensor, "b _ _ _ _"]]) -> list[Size3D]:
        """Frames, rows and columns of each level: a tap's grid times its factors, halves rounded up."""
        return [
            Size3D(*(ceil(n * factor) for n, factor in zip(x.shape[2:], factors, strict=True)))
            for x, factors in zip(maps, self.reassemble, strict=True)
        ]

    def fused_size(self, levels: Sequence[Size3D], n: int) -> Size3D:
        """That of level `n` and the coarser ones in one, before it is cut to the next finer level's.

        An odd size was halved and rounded, by the network up, by a backbone perhaps down: doubled again it is too large
        or too small. So it is enlarged far enough.
        """
        size = [side * factor for side, factor in zip(levels[n - 1], self.factors[n - 1], strict=True)]
        finer = levels[n - 2] if n > 1 else size
        return Size3D(*(max(pair) for pair in zip(size, finer, strict=True)))

    def fused(
        self, maps: Sequence[Float[Tensor, "b _ _ _ _"]], count: int | None = None, n: int = 1
    ) -> Float[Tensor, "b f t h w"]:
        """Level `n` and all coarser ones in one, at `fused_size`: the first `count` frames, or all."""
        levels = self.level_sizes(maps)
        here, size = levels[n - 1], self.fused_size(levels, n)
        count = size.t if count is None else count
        # Each of the two residual units looks two frames ahead.
        inner = min(frames_read(count, here.t, size.t) + 2, here.t)
        coarser: Tensor | None = None
        if n < LEVELS:
            coarser = self.fused(maps, inner if inner < here.t else None, n + 1)
            coarser = coarser[..., :inner, : here.h, : here.w]
        level = self.level(maps[n - 1], n, inner + 2)
        fused: Tensor = self.scratch[f"refinenet{n}"](level, coarser, size, here.t, count)
        return fused

    def level(self, x: Float[Tensor, "b _ _ _ _"], n: int, count: int) -> Float[Tensor, "b f t h w"]:
        """The tokens of a tap as level `n` of the fusion: the first `count` frames, or all there are."""
        project, resample = cast(nn.Sequential, self.act_postprocess[n - 1])
        convolve = cast(Conv3x3x3, self.scratch[f"layer{n}_rn"])
        projected = project(x)
        if isinstance(resample, nn.ConvTranspose3d) and pays(projected, resample):
            return enlarged_convolution(projected, resample, convolve, count)
        level: Tensor = convolve(resample(projected), count)
        return level


def fusion_factors(config: DecoderConfig, taps: Sequence[TapSpec]) -> list[Size3D]:
    """By how much each level's fused map is enlarged: to the next finer level, and the finest by `upsample`.

    Raises:
        ValueError: a level that is not a whole number of times finer than the next.
    """
    strides = [
        [Fraction(stride) / Fraction(factor) for stride, factor in zip(tap.stride, factors, strict=True)]
        for tap, factors in zip(taps, config.reassemble, strict=True)
    ]
    factors = [Size3D(*config.upsample)]
    for n in range(1, LEVELS):
        ratios = [coarse / fine for coarse, fine in zip(strides[n], strides[n - 1], strict=True)]
        if any(ratio.denominator != 1 for ratio in ratios):
            raise ValueError(
                f"reassemble must make a pyramid: each map as fine as the next one or a whole number of times finer, "
                f"and map {n} is {' x '.join(str(ratio) for ratio in ratios)} times as fine as map {n + 1} "
                "(frames x rows x columns)"
            )
        factors.append(Size3D(*map(int, ratios)))
    return factors
