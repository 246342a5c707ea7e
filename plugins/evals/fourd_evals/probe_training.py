"""A small network trained on frozen features, and measured after every epoch: what the picture evaluations share.

A `Task` knows one data set: its samples, its probe, its loss and its scores. `ProbeMetric` makes a Metric of it. Every
sample is drawn from a seed of its own (epoch, number), so that threads may prepare them in any order.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import attrs
import torch
from attrs.validators import ge, gt
from torch import Tensor, nn
from torch.utils.data import default_collate

from fourd_core.errors import RecipeError, RunError
from fourd_core.interfaces import Dataset, Head, Metric, Result, Sample
from fourd_core.progress import track
from fourd_core.randomness import generator_for, seeded
from fourd_core.recipe import Location
from fourd_core.system import System
from fourd_evals.features import FeatureExtractor, Features
from fourd_evals.paper import NAME, PaperTable, changed_note, our_name
from fourd_evals.probes import ALPHAS, Source

NOT_PROTOCOL = ("root", "text", "splits", "workers", "table")
"""Keys that change no number, and places: what lies there is in the protocol."""
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


class ProbeMetric(Metric):
    """A Metric that trains a probe and reports its best epoch."""

    title: str
    config: ProbeConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def task(self, system: System, data: Dataset) -> Task:
        """The task on its data.

        Raises:
            FourdError: the data are not there or not as expected.
        """

    def available(self, system: System, data: Dataset) -> bool:
        """Whether the root is set, where it needs one; `prepare` says what is wrong with it."""
        return not isinstance(self.config, RootConfig) or self.config.root is not None

    def prepare(self, system: System, data: Dataset) -> None:
        """Find the data, and see whether the system can read its pictures and the probe its features."""
        task = self.task(system, data)
        self._extractor(system, task)
        with torch.device("meta"):
            self._probe(system, task)

    def measure(self, system: System, data: Dataset) -> Result:
        """Train the probe and report; the system stays as it is.

        Raises:
            FourdError: as `prepare`; a picture cannot be read; the loss is not finite.
        """
        config, task = self.config, self.task(system, data)
        extractor = self._extractor(system, task)
        system.eval()
        with seeded(config.seed, task.name, "probe"):
            probe = self._probe(system, task)
        training = _Training(task, probe.to(system.device), extractor, config)
        for _ in track(training.run(), task.name, training.total):
            pass
        ours: Row = {NAME: our_name(system), **{key: round(v, 5) for key, v in training.best.columns.items()}}
        rows = (ours, *training.best.others, *task.paper())
        return Result(self.title, rows, self._protocol(task), tuple(self._notes(task, training)), training.best.quality)

    def _extractor(self, system: System, task: Task) -> FeatureExtractor:
        extractor = FeatureExtractor(system, self.config.head, self.config.tap)
        extractor.check()
        _, rows, columns = system.backbone.spec.multiple
        for height, width in task.sizes:
            if height % rows or width % columns:
                near = round(height / rows) * rows, round(width / columns) * columns
                raise RecipeError(
                    f"{task.name}: the backbone takes multiples of {rows} x {columns} pixels; {height} x {width} is "
                    f"none, {near[0]} x {near[1]} is"
                )
        return extractor

    def _probe(self, system: System, task: Task) -> nn.Module:
        head = cast(Head, system.heads[self.config.head])
        tap = system.backbone.spec.taps[head.taps[self.config.tap]]
        try:
            return task.probe(head.channels, tap.dim)
        except ValueError as error:
            raise RecipeError(f"{task.name}: {error}") from error

    def _protocol(self, task: Task) -> dict[str, Any]:
        settings = {key: value for key, value in attrs.asdict(self.config).items() if key not in NOT_PROTOCOL}
        protocol = {**settings, "optimiser": "AdamW", **task.facts()}
        plain: dict[str, Any] = json.loads(json.dumps(protocol))  # tuples become lists, as they will when read back
        return plain

    def _notes(self, task: Task, training: _Training) -> list[str]:
        chosen = f"our row is epoch {training.best_epoch} of {self.config.epochs}"
        if self.config.select == "best":
            chosen += (
                ', the best one on the very pictures that the table is about; for the last one set select = "last"'
            )
        paper = attrs.asdict(type(self.config)())
        changed = changed_note(attrs.asdict(self.config), paper, NOT_PROTOCOL) if task.paper() else None
        return [*task.notes(), *filter(None, [changed]), chosen]


class _Training:
    """One training of one probe: `run` yields after each batch of training and of validation."""

    def __init__(self, task: Task, probe: nn.Module, extractor: FeatureExtractor, config: ProbeConfig) -> None:
        self.task, self.probe, self.extractor, self.config = task, probe, extractor, config
        self.best = Score({}, float("-inf"))
        self.best_epoch = 0
        self._optimiser = torch.optim.AdamW(probe.parameters(), lr=config.lr, weight_decay=config.weight_decay)

    @property
    def total(self) -> int:
        """How many batches there are."""
        task, config = self.task, self.config
        per_epoch = -(-task.train // config.batch_size) + -(-task.val // task.val_batch)
        return config.epochs * per_epoch

    def run(self) -> Iterator[None]:
        for epoch in range(1, self.config.epochs + 1):
            self.probe.train()
            for batch in self._train_batches(epoch):
                with torch.enable_grad():
                    self._step(batch, epoch)
                yield
            self.probe.train(not self.task.eval_mode)
            scores = self.task.scores()
            for batch in self._val_batches():
                with torch.no_grad():
                    scores.add(self._answer(batch), batch)
                yield
            score = scores.result()
            if self.config.select == "last" or score.quality >= self.best.quality:  # of equals, the later
                self.best, self.best_epoch = score, epoch

    def _step(self, batch: Sample, epoch: int) -> None:
        loss = self.task.loss(self._answer(batch), batch)
        if not loss.isfinite():
            raise RunError(f"{self.task.name}: the loss is {loss.item()} in epoch {epoch}; choose a smaller lr")
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()

    def _answer(self, batch: Sample) -> Tensor:
        answer: Tensor = self.probe(self.task.encode(self.extractor, batch), self.task.truth_size(batch))
        return answer

    def _train_batches(self, epoch: int) -> Iterator[Sample]:
        seed, task = self.config.seed, self.task
        order = torch.randperm(task.train, generator=generator_for(seed, task.name, "order", epoch)).tolist()

        def sample(number: int) -> Sample:
            return task.train_sample(number, generator_for(seed, task.name, "sample", epoch, number))

        return self._batches(order, self.config.batch_size, sample)

    def _val_batches(self) -> Iterator[Sample]:
        return self._batches(range(self.task.val), self.task.val_batch, self.task.val_sample)

    def _batches(self, numbers: Sequence[int], size: int, sample: Callable[[int], Sample]) -> Iterator[Sample]:
        """Batches on the device, in order; threads prepare one while another is worked on."""
        device = self.extractor.system.device
        with ThreadPoolExecutor(self.task.threads or self.config.workers) as pool:
            ahead: deque[list[Any]] = deque()
            for start in range(0, len(numbers) + size, size):
                ahead.append([pool.submit(sample, number) for number in numbers[start : start + size]])
                if len(ahead) > 1:
                    batch = default_collate([future.result() for future in ahead.popleft()])
                    yield self.task.on_device({key: value.to(device) for key, value in batch.items()})
