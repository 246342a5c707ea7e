"""A video of any length through a system, one window after another, in constant memory.

Windows of `window` frames start every `stride` frames; the last one is filled up by repeating the last frame. Where
windows overlap the later one counts, so a window's first `stride` frames are final as soon as it is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import attrs
import torch

from fourd_core.data import Clip, Prediction, Predictions
from fourd_core.interfaces import Video
from fourd_core.media.views import View
from fourd_core.system import States, System


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
def stream(
    system: System, video: Video, view: View, window: int, stride: int, first: int = 0, precision: str = "fp32"
) -> Iterator[Finished]:
    """Predictions of a whole video as they become final.

    Args:
        system: in evaluation mode.
        view: how a frame of the video becomes the network's input.
        window: frames per forward pass.
        stride: frames between two windows' starts.
        first: where to go on; a multiple of `stride` (a system with memories must start at 0).
    """
    multiple = system.backbone.spec.multiple[0]
    states: States = {}
    for place in windows(video.frame_count, window, stride, first):
        clip = _clip(video, view, place, multiple, system.device)
        with torch.autocast(system.device.type, torch.bfloat16, enabled=precision == "bf16"):
            predictions, states = system.step(clip, states, shift=stride)
        yield Finished(place.start, place.final, _first_frames(predictions, place.final))


def _clip(video: Video, view: View, place: Window, multiple: int, device: torch.device) -> Clip:
    """The window's frames as the network sees them, filled up to a multiple of the backbone's frames."""
    wanted = -(-place.frames // multiple) * multiple
    indices = [place.start + min(i, place.frames - 1) for i in range(wanted)]
    frames = view.apply(video.read(indices).to(device))
    return Clip(frames[None], times=video.times(indices)[None]).to(device)


def _first_frames(predictions: Predictions, count: int) -> Predictions:
    return Predictions({name: attrs.evolve(item, values=item.values[:, :count]) for name, item in predictions.items()})


def concatenate(parts: list[Finished]) -> Predictions:
    """All frames of a short video in one piece."""
    names = parts[0].predictions
    return Predictions(
        {
            name: Prediction(torch.cat([part.predictions[name].values for part in parts], dim=1), item.unit)
            for name, item in names.items()
        }
    )
