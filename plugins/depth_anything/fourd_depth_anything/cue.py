"""Depth Anything V2 as a cue provider: DINOv2 tokens, a DPT decoder, one disparity per pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import attrs
import torch
import torch.nn.functional as F
from fourd_dinov2.backbone import IMAGENET_MEAN, IMAGENET_STD
from fourd_dinov2.backbone import SIZES as ENCODERS
from fourd_dinov2.backbone import Size as EncoderSize
from fourd_dinov2.network import PATCH, VisionTransformer
from fourd_dpt3d.pixel_decoder import FusionDecoder
from jaxtyping import Float
from torch import Tensor, nn

from fourd_core.data import Clip, CueMaps, Grid, TokenMap
from fourd_core.interfaces import CueProvider, PretrainedWeights
from fourd_core.recipe import Location
from fourd_core.weights import load_weights, read_state_dict

REASSEMBLE = (4.0, 2.0, 1.0, 0.5)
HIDDEN = 32
"""Channels before the last convolution, in every published size."""
TOGETHER = 16
"""Frames that go through the network at once."""
INSIDE_LILA = "depth_net."
"""Where LILA's training leaves its teacher's weights."""


@attrs.frozen
class Size:
    """The shape of encoder and decoder."""

    encoder: EncoderSize
    """The vision transformer."""
    taps: tuple[int, int, int, int]
    """Its blocks that the decoder reads."""
    features: int
    """Channels inside the decoder."""
    out_channels: tuple[int, int, int, int]
    """Channels to which the blocks' tokens are projected."""


SIZES = {
    "s": Size(ENCODERS["s"], (2, 5, 8, 11), 64, (48, 96, 192, 384)),
    "b": Size(ENCODERS["b"], (2, 5, 8, 11), 128, (96, 192, 384, 768)),
    "l": Size(ENCODERS["l"], (4, 11, 17, 23), 256, (256, 512, 1024, 1024)),
    "g": Size(ENCODERS["g"], (9, 19, 29, 39), 384, (1536, 1536, 1536, 1536)),
}


class DepthAnything(nn.Module, CueProvider):
    """Relative disparity (larger is nearer, no unit, at least 0) of each frame by itself.

    Source: Yang et al., Depth Anything V2 (arXiv 2406.09414); its DPT decoder: Ranftl et al. (arXiv 2103.13413).
    """

    kind = "disparity"
    each_frame_alone = True

    @attrs.frozen
    class Config:
        variant: Literal["s", "b", "l", "g"] = "s"
        """The published size; LILA was taught by "l"."""
        weights: Location | None = None
        """An official checkpoint, or one of LILA's that holds its teacher; none: random weights."""
        input_side: int | None = attrs.field(
            default=None, validator=attrs.validators.optional(attrs.validators.ge(PATCH))
        )
        """Enlarge or shrink frames first, so that the shorter side is at least this and both are divisible by 14 (518
        as the authors run it); none: the frames as they are, as in LILA's training, their sides divisible by 14."""
        size: Size | None = None
        """A size of one's own instead of a published one."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.size = size = config.size or SIZES[config.variant]
        vit = size.encoder
        self.pretrained_encoder = VisionTransformer(vit.embed_dim, vit.depth, vit.heads, vit.image_size, vit.ffn)
        self.depth_head = FusionDecoder(
            [vit.embed_dim] * 4, size.out_channels, REASSEMBLE, size.features, hidden=HIDDEN, channels=1
        )

    @classmethod
    def example(cls) -> Any:
        """Four narrow blocks."""
        vit = EncoderSize(embed_dim=32, depth=4, heads=2, image_size=70)
        return cls.Config(size=Size(vit, (0, 1, 2, 3), 16, (8, 12, 16, 20)), input_side=56)

    def pretrained(self) -> PretrainedWeights | None:
        """The configured checkpoint."""
        if self.config.weights is None:
            return None
        licence = "Apache-2.0" if self.config.variant == "s" else "CC-BY-NC-4.0 (non-commercial use only)"
        return PretrainedWeights(self.config.weights, licence=licence, source="Depth Anything V2")

    def load_pretrained(self) -> None:
        """Read the configured checkpoint.

        Raises:
            WeightsError: missing, damaged, unsafe, NaN, or another network's; says which size it looks like.
        """
        if self.config.weights is None:
            return
        state = to_own_names(read_state_dict(self.config.weights))
        found = looks_like(state)
        advice = f'It looks like Depth Anything V2 with variant = "{found}": set it, or take another file'
        optional = ["pretrained_encoder.mask_token"]
        load_weights(self, state, location=self.config.weights, optional=optional, advice=advice if found else "")

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse sides that are not divisible by 14 where frames are taken as they are."""
        h, w = size
        if self.config.input_side is None and (h % PATCH or w % PATCH):
            raise ValueError(
                f"Depth Anything needs sides divisible by {PATCH}, and the frames have {w}x{h} pixels; set input_side "
                "on the cue, or give the teachers other frames (view_size of LILA's objective)"
            )

    @torch.no_grad()
    def forward(self, clip: Clip) -> CueMaps:
        """Disparity of every frame at the clip's own resolution.

        Raises:
            ValueError: no `input_side` is set and a side of the frames is not divisible by 14.
        """
        self.check_size(clip.size)
        frames = clip.frames.flatten(0, 1)
        parts = [self._disparity(part) for part in frames.split(TOGETHER)]
        return CueMaps(torch.cat(parts).unflatten(0, clip.frames.shape[:2]), "disparity")

    def _disparity(self, frames: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
        h, w = frames.shape[-2:]
        inner = (h, w) if self.config.input_side is None else fitted((h, w), self.config.input_side)
        x = frames.float() if inner == (h, w) else F.interpolate(frames.float(), inner, mode="bicubic")
        x = (x - x.new_tensor(IMAGENET_MEAN)[:, None, None]) / x.new_tensor(IMAGENET_STD)[:, None, None]
        layers = self.pretrained_encoder(x, self.size.taps)
        grid = Grid(1, inner[0] // PATCH, inner[1] // PATCH)
        maps = [TokenMap(layers[tap].patches, grid).as_maps()[:, 0] for tap in self.size.taps]
        disparity = F.relu(self.depth_head(maps, inner))
        if inner == (h, w):
            return disparity
        return F.interpolate(disparity, (h, w), mode="bilinear", align_corners=True)


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The frame's size scaled so that its shorter side is at least `side`, each side the nearest multiple of 14."""
    scale = side / min(size)

    def multiple(length: int) -> int:
        nearest = round(length * scale / PATCH) * PATCH
        return nearest if nearest >= side else math.ceil(length * scale / PATCH) * PATCH

    return multiple(size[0]), multiple(size[1])


def to_own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official checkpoint, or the teacher in one of LILA's, under this module's names."""
    inside = {key.removeprefix(INSIDE_LILA): value for key, value in state.items() if key.startswith(INSIDE_LILA)}
    renamed = {"pretrained.": "pretrained_encoder."}
    return {
        next((new + key.removeprefix(old) for old, new in renamed.items() if key.startswith(old)), key): value
        for key, value in (inside or state).items()
    }


def looks_like(state: Mapping[str, Tensor]) -> str | None:
    """The published variant with such an encoder, or None."""
    token = state.get("pretrained_encoder.cls_token")
    if token is None or "depth_head.scratch.output_conv1.weight" not in state:
        return None
    return {size.encoder.embed_dim: name for name, size in SIZES.items()}.get(token.shape[-1])
