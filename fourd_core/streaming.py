"""A video of any length through a system, one window after another, in constant memory.

Windows of `window` frames start every `stride` frames; the last one has as many as are left. Where windows overlap the
later one counts, so a window's first `stride` frames are final as soon as it is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from fourd_core.data import Clip, Prediction, Predictions
from fourd_core.errors import RecipeError, RunError
from fourd_core.interfaces import BackboneSpec, Video
from fourd_core.media.views import View, ViewConfig
from fourd_core.recipe import Recipe
from fourd_core.system import States, System


@attrs.frozen
class StreamConfig:
    """What the network sees of a video at a time; a predict stage has these keys."""

    view: ViewConfig = attrs.field(factory=ViewConfig)
    """How a frame becomes the network's input."""
    window: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    """Frames per forward pass."""
    stride: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(1)))
    """Frames between the starts of two windows; none: as many as a window has."""

    def __attrs_post_init__(self) -> None:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride must not exceed window, {self.window}: frames would be left out")

    @property
    def step(self) -> int:
        """Frames between the starts of two windows."""
        return self.stride or self.window

    def view_of(self, video_size: tuple[int, int], backbone: BackboneSpec) -> View:
        """The view of a video's frames that a backbone accepts.

        Raises:
            RecipeError: window or view do not fit the backbone.
        """
        if self.window % backbone.multiple[0]:
            raise RecipeError(f"window = {self.window} is no multiple of the backbone's {backbone.multiple[0]} frames")
        try:
            return self.view.view(video_size, backbone.multiple[1:])
        except ValueError as error:
            raise RecipeError(f"the view of the predict stage: {error}") from error


def stream_config(recipe: Recipe | None) -> StreamConfig:
    """The window and view of a recipe's first predict stage, or the defaults."""
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


class Finished(NamedTuple):
    """Predictions of `frames` frames from frame `first` on, which no later window changes."""

    first: int
    frames: int
    predictions: Predictions


@torch.inference_mode()
def stream(system: System, video: Video, config: StreamConfig, first: int = 0) -> Iterator[Finished]:
    """Predictions of a whole video as they become final.

    Args:
        system: in evaluation mode.
        config: what it sees at a time.
        first: where to go on; a multiple of the stride (a system with memories must start at 0).
    """
    spec, device = system.backbone.spec, system.device
    view = config.view_of(video.size, spec)
    half = system.recipe is not None and system.recipe.precision == "bf16"
    states: States = {}
    for place in windows(video.frame_count, config.window, config.step, first):
        clip = _clip(video, view, place, spec.multiple[0]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            predictions, states = system.step(clip, states, shift=config.step)
        yield Finished(place.start, place.final, _first_frames(predictions, place.final))


def _clip(video: Video, view: View, place: Window, multiple: int) -> Clip:
    """The window's frames as the network sees them; the last frame is repeated up to the backbone's multiple."""
    wanted = -(-place.frames // multiple) * multiple
    indices = [place.start + min(i, place.frames - 1) for i in range(wanted)]
    return Clip(view.apply(video.read(indices))[None], times=video.times(indices)[None].float())


def _first_frames(predictions: Predictions, count: int) -> Predictions:
    return Predictions({name: attrs.evolve(item, values=item.values[:, :count]) for name, item in predictions.items()})


def collect(parts: Iterable[Finished], frame_count: int, limit: int) -> Predictions:
    """All frames of a short video in the CPU's memory.

    Raises:
        RunError: together they would take more than `limit` bytes.
    """
    whole: dict[str, Tensor] = {}
    units: dict[str, str] = {}
    for part in parts:
        if not whole:
            whole = _room(part, frame_count, limit)
            units = {name: item.unit for name, item in part.predictions.items()}
        for name, item in part.predictions.items():
            whole[name][:, part.first : part.first + part.frames] = item.values
    return Predictions({name: Prediction(values, units[name]) for name, values in whole.items()})


def _room(part: Finished, frame_count: int, limit: int) -> dict[str, Tensor]:
    items = {name: item.values for name, item in part.predictions.items()}
    needed = sum(values[:, :1].nbytes for values in items.values()) * frame_count
    if needed > limit:
        raise RunError(
            f"the predictions of {frame_count} frames would take {needed / 2**30:.1f} GB of memory; write them to disk "
            "by a predict stage of `fourd run`, or use a smaller view"
        )
    return {
        name: torch.empty(values.shape[0], frame_count, *values.shape[2:], dtype=values.dtype)
        for name, values in items.items()
    }
