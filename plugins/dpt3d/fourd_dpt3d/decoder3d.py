"""The decoder of a dense prediction transformer over time and space: four taps of a video backbone to one video.

It has the module names of L4P's heads (`act_postprocess`, `scratch`, `head1`, `head2`), which name the weights of each
level's first convolution twice, `scratch.layer1_rn` and `scratch.layer_rn.0`; here the former is the one.
Source: Badki et al., L4P (arXiv 2502.13078), dense heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, cast

import attrs
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fourd_core.interfaces import TapSpec
from fourd_core.precision import own_precision
from fourd_dpt3d.blocks import FeatureFusion, reassembly, resized
from fourd_dpt3d.convolution import Conv3x3x3

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
        self.factors = fusion_factors(config, taps)
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
        self, maps: Sequence[Float[Tensor, "b _ _ _ _"]], size: tuple[int, int, int]
    ) -> Float[Tensor, "b c t h w"]:
        """The decoded video at `size` (frames, rows, columns), without an activation, in the precision of the weights.

        Args:
            maps: `b c t h w`, in the order of the taps.
        """
        decoded = resized(self.head1(self.fused(maps)), size)
        hidden = self.head2[1](self.head2[0](decoded))
        # Also under autocast: numbers such as a flow of 60 pixels have steps of a quarter pixel in bfloat16.
        with own_precision(hidden.device):
            answer: Tensor = self.last(hidden.to(self.last.weight.dtype))
        return answer

    def fused(self, maps: Sequence[Float[Tensor, "b _ _ _ _"]]) -> Float[Tensor, "b f t h w"]:
        """All levels in one, at the size of the finest times `upsample`."""
        levels = [
            self.scratch[f"layer{n}_rn"](process(x))
            for n, (x, process) in enumerate(zip(maps, self.act_postprocess, strict=True), 1)
        ]
        fused: Tensor | None = None
        for n in range(LEVELS, 0, -1):
            level = levels[n - 1]
            size = [s * factor for s, factor in zip(level.shape[2:], self.factors[n - 1], strict=True)]
            finer = levels[n - 2].shape[2:] if n > 1 else torch.Size(size)
            # An odd size was halved and rounded, by the network up, by a backbone perhaps down: doubled again it is too
            # large or too small. Enlarge far enough, then cut.
            size = [max(pair) for pair in zip(size, finer, strict=True)]
            fused = self.scratch[f"refinenet{n}"](level, fused, size)[..., : finer[0], : finer[1], : finer[2]]
        assert fused is not None
        return fused


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
