"""DAVIS-2017 by nearest neighbours: the first frame's mask carried through the video, nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from attrs.validators import ge, optional
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.system import System
from fourd_evals.davis import DAVISSequence
from fourd_evals.davis_metrics import without_void
from fourd_evals.davis_miniature import davis_miniature
from fourd_evals.davis_protocol import DAVISConfig, DAVISMetric, patch_resample
from fourd_evals.features import FeatureExtractor, Features
from fourd_evals.knn import KNNConfig, propagate_masks, to_grid
from fourd_evals.probes import Source

RESOLUTION = {"lila": 476, "dino": 480}
"""The smaller side of the frames that the network sees."""
DINO_STEP = 64
"""DINO cuts the other side off to a multiple of it."""


class DAVISkNN(DAVISMetric):
    """DAVIS-2017 video object segmentation by local nearest neighbours of frozen features: J, F, recall, decay.

    Source: google-research/lila, eval_vosknn.py; or facebookresearch/dino, eval_video_segmentation.py.
    """

    title = "DAVIS-2017 local k-NN"
    compared = "J&F local k-NN"

    @attrs.frozen(kw_only=True)
    class Config(DAVISConfig, KNNConfig):
        """The protocol, by default the paper's."""

        resolution: int | None = attrs.field(default=None, validator=optional(ge(1)))
        """The smaller side of the frames that the network sees, in pixels; None: 476 for `lila`, 480 for `dino`."""
        features: Source = "pixels"
        """Whose features are compared: the pixels' (the paper's LILA rows), the encoder's (its DINO2 rows), or both,
        each of length 1, so that their cosines are averaged."""

    @classmethod
    def example(cls) -> Any:
        """A generated miniature."""
        return cls.Config(root=davis_miniature(), resolution=32, side=8, radius=3, context=2)

    @property
    def resolution(self) -> int:
        """The smaller side of the frames that the network sees."""
        return int(self.config.resolution or RESOLUTION[self.config.protocol])

    def settings(self) -> dict[str, Any]:
        """With the numbers that stand for None."""
        grid = self.config.smaller_side or "the features' own"
        return {**super().settings(), "resolution": self.resolution, "side": grid}

    def picture_size(self, size: tuple[int, int], system: System) -> tuple[int, int]:
        """LILA's rounding to patches, or DINO's to 64 pixels (to patches, where 64 is not divisible by them)."""
        config, (_, *multiple) = self.config, system.backbone.spec.multiple
        side = self.resolution
        if config.protocol == "lila":
            return patch_resample(size, side, (multiple[0], multiple[1]))
        rows, columns = ((DINO_STEP if DINO_STEP % step == 0 else step) for step in multiple)
        height, width = size
        if height <= width:
            return patch_resample(size, side, (multiple[0], 1))[0], max(
                int(side * width / height) // columns, 1
            ) * columns
        return max(int(side * height / width) // rows, 1) * rows, patch_resample(size, side, (1, multiple[1]))[1]

    def predict(self, extractor: FeatureExtractor, sequence: DAVISSequence) -> Iterator[UInt8[Tensor, "h w"]]:
        """Each frame's mask; the first is the truth."""
        first = sequence.mask(0)
        assert first is not None, "DAVIS.open has seen it"
        looks = (self.look(extractor, sequence, number) for number in range(len(sequence)))
        grids = (compared_features(look, self.config.features, self.config) for look in looks)
        picture = self.picture_size(sequence.size, extractor.system)
        return propagate_masks(grids, without_void(first), self.config, picture)


def compared_features(look: Features, source: Source, config: KNNConfig) -> Float[Tensor, "d gh gw"]:
    """One map on the grid: the pixel features, the encoder's, or both one below the other, each of length 1."""
    pixels = None if source == "encoder" else to_grid(look.pixels[0], config)
    if source == "pixels":
        assert pixels is not None
        return pixels
    encoder = to_grid(look.encoder[0], config)
    if pixels is None:
        return encoder
    pixels = F.interpolate(pixels[None], encoder.shape[-2:], mode="bilinear", align_corners=False)[0]
    return torch.cat([F.normalize(pixels, dim=0), F.normalize(encoder, dim=0)])
