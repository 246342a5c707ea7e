"""Predictions of whole videos: arrays as they are finished, then pictures that people can look at."""

from __future__ import annotations

import shutil
from copy import copy
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, cast

import attrs

from fourd_core.build import load, pick_device
from fourd_core.compiled import Compile, check_compile, compiled
from fourd_core.data import Queries
from fourd_core.errors import RecipeError, RunError
from fourd_core.files import disk_errors
from fourd_core.interfaces import Head, Video
from fourd_core.jobs import Job
from fourd_core.jobs.place import Place
from fourd_core.jobs.stopping import stop_signals
from fourd_core.media.arrays import ArrayStore
from fourd_core.media.exports import ExportFormat, check_formats, export_video
from fourd_core.media.outputs import named, queries_path, write_queries
from fourd_core.media.row import draw
from fourd_core.media.views import View, ViewConfig
from fourd_core.progress import track
from fourd_core.queries import queries_for
from fourd_core.recipe import Location
from fourd_core.run_folder import Interrupted, Run
from fourd_core.sinks import ArraySink
from fourd_core.streaming import StreamConfig, check_windows, view_of, window_count, windows_done
from fourd_core.upsampling.streaming import Upsampler
from fourd_core.viewer.page import check_viser, page_path, write_viewer


class PredictJob(Job):
    """Streams every video of the data through the system; a killed run goes on where its last position was saved."""

    config: PredictConfig

    def prepare(self) -> None:
        if self.config.recipe is not None:
            self._take(str(self.config.recipe))
        self.videos = named(self.data.videos("all"))
        if not self.videos:
            raise RecipeError(f"[stages.{self.stage}] has nothing to predict: the data holds no video")
        check_compile(self.config.compile, pick_device(self.recipe.device), self.stage)
        if not self.system.heads:
            raise RecipeError(f"[stages.{self.stage}] has nothing to predict: the recipe has no [heads.NAME]")
        self.upsampler = Upsampler(self.system)
        for video in self.videos.values():
            check_windows(self.system, video, self.config)
            self.upsampler.check(video, self.config)
        self._check_outputs()
        for video in self.videos.values():
            self._queries(video, self._view(video))

    def _take(self, source: str) -> None:
        """Predict with another recipe's system, which sees the same videos in its own way."""
        self.system = load(source, [f"device={self.recipe.device}"])
        assert self.system.recipe is not None
        self.recipe = attrs.evolve(self.system.recipe, queries=self.recipe.queries)
        if isinstance(self.recipe.data.config, ViewConfig):
            self.data = copy(self.data)
            self.data.view = self.recipe.data.config

    def _check_outputs(self) -> None:
        """Refuse what could not be written in the end; a head that does not announce its kind is waited for."""
        if self.config.viewer:
            check_viser()
        heads = [cast(Head, head) for head in self.system.heads.values()]
        if all(head.tracks or head.kind for head in heads):
            of_cameras = ("world_from_cam", "intrinsics")
            kinds = [of_cameras if head.kind == "cameras" else (head.kind,) for head in heads if not head.tracks]
            check_formats([str(kind) for each in kinds for kind in each], self.config.exports)
        cropped = [video.name for video in self.videos.values() if not _is_whole(self._view(video))]
        if self.config.exports and self.config.pixels == "view" and cropped:
            raise RecipeError(
                f"[stages.{self.stage}] exports show whole frames, and the network's view of {cropped[0]} is only a "
                'part of them; set pixels = "video"'
            )

    def _view(self, video: Video) -> View:
        return view_of(self.data.view, video.size, self.system.backbone.spec)

    def _queries(self, video: Video, view: View) -> Queries | None:
        trackers = [name for name, head in self.system.heads.items() if cast(Head, head).tracks]
        if not trackers:
            return None
        queries = queries_for(self.recipe.queries, video, view)
        if queries is None:
            raise RecipeError(
                f"[heads.{trackers[0]}] follows points, and none are named; say which in [queries], for example "
                "--set queries.grid=16"
            )
        return queries

    def run(self, run: Run) -> None:
        folder = run.stage_folder(self.stage)
        with compiled(self.system, self.config.compile):
            for name, video in self.videos.items():
                self._run_video(run, video, folder, name)

    def _run_video(self, run: Run, video: Video, folder: Path, name: str) -> None:
        config, view = self.config, self._view(video)
        queries = self._queries(video, view)
        store = self._open(folder / f"{name}.zarr", video, {"view": attrs.asdict(view), "pixels": config.pixels})
        if queries is not None:
            write_queries(queries_path(folder, name), queries)
        if not store.complete:
            self._predict(run, video, view, store, queries)
        if config.npz:
            store.export_npz(folder / f"{name}.npz")
        draw(
            store, video, view, folder, name, pixels=config.pixels, queries=queries,
            pictures=config.pictures, movie=config.movie, side=config.panel,
        )  # fmt: skip
        if config.exports:
            _export(store, video, folder / "exports", name, config.exports)
        if config.viewer:
            write_viewer(store, video, page_path(folder, name), queries)

    def _open(self, folder: Path, video: Video, about: dict[str, Any]) -> ArrayStore:
        about = {
            "video": PurePosixPath(video.name).name,
            "size": list(video.size),
            "frames": video.frame_count,
            **about,
        }
        store = ArrayStore(folder, self.config.precision, about, f"stages.{self.stage}.precision")
        attributes = store.attributes
        if any(attributes.get(key) != about[key] for key in ("video", "size", "frames")):
            raise RunError(f"{folder} was begun with another video than {video.name} is now; delete it or use --out")
        return store

    def _predict(self, run: Run, video: Video, view: View, store: ArrayStore, queries: Queries | None) -> None:
        config, name = self.config, PurePosixPath(video.name).name
        sink = ArraySink(store, view, config.pixels)
        place = Place(store, sink)
        position = place.load(self.system.device)
        parts = self.upsampler.stream(video, view, config, queries, position)
        total = window_count(self.system, video.frame_count, config)
        done = windows_done(self.system, video.frame_count, config, position)
        with stop_signals() as stop_wanted:
            for part in track(parts, f"{self.stage} {name}", total, done=done):
                predictions = sink.put(part)
                place.save(part.position, at_once=stop_wanted.is_set())
                run.hooks.window_finished(
                    run=run, stage=self.stage, video=video.name, first_frame=part.first,
                    last_frame=part.first + part.frames - 1, predictions=predictions,
                )  # fmt: skip
                if stop_wanted.is_set():
                    raise Interrupted(self.stage)
        store.finish()
        place.forget()


def _export(store: ArrayStore, video: Video, folder: Path, name: str, formats: tuple[ExportFormat, ...]) -> None:
    """Write `folder / name`, which appears when it is whole; one that is there is left as it is."""
    whole, unfinished = folder / name, folder / f"{name}.unfinished"
    if whole.exists():
        return
    with disk_errors(unfinished):
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
    export_video(store, video, folder, unfinished.name, formats)
    with disk_errors(whole):
        unfinished.rename(whole)


def _is_whole(view: View) -> bool:
    return view.corner == (0, 0) and view.resized == view.size


@attrs.frozen
class PredictConfig(StreamConfig):
    """`job = "predict"`: what the network sees of the videos, and what is kept of its answers."""

    create: ClassVar[type[Job]] = PredictJob

    recipe: Location | None = None
    """Predict with the system of this recipe or run folder, which has another backbone, say, instead of with this
    recipe's; the videos and the queries are this recipe's, and how a frame is seen is the other's."""
    compile: Compile = "no"
    """Compile backbone and heads, but for those that track, by torch.compile ("default"), and replay them as CUDA
    graphs ("graphs"): some seconds to minutes at the start, less time for each window."""
    precision: Literal["float16", "float32"] = "float16"
    """How features and masks are stored; depth, flow, cameras and tracks are always float32."""
    npz: bool = False
    """Write each video's arrays as one npz file too."""
    movie: bool = True
    """Write an mp4 of the input and all predictions side by side."""
    pictures: int = attrs.field(default=4, validator=attrs.validators.ge(0))
    """How many PNGs of the same, evenly spread over the video."""
    panel: int = attrs.field(default=384, validator=attrs.validators.ge(16))
    """The longer side of each picture in the movie and the PNGs, in pixels."""
    exports: tuple[ExportFormat, ...] = ()
    """File formats of other programs, into `exports/<video>/`: flo, kitti_flow, depth_png, ply, ply_fused, colmap,
    nerfstudio, tum."""
    viewer: bool = False
    """Write `<video>_4d.html`, the scene in space and time, which any browser opens (see `fourd view`)."""
