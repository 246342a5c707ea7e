"""How much of depth and of motion can be read linearly from frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import attrs
import torch
from attrs.validators import ge, gt
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fourd_core.data import Clip
from fourd_core.errors import RecipeError
from fourd_core.interfaces import Dataset, Sample
from fourd_core.recipe import Location
from fourd_core.system import System
from fourd_evals.cue_metrics import depth_errors, flow_errors
from fourd_evals.features import FeatureExtractor, Features
from fourd_evals.flow_pairs import CuePairs, FlowPairs, SintelPairs
from fourd_evals.miniatures import nyu_miniature, sintel_miniature
from fourd_evals.nyu import open_nyu, size_note
from fourd_evals.paper import NAME
from fourd_evals.probe_training import ProbeConfig, ProbeMetric, RootConfig, Row, Score, Scores, Task
from fourd_evals.probes import LinearCat
from fourd_evals.roots import Root
from fourd_evals.transforms import chance, resized

NEAREST = 1e-3
"""Metres: what is nearer is not known, and no answer is nearer."""


def input_size(size: tuple[int, int], side: int, multiple: Sequence[int]) -> tuple[int, int]:
    """All of a picture with its smaller side at `side`, both to the nearest multiple that the backbone takes."""
    scale = side / min(size)
    rows, columns = multiple[-2:]
    return max(1, round(size[0] * scale / rows)) * rows, max(1, round(size[1] * scale / columns)) * columns


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


class FlowProbe(ProbeMetric):
    """Optical flow by a linear probe of two frames' frozen features: end-point error, shares below 1, 3 and 5 pixels.

    A 1 x 1 convolution sees the features of a frame and of the next one at the same pixel, side by side, and answers
    with the flow from the first to the second, upsampled to the truth's pixels and in these. It cannot search: it shows
    how much of the motion stands in the features where they are. The row "no motion" is what an answer of zero has.

    The truth is Sintel's where `root` is set; without, it is what a flow cue of the recipe says of the recipe's own
    videos (its part held out, for validation), a pseudo truth whose errors count as the probe's.
    """

    title = "Optical flow, linear probe"

    @attrs.frozen(kw_only=True)
    class Config(ProbeConfig):
        """The protocol; no published one is followed."""

        root: Location | None = None
        """Sintel's folder, with `training/`; none: the recipe's data and `cue`."""
        render: Literal["clean", "final"] = "final"
        """Which of Sintel's pictures."""
        cue: str = "flow"
        """The recipe's flow cue that serves as truth where there is no root."""
        pairs: int = attrs.field(default=200, validator=ge(1))
        """How many pairs of the recipe's videos an epoch has; a quarter of it validates."""
        pixels: int = attrs.field(default=448, validator=ge(1))
        """The smaller side of what the network sees; of the recipe's own videos it sees the middle square."""
        unit: float = attrs.field(default=10.0, validator=gt(0))
        """Pixels for each 1 that the convolution gives, so that its weights need not grow far."""
        batch_size: int = attrs.field(default=8, validator=ge(1))
        """Pairs of a training step."""
        val_batch_size: int = attrs.field(default=8, validator=ge(1))
        """Validation pairs that go through together."""

    @classmethod
    def example(cls) -> Any:
        """A generated miniature of Sintel."""
        return cls.Config(
            root=Location(sintel_miniature()), epochs=1, batch_size=2, pixels=32, val_batch_size=2, workers=1
        )

    def task(self, system: System, data: Dataset) -> Task:
        """The pairs.

        Raises:
            MediaError: the root is laid out otherwise.
            RecipeError: the recipe lacks the flow cue.
        """
        return FlowTask(cast(Any, self.config), system, data)


class FlowTask(Task):
    """Flow from a frame to the next."""

    name = "flow probe"

    def __init__(self, config: Any, system: System, data: Dataset) -> None:
        self.config, self._system = config, system
        multiple = system.backbone.spec.multiple
        if multiple[0] > 1:
            raise RecipeError(
                f"flow_probe needs features of single frames; this backbone takes {multiple[0]} at a time"
            )
        self._train, self._val = self._parts(data)
        self.train, self.val, self.val_batch = len(self._train), len(self._val), config.val_batch_size
        self.size = input_size(self._val.size, config.pixels, multiple)
        self.sizes = [self.size]
        self.threads = self._val.threads

    def _parts(self, data: Dataset) -> tuple[FlowPairs, FlowPairs]:
        config = self.config
        if config.root is not None:
            root = Root(config.root)
            return SintelPairs(root, config.render, "train"), SintelPairs(root, config.render, "val")
        if self._system.cues[config.cue].kind != "flow":
            raise RecipeError(f"flow_probe: [cues.{config.cue}] is not a flow; name one by `cue`, or set `root`")
        held_out = max(1, config.pairs // 4)
        return (
            CuePairs(data.videos("train"), config.pairs, config.pixels),
            CuePairs(data.videos("held_out"), held_out, config.pixels),
        )

    def train_sample(self, number: int, generator: torch.Generator) -> Sample:
        """A pair, perhaps mirrored."""
        sample = self._sample(self._train[number])
        if chance(0.5, generator):
            sample = {key: value.flip(-1) for key, value in sample.items()}
            if "flow" in sample:
                sample["flow"] = sample["flow"] * torch.tensor([-1.0, 1.0]).view(2, 1, 1)
        return sample

    def val_sample(self, number: int) -> Sample:
        """A pair."""
        return self._sample(self._val[number])

    def _sample(self, pair: Sample) -> Sample:
        frames = pair["frames"].float() / 255
        seen = [resized(frame, self.size, antialias=True).clamp(0, 1) for frame in frames]
        return {**pair, "frames": torch.stack(seen)}

    @torch.no_grad()
    def on_device(self, batch: Sample) -> Sample:
        """The truth, where a cue has to say it: of the frames as the network sees them."""
        if "flow" in batch:
            return batch
        cue = self._system.cues[self.config.cue](Clip(batch["frames"]))
        valid = torch.ones_like(cue.values[:, :, :1], dtype=torch.bool) if cue.valid is None else cue.valid
        return {**batch, "flow": cue.values[:, 0].where(valid[:, 0], torch.nan)}

    def encode(self, extractor: FeatureExtractor, batch: Sample) -> Features:
        """Both frames' features side by side."""
        features = extractor(batch["frames"].flatten(0, 1))
        beside = [maps.unflatten(0, (-1, 2)).flatten(1, 2) for maps in (features.encoder, features.pixels)]
        return Features(*beside)

    def probe(self, pixel_dim: int, encoder_dim: int) -> nn.Module:
        """A 1 x 1 convolution on each source, of both frames."""
        return LinearCat(2 * pixel_dim, 2 * encoder_dim, 2, alphas=self.config.alphas)

    def loss(self, answer: Tensor, batch: Sample) -> Tensor:
        """The end-point error in units of the convolution, over known pixels."""
        known = batch["flow"].isfinite().all(1, keepdim=True)
        difference = answer - batch["flow"].where(known, 0.0) / self.config.unit
        # The length's own gradient is not a number at zero.
        length = (difference.square().sum(1, keepdim=True) + 1e-8).sqrt()
        error: Tensor = (length * known).sum() / known.sum().clamp(min=1)
        return error

    def truth_size(self, batch: Sample) -> tuple[int, int]:
        """That of the truth."""
        return batch["flow"].shape[-2], batch["flow"].shape[-1]

    def scores(self) -> Scores:
        """Means over pairs."""
        return FlowScores(self.config.unit)

    def facts(self) -> dict[str, Any]:
        """The data and what is fixed."""
        return {
            **self._val.facts(), "input": list(self.size), "samples": {"train": self.train, "val": self.val},
            "read-out": "both frames' features at one pixel, 1 x 1 convolution, upsampled to the truth",
            "flow": "from the first frame to the second, in pixels of the truth", "mirrored": 0.5,
            "mean": "over pairs",
        }  # fmt: skip

    def notes(self) -> list[str]:
        """What the truth is."""
        return self._val.notes(self._train)


class FlowScores(Scores):
    """Means over pairs with a known pixel."""

    def __init__(self, unit: float) -> None:
        self._unit = unit
        self._errors: list[Tensor] = []
        self._still: list[Tensor] = []

    def add(self, answer: Tensor, batch: Sample) -> None:
        """Count a batch, and what an answer of zero would have."""
        for flow, truth in zip(answer * self._unit, batch["flow"], strict=True):
            known = truth.isfinite().all(0)
            if known.any():
                self._errors.append(flow_errors(flow[:, known], truth[:, known]).cpu())
                self._still.append(flow_errors(torch.zeros_like(truth[:, known]), truth[:, known]).cpu())

    def result(self) -> Score:
        """The end-point error decides."""
        ours, still = _columns(self._errors), _columns(self._still)
        row: Row = {NAME: "no motion", **{key: round(value, 5) for key, value in still.items()}}
        return Score(ours, -ours["EPE"], others=(row,))


def _columns(errors: list[Tensor]) -> dict[str, float]:
    values = torch.stack(errors).double().mean(0).tolist() if errors else [0.0] * 4
    return dict(zip(("EPE", "px1", "px3", "px5"), values, strict=True))
