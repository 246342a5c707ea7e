"""What a picture evaluation says of itself: how its probe is trained, and a `Task` that knows one data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import attrs
import torch
from attrs.validators import ge, gt
from torch import Tensor, nn

from fourd_core.errors import RecipeError
from fourd_core.interfaces import Sample
from fourd_core.recipe import Location
from fourd_evals.features import FeatureExtractor, Features
from fourd_evals.paper import PaperTable
from fourd_evals.probes import ALPHAS, Source

Row = dict[str, str | float]


@attrs.frozen(kw_only=True)
class ProbeConfig:
    """How a probe is trained."""

    head: str = "features"
    """The head whose maps are the pixel features."""
    tap: int = -1
    """Which of the taps that this head reads is the encoder's map; negative numbers count from the deepest."""
    features: Source = "both"
    """pixels, the encoder's map, or both: what the probe reads."""
    epochs: int = attrs.field(default=30, validator=ge(1))
    """How often the training pictures are gone through; the probe is measured after each."""
    batch_size: int = attrs.field(default=64, validator=ge(1))
    """Pictures of a training step."""
    lr: float = attrs.field(default=3e-4, validator=gt(0))
    """Of AdamW (betas 0.9 and 0.999), the same throughout."""
    weight_decay: float = attrs.field(default=0.01, validator=ge(0))
    """Of AdamW, on every parameter."""
    select: Literal["best", "last"] = "best"
    """Which epoch is reported: the best one on the validation part, as LILA's evaluations do, or the last one."""
    seed: int = 0
    """Of the probe's start, the order of the pictures and their crops."""
    table: PaperTable = "main"
    """The rows of which of the paper's tables stand beside ours."""
    workers: int = attrs.field(default=4, validator=ge(1))
    """Threads that read pictures."""

    @property
    def alphas(self) -> tuple[float, float]:
        """Weights of (pixels, encoder)."""
        return ALPHAS[self.features]


@attrs.frozen(kw_only=True)
class RootConfig(ProbeConfig):
    """How a probe is trained on a public data set."""

    root: Location | None = None
    """The folder of the data set; without it nothing is measured."""

    @property
    def folder(self) -> Location:
        """`root`, which must be set by now.

        Raises:
            RecipeError: it is not.
        """
        if self.root is None:
            raise RecipeError("no data set to measure on is named: set `root`, the folder of the data set")
        return self.root


@attrs.frozen
class Score:
    """What one pass over the validation part gives."""

    columns: dict[str, float]
    """In the order of the table."""
    quality: float
    """In one number, higher is better; the best epoch is found by it."""
    others: tuple[Row, ...] = ()
    """Rows of what needs no probe, measured on the same pixels."""


class Scores(ABC):
    """Sums over the validation part."""

    @abstractmethod
    def add(self, answer: Tensor, batch: Sample) -> None:
        """Count a batch's answers."""

    @abstractmethod
    def result(self) -> Score:
        """The scores of everything that was added."""


class Task(ABC):
    """What a probe is trained for.

    Attributes:
        name: for progress and messages.
        train: how many training samples an epoch has.
        val: how many samples the validation part has.
        val_batch: how many of them go through together.
        sizes: rows and columns of the pictures that the network sees.
        threads: how many may read samples at once; None: as many as the configuration says.
        eval_mode: whether the probe is switched to evaluation for validation.
    """

    name: str
    train: int
    val: int
    val_batch: int
    sizes: Sequence[tuple[int, int]]
    threads: int | None = None
    eval_mode: bool = True

    @abstractmethod
    def train_sample(self, number: int, generator: torch.Generator) -> Sample:
        """A training sample: `picture` (`3 h w`, in [0, 1]) and its truth."""

    @abstractmethod
    def val_sample(self, number: int) -> Sample:
        """A validation sample, always the same."""

    @abstractmethod
    def probe(self, pixel_dim: int, encoder_dim: int) -> nn.Module:
        """The network that is trained: `(Features, size) -> b k h w`."""

    @abstractmethod
    def loss(self, answer: Tensor, batch: Sample) -> Tensor:
        """One number."""

    @abstractmethod
    def scores(self) -> Scores:
        """An empty count."""

    @abstractmethod
    def truth_size(self, batch: Sample) -> tuple[int, int]:
        """Rows and columns of the answer that is wanted."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the numbers depend on beside the configuration, for the protocol."""

    def notes(self) -> list[str]:
        """What a reader must know about the data."""
        return []

    def paper(self) -> tuple[Row, ...]:
        """The paper's rows."""
        return ()

    def on_device(self, batch: Sample) -> Sample:
        """What can be said of a batch only where the network is."""
        return batch

    def encode(self, extractor: FeatureExtractor, batch: Sample) -> Features:
        """What the probe reads."""
        return extractor(batch["picture"])
