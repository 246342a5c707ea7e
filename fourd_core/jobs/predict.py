"""Predictions of whole videos: arrays as they are finished, then pictures that people can look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

import attrs

from fourd_core.errors import RecipeError, RunError
from fourd_core.interfaces import Video
from fourd_core.jobs import Job
from fourd_core.jobs.pictures import draw
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.views import View, ViewConfig
from fourd_core.progress import track
from fourd_core.run import Run
from fourd_core.streaming import Finished, stream, windows


class PredictJob(Job):
    """Streams every video of the data through the system; a killed run goes on at the window where it was."""

    config: PredictConfig

    def prepare(self) -> None:
        self.videos = named(self.data.videos("all"))
        if not self.system.heads:
            raise RecipeError(f"[stages.{self.stage}] has nothing to predict: the recipe has no [heads.NAME]")
        for video in self.videos.values():
            self._view(video)

    def _view(self, video: Video) -> View:
        try:
            return self.config.view.view(video.size, self.system.backbone.spec.multiple[1:])
        except ValueError as error:
            raise RecipeError(f"[stages.{self.stage}.view] {error}") from error

    def run(self, run: Run) -> None:
        folder = run.stage_folder(self.stage)
        for name, video in self.videos.items():
            view = self._view(video)
            store = self._open(folder / f"{name}.zarr", video, view)
            if not store.complete:
                self._predict(run, video, view, store)
            draw(store, video, view, folder, name, pictures=self.config.pictures, movie=self.config.movie)

    def _open(self, folder: Path, video: Video, view: View) -> ArrayStore:
        attributes = {"video": PurePosixPath(video.name).name, "view": attrs.asdict(view)}
        store = ArrayStore(folder, self.config.precision, attributes)
        if store.done and not store.complete and self.system.memories:
            # What the memories knew in the middle of a video is not kept: such a video starts again.
            shutil.rmtree(folder)
            store = ArrayStore(folder, self.config.precision, attributes)
        return store

    def _predict(self, run: Run, video: Video, view: View, store: ArrayStore) -> None:
        window, stride = self.config.window, self.config.stride or self.config.window
        parts = stream(self.system, video, view, window, stride, store.done, self.recipe.precision)
        total = sum(1 for _ in windows(video.frame_count, window, stride))
        for part in track(parts, f"{self.stage} {PurePosixPath(video.name).name}", total, done=store.done // stride):
            for name, item in part.predictions.items():
                store.append(name, item.values[0], unit=item.unit)
            store.commit()
            last = part.first + part.frames - 1
            run.hooks.window_finished(
                run=run, stage=self.stage, first_frame=part.first, last_frame=last, predictions=part.predictions
            )
        store.finish()


def named(videos: Iterable[Video]) -> dict[str, Video]:
    """Videos by a file name of their own: the stem, with a number where several share it."""
    found: dict[str, Video] = {}
    for video in videos:
        stem = PurePosixPath(video.name).stem or "video"
        name, number = stem, 1
        while name in found:
            number += 1
            name = f"{stem}-{number}"
        found[name] = video
    return found


def collect(parts: Iterator[Finished], frame_count: int, limit: int) -> list[Finished]:
    """All parts of a short video in memory.

    Raises:
        RunError: together they would take more than `limit` bytes.
    """
    kept: list[Finished] = []
    for part in parts:
        if not kept:
            per_frame = sum(item.values[:, :1].nbytes for item in part.predictions.values())
            if per_frame * frame_count > limit:
                raise RunError(
                    f"the predictions of {frame_count} frames would take {per_frame * frame_count / 2**30:.1f} GB of "
                    "memory; write them to disk by a predict stage of `fourd run`, or use a smaller view"
                )
        kept.append(part)
    return kept


@attrs.frozen
class PredictConfig:
    """`job = "predict"`: what the network sees of the videos, and what is kept of its answers."""

    create: ClassVar[type[Job]] = PredictJob

    view: ViewConfig = attrs.field(factory=ViewConfig)
    """How a frame becomes the network's input."""
    window: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    """Frames per forward pass."""
    stride: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Frames between the starts of two windows; none: as many as a window has."""
    precision: Literal["float16", "float32"] = "float16"
    """How the arrays are stored."""
    movie: bool = True
    """Write an mp4 of input and predictions side by side."""
    pictures: int = attrs.field(default=4, validator=attrs.validators.ge(0))
    """How many PNGs of the same, evenly spread over the video."""

    def __attrs_post_init__(self) -> None:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride must not exceed window, {self.window}: frames would be left out")
