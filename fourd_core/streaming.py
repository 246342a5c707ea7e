"""A video of any length through a system, one window after another, in constant memory.

Windows of `window` frames start every `stride` frames. What lies behind the video's end is its mirror image, so that
every window is whole. Heads say how the frames that two windows share become one (`fourd_core.stitching`); a window's
first `stride` frames are final as soon as it is joined to what stands. Heads that track backward get a second pass
over the video played in reverse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import attrs
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fourd_core.data import Predictions, Queries
from fourd_core.errors import RecipeError
from fourd_core.interfaces import BackboneSpec, Head, Memory, Use, Video
from fourd_core.media.views import View, ViewConfig
from fourd_core.memory import give_back
from fourd_core.placement import Pixels, in_video
from fourd_core.recipe import Recipe
from fourd_core.stitching import Stitcher
from fourd_core.system import States, System
from fourd_core.tiles import Shot, look


@attrs.frozen
class StreamConfig:
    """What the network sees of a video at a time; a predict stage has these keys."""

    window: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Frames per forward pass; none: what suits the backbone."""
    stride: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Frames between the starts of two windows; none: what suits the backbone, or as many as a stated window has."""
    pixels: Pixels = "video"
    """Where maps are stored: at the pixels of the "video", or on the smaller grid of the network's "view". What is
    measured in pixels is measured in the video's pixels either way."""

    def __attrs_post_init__(self) -> None:
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride must not exceed window, {self.window}: frames would be left out")

    def steps(self, backbone: BackboneSpec) -> tuple[int, int]:
        """Window and stride for a backbone.

        Raises:
            RecipeError: they do not fit it.
        """
        window = self.window or backbone.window[0]
        stride = self.stride or (window if self.window else backbone.window[1])
        if window % backbone.multiple[0]:
            raise RecipeError(f"window = {window} is no multiple of the backbone's {backbone.multiple[0]} frames")
        if stride > window:
            raise RecipeError(f"stride = {stride} exceeds the backbone's window of {window} frames; set window too")
        return window, stride


def check_windows(system: System, video: Video, config: StreamConfig) -> None:
    """Find what the windows of a video would make a head or a memory stumble over.

    Raises:
        RecipeError: what is wrong, by section and key.
    """
    window, stride = config.steps(system.backbone.spec)
    heads = {name: cast(Head, head) for name, head in system.heads.items()}
    use = Use(heads, window, stride, video.frame_count > window, video.intrinsics is not None)
    for name, head in heads.items():
        if use.long and stride == window and head.stitch.needs_overlap:
            raise RecipeError(
                f"[heads.{name}] is joined from window to window by the frames that two windows share, and with "
                f"window = {window} and stride = {stride} there are none; choose a smaller stride"
            )
    parts: dict[str, Head | Memory] = {f"heads.{name}": head for name, head in heads.items()}
    parts |= {f"memories.{name}": cast(Memory, memory) for name, memory in system.memories.items()}
    for where, part in parts.items():
        try:
            part.check_use(use)
        except ValueError as error:
            raise RecipeError(f"[{where}] {error}") from error


def stream_config(recipe: Recipe | None) -> StreamConfig:
    """The window of a recipe's first predict stage, or the defaults."""
    configs = [stage.config for stage in recipe.stages.values()] if recipe is not None else []
    return next((config for config in configs if isinstance(config, StreamConfig)), StreamConfig())


class Window(NamedTuple):
    """Frames `start .. start + frames - 1` of a video; the first `final` of them get no later answer."""

    start: int
    frames: int
    final: int


def windows(frame_count: int, window: int, stride: int, first: int = 0) -> Iterator[Window]:
    """The windows that cover frames `first .. frame_count - 1`.

    Args:
        first: a multiple of `stride`; earlier frames are done.
    """
    start = first
    while start < frame_count:
        frames = min(window, frame_count - start)
        if start + frames == frame_count:
            yield Window(start, frames, frames)
            return
        yield Window(start, frames, stride)
        start += stride


def mirrored(index: int, count: int) -> int:
    """The frame that stands at `index` when a video of `count` frames goes back and forth for ever."""
    period = max(2 * (count - 1), 1)
    index %= period
    return min(index, period - index) if count > 1 else 0


class Reversed(Video):
    """A video from its end to its beginning.

    It is read in blocks of frames that fit into `BLOCK_BYTES`: a file can only be decoded forward from a key frame, and
    to do so for a few frames each time would decode most of them many times.
    """

    BLOCK_BYTES = 128 * 2**20

    def __init__(self, video: Video) -> None:
        self._video = video
        self._held: dict[int, UInt8[Tensor, "3 h w"]] = {}
        self.name, self.frame_count, self.size = video.name, video.frame_count, video.size
        self.intrinsics = video.intrinsics

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """As `Video.read`."""
        wanted = [self.frame_count - 1 - index for index in indices]
        if missing := [index for index in wanted if index not in self._held]:
            height, width = self.size
            last, first = max(missing), max(0, max(missing) + 1 - max(1, self.BLOCK_BYTES // (3 * height * width)))
            block = range(min(first, min(missing)), last + 1)
            kept = {index: self._held[index] for index in wanted if index in self._held}
            self._held = kept | dict(zip(block, self._video.read(block), strict=True))
        return torch.stack([self._held[index] for index in wanted])

    def times(self, indices: Sequence[int]) -> Float[Tensor, " t"]:
        """Times before the end, so that they grow."""
        last = self._video.times([self.frame_count - 1])
        return last - self._video.times([self.frame_count - 1 - index for index in indices])


@attrs.frozen
class Position:
    """Between two windows of a video: what must be kept to go on from there.

    Attributes:
        reverse: whether the second pass is on, from the video's end to its beginning.
        start: the next window's first frame, counted in the direction of the pass; the frames before it are finished.
        states: of the memories.
        stitched: of the stitcher.
    """

    reverse: bool = False
    start: int = 0
    states: States = attrs.field(factory=dict)
    stitched: dict[str, Any] = attrs.field(factory=dict)


class Finished(NamedTuple):
    """Predictions of the frames from `first` on, which no later window of this pass changes.

    `reverse` says that they come from the second pass: tracks of frames before their query. `position` is where the
    next window starts, None at the very end.
    """

    first: int
    frames: int
    predictions: Predictions
    reverse: bool = False
    position: Position | None = None


def passes(system: System) -> list[tuple[bool, list[str]]]:
    """The ways through a video (reverse or not) and the heads that take part in each."""
    heads = {name: cast(Head, head) for name, head in system.heads.items()}
    forward = [name for name, head in heads.items() if not head.tracks or head.direction != "backward"]
    backward = [name for name, head in heads.items() if head.tracks and head.direction != "forward"]
    return [(reverse, names) for reverse, names in ((False, forward), (True, backward)) if names]


def window_count(system: System, frame_count: int, config: StreamConfig) -> int:
    """How many windows `stream` goes through from the start."""
    window, stride = config.steps(system.backbone.spec)
    return len(passes(system)) * sum(1 for _ in windows(frame_count, window, stride))


def windows_done(system: System, frame_count: int, config: StreamConfig, position: Position) -> int:
    """How many of them lie behind a position."""
    window, stride = config.steps(system.backbone.spec)
    whole = sum(1 for _ in windows(frame_count, window, stride))
    behind = position.reverse and passes(system)[0][0] is False
    return whole * behind + position.start // stride


def stream(
    system: System,
    video: Video,
    view: View,
    config: StreamConfig,
    queries: Queries | None = None,
    position: Position | None = None,
) -> Iterator[Finished]:
    """Predictions of a whole video as they become final.

    Args:
        system: in evaluation mode.
        view: how a frame becomes the network's input.
        config: what it sees at a time.
        queries: points to be followed, `1 n`, in frames and pixels of the video.
        position: where to go on.
    """
    position = position or Position()
    order = passes(system)
    for reverse, heads in order:
        if position.reverse and not reverse:
            continue
        start = position if position.reverse == reverse else Position(reverse)
        following = Position(True) if not reverse and order[-1][0] else None
        yield from _Pass(system, video, view, config, queries, heads, reverse).run(start, following)


@attrs.frozen
class _Pass:
    """One way through a video."""

    system: System
    video: Video
    view: View
    config: StreamConfig
    queries: Queries | None
    heads: list[str]
    reverse: bool

    def run(self, position: Position, following: Position | None) -> Iterator[Finished]:
        """`following` is the position after this pass."""
        video = Reversed(self.video) if self.reverse else self.video
        queries = self._queries_in_pass()
        window, stride = self.config.steps(self.system.backbone.spec)
        half = self.system.recipe is not None and self.system.recipe.precision == "bf16"
        device, states = self.system.device, position.states
        stitcher = Stitcher({name: cast(Head, self.system.heads[name]).stitch for name in self.heads})
        stitcher.restore(position.stitched)
        frames = _Frames(video)
        for place in windows(video.frame_count, window, stride, position.start):
            shot = _shot(video, frames, place, window, queries)
            is_last = place.start + place.frames == video.frame_count
            shift = None if is_last else stride
            with torch.inference_mode():  # not around the `yield`: it would hold for the caller too
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    predictions, states = look(self.system, self.view, shot, states, shift, self.heads)
                # What half precision computed is joined in single precision.
                exact = Predictions({name: item.in_fp32() for name, item in predictions.items()})
                joined = stitcher.add(exact, stride)
                after = Position(self.reverse, place.start + stride, states, stitcher.state)
                part = self._finished(joined, place, following if is_last else after)
            yield part
            give_back()

    def _finished(self, joined: Predictions, place: Window, after: Position | None) -> Finished:
        final = {name: in_video(item.frames(0, place.final), self.view, self.config.pixels)
                 for name, item in joined.items()}  # fmt: skip
        final = {name: item.map(lambda tensor: tensor.cpu()) for name, item in final.items()}
        first = place.start
        if self.reverse:
            final = {name: item.map(lambda tensor: tensor.flip(1)) for name, item in final.items()}
            first = self.video.frame_count - place.start - place.final
        return Finished(first, place.final, Predictions(final), self.reverse, after)

    def _queries_in_pass(self) -> Queries | None:
        """The queries, their frames counted in the direction of the pass."""
        if self.queries is None or not self.reverse:
            return self.queries
        return attrs.evolve(self.queries, frame=self.video.frame_count - 1 - self.queries.frame)


class _Frames:
    """The frames of a video, window after window: those that two windows share are decoded once."""

    def __init__(self, video: Video) -> None:
        self._video = video
        self._held: dict[int, UInt8[Tensor, "3 h w"]] = {}

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        new = sorted({index for index in indices if index not in self._held})
        held = {index: frame for index, frame in self._held.items() if index in indices}
        self._held = held | (dict(zip(new, self._video.read(new), strict=True)) if new else {})
        return torch.stack([self._held[index] for index in indices])


def _shot(video: Video, frames: _Frames, place: Window, window: int, queries: Queries | None) -> Shot:
    """A window as it was taken."""
    indices = [mirrored(place.start + i, video.frame_count) for i in range(window)]
    if queries is not None:
        queries = attrs.evolve(queries, frame=queries.frame - place.start)
    return Shot(frames.read(indices), video.times(indices), video.intrinsics, queries, place.frames)


def view_of(rule: ViewConfig, video_size: tuple[int, int], backbone: BackboneSpec) -> View:
    """The view of a video's frames that a backbone accepts.

    Raises:
        RecipeError: it does not fit the backbone.
    """
    try:
        return rule.view_of(video_size, backbone.multiple[1:])
    except ValueError as error:
        raise RecipeError(f"[data] view: {error}") from error
