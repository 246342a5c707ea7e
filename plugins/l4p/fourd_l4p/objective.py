"""The objective that trains L4P: depth, flow, motion, cameras and tracks of one window, or tracks of a longer clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, cast

import attrs
import torch
from attrs.validators import ge, in_, le, optional
from jaxtyping import Float
from torch import Tensor

from fourd_core.data import Clip, Tokens
from fourd_core.errors import MediaError, RecipeError
from fourd_core.geometry import first_from_cam, rays_from_cameras, rigid
from fourd_core.geometry.numerics import at_least_single
from fourd_core.interfaces import (
    AnnotatedVideo,
    Dataset,
    GeneratesClips,
    Head,
    Memory,
    Objective,
    Sample,
    Split,
    Use,
)  # fmt: skip
from fourd_core.media.views import TiledView, View
from fourd_core.streaming import mirrored, view_of
from fourd_core.system import System
from fourd_core.truth import seen
from fourd_l4p import losses
from fourd_l4p.samples import known, photometric
from fourd_l4p.windows import Followed, Windows, follow

Losses = dict[str, Tensor]
NUMBERS = 2**31
"""Generated clips have numbers below this."""


@attrs.frozen
class Weights:
    """By how much each loss counts; 0 leaves it out.

    L4P's for depth, flow and tracks; the others are not published. They suit frames of about 224 pixels: flow and track
    positions are measured in pixels of the clip as it is trained on.
    """

    depth: float = attrs.field(default=20.0, validator=ge(0.0))
    """SILog of dense depth."""
    flow: float = attrs.field(default=20.0, validator=ge(0.0))
    """L1 of flow."""
    motion: float = attrs.field(default=1.0, validator=ge(0.0))
    """Binary cross entropy of what moves."""
    cameras: float = attrs.field(default=1.0, validator=ge(0.0))
    """L1 of the cameras' rays."""
    track: float = attrs.field(default=1.0, validator=ge(0.0))
    """L1 of track positions."""
    track_depth: float = attrs.field(default=20.0, validator=ge(0.0))
    """SILog of track depth."""
    visibility: float = attrs.field(default=15.0, validator=ge(0.0))
    """Binary cross entropy of whether a tracked point is seen."""


@attrs.frozen
class Names:
    """The heads that learn, by their names in the recipe; a head that the recipe lacks is left out."""

    depth: str = "depth"
    """As `depth3d`."""
    flow: str = "flow"
    """As `flow3d`."""
    motion: str = "motion"
    """As `motion3d`."""
    cameras: str = "cameras"
    """As `camera_rays`."""
    track: str = "track"
    """As `sam_track`; its memory takes part."""


class TellsRaw(Protocol):
    """A dense head that can learn here."""

    def raw(self, tokens: Tokens, clip: Clip) -> Float[Tensor, "b t c h w"]:
        """Logarithm of the depth, flow, or logit of motion, for each pixel of the clip."""


class TellsRays(Protocol):
    """A head of cameras that can learn here."""

    def rays(self, tokens: Tokens, clip: Clip) -> Float[Tensor, "b t 6 g g"]:
        """Rays (`fourd_core.geometry.rays`) in the frame of the clip's first camera."""


TRACKING = ("track", "track_depth", "visibility")
"""The losses of the head that tracks."""
NEEDS = {"depth": "raw", "flow": "raw", "motion": "raw", "cameras": "rays"}
"""The method by which each of the other heads learns."""


class L4P(Objective):
    """Depth, flow, motion, cameras and tracks learned together from clips with ground truth (L4P, arXiv 2502.13078).

    A clip that is longer than the backbone's window is gone through window by window, with the memory of the tracking
    head: L4P's second stage. Then tracks alone are learned, and the weights of the other tasks mean nothing.
    """

    @attrs.frozen
    class Config:
        """Which clips are drawn, and how their losses are weighed."""

        weights: Weights = attrs.field(factory=Weights)
        """By how much each loss counts."""
        heads: Names = attrs.field(factory=Names)
        """What the heads are called in the recipe."""
        frames: int | None = attrs.field(default=None, validator=optional(ge(1)))
        """Length of a clip; none: the backbone's window. L4P's second stage has 40."""
        window: int | None = attrs.field(default=None, validator=optional(ge(1)))
        """Frames that the backbone sees at a time; none: its own window, or all of a shorter clip."""
        stride: int | None = attrs.field(default=None, validator=optional(ge(1)))
        """Frames from window to window; none: as for the backbone's own window (half of it, of a video transformer)."""
        crop: int | None = attrs.field(default=None, validator=optional(ge(1)))
        """Side of a random square of the view that is learned from, in pixels; none: all of the view."""
        strides: tuple[int, ...] = (1,)
        """Every how manieth frame of a video a clip takes, one of these by chance; negative ones go backwards. Flow is
        known between neighbours alone."""
        points: int = attrs.field(default=80, validator=ge(1))
        """Tracks of each clip; L4P's second stage has 48."""
        query_frames: int | None = attrs.field(default=None, validator=optional(ge(1)))
        """Points are named in the first so many frames (L4P's second stage: 20); none: wherever they are seen."""
        variance_focus: float = attrs.field(default=0.85, validator=[ge(0.0), le(1.0)])
        """How little SILog cares for a clip's whole scale, 0 to 1 (not at all); L4P's is not published."""
        scale: Literal["clip", "metres"] = attrs.field(default="clip", validator=in_(("clip", "metres")))
        """The unit of depths and camera movements: each clip's own, the geometric mean of its depths (without any, see
        `losses.clip_scale`), or metres. How L4P's clips are scaled is not published."""
        photometric: float = attrs.field(default=0.0, validator=[ge(0.0), le(1.0)])
        """Contrast, brightness and the colours' gains of a clip change by up to this share."""

        def __attrs_post_init__(self) -> None:
            if not self.strides or 0 in self.strides:
                raise ValueError(f"strides are one or more whole numbers other than 0, not {list(self.strides)}")

    @classmethod
    def example(cls) -> Any:
        """Few points."""
        return cls.Config(points=4)

    @classmethod
    def example_system(cls) -> System:
        """A small video transformer with heads of every kind."""
        from fourd_l4p.example import small_system

        return small_system()

    @classmethod
    def example_data(cls) -> Dataset:
        """Squares that slide over a plane."""
        from fourd_l4p.example import AnnotatedSquares

        return AnnotatedSquares()

    def __init__(self, config: Config, system: System) -> None:
        super().__init__()
        self.config, self.spec = config, system.backbone.spec
        window, stride = self.spec.window
        frames = config.frames or config.window or window
        size = config.window or min(window, frames)
        self.windows = Windows(frames, size, config.stride or max(size * stride // window, 1))
        if size % self.spec.multiple[0]:
            raise ValueError(f"windows of {size} frames are no multiple of the backbone's {self.spec.multiple[0]}")
        if config.crop is not None and any(config.crop % side for side in self.spec.multiple[1:]):
            rows, columns = self.spec.multiple[1:]
            raise ValueError(f"crop = {config.crop} is not divisible by the backbone's {rows} x {columns} pixels")
        self.long = len(self.windows.starts) > 1
        self.tasks = self._tasks(system)
        self.wanted = frozenset({"tracks" if task == "track" else task for task in self.tasks})
        if config.scale == "clip" and self.tasks.keys() & {"depth", "cameras", "track"}:
            self.wanted |= {"depth"}

    def _tasks(self, system: System) -> dict[str, str]:
        """What is learned, and the name of its head.

        Raises:
            ValueError: nothing, a head that cannot learn here, or windows that the memory cannot join.
        """
        weights, names = attrs.asdict(self.config.weights), attrs.asdict(self.config.heads)
        weights["track"] = max(weights[name] for name in TRACKING)
        tasks = {
            task: name
            for task, name in names.items()
            if name in system.heads and weights[task] > 0 and (task == "track" or not self.long)
        }
        if not tasks:
            kind = f"a clip of {self.windows.clip} frames teaches tracks alone, and" if self.long else "nothing:"
            raise ValueError(
                f"there is nothing to learn; {kind} no head of this recipe ({', '.join(system.heads)}) has a name of "
                "`heads` and a weight above 0"
            )
        for task, name in tasks.items():
            head = cast(Head, system.heads[name])
            if task != "track" and not hasattr(head, NEEDS[task]):
                raise ValueError(f'heads.{task} = "{name}" cannot learn here: it has no method `{NEEDS[task]}`')
            if task == "track" and not head.tracks:
                raise ValueError(f'heads.track = "{name}" follows no points')
        memory = system.memories[tasks["track"]] if tasks.get("track") in system.memories else None
        if memory is not None:
            heads = {name: cast(Head, head) for name, head in system.heads.items()}
            use = Use(heads, self.windows.frames, self.windows.stride, self.long, intrinsics=False)
            cast(Memory, memory).check_use(use)
        return tasks

    def sample(self, data: Dataset, split: Split, generator: torch.Generator) -> Sample:
        """A clip as the network sees it, with what is known of it under the names of `fourd_l4p.samples`.

        Of data that generates clips only the `number` of one, and the numbers by which its `tracks` are chosen
        and asked for (2 n); `complete` makes the clip. Else `drawn` says which it is: video, first frame, and stride.

        Raises:
            MediaError: a video without ground truth, or none.
            RecipeError: views that do not fit together, or are smaller than the crop.
        """
        config = self.config
        if isinstance(data, GeneratesClips):
            number = torch.randint(NUMBERS, (), generator=generator)
            return {"number": number, "tracks": torch.rand(2, config.points, generator=generator)}
        videos, number = data.videos(split), data.draw(split, generator)
        video = videos[number]
        if not isinstance(video, AnnotatedVideo):
            raise MediaError(f"{video.name}: L4P learns from videos with ground truth, and of this nothing is known")
        if self.long and "tracks" not in video.known:
            raise MediaError(
                f"{video.name} has no tracks, and a clip of {self.windows.clip} frames, longer than the window of "
                f"{self.windows.frames}, teaches tracks alone; set the objective's frames lower, or take other data"
            )
        stride = config.strides[_draw(len(config.strides), generator)]
        span = (self.windows.clip - 1) * abs(stride)
        start = _draw(max(video.frame_count - span, 1), generator) + (span if stride < 0 else 0)
        indices = [mirrored(start + stride * i, video.frame_count) for i in range(self.windows.clip)]
        view = self._view(data, video, len(videos), generator)
        truth = seen(video.truth(indices), view)
        frames = view.apply(video.read(indices))
        count = truth["tracks"].xy.shape[2] if "tracks" in truth else 0  # type: ignore[attr-defined]
        choice, draw = torch.rand(1, count, generator=generator), torch.rand(1, config.points, generator=generator)
        known_ = known(truth, frames[None], self.wanted, choice, draw, config.query_frames)
        return {
            "frames": frames,
            **{name: values[0] for name, values in known_.items()},
            "drawn": torch.tensor([number, start, stride]),
        }

    def _view(self, data: Dataset, video: AnnotatedVideo, videos: int, generator: torch.Generator) -> View:
        """How the network sees the video: the whole view, or a random square of it."""
        view, crop = view_of(data.view, video.size, self.spec), self.config.crop
        if isinstance(view, TiledView):
            view = view.whole
        if crop is None:
            if videos > 1 and data.view.view in ("short_side", "original"):
                raise RecipeError(
                    f'[data] view = "{data.view.view}" may make inputs of several sizes, and a batch needs one; set '
                    'data.view to "resize" or "center", or the objective\'s crop'
                )
            return view
        if min(view.size) < crop:
            raise RecipeError(
                f"a crop of {crop} pixels does not fit into {video.name}, which the network sees at {view.size[0]} x "
                f"{view.size[1]}; set crop lower or data.pixels higher"
            )
        corner = [_draw(side - crop + 1, generator) + edge for side, edge in zip(view.size, view.corner, strict=True)]
        return attrs.evolve(view, size=(crop, crop), corner=(corner[0], corner[1]))

    def complete(self, data: Dataset, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Numbers of generated clips as the clips and what is known of them; any other batch as it is.

        Of the numbers the first one counts: the clips of a batch stand in a row that begins at a multiple of its
        length, so that the data may make several of them from one scene.

        Raises:
            RecipeError: the data makes no such clips, or they do not fit the backbone.
        """
        if "frames" in batch:
            return batch
        config, drawn = self.config, batch["number"]
        count = len(drawn)
        number = drawn[0] // count * count % NUMBERS + torch.arange(count, device=drawn.device)
        points = config.points if "tracks" in self.wanted else 0
        make = cast(GeneratesClips, data).generate
        try:
            clip, truth = make("train", number, self.windows.clip, config.crop, points, number.device)
            self.spec.check(self.windows.cut(clip.frames))
        except ValueError as error:
            raise RecipeError(f"[data] the generated clips do not fit: {error}") from error
        choice, draw = batch["tracks"].unbind(1)
        return {
            "number": number,
            "frames": clip.frames,
            **known(truth, clip.frames, self.wanted, choice, draw, config.query_frames),
        }

    def describe(self, data: Dataset, batch: Mapping[str, Tensor]) -> str:
        """The clips of a batch: numbers of generated ones, or each video with the first frame and the stride."""
        if "number" in batch:
            count = len(batch["number"])
            return f"generated clips {int(batch['number'][0]) // count * count} and the {count - 1} after it"
        videos = data.videos("train")
        return ", ".join(
            f"{videos[number].name} from frame {start} on" + (f" in steps of {stride}" if stride != 1 else "")
            for number, start, stride in batch["drawn"].tolist()
        )

    def forward(self, system: System, batch: Mapping[str, Tensor], generator: torch.Generator) -> Losses:
        """`loss` is the weighted sum of the losses, which are called as their weights.

        What else is told is not learned from, and 0 where nothing is known: `absrel` of depth (each clip scaled by the
        median), `epe` of flow in pixels, `iou` of motion, and of tracks the error `track_px` where they are seen and
        the share `seen` of places where that is told rightly.
        """
        frames = batch["frames"]
        if self.training and self.config.photometric:
            frames = photometric(frames, self.config.photometric, generator)
        scale = self._scale(batch)
        tokens = system.encode(self.windows.cut(frames), heads=tuple(self.tasks.values()))
        clip, told = Clip(frames), {}
        for task, name in self.tasks.items():
            head = system.heads[name]
            if task == "track":
                memory = cast(Memory, system.memories[name]) if name in system.memories else None
                queries = batch["query_frame"], batch["query_xy"]
                own = self.windows.tokens(tokens)
                followed = follow(cast(Head, head), memory, own, frames, queries, self.windows)
                told |= self._track(followed, batch, scale)
            elif task == "cameras":
                rays = cast(TellsRays, head).rays(tokens, clip)
                told |= {"cameras": self._cameras(rays.to(at_least_single(rays)), batch, scale)}
            else:
                raw = cast(TellsRaw, head).raw(tokens, clip)
                told |= self._dense(task, raw.to(at_least_single(raw)), batch, scale)
        weights = attrs.asdict(self.config.weights)
        terms = [weights[name] * told[name] for name in weights if name in told and weights[name] > 0]
        return {"loss": torch.stack(terms).sum(), **told}

    def _scale(self, batch: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
        """The length of 1 in what is learned of each clip, in metres."""
        frames = batch["frames"]
        if self.config.scale == "metres" or not batch.keys() & {"depth", "track_depth", "world_from_cam"}:
            return frames.new_ones(len(frames))
        poses = batch.get("world_from_cam")
        centres = None if poses is None else poses[..., :3, 3]
        return losses.clip_scale(batch.get("depth"), batch.get("track_depth"), centres)

    def _dense(
        self, task: str, raw: Float[Tensor, "b t c h w"], batch: Mapping[str, Tensor], scale: Float[Tensor, " b"]
    ) -> Losses:
        truth = batch[task]
        if task == "depth":
            depth = truth / scale.view(-1, 1, 1, 1, 1)
            loss = losses.silog(raw, depth, losses.known_depth(depth), self.config.variance_focus)
            return {"depth": loss, "absrel": losses.relative_error(raw, depth)}
        predicted, truth = raw.movedim(2, -1), truth.movedim(2, -1)
        valid = truth.isfinite().all(-1)
        if task == "flow":
            return {
                "flow": losses.l1(predicted, truth, valid),
                "epe": losses.end_point_error(predicted, truth, valid),
            }
        logit, truth = predicted[..., 0], truth[..., 0]
        return {
            "motion": losses.cross_entropy(logit, truth, valid),
            "iou": losses.intersection_over_union(logit, truth, valid),
        }

    def _cameras(
        self, rays: Float[Tensor, "b t 6 g g"], batch: Mapping[str, Tensor], scale: Float[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """The L1 of rays against those of the true cameras, in the frame of the first one and in the clip's unit."""
        pose = first_from_cam(batch["world_from_cam"])
        pose = rigid(pose[..., :3, :3], pose[..., :3, 3] / scale.view(-1, 1, 1))
        size, grid = batch["frames"].shape[-2:], rays.shape[-2:]
        true = rays_from_cameras(batch["intrinsics"], pose, (size[0], size[1]), (grid[0], grid[1])).movedim(2, -1)
        return losses.l1(rays.movedim(2, -1), true, true.isfinite().all(-1))

    def _track(self, followed: Followed, batch: Mapping[str, Tensor], scale: Float[Tensor, " b"]) -> Losses:
        """Errors wherever the position is known and the tracker speaks, which it does from the query's frame on.

        Positions and depths are learned whether the point is seen or not, inside the picture or not.
        """
        xy, visible, live, depth = (
            self.windows.of(batch[f"track_{name}"]) for name in ("xy", "visible", "live", "depth")
        )
        valid = live & followed.live
        told = {
            "track": losses.l1(followed.xy, xy, valid),
            "visibility": losses.cross_entropy(followed.logit, visible, valid),
            "track_px": losses.end_point_error(followed.xy, xy, valid & (visible > 0)),
            "seen": losses.accuracy(followed.logit, visible, valid),
        }
        if followed.log_depth is not None:
            depth = depth / scale.view(-1, 1, 1)
            told["track_depth"] = losses.silog(followed.log_depth, depth, valid, self.config.variance_focus)
        return told


def _draw(count: int, generator: torch.Generator) -> int:
    """A uniform number below `count`."""
    return int(torch.randint(count, (), generator=generator))
