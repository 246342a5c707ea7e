"""L4P's dense heads: one decoder, and what each makes of its numbers."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fourd_core.data import Clip, MapKind, Maps, Tokens
from fourd_core.interfaces import BackboneSpec, Head, PretrainedWeights, TapSpec
from fourd_core.recipe import Location
from fourd_core.rewrites import Rewrite
from fourd_core.stitching import AllButFirst, Overwrite, Stitch
from fourd_core.stitching_geometry import AffineDisparity, MedianScale
from fourd_core.upsampling.streaming import Upsample, Upsampling
from fourd_core.weights import load_weights, read_state_dict
from fourd_dpt3d.checkpoints import one_head
from fourd_dpt3d.decoder3d import Decoder3D, DecoderConfig

UP_TO_SCALE = "up to scale"
"""Unit of depth and translations: unknown, the same everywhere in a video."""
DEPTH_STITCHES: dict[str, type[Stitch]] = {
    "affine_disparity": AffineDisparity,
    "scale": MedianScale,
    "overwrite": Overwrite,
}

LEADING_FRAMES = Rewrite(
    "leading frames",
    saves="Of a window that another follows, flow and motion compute only the frames that stand, and what these come "
    "from: at L4P's width 2.08 (flow) or 1.92 (motion) instead of 2.80 TFLOP, 22 instead of 28 s on one CPU thread; "
    "51 instead of 76 ms in l4p_tiny.",
)


@attrs.frozen
class HeadConfig(DecoderConfig):
    """The decoder's keys, and where its weights are."""

    weights: Location | None = None
    """L4P's checkpoint, or a file of this head alone; none: the decoder starts at random."""

    @property
    def decoder(self) -> DecoderConfig:
        """What the decoder is built of."""
        return self


@attrs.frozen
class MapConfig(HeadConfig):
    """The decoder's keys, of which one has another name here, and how its maps reach the video's pixels."""

    upsample: Upsample = "bilinear"  # type: ignore[assignment]
    """How the network's map becomes one of the video's pixels: bilinear; or in_context, which gives it the edges that
    colours and pixel features have (docs/upsampling.md)."""
    upsample_features: Location | None = None
    """A recipe or run folder whose pixel features show where edges are; none: this recipe's own, if it has some."""
    enlarge: tuple[int, int, int] = (1, 2, 2)
    """By how much the decoder's fused map is enlarged before the last layers."""
    coarse: int = 1
    """The last layers work on rows and columns so many times fewer than the clip's, and their answer is enlarged: they
    are half of a small network's work."""

    def __attrs_post_init__(self) -> None:
        if min(self.enlarge) < 1:
            raise ValueError(f"enlarge must be positive, got {list(self.enlarge)}")
        if self.coarse < 1:
            raise ValueError(f"coarse must be positive, got {self.coarse}")
        if self.upsample_features is not None and self.upsample == "bilinear":
            raise ValueError('upsample_features is for upsample = "in_context": set that too, or leave it out')
        _ = self.decoder  # which has more to check

    @property
    def decoder(self) -> DecoderConfig:
        """The decoder's keys under its own names."""
        kept = {field.name: getattr(self, field.name) for field in attrs.fields(DecoderConfig)}
        return DecoderConfig(**kept | {"upsample": self.enlarge})


class DecoderHead(Head):
    """A head whose network is one Decoder3D, under the name `dpt` of L4P's checkpoints.

    Attributes:
        task: the head's name in L4P's checkpoints.
    """

    task: str

    def __init__(self, config: HeadConfig, backbone: BackboneSpec) -> None:
        super().__init__()
        self.config = config
        self.taps = tuple(backbone.tap(number) for number in config.taps)
        self.dpt = Decoder3D(config.decoder, [backbone.taps[tap] for tap in self.taps], self.channels)

    @classmethod
    def example(cls) -> Any:
        """A narrow decoder."""
        return cls.Config(taps=(0, 1, 2, 3), features=8, last=4, layer_dims=(4, 8, 8, 8))

    @classmethod
    def example_spec(cls) -> BackboneSpec:
        """A small video transformer's."""
        return BackboneSpec((TapSpec(16, (2, 8, 8)),) * 5, (2, 8, 8), (0.5,) * 3, (0.25,) * 3, window=(16, 8))

    def pretrained(self) -> PretrainedWeights | None:
        """The configured checkpoint."""
        if self.config.weights is None:
            return None
        licence = "its publisher's; L4P's is CC-BY-NC-SA-4.0, for non-commercial use only"
        return PretrainedWeights(self.config.weights, licence=licence, source="L4P or one's own")

    def load_pretrained(self) -> None:
        """Read this head's part of the configured checkpoint.

        Raises:
            WeightsError: missing, damaged, unsafe, NaN, or another decoder's.
        """
        if self.config.weights is not None:
            state = one_head(read_state_dict(self.config.weights), self.task)
            load_weights(self, state, location=self.config.weights)

    def decoded(
        self, tokens: Tokens, size: tuple[int, int, int], wanted: int | None = None
    ) -> Float[Tensor, "b n c h w"]:
        """The decoder's answer at `size` (frames, rows, columns), as it is; perhaps the first `wanted` frames alone."""
        maps = [tokens[tap].as_maps().transpose(1, 2) for tap in self.taps]
        answer: Tensor = self.dpt(maps, size, wanted)
        return answer.transpose(1, 2)


class Dense3D(DecoderHead):
    """A head that predicts a map for each frame.

    Attributes:
        upsampling: how its maps reach the video's pixels.
    """

    kind: MapKind

    def __init__(self, config: MapConfig, backbone: BackboneSpec) -> None:
        super().__init__(config, backbone)
        self.coarse = config.coarse
        self.upsampling = Upsampling(config.upsample, config.upsample_features)

    def raw(self, tokens: Tokens, clip: Clip, wanted: int | None = None) -> Float[Tensor, "b n c h w"]:
        """The decoder's answer for each pixel, as it is: log depth, flow, logits.

        Args:
            wanted: the first frames alone.
        """
        b, t, *_ = clip.frames.shape
        if self.coarse == 1:
            return self.decoded(tokens, (t, *clip.size), wanted)
        few = self.decoded(tokens, (t, *(-(-side // self.coarse) for side in clip.size)), wanted)
        return F.interpolate(few.flatten(0, 1), clip.size, mode="bilinear", align_corners=False).unflatten(0, (b, -1))

    def activate(self, raw: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
        """The prediction, from the decoder's answer."""
        return raw

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        """One map per frame, at the clip's own size; NaN for frames that are not wanted."""
        values = self.activate(self.raw(tokens, clip, clip.wanted if LEADING_FRAMES.on else None))
        missing = clip.frames.shape[1] - values.shape[1]
        if missing:
            values = F.pad(values, (0, 0, 0, 0, 0, 0, 0, missing), value=torch.nan)
        return Maps(values, kind=self.kind, unit=self.unit)


class Depth3D(Dense3D):
    """Depth of every pixel of a video, up to one scale, from four taps of a video backbone: L4P's head `depth`.

    Source: Badki et al., L4P (arXiv 2502.13078), depth estimation.
    """

    task, kind, channels, unit = "depth", "depth", 1, UP_TO_SCALE

    @attrs.frozen
    class Config(MapConfig):
        stitch: Literal["affine_disparity", "scale", "overwrite"] = "affine_disparity"
        """How a window's unit becomes that of the windows before: scale and shift of 1 / depth, scale alone, or not at
        all. A cameras' head that is stitched jointly with this one decides in its place."""

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__(config, backbone)
        self.stitch = DEPTH_STITCHES[config.stitch]()

    def activate(self, raw: Float[Tensor, "b t 1 h w"]) -> Float[Tensor, "b t 1 h w"]:
        """The decoder tells the logarithm."""
        return raw.exp()

    def forward(self, tokens: Tokens, clip: Clip) -> Maps:
        """One map per frame, wanted or not: all frames of a window say how a tile's depth is to be scaled."""
        return super().forward(tokens, attrs.evolve(clip, wanted=None))


class Flow3D(Dense3D):
    """Optical flow from each frame to the one before it, in pixels, from a video backbone: L4P's head.

    About a window's first frame it knows nothing; in a longer video the window before does.
    Source: Badki et al., L4P (arXiv 2502.13078), optical flow estimation.
    """

    task, kind, channels, unit = "flow_2d_backward", "flow", 2, "px"
    stitch = AllButFirst()

    @attrs.frozen
    class Config(MapConfig):
        """The decoder's keys."""

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__(config, backbone)


class Motion3D(Dense3D):
    """The probability that a pixel shows something that moves by itself, from a video backbone: L4P's head `dyn_mask`.

    Source: Badki et al., L4P (arXiv 2502.13078), motion-based segmentation; it calls a pixel moving from 0.85.
    """

    task, kind, channels = "dyn_mask", "mask", 1

    @attrs.frozen
    class Config(MapConfig):
        """The decoder's keys."""

    def __init__(self, config: Config, backbone: BackboneSpec) -> None:
        super().__init__(config, backbone)

    def activate(self, raw: Float[Tensor, "b t 1 h w"]) -> Float[Tensor, "b t 1 h w"]:
        """The decoder tells logits."""
        return raw.sigmoid()
