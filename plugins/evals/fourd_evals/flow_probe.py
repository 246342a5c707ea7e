"""How much of the motion between two frames can be read linearly from their frozen features."""

from __future__ import annotations

from typing import Any, Literal, cast

import attrs
import torch
from attrs.validators import ge, gt
from torch import Tensor, nn

from fourd_core.data import Clip
from fourd_core.errors import RecipeError
from fourd_core.interfaces import Dataset, Sample
from fourd_core.recipe import Location
from fourd_core.system import System
from fourd_evals.cue_metrics import flow_errors
from fourd_evals.features import FeatureExtractor, Features
from fourd_evals.flow_pairs import CuePairs, FlowPairs, SintelPairs
from fourd_evals.miniatures import sintel_miniature
from fourd_evals.paper import NAME
from fourd_evals.probe_task import ProbeConfig, Row, Score, Scores, Task
from fourd_evals.probe_training import ProbeMetric
from fourd_evals.probes import LinearCat
from fourd_evals.roots import Root
from fourd_evals.transforms import chance, input_size, resized


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
