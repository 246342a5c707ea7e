"""How much of depth can be read linearly from frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs
import torch
from attrs.validators import ge, gt
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fourd_core.interfaces import Dataset, Sample
from fourd_core.recipe import Location
from fourd_core.system import System
from fourd_evals.cue_metrics import depth_errors
from fourd_evals.miniatures import nyu_miniature
from fourd_evals.nyu import open_nyu, size_note
from fourd_evals.probe_task import RootConfig, Score, Scores, Task
from fourd_evals.probe_training import ProbeMetric
from fourd_evals.probes import LinearCat
from fourd_evals.roots import Root
from fourd_evals.transforms import chance, input_size, resized

NEAREST = 1e-3
"""Metres: what is nearer is not known, and no answer is nearer."""


class DepthProbe(ProbeMetric):
    """Depth of NYUv2 by a linear probe of frozen features: AbsRel, RMSE, delta1 to delta3, per picture.

    A 1 x 1 convolution of the features gives the logarithm of the depth in metres, upsampled to the truth's pixels. A
    picture's errors are over its measured pixels, the table's are means over pictures.
    """

    title = "NYUv2 depth, linear probe"

    @attrs.frozen(kw_only=True)
    class Config(RootConfig):
        """The protocol; no published one is followed."""

        batch_size: int = attrs.field(default=16, validator=ge(1))
        """Pictures of a training step."""
        pixels: int = attrs.field(default=476, validator=ge(1))
        """The smaller side of what the network sees of the whole picture."""
        loss: Literal["l1", "scale_invariant"] = "l1"
        """l1: metres; scale_invariant: squares of the logarithm, less half of its squared mean (Eigen et al. 2014)."""
        align: Literal["none", "scale_shift"] = "none"
        """scale_shift: each picture's answer is fitted to its truth by least squares before it is measured."""
        crop: bool = True
        """Measure rows 45 to 470 and columns 41 to 600 alone (Eigen et al. 2014), of pictures of 480 x 640."""
        farthest: float = attrs.field(default=10.0, validator=gt(0))
        """Metres: what is farther does not count, and answers end there."""
        depth: Literal["raw", "filled"] = "raw"
        """Of the authors' labelled file: as measured, or with its holes filled in."""
        val_batch_size: int = attrs.field(default=8, validator=ge(1))
        """Validation pictures that go through together."""

    @classmethod
    def example(cls) -> Any:
        """A generated miniature."""
        return cls.Config(
            root=Location(nyu_miniature()), epochs=1, batch_size=2, pixels=32, val_batch_size=2, workers=1
        )

    def task(self, system: System, data: Dataset) -> Task:
        """The pictures with their depth.

        Raises:
            MediaError: the root is laid out in none of the known ways.
        """
        return DepthTask(self.config, system.backbone.spec.multiple)


class DepthTask(Task):
    """NYUv2's depth."""

    name = "NYUv2 depth"

    def __init__(self, config: Any, multiple: Sequence[int]) -> None:
        self.config = config
        root = Root(config.folder)
        self._train = open_nyu(root, "train", "depth", config.depth)
        self._val = open_nyu(root, "val", "depth", config.depth)
        self.train, self.val, self.val_batch = len(self._train), len(self._val), config.val_batch_size
        height, width = self._val[0].picture.shape[-2:]
        self.size = input_size((height, width), config.pixels, multiple)
        self.sizes = [self.size]

    def train_sample(self, number: int, generator: torch.Generator) -> Sample:
        """A whole picture, perhaps mirrored: a crop that is enlarged would look nearer than it is."""
        item = self._train[number]
        sample = self._sample(item.picture, item.depth)
        return {key: value.flip(-1) for key, value in sample.items()} if chance(0.5, generator) else sample

    def val_sample(self, number: int) -> Sample:
        """A whole picture."""
        return self._sample(self._val[number].picture, self._val[number].depth)

    def _sample(self, picture: Tensor, depth: Tensor) -> Sample:
        return {"picture": resized(picture.float() / 255, self.size, antialias=True).clamp(0, 1), "depth": depth}

    def probe(self, pixel_dim: int, encoder_dim: int) -> nn.Module:
        """A 1 x 1 convolution on each source."""
        return LinearCat(pixel_dim, encoder_dim, 1, alphas=self.config.alphas)

    def loss(self, answer: Tensor, batch: Sample) -> Tensor:
        """Over measured pixels."""
        truth, valid = batch["depth"], self._valid(batch["depth"])
        if self.config.loss == "l1":
            error: Tensor = ((answer.exp() - truth).abs() * valid).sum() / valid.sum().clamp(min=1)
            return error
        difference: Tensor = (answer - truth.clamp(min=NEAREST).log()) * valid
        count: Tensor = valid.sum((1, 2, 3)).clamp(min=1)
        squares: Tensor = difference.square().sum((1, 2, 3)) / count
        mean: Tensor = difference.sum((1, 2, 3)) / count
        return (squares - 0.5 * mean.square()).mean()

    def _valid(self, depth: Float[Tensor, "b 1 h w"]) -> Bool[Tensor, "b 1 h w"]:
        farthest: float = self.config.farthest
        return (depth > NEAREST) & (depth < farthest)

    def truth_size(self, batch: Sample) -> tuple[int, int]:
        """That of the measurement."""
        return batch["depth"].shape[-2], batch["depth"].shape[-1]

    def scores(self) -> Scores:
        """Means over pictures."""
        return DepthScores(self)

    def measured(self, batch: Sample) -> Bool[Tensor, "b 1 h w"]:
        """Which pixels of the truth count in validation."""
        valid = self._valid(batch["depth"])
        if not self.config.crop or valid.shape[-2:] != (480, 640):
            return valid
        inside = torch.zeros_like(valid)
        inside[..., 45:471, 41:601] = True
        return valid & inside

    def facts(self) -> dict[str, Any]:
        """The data and what is fixed."""
        return {
            "data": "NYUv2", "layout": [self._train.layout, self._val.layout], "input": list(self.size),
            "pictures": {"train": self.train, "val": self.val}, "unit": "m", "mirrored": 0.5, "nearest": NEAREST,
            "read-out": "log depth, 1 x 1 convolution, upsampled to the truth", "mean": "over pictures",
        }  # fmt: skip

    def notes(self) -> list[str]:
        """Whether these are the published pictures."""
        note = size_note(self.train, self.val)
        return [] if note is None else [note]


class DepthScores(Scores):
    """Means over pictures with a measured pixel."""

    def __init__(self, task: DepthTask) -> None:
        self._task = task
        self._errors: list[Tensor] = []

    def add(self, answer: Tensor, batch: Sample) -> None:
        """Count a batch."""
        valid, far = self._task.measured(batch), self._task.config.farthest
        align = self._task.config.align == "scale_shift"
        for depth, truth, known in zip(answer.exp(), batch["depth"], valid, strict=True):
            if known.any():
                self._errors.append(depth_errors(depth[known], truth[known], (NEAREST, far), align).cpu())

    def result(self) -> Score:
        """AbsRel decides."""
        values = torch.stack(self._errors).double().mean(0).tolist() if self._errors else [0.0] * 5
        return Score(dict(zip(("AbsRel", "RMSE", "delta1", "delta2", "delta3"), values, strict=True)), -values[0])
