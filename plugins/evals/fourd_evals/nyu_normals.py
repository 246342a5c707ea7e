"""Surface normals of NYUv2 by a convolutional probe (LILA, Tab. 2)."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import torch
from attrs.validators import ge
from torch import Tensor, nn

from fourd_core.interfaces import Dataset, Sample
from fourd_core.recipe import Location
from fourd_core.system import System
from fourd_evals.miniatures import nyu_miniature
from fourd_evals.normals_metrics import THRESHOLDS, angular_loss, normal_errors
from fourd_evals.nyu import NYUPicture, open_nyu, size_note
from fourd_evals.paper import paper_rows
from fourd_evals.probe_task import RootConfig, Row, Score, Scores, Task
from fourd_evals.probe_training import ProbeMetric
from fourd_evals.probes import LinearCat
from fourd_evals.roots import Root
from fourd_evals.transforms import (
    Crop,
    center_crop,
    chance,
    colour_jitter,
    random_crop,
    resized,
    short_side,
)  # fmt: skip

RATIO = (3 / 4, 4 / 3)
"""Width over height of training crops."""


class NYUNormals(ProbeMetric):
    """NYUv2 surface normals by a 5 x 5 linear probe of frozen features: RMSE, shares below 11.25, 22.5, 30 degrees.

    Source: google-research/lila, eval_norml.py; metrics after probe3d.
    """

    title = "NYUv2 normals"

    @attrs.frozen(kw_only=True)
    class Config(RootConfig):
        """The protocol, by default the paper's."""

        tap: int = -2
        """The encoder's map, of the taps that the head reads: the one before the deepest."""
        batch_size: int = attrs.field(default=16, validator=ge(1))
        """Pictures of a training step."""
        repeats: int = attrs.field(default=10, validator=ge(1))
        """How often a picture comes in one epoch."""
        kernel: int = attrs.field(default=5, validator=ge(1))
        """Side of the probe's convolution on the pixel features, odd."""
        train_size: int = attrs.field(default=448, validator=ge(1))
        """Side of the training crops."""
        scale: tuple[float, float] = (0.5, 1.0)
        """Their share of the picture's area."""
        jitter: tuple[float, float, float] = (0.3, 0.3, 0.2)
        """Random change of brightness, contrast and saturation."""
        val_resize: int = attrs.field(default=554, validator=ge(1))
        """The smaller side of a validation picture before its middle is taken."""
        val_size: int = attrs.field(default=504, validator=ge(1))
        """Side of that middle."""
        val_batch_size: int = attrs.field(default=8, validator=ge(1))
        """Validation pictures that go through together."""
        drop_last: bool = True
        """Leave out the last validation pictures that fill no batch, as the reference does (648 of 654 count)."""
        depth: Literal["raw", "filled"] = "raw"
        """Of the authors' labelled file: which of its depths says where a normal counts."""

        def __attrs_post_init__(self) -> None:
            if self.kernel % 2 == 0:
                raise ValueError(f"kernel = {self.kernel}: the side of the convolution must be odd")
            if self.val_size > self.val_resize:
                raise ValueError(f"val_size = {self.val_size} is more than val_resize = {self.val_resize}")

    @classmethod
    def example(cls) -> Any:
        """A generated miniature of three and two pictures."""
        return cls.Config(
            root=Location(nyu_miniature()), epochs=1, batch_size=2, repeats=1, train_size=32, val_resize=40,
            val_size=32, val_batch_size=2, workers=1,
        )  # fmt: skip

    def task(self, system: System, data: Dataset) -> Task:
        """The pictures with their normals.

        Raises:
            MediaError: the root is laid out in none of the known ways.
        """
        return NormalsTask(self.config)


class NormalsTask(Task):
    """NYUv2's normals."""

    name = "NYUv2 normals"

    def __init__(self, config: Any) -> None:
        self.config = config
        root = Root(config.folder)
        self._train = open_nyu(root, "train", "normal", config.depth)
        self._val = open_nyu(root, "val", "normal", config.depth)
        self.train = len(self._train) * config.repeats
        self.val_batch = min(config.val_batch_size, len(self._val))
        self.val = len(self._val) - len(self._val) % self.val_batch if config.drop_last else len(self._val)
        self.sizes = [(config.train_size,) * 2, (config.val_size,) * 2]

    def train_sample(self, number: int, generator: torch.Generator) -> Sample:
        """A random crop, perhaps mirrored, in changed colours."""
        item, config = self._train[number % len(self._train)], self.config
        size = item.picture.shape[-2], item.picture.shape[-1]
        sample = _maps(item, random_crop(size, config.scale, RATIO, generator), (config.train_size,) * 2)
        if chance(0.5, generator):
            sample = {key: value.flip(-1) for key, value in sample.items()}
            sample["normal"] = sample["normal"] * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
        return {**sample, "picture": colour_jitter(sample["picture"], config.jitter, generator)}

    def val_sample(self, number: int) -> Sample:
        """The middle of a picture."""
        item, config = self._val[number], self.config
        size = short_side((item.picture.shape[-2], item.picture.shape[-1]), config.val_resize)
        crop = center_crop(size, config.val_size)
        whole = Crop(0, 0, item.picture.shape[-2], item.picture.shape[-1])
        return {key: crop.of(value) for key, value in _maps(item, whole, size).items()}

    def probe(self, pixel_dim: int, encoder_dim: int) -> nn.Module:
        """A convolution on the pixel features, a 1 x 1 convolution on the encoder's map."""
        return LinearCat(pixel_dim, encoder_dim, 3, self.config.kernel, self.config.alphas)

    def loss(self, answer: Tensor, batch: Sample) -> Tensor:
        """The mean angle where depth was measured."""
        return angular_loss(answer, batch["normal"], batch["depth"] > 0)

    def truth_size(self, batch: Sample) -> tuple[int, int]:
        """That of the picture."""
        return batch["normal"].shape[-2], batch["normal"].shape[-1]

    def scores(self) -> Scores:
        """Means over pictures."""
        return NormalScores()

    def facts(self) -> dict[str, Any]:
        """The data and what is fixed."""
        return {
            "data": "NYUv2", "layout": [self._train.layout, self._val.layout],
            "pictures": {"train": len(self._train), "val": self.val}, "thresholds": list(THRESHOLDS), "ratio": RATIO,
            "mirrored": 0.5, "resampling": "pictures bilinear with antialias, normals and depth bilinear",
            "mean": "over pictures",
        }  # fmt: skip

    def notes(self) -> list[str]:
        """Whether these are the published pictures."""
        note = size_note(len(self._train), len(self._val))
        return [] if note is None else [note]

    def paper(self) -> tuple[Row, ...]:
        """RMSE and delta1 of the paper's table."""
        return paper_rows("NYUv2 normals", {"RMSE": "RMSE", "delta1": "delta1"}, self.config.table)


def _maps(item: NYUPicture, crop: Crop, size: tuple[int, int]) -> Sample:
    """A part of a picture and of its truth at another size."""
    assert item.normal is not None
    return {
        "picture": resized(crop.of(item.picture).float() / 255, size, antialias=True).clamp(0, 1),
        "depth": resized(crop.of(item.depth), size),
        "normal": resized(crop.of(item.normal), size),
    }


class NormalScores(Scores):
    """Means over pictures: degrees, and percent of their pixels."""

    def __init__(self) -> None:
        self._rmse: list[Tensor] = []
        self._shares: list[Tensor] = []

    def add(self, answer: Tensor, batch: Sample) -> None:
        """Count a batch."""
        errors = normal_errors(answer, batch["normal"], batch["depth"] > 0)
        self._rmse.append(errors.rmse.cpu())
        self._shares.append(errors.shares.cpu())

    def result(self) -> Score:
        """RMSE decides."""
        rmse = float(torch.cat(self._rmse).double().mean())
        shares = (100 * torch.cat(self._shares).double().mean(0)).tolist()
        return Score({"RMSE": rmse, **{f"delta{n}": share for n, share in enumerate(shares, 1)}}, quality=-rmse)
