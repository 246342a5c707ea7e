"""Training batches by number: whoever asks for one, whenever and in whatever process, gets the same samples."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from fourd_core import distributed
from fourd_core.cues.plan import sample_generator
from fourd_core.interfaces import Dataset, Objective

Batch = dict[str, Tensor]


class Batches(TorchDataset[Batch]):
    """Batch number -> this process's part of that batch, on the CPU."""

    def __init__(self, objective: Objective, data: Dataset, seed: int, stage: str, size: int) -> None:
        """`size`: samples of one process in one batch."""
        self.objective, self.data, self.seed, self.stage = objective, data, seed, stage
        first = distributed.current().rank * size
        self.places = range(first, first + size)

    def __getitem__(self, number: int) -> Batch:
        samples = (
            self.objective.sample(self.data, "train", sample_generator(self.seed, self.stage, number, place))
            for place in self.places
        )
        batch: Batch = default_collate(list(samples))
        return batch

    def load(self, numbers: range, workers: int, device: torch.device) -> Iterator[Batch]:
        """These batches one after another, read ahead by so many processes of their own (0: by this one)."""
        # Map-style with one item per batch: the number of workers changes the speed and nothing else.
        loader = DataLoader(
            self, batch_size=None, sampler=numbers, num_workers=workers, pin_memory=device.type == "cuda",
            worker_init_fn=_ignore_signals,
        )  # fmt: skip
        return iter(loader)


def _ignore_signals(_worker: int) -> None:
    """A signal may reach the whole process group; the main process decides when the loader's workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if distributed.current().size > 1:  # torchrun sends it to every process of the group
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
