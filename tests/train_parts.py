"""For tests of training: an objective whose loss is a plain mean and whose data can be bad, metrics with a score, and
trainings in processes that start at once, because they are forks of this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import attrs
import torch
from helpers import shell_environment
from torch import Tensor, nn
from toy_fourd import MeanError, Regression

from fourd_core.cli import main
from fourd_core.data import Clip
from fourd_core.interfaces import Dataset, Result, Sample, Split
from fourd_core.recipe import Location
from fourd_core.registry import API_VERSION

ENTRY_POINTS = f"""
[fourd.plugin]
api.{API_VERSION} = train_parts

[fourd.objectives]
mean_square = train_parts:MeanSquare

[fourd.metrics]
score = train_parts:Score
"""


def install(folder: Path) -> None:
    """Let whoever has `folder` in its path find this plugin."""
    info = folder / "train_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: train-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)


class MeanSquare(Regression):
    """As the toy regression, without noise, and without a number for frames whose data is bad."""

    @attrs.frozen
    class Config(Regression.Config):
        """What is read from the video, and what is wrong with it."""

        bad: Location | None = None
        """A text file with the numbers of frames that are bad."""
        steep: bool = False
        """Whether only the gradient of a bad frame is not finite."""
        weight: float = 1.0
        """Of the loss."""

    def __init__(self, config: Config, system: Any) -> None:
        super().__init__(config, system)
        self.bad, self.steep, self.weight = config.bad, config.steep, config.weight
        self.statistics = nn.BatchNorm1d(
            1, affine=False
        )  # its buffers change with every forward, also with one that fails

    def sample(self, data: Dataset, split: Split, generator: torch.Generator) -> Sample:
        """A frame, its number and whether it is bad."""
        sample = super().sample(data, split, generator)
        frame = drawn_frame(data.videos(split)[0].frame_count, generator, again=True)
        bad = Path(self.bad).read_text().split() if self.bad is not None else ()
        return {**sample, "frame": torch.tensor(frame), "bad": torch.tensor(str(frame) in bad)}

    def forward(self, system: Any, batch: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The mean over samples of the squared distance."""
        clip = Clip(batch["frames"] / 255)
        distance = (system(clip)["value"].values - system.cues["brightness"](clip).values).square().mean((1, 2, 3, 4))
        bad = batch["bad"]
        spoilt = torch.where(bad, torch.nan, 0.0)
        self.statistics((distance.detach() + spoilt)[:, None])
        loss = distance.mean() + ((distance[bad] * 0).sqrt().sum() if self.steep else spoilt.mean())
        return {"loss": self.weight * loss, "draw": torch.rand((), generator=generator) + torch.rand(())}

    def describe(self, data: Dataset, batch: Mapping[str, Tensor]) -> str:
        """The frames' numbers."""
        return f"frames {batch['frame'].tolist()}"


def drawn_frame(count: int, generator: torch.Generator, again: bool = False) -> int:
    """Which frame the toy regression draws; `again`: after it did so with this generator."""
    fresh = torch.Generator().manual_seed(generator.initial_seed()) if again else generator
    torch.randint(1, (), generator=fresh)
    return int(torch.randint(count, (), generator=fresh))


class Score(MeanError):  # noqa: N818 - no exception
    """The toy error as a score."""

    @attrs.frozen
    class Config(MeanError.Config):
        """What is measured."""

        there: bool = True
        """Whether its data is there."""
        sign: float = -1.0
        """What the error is multiplied by."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.there, self.sign = config.there, config.sign

    def available(self, system: Any, data: Dataset) -> bool:
        """As it is told."""
        return self.there

    def measure(self, system: Any, data: Dataset) -> Result:
        """Also draws from torch's global generator, which must not matter."""
        result = super().measure(system, data)
        torch.rand(17)
        error = float(result.rows[0]["error"])
        rows = ({"video": "clip", "error": error, "training": str(system.training)},)
        return attrs.evolve(result, rows=rows, score=self.sign * error)


def forked(folder: Path, *words: object, processes: int = 1) -> list[BaseProcess]:
    """`fourd *words` in `folder`, in processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = []
    for rank in range(processes):
        together = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        environment = {name: str(value) for name, value in together.items()} if processes > 1 else {}
        arguments = (folder, rank, [str(word) for word in words], {**environment, "MASTER_ADDR": "127.0.0.1"})
        started.append(context.Process(target=_child, args=arguments))
        started[-1].start()
    return started


def _child(folder: Path, rank: int, words: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    said = os.open(f"said.{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    # Threads of a group that was not destroyed may abort a program that ends as programs do.
    left = [name for task in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := task.read_text())]
    os._exit(99 if left else code)


def ended(processes: list[BaseProcess], seconds: float = 120.0) -> list[int | None]:
    """Their exit codes, once they ended."""
    limit = time.monotonic() + seconds
    # `join` would wait for the readers of a process that was killed too.
    while any(process.is_alive() for process in processes) and time.monotonic() < limit:
        time.sleep(0.005)
    return [process.exitcode for process in processes]


def logged_lines(folder: Path) -> int:
    """How many steps are in the log of metrics."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(folder: Path, processes: list[BaseProcess], lines: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to all of them once the log of metrics is so long."""
    while all(process.is_alive() for process in processes) and logged_lines(folder) < lines:
        time.sleep(0.002)
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, number)


def environment_with(folder: Path) -> dict[str, str]:
    """What a shell has in which this plugin is installed."""
    environment = shell_environment()
    path = [str(folder), str(Path(__file__).parent), environment["PYTHONPATH"]]
    return {**environment, "PYTHONPATH": os.pathsep.join(path)}
