"""DAVIS-2017 by a linear probe: a classifier of objects trained on the first frame alone, applied to all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

import attrs
import torch
import torch.nn.functional as F
from attrs.validators import ge, gt
from jaxtyping import Shaped, UInt8
from torch import Tensor

from fourd_core.errors import MediaError, RecipeError, RunError
from fourd_core.randomness import seeded
from fourd_core.system import System
from fourd_evals.davis import DAVIS, DAVISSequence
from fourd_evals.davis_metrics import SequenceScores, without_void
from fourd_evals.davis_miniature import davis_miniature
from fourd_evals.davis_protocol import DAVISConfig, DAVISMetric, patch_resample
from fourd_evals.features import FeatureExtractor, Features
from fourd_evals.probes import ALPHAS, LinearCat, Source
from fourd_evals.transforms import center_crop

QUICK = ("bike-packing", "india", "dog", "motocross-jump", "shooting", "horsejump-high")
"""The sequences by which LILA's training chooses its best weights."""


class _FirstFrameProbe(DAVISMetric):
    """A linear classifier of the first frame's objects."""

    optimiser: ClassVar[type[torch.optim.Adam]]

    def settings(self) -> dict[str, Any]:
        """With the optimiser."""
        return {**super().settings(), "optimiser": self.optimiser.__name__}

    def predict(self, extractor: FeatureExtractor, sequence: DAVISSequence) -> Iterator[UInt8[Tensor, "h w"]]:
        """Train on the first frame, then answer for each."""
        look = self.look(extractor, sequence, 0)
        masks = (sequence.mask(number) for number in range(len(sequence)))
        classes = max(int(without_void(self.seen(mask)).max()) for mask in masks if mask is not None) + 1
        first = sequence.mask(0)
        assert first is not None, "DAVIS.open has seen it"
        labels = without_void(self.seen(first))
        size = labels.shape[-2], labels.shape[-1]
        probe = self._trained(extractor, sequence.name, look, labels, classes)
        for number in range(len(sequence)):
            look = self.look(extractor, sequence, number) if number else look
            with torch.no_grad():
                yield probe(look, size)[0].argmax(0).to(torch.uint8)

    def _trained(
        self, extractor: FeatureExtractor, name: str, look: Features, labels: UInt8[Tensor, "h w"], classes: int
    ) -> LinearCat:
        """A probe after `iterations` steps on the whole frame.

        Raises:
            RunError: the loss is not finite.
        """
        config, device = self.config, extractor.system.device
        dims = look.pixels.shape[1], look.encoder.shape[1]
        with seeded(config.seed, "davis probe", name):
            probe = LinearCat(*dims, classes, alphas=ALPHAS[cast(Source, config.features)]).to(device)
        optimiser = self.optimiser(probe.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        target = labels.long()[None].to(device)
        with torch.enable_grad():
            for _ in range(config.iterations):
                loss = F.cross_entropy(probe(look, (target.shape[-2], target.shape[-1])), target)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        if not loss.isfinite():
            raise RunError(f"{self.title}: the loss of the probe on the sequence {name} is {float(loss)}; lower lr")
        return probe.requires_grad_(False)


class DAVISProbe(_FirstFrameProbe):
    """DAVIS-2017 video object segmentation by a linear probe of frozen features: J, F, recall, decay.

    Source: google-research/lila, eval_vos.py.
    """

    title = "DAVIS-2017 linear probe"
    compared = "J&F linear probe"
    optimiser = torch.optim.AdamW

    @attrs.frozen(kw_only=True)
    class Config(DAVISConfig):
        """The protocol, by default the paper's."""

        features: Source = "both"
        """What the probe reads: both (the paper's LILA rows), the encoder's map (its DINO2 rows) or the pixel
        features."""
        resolution: int = attrs.field(default=476, validator=ge(1))
        """The smaller side of the frames that the network sees, in pixels; rounded to the backbone's patches."""
        iterations: int = attrs.field(default=2000, validator=ge(1))
        """Steps of AdamW on the whole first frame."""
        lr: float = attrs.field(default=5e-4, validator=gt(0))
        """Of AdamW, the same throughout."""
        weight_decay: float = attrs.field(default=1e-4, validator=ge(0))
        """Of AdamW."""
        seed: int = 0
        """Of the probe's start."""

    @classmethod
    def example(cls) -> Any:
        """A generated miniature, few steps."""
        return cls.Config(root=davis_miniature(), resolution=32, iterations=3, lr=0.05)

    def picture_size(self, size: tuple[int, int], system: System) -> tuple[int, int]:
        """LILA's rounding to patches."""
        _, rows, columns = system.backbone.spec.multiple
        return patch_resample(size, self.config.resolution, (rows, columns))


class DAVISQuickProbe(_FirstFrameProbe):
    """J&F of a linear probe on the middle of six DAVIS-2017 sequences: the number by which training keeps its best.

    Source: google-research/lila, train_lila.py; the crops are taken from the frames as they are stored.
    """

    title = "DAVIS-2017 quick probe"
    compared = None
    optimiser = torch.optim.Adam

    @attrs.frozen(kw_only=True)
    class Config(DAVISConfig):
        """The protocol, by default that of LILA's training."""

        sequences: tuple[str, ...] = attrs.field(default=QUICK, validator=attrs.validators.min_len(1))
        """Which sequences."""
        crop: int = attrs.field(default=224, validator=ge(1))
        """Side of the square in the middle of the frames, in pixels."""
        iterations: int = attrs.field(default=2000, validator=ge(1))
        """Steps of Adam on the whole first frame."""
        lr: float = attrs.field(default=3e-4, validator=gt(0))
        """Of Adam, the same throughout."""
        weight_decay: float = attrs.field(default=1e-4, validator=ge(0))
        """Of Adam: added to the gradient."""
        seed: int = 0
        """Of the probe's start."""

    @classmethod
    def example(cls) -> Any:
        """A generated miniature, few steps."""
        return cls.Config(root=davis_miniature(), sequences=("dog", "india"), crop=32, iterations=3, lr=0.05)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.names = config.sequences

    def open(self) -> DAVIS:
        """The sequences; without those whose first frame shows no object in the middle.

        Raises:
            MediaError: none does.
        """
        davis = super().open()
        shown = tuple(sequence for sequence in davis.sequences if self._shows_object(sequence))
        if not shown:
            raise MediaError(f"{self.title}: no sequence shows an object in the middle of its first frame")
        return attrs.evolve(davis, sequences=shown)

    def _shows_object(self, sequence: DAVISSequence) -> bool:
        mask = sequence.mask(0)
        return mask is not None and bool(without_void(self.seen(mask)).any())

    def notes(self, davis: DAVIS, scores: dict[str, SequenceScores]) -> Iterator[str]:
        """With the sequences that were left out."""
        if left_out := [name for name in self.names if name not in scores]:
            yield f"left out, since their first frame shows no object in the middle: {', '.join(left_out)}"
        yield from super().notes(davis, scores)

    def seen(self, maps: Shaped[Tensor, "*axes h w"]) -> Shaped[Tensor, "*axes y x"]:
        """The square in the middle."""
        return center_crop((maps.shape[-2], maps.shape[-1]), self.config.crop).of(maps)

    def picture_size(self, size: tuple[int, int], system: System) -> tuple[int, int]:
        """The crop's.

        Raises:
            RecipeError: the backbone does not divide it, or the frames are smaller.
        """
        crop, (_, rows, columns) = self.config.crop, system.backbone.spec.multiple
        if crop % rows or crop % columns:
            raise RecipeError(
                f"{self.title}: crop = {crop} is not divisible by the backbone's {rows} x {columns} pixels"
            )
        if crop > min(size):
            raise RecipeError(f"{self.title}: crop = {crop} does not fit into frames of {size[0]} x {size[1]}")
        return crop, crop
