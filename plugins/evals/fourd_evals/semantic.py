"""Semantic segmentation by a probe of frozen features: COCO-Stuff's 27 coarse classes (LILA, Tab. 2) and ADE20K."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs
import torch
import torch.nn.functional as F
from attrs.validators import ge
from torch import Tensor, nn

from fourd_core.interfaces import Dataset, Sample
from fourd_core.system import System
from fourd_evals import ade, coco
from fourd_evals.labelled import PictureFiles, center_view, random_view
from fourd_evals.miniatures import ade_miniature, coco_miniature
from fourd_evals.paper import paper_rows
from fourd_evals.probe_task import RootConfig, Row, Score, Scores, Task
from fourd_evals.probe_training import ProbeMetric
from fourd_evals.probes import AttentionProbe, LinearCat
from fourd_evals.roots import Root
from fourd_evals.segmentation_metrics import IGNORED, confusion, scores

RATIO = (0.75, 1.33)
"""Width over height of training crops."""


@attrs.frozen(kw_only=True)
class SegmentationConfig(RootConfig):
    """How pictures reach the probe."""

    probe: Literal["attention", "linear"] = "attention"
    """attention: a learned query per class on the pixel features; linear: a 1 x 1 convolution."""
    size: int = attrs.field(default=224, validator=ge(1))
    """Side of the pictures that the network sees, and of the labels."""
    scale: tuple[float, float] = (0.5, 1.0)
    """Share of a picture's area that a training crop has."""
    val_batch_size: int = attrs.field(default=64, validator=ge(1))
    """Validation pictures that go through together."""


class LabelsTask(Task):
    """A class for every pixel of square pictures.

    Args:
        parts: the pictures to train on and to validate on.
    """

    def __init__(
        self, name: str, parts: tuple[PictureFiles, PictureFiles], classes: int, config: SegmentationConfig
    ) -> None:
        self.name, self.classes, self.config = name, classes, config
        self._train, self._val = parts
        self.train, self.val = len(self._train), len(self._val)
        self.val_batch = config.val_batch_size
        self.sizes = [(config.size, config.size)]
        self.remarks: list[str] = []
        self.paper_rows: tuple[Row, ...] = ()
        self.data: dict[str, Any] = {}

    def train_sample(self, number: int, generator: torch.Generator) -> Sample:
        """A random crop, perhaps mirrored."""
        return random_view(self._train[number], self.config.size, self.config.scale, RATIO, generator)

    def val_sample(self, number: int) -> Sample:
        """The middle of a picture."""
        return center_view(self._val[number], self.config.size)

    def probe(self, pixel_dim: int, encoder_dim: int) -> nn.Module:
        """As configured."""
        kind = AttentionProbe if self.config.probe == "attention" else LinearCat
        return kind(pixel_dim, encoder_dim, self.classes, alphas=self.config.alphas)

    def loss(self, answer: Tensor, batch: Sample) -> Tensor:
        """Cross entropy over pixels that count."""
        return cross_entropy(answer, batch["labels"])

    def truth_size(self, batch: Sample) -> tuple[int, int]:
        """That of the labels."""
        return batch["labels"].shape[-2], batch["labels"].shape[-1]

    def scores(self) -> Scores:
        """One confusion matrix."""
        return LabelScores(self.classes)

    def facts(self) -> dict[str, Any]:
        """The data and what is fixed."""
        return {
            "data": self.name, "layout": [self._train.layout, self._val.layout], "classes": self.classes,
            "pictures": {"train": self.train, "val": self.val},
            "names_sha256": [self._train.digest, self._val.digest], "ratio": RATIO, "mirrored": 0.5,
            "resampling": "pictures bilinear without antialias in 8 bits, labels nearest", "ignored": IGNORED,
            "mean": "over classes in the truth, one confusion matrix", **self.data,
        }  # fmt: skip

    def notes(self) -> list[str]:
        """Whether these are the published pictures."""
        return self.remarks

    def paper(self) -> tuple[Row, ...]:
        """As the metric found them."""
        return self.paper_rows


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over pixels that count; 0 where none does."""
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


class LabelScores(Scores):
    """One confusion matrix for the set; percent."""

    def __init__(self, classes: int) -> None:
        self._matrix = torch.zeros(classes, classes, dtype=torch.long)

    def add(self, answer: Tensor, batch: Sample) -> None:
        """Count a batch."""
        self._matrix += confusion(answer.argmax(1), batch["labels"], len(self._matrix)).cpu()

    def result(self) -> Score:
        """The mean intersection over union decides."""
        found = scores(self._matrix)
        columns = {
            "mIoU": found.miou, "pAcc": found.pixel_accuracy, "mAcc": found.mean_accuracy, "fwIoU": found.weighted_iou,
        }  # fmt: skip
        return Score({name: 100 * value for name, value in columns.items()}, quality=found.miou)


def _small(root: str) -> dict[str, Any]:
    """The keys of an example."""
    return {"root": root, "epochs": 1, "batch_size": 2, "size": 32, "val_batch_size": 2, "workers": 1}


class COCOStuff(ProbeMetric):
    """COCO-Stuff's 27 coarse classes by an attention probe of frozen features: mIoU, pixel and class accuracy.

    Source: google-research/lila, eval_seg.py.
    """

    title = "COCO-Stuff-27 segmentation"

    @attrs.frozen(kw_only=True)
    class Config(SegmentationConfig):
        """The protocol, by default the paper's."""

        train_pictures: coco.Chosen = "curated"
        """The list of training pictures: Coco164kFull_Stuff_Coarse.txt, the same with _7, or all pictures."""
        val_pictures: coco.Chosen = "curated"
        """The list of validation pictures, likewise."""

    @classmethod
    def example(cls) -> Any:
        """A generated miniature."""
        return cls.Config(**_small(coco_miniature()))

    def task(self, system: System, data: Dataset) -> Task:
        """The pictures of the lists.

        Raises:
            MediaError: the root is laid out in none of the known ways.
        """
        config: Any = self.config
        root, table = Root(config.folder), coco.coarse_table()
        train = coco.open_coco(root, "train", table, config.train_pictures)
        val = coco.open_coco(root, "val", table, config.val_pictures)
        task = LabelsTask("COCO-Stuff-27", (train, val), coco.COARSE, config)
        notes: Sequence[str | None] = (
            coco.size_note("train", train, config.train_pictures),
            coco.size_note("val", val, config.val_pictures),
        )
        task.remarks = [note for note in notes if note]
        task.paper_rows = paper_rows("COCO-Stuff", {"mIoU": "mIoU", "pAcc": "pAcc"}, config.table)
        return task


class ADE20K(ProbeMetric):
    """ADE20K's 150 classes by an attention probe of frozen features: mIoU, pixel and class accuracy.

    The protocol is that of COCO-Stuff; LILA's paper has no row for it.
    """

    title = "ADE20K segmentation"

    @attrs.frozen(kw_only=True)
    class Config(SegmentationConfig):
        """The protocol of COCO-Stuff."""

    @classmethod
    def example(cls) -> Any:
        """A generated miniature."""
        return cls.Config(**_small(ade_miniature()))

    def task(self, system: System, data: Dataset) -> Task:
        """The training and validation pictures.

        Raises:
            MediaError: the root is laid out otherwise.
        """
        config: Any = self.config
        root = Root(config.folder)
        train, val = ade.open_ade(root, "train"), ade.open_ade(root, "val")
        task = LabelsTask("ADE20K", (train, val), ade.CLASSES, config)
        note = ade.size_note(len(train), len(val))
        task.remarks = [note] if note else []
        return task
