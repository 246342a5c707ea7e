"""A small network trained on frozen features, and measured after every epoch: what the picture evaluations share.

`ProbeMetric` makes a Metric of a `Task`. Every sample is drawn from a seed of its own (epoch, number), so that threads
may prepare them in any order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import attrs
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from fourd_core.errors import RecipeError, RunError
from fourd_core.files import as_json
from fourd_core.interfaces import Dataset, Head, Metric, Result, Sample
from fourd_core.progress import track
from fourd_core.randomness import generator_for, seeded
from fourd_core.system import System
from fourd_evals.features import FeatureExtractor
from fourd_evals.paper import NAME, changed_note, our_name
from fourd_evals.probe_task import ProbeConfig, RootConfig, Row, Score, Task

NOT_PROTOCOL = ("root", "text", "splits", "workers", "table")
"""Keys that change no number, and places: what lies there is in the protocol."""


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
        plain: dict[str, Any] = as_json(protocol)
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
