"""Predictions of whole videos: arrays as they are finished, then pictures that people can look at."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import attrs

from fourd_core.errors import RecipeError, RunError
from fourd_core.interfaces import Video
from fourd_core.jobs import Job
from fourd_core.jobs.pictures import draw
from fourd_core.media.arrays import ArrayStore
from fourd_core.progress import track
from fourd_core.run_folder import Run
from fourd_core.streaming import StreamConfig, stream, windows


class PredictJob(Job):
    """Streams every video of the data through the system; a killed run goes on at the window where it was."""

    config: PredictConfig

    def prepare(self) -> None:
        self.videos = named(self.data.videos("all"))
        if not self.videos:
            raise RecipeError(f"[stages.{self.stage}] has nothing to predict: the data holds no video")
        if not self.system.heads:
            raise RecipeError(f"[stages.{self.stage}] has nothing to predict: the recipe has no [heads.NAME]")
        for video in self.videos.values():
            self.config.view_of(video.size, self.system.backbone.spec)

    def run(self, run: Run) -> None:
        folder = run.stage_folder(self.stage)
        for name, video in self.videos.items():
            view = self.config.view_of(video.size, self.system.backbone.spec)
            store = self._open(folder / f"{name}.zarr", video, {"view": attrs.asdict(view)})
            if not store.complete:
                self._predict(run, video, store)
            if self.config.npz:
                store.export_npz(folder / f"{name}.npz")
            draw(store, video, view, folder, name, pictures=self.config.pictures, movie=self.config.movie)

    def _open(self, folder: Path, video: Video, about: dict[str, Any]) -> ArrayStore:
        about = {
            "video": PurePosixPath(video.name).name,
            "size": list(video.size),
            "frames": video.frame_count,
            **about,
        }
        store = ArrayStore(folder, self.config.precision, about)
        attributes = store.attributes
        if any(attributes.get(key) != about[key] for key in ("video", "size", "frames")):
            raise RunError(f"{folder} was begun with another video than {video.name} is now; delete it or use --out")
        if store.done and not store.complete and self.system.memories:
            # What the memories knew in the middle of a video is not kept: such a video starts again.
            shutil.rmtree(folder)
            store = ArrayStore(folder, self.config.precision, about)
        return store

    def _predict(self, run: Run, video: Video, store: ArrayStore) -> None:
        config, name = self.config, PurePosixPath(video.name).name
        parts = stream(self.system, video, config, store.done)
        total = sum(1 for _ in windows(video.frame_count, config.window, config.step))
        for part in track(parts, f"{self.stage} {name}", total, done=store.done // config.step):
            for head, item in part.predictions.items():
                store.append(head, item.values[0], unit=item.unit)
            store.commit()
            run.hooks.window_finished(
                run=run, stage=self.stage, video=video.name, first_frame=part.first,
                last_frame=part.first + part.frames - 1, predictions=part.predictions,
            )  # fmt: skip
        store.finish()


def named(videos: Iterable[Video]) -> dict[str, Video]:
    """Videos by a file name of their own: the stem in plain letters, with a number where several share it."""
    found: dict[str, Video] = {}
    for video in videos:
        stem = re.sub(r"[^\w.-]+", "_", PurePosixPath(video.name).stem).strip("._") or "video"
        name, number = stem, 1
        while name in found:
            number += 1
            name = f"{stem}-{number}"
        found[name] = video
    return found


@attrs.frozen
class PredictConfig(StreamConfig):
    """`job = "predict"`: what the network sees of the videos, and what is kept of its answers."""

    create: ClassVar[type[Job]] = PredictJob

    precision: Literal["float16", "float32"] = "float16"
    """How the arrays are stored."""
    npz: bool = False
    """Write each video's arrays as one npz file too, where they fit into memory."""
    movie: bool = True
    """Write an mp4 of input and predictions side by side."""
    pictures: int = attrs.field(default=4, validator=attrs.validators.ge(0))
    """How many PNGs of the same, evenly spread over the video."""
